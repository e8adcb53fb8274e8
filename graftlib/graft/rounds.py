"""Count the steps that optimizers really took, and ask the device as seldom as can be.

In: which linked tensors an optimizer stepped, and, under GradScaler with a fused optimizer, the flag on the device that
says whether the kernel left them alone. Out: the number of rounds; one is complete when every tensor of the clock has
been stepped. Always true: reading a flag makes the host wait for the device, so flags are kept and read together, only
when somebody needs the exact count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from .linked import LinkedTensor

__all__ = ["Rounds"]

UNREAD = 1000  # flags are read after so many steps at the latest


class Rounds:
    """The count, with its still unread steps.

    Args:
        clock: the tensors that must have been stepped for a round to be complete.

    Attributes:
        known: complete rounds as of the last `read`.
        at_most: what `known` will be if no unread step was skipped.
        stepped: those of the clock that have been stepped since the last complete round.
    """

    def __init__(self, clock: frozenset[LinkedTensor]) -> None:
        self.clock = clock
        self.start(0, ())

    def start(self, known: int, stepped: Iterable[LinkedTensor]) -> None:
        """Go on from a count; unread steps are forgotten."""
        self.known = self.at_most = known
        self.stepped = set(stepped)
        self._hoped = set(self.stepped)
        self._unread: list[tuple[Collection[LinkedTensor], Tensor | None]] = []

    def hear(self, owned: Collection[LinkedTensor], found_inf: Tensor | None) -> None:
        """An optimizer was stepped that owns `owned`; it left them alone where `found_inf` is given and not zero."""
        self._unread.append((owned, found_inf))
        self._hoped, complete = _heard(self._hoped, owned, self.clock)
        self.at_most += complete
        if (found_inf is None and len(self._unread) == 1) or len(self._unread) >= UNREAD:
            self.read()

    def read(self) -> int:
        """The exact count; at most one host sync, and none where no flag is unread."""
        flags = [flag for _, flag in self._unread if flag is not None]
        answers = iter(
            torch.stack([flag.reshape(()).float() for flag in flags]).tolist() if flags else ()
        )
        for owned, flag in self._unread:
            if flag is None or not next(answers):
                self.stepped, complete = _heard(self.stepped, owned, self.clock)
                self.known += complete
        self._unread.clear()
        self.at_most, self._hoped = self.known, set(self.stepped)
        return self.known

    @property
    def exact(self) -> bool:
        """Whether no flag is unread."""
        return not self._unread


def _heard(
    stepped: set[LinkedTensor], owned: Collection[LinkedTensor], clock: frozenset[LinkedTensor]
) -> tuple[set[LinkedTensor], bool]:
    stepped = {*stepped, *owned}
    return (set(), True) if clock <= stepped else (stepped, False)
