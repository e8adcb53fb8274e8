"""Write one file, whole or not at all.

In: a path and what it shall hold. Out: the file. Always true: a reader sees the old file or the new one, never half of
it; where the disk refuses, the old file is as it was and nothing is left beside it.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from uuid import uuid4

from .errors import GraftError

__all__ = ["write_whole"]

_FULL = {errno.ENOSPC, errno.EDQUOT}


def write_whole(path: Path, content: str | bytes, *, error: type[GraftError] = GraftError) -> None:
    """Write `content` to a temporary name beside `path`, then rename it.

    Args:
        path: the file; its folder must exist.
        content: bytes, or text that is written as UTF-8 (what UTF-8 cannot hold, as a backslash escape).
        error: the member of the family to raise.

    Raises:
        GraftError: the folder does not exist or may not be written to, or the disk is full.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    # Not tempfile: its files are private to the user, and a result is as readable as any other file.
    temporary = path.with_name(f".{path.name[:32]}.{uuid4().hex}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as refusal:
        room = "with room on its disk" if refusal.errno in _FULL else "that you may write to"
        raise error(
            f"{str(path)!r} cannot be written; what was there before is unchanged.",
            why=refusal.strerror or str(refusal),
            fix=f"name a file in a folder that exists and {room}",
            path=path,
        ) from refusal
