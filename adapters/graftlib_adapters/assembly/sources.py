"""The sources of an assembly by number, each when it is asked for; a generator's are gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import AssemblyError
from .zoo import Args, Source, sources_of

__all__ = ["Sources"]


class Sources:
    """Sources by number: all of them where they can be had again, else those not yet passed."""

    def __init__(self, sources: Any, args: Args, kwargs: Mapping[str, Any] | None) -> None:
        each = sources_of(sources, args, kwargs)
        self.again = not isinstance(sources, Iterator)
        """Whether a source can be had twice."""
        self._list = list(each) if self.again else []
        self._stream = each
        self._passed = 0

    def __len__(self) -> int:
        """How many; 0 where nobody knows."""
        return len(self._list)

    def get(self, number: int) -> Source | None:
        """The source of that number; None behind the last.

        Raises:
            AssemblyError: it came from a generator and is gone.
        """
        if self.again:
            return self._list[number] if number < len(self._list) else None
        if number < self._passed:
            raise AssemblyError(
                f"source {number} came from a generator and cannot be had again.",
                fix="pass sources= anew, or a list of ZooEntry in place of the generator",
            )
        source: Source | None = None
        while self._passed <= number:
            source = next(self._stream, None)
            self._passed += 1
            if source is None:
                return None
        return source
