"""What is kept of each transfer, and as plain data in a graft's state."""

from __future__ import annotations

from typing import Any

from msgspec import field

from ..documents import Count, FrozenRecord, to_plain

__all__ = ["Change", "Spectrum", "Transfer"]


class Spectrum(FrozenRecord, frozen=True):
    """The largest singular values of a matrix, at most 64, before and after a transfer.

    Attributes:
        before: largest first.
        after: the same.
    """

    before: list[float]
    after: list[float]


class Change(FrozenRecord, frozen=True, omit_defaults=True):
    """What a transfer did to one matrix.

    Attributes:
        size: Frobenius norm of the change over that of the matrix before.
        cosine: between the matrix before and after, both flattened.
        spectrum: None where it was not recorded.
    """

    size: float
    cosine: float
    spectrum: Spectrum | None = None


class Transfer(FrozenRecord, frozen=True, omit_defaults=True):
    """One transfer.

    Attributes:
        number: of the transfer, from 0.
        step: the optimizer step of the target that it preceded, from 0.
        links: names of the links that took part.
        changes: name of each matrix that was written -> what was done to it.
        facts: link name -> what the adapter reports of itself, such as omega.
        signal: name of each tensor that was written -> norm of what the adapter was updated from; empty until then.
        skipped: why it did not take place, or did not update the adapter; None where it did.
    """

    number: Count
    step: Count
    links: tuple[str, ...]
    changes: dict[str, Change]
    facts: dict[str, list[float]]
    signal: dict[str, float] = field(default_factory=dict)
    skipped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Dicts, lists, texts and numbers; what is empty or None by default is left out.

        >>> Transfer(number=0, step=4, links=("a -> b",), changes={}, facts={}).to_dict()
        {'number': 0, 'step': 4, 'links': ['a -> b'], 'changes': {}, 'facts': {}}
        """
        plain: dict[str, Any] = to_plain(self)
        return plain

    def scalars(self) -> dict[str, float]:
        """Numbers under names, as loggers take them: ``size/…``, ``cosine/…``, ``signal/…``, and each fact of a link.

        >>> done = Change(size=0.1, cosine=0.99)
        >>> Transfer(number=0, step=4, links=("l",), changes={"w": done}, facts={"l": [0.5]}).scalars()
        {'size/w': 0.1, 'cosine/w': 0.99, 'l/0': 0.5}
        """
        numbers = {f"size/{name}": one.size for name, one in self.changes.items()}
        numbers |= {f"cosine/{name}": one.cosine for name, one in self.changes.items()}
        numbers |= {f"signal/{name}": norm for name, norm in self.signal.items()}
        facts = self.facts.items()
        return numbers | {f"{link}/{i}": x for link, row in facts for i, x in enumerate(row)}
