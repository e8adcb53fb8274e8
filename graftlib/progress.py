"""Long work says how far it is; where a bar is open, that becomes percent and time left on stderr.

In: `part` around the steps of long work, `track` around its loops, `pulse` around what cannot say how far it is,
`note` for a word, at any depth of the library.
Out: a bar while `bar` is open in the same thread. Always true: without one nothing is shown, and results never depend
on it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

__all__ = ["bar", "note", "part", "pulse", "track"]

T = TypeVar("T")

_WIDTH = 60


class _Bar:
    """An open bar, and the shares of it, 0.0 to 1.0, that the present work goes from and to."""

    def __init__(self, rich: Any, task: Any) -> None:
        self._rich, self._task, self._reached = rich, task, 0.0
        self.begin, self.end = 0.0, 1.0

    def reach(self, share: float) -> None:
        """So much of all is done; never less than before."""
        self._reached = share = max(share, self._reached)
        self._rich.update(self._task, total=1.0, completed=share)

    def pulse(self) -> None:
        """How far the present work is, nobody knows; until `reach`."""
        self._rich.tasks[0].total = None

    def note(self, what: str) -> None:
        self._rich.update(self._task, note=_short(what))


_open: ContextVar[_Bar | None] = ContextVar("graftlib_bar", default=None)


@contextmanager
def bar(task: str, show: bool | None = None) -> Iterator[None]:
    """A bar on stderr while the block runs; it pulses until the work says how far it is.

    Args:
        task: what is done; names in it are untrusted and shown without control characters.
        show: None: where stderr is a terminal.
    """
    if _open.get() is not None or not (sys.stderr.isatty() if show is None else show):
        yield  # inside of another bar, work is a part of that one's
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    class Left(ProgressColumn):
        def render(self, task: Task) -> str:
            left = task.time_remaining
            return f"{timedelta(seconds=int(left))} left" if left else ""

    shown = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        Left(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with shown:
        _open.set(_Bar(shown, shown.add_task(_short(task), total=None, note="")))
        try:
            yield
        finally:
            _open.set(None)


@contextmanager
def part(begin: float, end: float) -> Iterator[None]:
    """Count what the block does as these shares, 0.0 to 1.0, of the work around it."""
    opened = _open.get()
    if opened is None:
        yield
        return
    around = opened.begin, opened.end
    start, width = around[0], around[1] - around[0]
    opened.begin, opened.end = start + begin * width, start + end * width
    opened.reach(opened.begin)
    try:
        yield
        opened.reach(opened.end)
    finally:
        opened.begin, opened.end = around


@contextmanager
def pulse() -> Iterator[None]:
    """Show no share while the block runs: it is long, and does not say how far it is."""
    opened = _open.get()
    if opened is None:
        yield
        return
    opened.pulse()
    try:
        yield
    finally:
        opened.reach(opened.begin)


def track(items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """The items, each an equal part of the work around it.

    Args:
        items: gone through once, as they come.
        total: how many; None: ``len(items)``. Where nobody knows, nothing is said of how far it is.

    >>> list(track("ab"))
    ['a', 'b']
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else 0
    for number, item in enumerate(items):
        if number < total:
            with part(number / total, (number + 1) / total):
                yield item
        else:
            yield item


def note(what: str) -> None:
    """Say a word beside the bar: the step that was done, what is tried."""
    opened = _open.get()
    if opened is not None:
        opened.note(what)


def _short(text: str) -> str:
    """One line without control characters."""
    plain = ascii(text)[1:-1]
    return plain if len(plain) <= _WIDTH else plain[: _WIDTH - 1] + "…"
