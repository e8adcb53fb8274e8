"""The folder that the demo writes: all of its files or none.

In: a path. Out: a temporary folder inside it, whose files are renamed to their places when everything held. Always
true: a path that cannot be written is refused before any training; after an error or Ctrl-C everything is as it was.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from graftlib.errors import GraftError

__all__ = ["FILES", "workshop"]

FILES = {
    "slim.onnx": "the grafted target, its graft taken off, proven in onnxruntime",
    "mapping.html": "both models and the links between them, one page that works offline",
    "mapping.yaml": "the same links as data, for Mapping.load",
    "curves.png": "loss, accuracy, omega and the size of each transfer",
    "report.json": "every figure, with seeds, versions and arguments",
}
"""What is written, and what each file is."""


@contextmanager
def workshop(out: Path) -> Iterator[Path]:
    """A temporary folder inside `out`, which is made where it is missing.

    Raises:
        GraftError: `out` cannot be written, or one of the files' names is taken by a folder.
    """
    made = _make(out)
    try:
        stage = Path(tempfile.mkdtemp(prefix=".graftlib-demo.", dir=out))
    except OSError as error:
        _remove(made)
        raise _unwritable(out, error) from error
    try:
        yield stage
        _move(stage, out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        _remove(made)


def _make(out: Path) -> list[Path]:
    """Make `out`; the folders that were missing, innermost first."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from error
    taken = [name for name in FILES if (out / name).is_dir()]
    if taken:
        raise GraftError(
            f"{str(out / taken[0])!r} is a folder, and a file of that name is to be written.",
            fix="name another folder with --out",
        )
    return missing


def _move(stage: Path, out: Path) -> None:
    try:
        for file in sorted(stage.iterdir()):
            file.replace(out / file.name)
    except OSError as error:
        raise _unwritable(out, error) from error


def _remove(made: list[Path]) -> None:
    """Take away the folders that were made here, as far as they are empty."""
    with suppress(OSError):
        for folder in made:
            folder.rmdir()


def _unwritable(out: Path, error: OSError) -> GraftError:
    return GraftError(
        f"the folder {str(out)!r} cannot be written.",
        why=error.strerror or str(error),
        fix="name a folder that you may write to with --out",
    )
