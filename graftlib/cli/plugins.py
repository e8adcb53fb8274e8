"""Commands from other packages, by the entry point group ``graftlib.commands``.

In: entry points. The entry point's name is the command's name; its value is a function
``register(app: typer.Typer) -> None`` that adds a command, or a sub-app, of that name. Out: that command, loaded only
when it is called, since loading it may import torch. The help page needs one line for it: the first line of the
docstring of the entry point's module, which is read and not run.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import typer
import typer.main
from typer.core import TyperCommand

from ..errors import GraftError
from .console import complain

__all__ = ["GROUP", "load", "names", "stand_in"]

GROUP = "graftlib.commands"


def names() -> list[str]:
    """The names of all plug-ins, sorted."""
    return sorted(_points())


def stand_in(name: str) -> Any:
    """A command that only has a name and one line of help; None where there is no such plug-in."""
    point = _points().get(name)
    if point is None:
        return None
    return TyperCommand(name, help=_first_line(point))


def load(name: str) -> Any:
    """The command `name`, loaded from its package.

    Raises:
        GraftError: the package cannot be imported, or does not register a command of that name. Errors of our own
            family (a missing extra) pass unchanged.
    """
    point = _points()[name]
    app = typer.Typer()
    app.callback()(lambda: None)  # a Typer with one command and no callback is not a group
    try:
        point.load()(app)
        group: Any = typer.main.get_command(app)
    except GraftError:
        raise
    except Exception as error:
        raise _broken(point, f"{type(error).__name__}: {error}") from error
    if name not in group.commands:
        raise _broken(point, f"it registers {sorted(group.commands)} instead")
    return group.commands[name]


def _broken(point: EntryPoint, why: str) -> GraftError:
    return GraftError(
        f"the command {point.name!r} comes from another package and cannot be loaded.",
        where={"plug-in": point.value},
        why=why,
        fix="reinstall or remove that package; the other commands are not affected",
    )


@functools.cache
def _points() -> dict[str, EntryPoint]:
    try:
        return {point.name: point for point in entry_points(group=GROUP)}
    except Exception as error:  # the metadata of any installed package may be malformed
        complain(f"warning: plug-ins are left out, their list cannot be read: {error}")
        return {}


def _first_line(point: EntryPoint) -> str:
    """The first line of the plug-in module's docstring, without importing its parent packages."""
    package = point.module.partition(".")[0]
    missing = f"(from {package}, which cannot be found)"
    try:
        # Only for a top-level name does find_spec import nothing.
        spec = importlib.util.find_spec(package)
        if spec is None:
            return missing
        homes = [Path(home).parent for home in spec.submodule_search_locations or ()]
        homes += [Path(spec.origin).parent] if spec.origin and not homes else []
        inside = Path(*point.module.split("."))
        for home in homes:
            for file in (home / inside.with_suffix(".py"), home / inside / "__init__.py"):
                if file.is_file():
                    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
                    return text.partition("\n")[0] or f"(from {package})"
    except (OSError, SyntaxError, ValueError, ImportError):
        return missing
    return missing
