"""Which grafts are alive, so that exporting a model or attaching twice can find them.

In: grafts, as they are attached. Out: those that write to a given model's parameters. Grafts are held weakly: one that
nobody keeps, and no optimizer follows, is gone.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from torch import nn

from ..errors import TransferError

if TYPE_CHECKING:
    from .graft import Graft

__all__ = ["grafts_of", "settled"]

_alive: weakref.WeakSet[Graft] = weakref.WeakSet()


def enter(graft: Graft) -> None:
    """Count `graft` among the living."""
    _alive.add(graft)


def leave(graft: Graft) -> None:
    """Count it no longer."""
    _alive.discard(graft)


def grafts_of(model: nn.Module) -> list[Graft]:
    """The living grafts that write to a parameter of `model` (wrapped or not)."""
    mine = {id(parameter) for parameter in model.parameters()}
    return [graft for graft in list(_alive) if any(id(p) in mine for p in _written(graft))]


def _written(graft: Graft) -> Iterator[nn.Parameter]:
    for tensor in graft.plan.written:
        # A model that lost the parameter since is somebody else's trouble, told when that graft transfers.
        with suppress(TransferError):
            yield tensor.live()


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """Inside, every parameter of `model` holds its settled weights, whatever grafts are attached to it.

    A write that no optimizer step has consumed is taken back on entering and put in place again on leaving.
    """
    with ExitStack() as stack:
        for graft in grafts_of(model):
            stack.enter_context(graft.settled())
        yield
