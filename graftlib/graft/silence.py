"""What a graft cannot hear, and what is left when nobody takes it off.

In: the tensors that a graft writes. Out: at most one warning of each kind, which names the cause: an optimizer steps
them that the graft does not hear, they move though no step was heard, or no gradient ever reaches them; and the settled
weights, where a graft is garbage-collected while a write of its is pending. Always true: nothing is inserted into a
forward pass; one hook sits on one written parameter, until the first step is heard.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..errors import TransferError
from .linked import LinkedTensor, TransferWarning, Write
from .plan import Plan

__all__ = ["LeftPending", "Silence", "warn_of_unlearnable"]

UNTAUGHT = 3  # so many steps without a gradient, from the first on, are worth a word


class Silence:
    """Notices that a graft's steps are not heard, or that its targets do not learn.

    Args:
        plan: of the graft.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._others: weakref.WeakSet[Optimizer] = (
            weakref.WeakSet()
        )  # step nothing that the graft writes
        self._told = False  # of steps that are not heard
        self._heard = False
        self._watch: _Watch | None = None
        # How many steps each tensor of the clock has had, all of them without a gradient.
        self._untaught = {tensor: 0 for tensor in plan.clock if tensor.live().requires_grad}

    def watch(self) -> None:
        """Look, at each gradient until the first step is heard, whether the weights move all the same."""
        if self._heard or self._told or self._watch is not None:
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

    def hear(self) -> None:
        """A step that the graft hears is about to be taken."""
        self._heard = True
        self.rest()

    @property
    def complete(self) -> bool:
        """Whether every tensor of the clock has had a gradient, or was told not to have any."""
        return not self._untaught

    def update(self, owned: Collection[LinkedTensor]) -> None:
        """An optimizer that owns `owned` is about to update its parameters from their gradients."""
        for tensor in owned:
            if tensor not in self._untaught:
                continue
            if tensor.live().grad is not None:
                del self._untaught[tensor]
                continue
            self._untaught[tensor] += 1
            if self._untaught[tensor] == UNTAUGHT:
                del self._untaught[tensor]
                _warn(
                    f"'{tensor.name}' had no gradient at its first {UNTAUGHT} optimizer steps: it is frozen, or the "
                    "loss does not depend on it, so the adapter learns nothing from it. Unfreeze it, or link another "
                    "parameter."
                )

    def overhear(self, optimizer: Optimizer, followed: Sequence[Optimizer]) -> None:
        """An optimizer has stepped that the graft does not listen to: say so, where it steps what the graft writes."""
        if self._told or optimizer in self._others:
            return
        mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        stepped = []
        for tensor in self._plan.written:
            with suppress(TransferError):
                stepped += [tensor.name] if id(tensor.live()) in mine else []
        if not stepped:
            self._others.add(optimizer)
            return
        kind, names = type(optimizer).__name__, ", ".join(stepped)
        if followed:
            others = ", ".join(type(one).__name__ for one in followed)
            self._tell(
                f"the steps of this {kind} on {names} are not heard: the graft follows another optimizer ({others}). "
                "Transfers wait for steps of that one. Detach, attach again and follow the optimizer whose step() "
                "runs; of a wrapper, such as SAM or a replaced optimizer, the one that it steps inside."
            )
        else:
            self._tell(
                f"this {kind} stepped {names} outside of `with graft.step():`, so the step is not heard, and the "
                "transfer before it teaches the adapter nothing. Call optimizer.step() inside the block."
            )

    def moved(self, name: str) -> None:
        """Gradients arrive at the parameter `name`, and its values change between them, but no step is heard."""
        self._tell(
            f"'{name}' has gradients and moves, but no optimizer step is heard: the graft never transfers again, and "
            "the adapter learns nothing. Follow the torch optimizer whose step() runs (of a wrapper such as SAM, its "
            "base optimizer), or step inside `with graft.step():`. Steps that are written by hand cannot be heard."
        )

    def explain(self, tensor: LinkedTensor) -> None:
        """A pending write was not in place when the graft was taken off."""
        with suppress(TransferError):
            if tensor.live().grad is not None:
                self.moved(tensor.name)

    def _tell(self, text: str) -> None:
        self.rest()
        if not self._told:
            self._told = True
            _warn(text)


class _Watch:
    """A hook on one parameter that runs after each gradient has arrived."""

    def __init__(self, silence: weakref.ref[Silence], name: str, parameter: nn.Parameter) -> None:
        self.silence, self.name = silence, name
        self.last, self.moves = parameter.detach().clone(), 0
        self.handle: RemovableHandle = (
            parameter.register_post_accumulate_grad_hook(self.look)  # type: ignore[no-untyped-call]
        )

    def remove(self) -> None:
        self.handle.remove()

    @torch.no_grad()
    def look(self, parameter: Tensor) -> None:
        silence = self.silence()
        if silence is None or torch.equal(parameter.detach().to(self.last), self.last):
            return
        self.last = parameter.detach().clone()
        self.moves += 1
        # The first move may be a checkpoint that was loaded late.
        if self.moves > 1:
            silence.moved(self.name)


class LeftPending:
    """The pending writes of a graft, held without the graft or its models, for when it is garbage-collected."""

    def __init__(self) -> None:
        self._writes: list[tuple[weakref.ref[nn.Module], str, str, Tensor, Tensor]] = []

    def remember(self, writes: Iterable[Write]) -> None:
        """From now on these are pending, and no others."""
        self._writes = [
            (weakref.ref(w.tensor.model), w.tensor.side, w.tensor.fqn, w.settled, w.written)
            for w in writes
        ]

    def forget(self) -> None:
        """Nothing is pending."""
        self._writes = []

    def settle(self) -> None:
        """Take back what is pending, wherever the model still lives and holds it."""
        for reference, side, fqn, settled, written in self._writes:
            model = reference()
            if model is None:
                continue
            write = Write(LinkedTensor(side, model, fqn), settled, written, False, False)
            with suppress(TransferError):
                write.settle(versioned=False)


def warn_of_unlearnable(plan: Plan) -> None:
    """Say which written tensors are frozen, or are read by no op of the traced forward pass."""
    frozen = [tensor.name for tensor in plan.written if not tensor.live().requires_grad]
    if frozen:
        _warn(
            f"{', '.join(frozen)}: frozen (requires_grad=False), so no optimizer trains what the graft writes there, "
            "and the adapter learns nothing from it. Unfreeze it, or link in the other direction."
        )
    unread = [plan.slots[i].name for i in plan.receivers if plan.parameters[i].depth is None]
    if unread:
        _warn(
            f"{', '.join(unread)}: the traced forward pass never reads it, so it gets no gradient, and the adapter "
            "learns nothing from it. Link a parameter that the model uses."
        )


def _warn(text: str) -> None:
    warnings.warn(text, TransferWarning, stacklevel=5)
