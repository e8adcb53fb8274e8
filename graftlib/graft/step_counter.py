"""Count the steps that optimizers really took, and ask the device as seldom as can be.

In: which linked tensors an optimizer stepped, and, under GradScaler with a fused optimizer, the flag on the device that
says whether the kernel left them alone. Out: the number of steps; one is complete when every counted tensor has been
stepped. Always true: reading a flag makes the host wait for the device, so flags are kept and read together, only
when somebody needs the exact count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import Tensor

from .host_read import read_together
from .linked import LinkedTensor

__all__ = ["StepCounter"]

UNREAD = 1000  # flags are read after so many steps at the latest


class StepCounter:
    """The count, with its still unread steps.

    Args:
        counted: the tensors that must have been stepped for a step to be complete.

    Attributes:
        known: complete steps as of the last `read`.
        at_most: what `known` will be if no unread step was skipped.
        stepped: those of `counted` that have been stepped since the last complete step.
    """

    def __init__(self, counted: frozenset[LinkedTensor]) -> None:
        self.counted = counted
        self.start(0, ())

    def start(self, known: int, stepped: Iterable[LinkedTensor]) -> None:
        """Go on from a count; unread steps are forgotten."""
        self.known = self.at_most = known
        self.stepped = set(stepped)
        self._stepped_at_most = set(self.stepped)
        self._unread: list[tuple[Collection[LinkedTensor], Tensor | None]] = []

    def record(self, owned: Collection[LinkedTensor], found_inf: Tensor | None) -> None:
        """An optimizer was stepped that owns `owned`; it left them alone where `found_inf` is given and not zero."""
        self._unread.append((owned, found_inf))
        self._stepped_at_most, complete = _added(self._stepped_at_most, owned, self.counted)
        self.at_most += complete
        if (found_inf is None and len(self._unread) == 1) or len(self._unread) >= UNREAD:
            self.read()

    def read(self) -> int:
        """The exact count; at most one host read, and none where no flag is unread."""
        flags = [flag.reshape(()) for _, flag in self._unread if flag is not None]
        skipped = iter(read_together(*flags))
        for owned, flag in self._unread:
            if flag is None or not next(skipped)[0]:
                self.stepped, complete = _added(self.stepped, owned, self.counted)
                self.known += complete
        self._unread.clear()
        self.at_most, self._stepped_at_most = self.known, set(self.stepped)
        return self.known

    @property
    def exact(self) -> bool:
        """Whether no flag is unread."""
        return not self._unread


def _added(
    stepped: set[LinkedTensor], owned: Collection[LinkedTensor], counted: frozenset[LinkedTensor]
) -> tuple[set[LinkedTensor], bool]:
    stepped = {*stepped, *owned}
    return (set(), True) if counted <= stepped else (stepped, False)
