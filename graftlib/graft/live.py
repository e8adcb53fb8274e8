"""Which grafts are alive: for exporting a model, for attaching twice, and for hearing the steps of every optimizer.

In: grafts, as they are attached; the steps of all optimizers of the process, from the first `Graft.follow` or
`Graft.step` on. Out: the grafts that write to a given model's parameters; each step, told to every living graft. Always
true: grafts are held weakly, and one that nobody keeps, and no optimizer follows, is gone; torch's global hooks are a
pair that is set once and stays, so that no thread ever sees the set of hooks change under it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ..errors import TransferError

if TYPE_CHECKING:
    from .graft import Graft

__all__ = ["grafts_of", "settled"]

_LOCK = (
    threading.RLock()
)  # collecting garbage inside the lock may end another graft, in this thread
_alive: weakref.WeakSet[Graft] = weakref.WeakSet()
_listening = False


def enter(graft: Graft) -> None:
    """Count `graft` among the living."""
    with _LOCK:
        _alive.add(graft)


def leave(graft: Graft) -> None:
    """Count it no longer."""
    with _LOCK:
        _alive.discard(graft)


def grafts() -> list[Graft]:
    """The living grafts, in no particular order."""
    with _LOCK:
        return list(_alive)


def listen() -> None:
    """Set the pair of global optimizer hooks, if it is not set yet."""
    global _listening
    with _LOCK:
        if not _listening:
            register_optimizer_step_pre_hook(_before_step)
            register_optimizer_step_post_hook(_after_step)
            _listening = True


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
    changed = None
    for graft in grafts():
        answer = graft._any_step_begins(optimizer, args, kwargs)
        if answer is not None:
            changed = args, kwargs = answer
    return changed


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for graft in grafts():
        graft._any_step_ended(optimizer, args, kwargs)


def grafts_of(model: nn.Module) -> list[Graft]:
    """The living grafts that write to a parameter of `model` (wrapped or not)."""
    mine = {id(parameter) for parameter in model.parameters()}
    return [graft for graft in grafts() if any(id(p) in mine for p in written(graft).values())]


def written(graft: Graft) -> dict[str, nn.Parameter]:
    """The parameters that `graft` writes, by name; those that the model still has."""
    parameters = {}
    for tensor in graft.plan.written:
        # A model that lost the parameter since is somebody else's trouble, told when that graft transfers.
        with suppress(TransferError):
            parameters[tensor.name] = tensor.live()
    return parameters


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """Inside, every parameter of `model` holds its settled weights, whatever grafts are attached to it.

    A write that no optimizer step has consumed is taken back on entering and put in place again on leaving.
    """
    with ExitStack() as stack:
        for graft in grafts_of(model):
            stack.enter_context(graft.settled())
        yield
