"""Warn of steps that a graft misses, and of targets that are not trained.

In: the tensors that a graft writes. Out: at most one warning of each kind, which names the cause: an optimizer steps
them that the graft does not count, they move though no step was counted, or no gradient ever reaches them. Always true:
nothing is inserted into a forward pass; one hook sits on one written parameter, until the first step is counted.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..errors import TransferError
from .linked import LinkedTensor, TransferWarning, owns
from .plan import Plan

__all__ = ["MissedSteps", "warn_of_untrained"]

NO_GRADIENT = 3  # so many steps without a gradient, from the first on, are warned of


class MissedSteps:
    """Notices that a graft misses optimizer steps, or that its targets are not trained.

    Args:
        plan: of the graft.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        # Optimizers that step nothing that the graft writes.
        self._others: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._warned = False  # of steps that are missed
        self._counted = False
        self._watch: _Watch | None = None
        # How many steps each counted tensor has had, all of them without a gradient.
        self._no_gradient = {tensor: 0 for tensor in plan.counted if tensor.live().requires_grad}

    def watch(self) -> None:
        """Look, at each gradient until the first step is counted, whether the weights move all the same."""
        if self._counted or self._warned or self._watch is not None:
            return
        for tensor in self._plan.written:
            parameter = tensor.live()
            # FSDP keeps gradients away from autograd's accumulation, and its tensors are cut in parts.
            if parameter.requires_grad and parameter.is_leaf and not tensor.sharded:
                self._watch = _Watch(weakref.ref(self), tensor.name, parameter)
                return

    def rest(self) -> None:
        """Stop looking."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def count(self) -> None:
        """A step that the graft counts is about to be taken."""
        self._counted = True
        self.rest()

    @property
    def complete(self) -> bool:
        """Whether every counted tensor has had a gradient, or was warned of."""
        return not self._no_gradient

    def update(self, owned: Collection[LinkedTensor]) -> None:
        """An optimizer that owns `owned` is about to update its parameters from their gradients."""
        for tensor in owned:
            if tensor not in self._no_gradient:
                continue
            if tensor.live().grad is not None:
                del self._no_gradient[tensor]
                continue
            self._no_gradient[tensor] += 1
            if self._no_gradient[tensor] == NO_GRADIENT:
                del self._no_gradient[tensor]
                _warn(
                    f"'{tensor.name}' had no gradient at its first {NO_GRADIENT} optimizer steps: it is frozen, or the "
                    "loss does not depend on it, so the adapter learns nothing from it. Unfreeze it, or link another "
                    "parameter."
                )

    def foreign_step(self, optimizer: Optimizer, followed: Sequence[Optimizer]) -> None:
        """An optimizer has stepped that the graft does not follow: warn where it steps what the graft writes."""
        if self._warned or optimizer in self._others:
            return
        stepped = []
        for tensor in self._plan.written:
            with suppress(TransferError):
                stepped += [tensor.name] if owns(optimizer, tensor) else []
        if not stepped:
            self._others.add(optimizer)
            return
        kind, names = type(optimizer).__name__, ", ".join(stepped)
        others = ", ".join(type(one).__name__ for one in followed)
        if followed:
            self._warn_once(
                f"the steps of this {kind} on {names} are not counted: the graft follows another optimizer ({others}). "
                "Transfers wait for steps of that one. Detach, attach again and follow the optimizer whose step() "
                "runs; of a wrapper, such as SAM or a replaced optimizer, the one that it steps inside."
            )
        else:
            self._warn_once(
                f"this {kind} stepped {names} outside of `with graft.step():`, so the step is not counted, and the "
                "adapter is not updated from the transfer before it. Call optimizer.step() inside the block."
            )

    def moved(self, name: str) -> None:
        """Gradients arrive at the parameter `name`, and its values change between them, but no step is counted."""
        self._warn_once(
            f"'{name}' has gradients and moves, but no optimizer step is counted: the graft never transfers again, and "
            "the adapter learns nothing. Follow the torch optimizer whose step() runs (of a wrapper such as SAM, its "
            "base optimizer), or step inside `with graft.step():`. Steps that are written by hand cannot be counted."
        )

    def explain(self, tensor: LinkedTensor) -> None:
        """A pending write was not in place when the graft was taken off."""
        with suppress(TransferError):
            if tensor.live().grad is not None:
                self.moved(tensor.name)

    def _warn_once(self, text: str) -> None:
        self.rest()
        if not self._warned:
            self._warned = True
            _warn(text)


class _Watch:
    """A hook on one parameter that runs after each gradient has arrived."""

    def __init__(
        self, missed: weakref.ref[MissedSteps], name: str, parameter: nn.Parameter
    ) -> None:
        self.missed, self.name = missed, name
        self.last, self.moves = parameter.detach().clone(), 0
        self.handle: RemovableHandle = (
            parameter.register_post_accumulate_grad_hook(self.look)  # type: ignore[no-untyped-call]
        )

    def remove(self) -> None:
        self.handle.remove()

    @torch.no_grad()
    def look(self, parameter: Tensor) -> None:
        missed = self.missed()
        if missed is None or torch.equal(parameter.detach().to(self.last), self.last):
            return
        self.last = parameter.detach().clone()
        self.moves += 1
        # The first move may be a checkpoint that was loaded late.
        if self.moves > 1:
            missed.moved(self.name)


def warn_of_untrained(plan: Plan) -> None:
    """Say which written tensors are frozen, or are read by no op of the traced forward pass."""
    frozen = [tensor.name for tensor in plan.written if not tensor.live().requires_grad]
    if frozen:
        _warn(
            f"{', '.join(frozen)}: frozen (requires_grad=False), so no optimizer trains what the graft writes there, "
            "and the adapter learns nothing from it. Unfreeze it, or link in the other direction."
        )
    unread = [plan.matrices[i].name for i in plan.targets if plan.parameters[i].depth is None]
    if unread:
        _warn(
            f"{', '.join(unread)}: the traced forward pass never reads it, so it gets no gradient, and the adapter "
            "learns nothing from it. Link a parameter that the model uses."
        )


def _warn(text: str) -> None:
    warnings.warn(text, TransferWarning, stacklevel=5)
