"""Who ties what: the op that is being read, and the ties it makes.

Rules run inside ``with Journal() as journal``. Without a journal the algebra works as well, its ties are then made by
``"hand"``.
"""

from __future__ import annotations

from contextvars import ContextVar, Token

__all__ = ["Journal", "current"]


class Journal:
    """The record of one reading of one graph.

    Args:
        skip: number of the tie that is left out, None for none: the control that a class is not too wide.

    Attributes:
        by: words for the op that is being read.
        ties: for each tie of two free atoms, the words of the op that made it; its number is its place.
    """

    def __init__(self, skip: int | None = None) -> None:
        self.by = "hand"
        self.ties: list[str] = []
        self._skip = skip
        self._token: Token[Journal | None] | None = None

    def __enter__(self) -> Journal:
        self._token = _current.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._token is not None
        _current.reset(self._token)

    def note(self) -> bool:
        """Number one tie of two free atoms; False where it is the one to leave out."""
        self.ties.append(self.by)
        return len(self.ties) - 1 != self._skip


_current: ContextVar[Journal | None] = ContextVar("axes journal", default=None)
_BY_HAND = Journal()


def current() -> Journal:
    """The journal of the innermost reading."""
    return _current.get() or _BY_HAND
