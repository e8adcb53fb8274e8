"""The sources of an assembly by number.

In: one source or an iterable of them. Out: each as a `Giver`, when it is asked for. Always true: a generator is asked
for its next source only when that one is needed, and no source is kept here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .permutation import AssemblyError
from .zoo import Args, Giver, givers

__all__ = ["Pool"]


class Pool:
    """Sources by number: all of them where they can be had again, else those not yet passed."""

    def __init__(self, sources: Any, args: Args, kwargs: Mapping[str, Any] | None) -> None:
        self._stream: Iterator[Giver] | None = None
        self._held: list[Giver] | None = None
        self._passed = 0
        found = givers(sources, args, kwargs)
        if isinstance(sources, Iterator):
            self._stream = found
        else:
            self._held = list(found)

    def __len__(self) -> int:
        """How many; 0 where nobody knows."""
        return len(self._held or ())

    @property
    def again(self) -> bool:
        """Whether a source can be had twice."""
        return self._held is not None

    def get(self, number: int) -> Giver | None:
        """The source of that number; None behind the last.

        Raises:
            AssemblyError: it came from a generator and is gone.
        """
        if self._held is not None:
            return self._held[number] if number < len(self._held) else None
        assert self._stream is not None
        if number < self._passed:
            raise AssemblyError(
                f"source {number} came from a generator and cannot be had again.",
                fix="pass sources= anew, or a list of ZooEntry in place of the generator",
            )
        giver: Giver | None = None
        while self._passed <= number:
            giver = next(self._stream, None)
            self._passed += 1
            if giver is None:
                return None
        return giver
