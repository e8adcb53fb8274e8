"""A bar on stderr with the time left; silent where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Progress", "progress"]

_WIDTH = 60


class Progress:
    """What long work says of itself; this one says nothing."""

    def describe(self, what: str) -> None:
        """Name what is being done."""

    def advance(self, what: str) -> None:
        """One more is done."""


class _Bar(Progress):
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def describe(self, what: str) -> None:
        self._bar.update(self._task, description=_short(what))

    def advance(self, what: str) -> None:
        self._bar.update(self._task, advance=1, description=_short(what))


@contextmanager
def progress(total: int, show: bool | None = None) -> Iterator[Progress]:
    """A bar over `total` sources.

    Args:
        total: how many; 0 where nobody knows: then it only pulses.
        show: None: where stderr is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Rich

    bar = Rich(
        BarColumn(20),
        TextColumn("{task.completed:,.0f}/{task.fields[all]} sources"),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        yield _Bar(bar, bar.add_task("starting", total=total or None, all=total or "?"))


def _short(text: str) -> str:
    """One line without control characters: names in it are untrusted."""
    plain = ascii(text)[1:-1]
    return plain if len(plain) <= _WIDTH else plain[: _WIDTH - 1] + "…"
