"""Steps that begin and end in different calls, as a trainer's callback sees them.

In: a graft; `begin` and `end`, in turn. Out: inside a step the graft's writes are in place; between two steps the
models hold their settled weights. Always true: beginning twice, ending twice and stopping at any point are harmless.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch.optim import Optimizer

from ..graft import Graft

__all__ = ["Steps", "unwrapped"]


class Steps:
    """A graft's steps, opened and closed by a trainer.

    Args:
        closure: the trainer evaluates the loss inside ``optimizer.step``.
    """

    def __init__(self, graft: Graft, *, closure: bool = False) -> None:
        self.graft, self.closure = graft, closure
        self._inside = ExitStack()
        self._between = ExitStack()

    def begin(self) -> None:
        """A step, or a part of one, begins: a transfer that is due is written."""
        self._inside.close()
        self._between.close()
        self._inside.enter_context(self.graft.step(closure=self.closure))

    def end(self) -> None:
        """It ended: the adapter learns; a write that no optimizer has consumed is put away until `begin`."""
        self._inside.close()
        self._between.close()
        self._between.enter_context(self.graft.settled())

    def finish(self) -> None:
        """Training ended, or goes on elsewhere: no hook is left, and the models hold their settled weights."""
        if self.graft.attached:
            self.end()
        self.graft.detach()
        self._between.close()


def unwrapped(optimizer: Any) -> Optimizer:
    """The torch optimizer inside a trainer's wrapper."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    inner: Optimizer = optimizer
    return inner
