"""The grafts that are attached: for exporting a model, for attaching twice, and for the steps of every optimizer.

In: grafts, as they are attached; the steps of all optimizers of the process, from the first `Graft.follow` or
`Graft.step` on. Out: the grafts that write to a given model's parameters; each step, reported to every attached graft.
Always true: grafts are held weakly, and one that nobody keeps, and no optimizer follows, is gone; torch's global hooks
are a pair that is set once and stays, so that no thread ever sees the set of hooks change under it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ..errors import TransferError
from .plan import Plan

__all__ = ["Attached", "grafts_of", "settled"]


class Attached(Protocol):
    """What the registry and the files need of a `Graft`; see there."""

    plan: Plan

    def settled(self) -> AbstractContextManager[Any]:
        """See `Graft.settled`."""

    def state_dict(self) -> dict[str, Any]:
        """See `Graft.state_dict`."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Graft.load_state_dict`."""

    def before_any_step(
        self, optimizer: Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, dict[str, Any]] | None:
        """Any optimizer of the process is about to step; new arguments for its step, or None."""

    def after_any_step(self, optimizer: Optimizer) -> None:
        """Any optimizer of the process has stepped."""


# Collecting garbage inside the lock may end another graft, in this thread.
_LOCK = threading.RLock()
_registered: weakref.WeakSet[Attached] = weakref.WeakSet()
_hooked = False


def register(graft: Attached) -> None:
    """`graft` is attached."""
    with _LOCK:
        _registered.add(graft)


def unregister(graft: Attached) -> None:
    """It no longer is."""
    with _LOCK:
        _registered.discard(graft)


def grafts() -> list[Attached]:
    """The attached grafts, in no particular order."""
    with _LOCK:
        return list(_registered)


def hook_optimizers() -> None:
    """Set the pair of global optimizer hooks, if it is not set yet."""
    global _hooked
    with _LOCK:
        if not _hooked:
            register_optimizer_step_pre_hook(_before_step)
            register_optimizer_step_post_hook(_after_step)
            _hooked = True


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
    changed = None
    for graft in grafts():
        answer = graft.before_any_step(optimizer, args, kwargs)
        if answer is not None:
            changed = args, kwargs = answer
    return changed


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for graft in grafts():
        graft.after_any_step(optimizer)


def grafts_of(model: nn.Module) -> list[Attached]:
    """The attached grafts that write to a parameter of `model` (wrapped or not)."""
    mine = {id(parameter) for parameter in model.parameters()}
    return [graft for graft in grafts() if any(id(p) in mine for p in _written(graft))]


def _written(graft: Attached) -> Iterator[nn.Parameter]:
    """The parameters that `graft` writes; those that the model still has."""
    for tensor in graft.plan.written:
        # A model that lost the parameter since is reported when that graft transfers.
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
