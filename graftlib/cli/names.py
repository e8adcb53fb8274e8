"""Names of models on the command line: ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER``, ``FILE.py:FACTORY``.

A name is untrusted text, and is looked up without importing torch, building a model or executing a file. The loading
is in `models`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import MissingExtraError, ModelNameError, nearest, shown

__all__ = ["FORMS", "ModelName", "find_model", "parse_shape"]

FORMS = "torchvision:NAME, timm:NAME, hf:FOLDER or FILE.py:FACTORY"
# A function below the decorator with which both libraries register it, and the name that this may give it.
_REGISTERED = re.compile(r"^@register_model(?:\(([^)]*)\))?\s*\n(?:.*\n)*?def (\w+)", re.MULTILINE)
_GIVEN_NAME = re.compile(r"name=[\"'](\w+)")


@dataclass(frozen=True)
class ModelName:
    """A name whose library knows it; nothing has been built or executed yet.

    Attributes:
        library: ``"torchvision"``, ``"timm"``, ``"hf"`` or ``"file"``.
        rest: what follows the colon; for a file, the factory's name.
        path: the folder or the file; None for torchvision and timm.
    """

    library: str
    rest: str
    path: Path | None = None

    def __str__(self) -> str:
        if self.library == "file":
            return f"{self.path}:{self.rest}"
        return f"{self.library}:{self.rest}"


def find_model(name: str) -> ModelName:
    """Look `name` up without building the model; a .py file is read and not executed.

    Raises:
        ModelNameError: nothing has that name; the message holds the nearest ones.
        MissingExtraError: the library that would know is not installed.
    """
    if not name.isprintable():
        raise ModelNameError(f"{shown(name)} holds characters that no model's name has.", fix=FORMS)
    library, colon, rest = name.partition(":")
    if colon and library in _FINDERS:
        return _FINDERS[library](rest)
    file, colon, factory = name.rpartition(":")
    if colon and file.endswith(".py"):
        return _find_factory(Path(file), factory)
    raise ModelNameError(
        f"{shown(name)} is not the name of a model.", near=_prefixed(name), fix=f"write {FORMS}"
    )


def _find_torchvision(rest: str) -> ModelName:
    names = _registered("torchvision", "vision")
    return ModelName("torchvision", _known(rest, names, "torchvision"))


def _find_timm(rest: str) -> ModelName:
    # A pretrained tag after the dot (resnet18.a1_in1k) chooses a configuration, which keeps its own input size.
    names = _registered("timm", "timm")
    known = rest if rest.partition(".")[0] in names else _known(rest, names, "timm")
    return ModelName("timm", known)


@functools.cache
def _registered(library: str, extra: str) -> tuple[str, ...]:
    """The names of a library's models, read from its source: importing it takes seconds, and a typo should not.

    Raises:
        MissingExtraError: the library is not installed.
    """
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            f"this needs {library}, which is not installed.", fix=f'pip install "graftlib[{extra}]"'
        )
    names = set()
    for file in Path(spec.submodule_search_locations[0], "models").rglob("*.py"):
        for entry in _REGISTERED.finditer(file.read_text("utf-8")):
            given = _GIVEN_NAME.search(entry[1] or "")
            names.add(given[1] if given else entry[2])
    return tuple(sorted(names))


def _find_folder(rest: str) -> ModelName:
    folder = Path(rest)
    try:
        folder = folder.expanduser()  # behind a colon the shell leaves the tilde alone
        found = (folder / "config.json").is_file()
        beside = sorted(p.name for p in folder.parent.iterdir() if (p / "config.json").is_file())
    except (OSError, RuntimeError):  # the latter for the home of a user there is not
        found, beside = False, []
    if not found:
        raise ModelNameError(
            f"{shown('hf:' + rest)} is not a folder with a config.json.",
            near=nearest(folder.name, beside),
            fix="name a local folder; to get one: hf download REPO --local-dir FOLDER",
        )
    return ModelName("hf", rest, folder)


def _find_factory(file: Path, factory: str) -> ModelName:
    try:
        if file.exists() and not file.is_file():  # a FIFO or a device might have no end
            raise OSError("it is no regular file")
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelNameError(
            f"{shown(str(file))} cannot be read.",
            why=str(getattr(error, "strerror", None) or error),
            near=nearest(file.name, _python_files(file.parent)),
            fix="write FILE.py:FACTORY",
        ) from error
    try:
        names = _top_level_names(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ModelNameError(f"{shown(str(file))} is not Python.", why=str(error)) from error
    if not factory.isidentifier():
        raise ModelNameError(
            f"{shown(factory)} is not the name of a function.",
            near=nearest(factory, names),
            fix="write FILE.py:FACTORY",
        )
    if "*" not in names:
        _known(factory, names, str(file))
    return ModelName("file", factory, file)


def _top_level_names(tree: ast.Module) -> list[str]:
    """The names that a module binds outside of functions and classes; ``*`` where it takes all of another's."""
    names: list[str] = []
    rest: list[ast.AST] = list(tree.body)
    while rest:
        node = rest.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
        elif isinstance(node, ast.alias):
            names.append(node.asname or node.name)
        rest.extend(ast.iter_child_nodes(node))
    return names


def _python_files(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.glob("*.py"))
    except OSError:
        return []


def _known(name: str, names: Sequence[str], home: str) -> str:
    if name in names:
        return name
    near = nearest(name, names)
    raise ModelNameError(
        f"{shown(home)} has no model {shown(name)}.",
        near=near,
        fix="use one of the nearest names" if near else f"it knows {len(names)}, none like this",
    )


def _prefixed(name: str) -> list[str]:
    """Full names of installed libraries' models that a bare name may have meant."""
    bare, near = name.rpartition(":")[2], []
    for library, extra in (("torchvision", "vision"), ("timm", "timm")):
        with contextlib.suppress(MissingExtraError):
            near += [f"'{library}:{bare}'"] if bare in _registered(library, extra) else []
    with contextlib.suppress(OSError):
        near += [f"'hf:{name}'"] if name and (Path(name) / "config.json").is_file() else []
        near += [f"'{name}:FACTORY'"] if name.endswith(".py") and Path(name).is_file() else []
    return near or list(nearest(name.partition(":")[0], ["torchvision", "timm", "hf"]))


_FINDERS: dict[str, Callable[[str], ModelName]] = {
    "torchvision": _find_torchvision,
    "timm": _find_timm,
    "hf": _find_folder,
}


def parse_shape(text: str) -> tuple[int, ...]:
    """The sizes in ``2x3x32x32``; ``scalar`` is no axis at all.

    Raises:
        ValueError: it is not of that form.

    >>> parse_shape("2x3x32x32")
    (2, 3, 32, 32)
    """
    if text == "scalar":
        return ()
    if not re.fullmatch(r"[0-9]{1,12}(x[0-9]{1,12})*", text):
        raise ValueError(f"{shown(text)} is not a shape such as 2x3x32x32")
    return tuple(int(size) for size in text.split("x"))
