"""One linked parameter tensor, and one write to it that can be taken back.

In: a model and an FQN; values in the tensor's own dtype and on its own device. Out: reads and in-place writes under
`no_grad`, which never replace the parameter object. Always true: a write that no optimizer step has consumed can be
settled, that is, the tensor gets back the very bits it had before.

This file is the only one that touches the user's parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import TransferError, nearest

__all__ = ["LinkedTensor", "Write", "owns"]


@dataclass(frozen=True, eq=False)
class LinkedTensor:
    """A parameter of a model by its FQN, looked up anew at each use, so that wrapping and sharding may come later."""

    side: str
    model: nn.Module
    fqn: str

    @property
    def name(self) -> str:
        """``source:FQN`` or ``target:FQN``."""
        return f"{self.side}:{self.fqn}"

    def live(self) -> nn.Parameter:
        """The parameter as the model holds it now.

        Raises:
            TransferError: the model no longer has a parameter of that name.
        """
        try:
            return self.model.get_parameter(self.fqn)
        except AttributeError:
            names = [name for name, _ in self.model.named_parameters()]
            raise TransferError(
                f"the {self.side} model has no parameter '{self.fqn}' any more.",
                why="its modules were replaced after the graft was attached",
                near=nearest(self.fqn, names),
                fix="detach the graft before surgery, trace again, and attach to the new model",
            ) from None

    def read(self) -> Tensor:
        """A copy of the values, outside autograd."""
        return self.live().detach().clone()

    def put(self, values: Tensor) -> None:
        """Write `values` in place, outside autograd; the parameter object stays the same."""
        with torch.no_grad():
            self.live().copy_(values)

    def holds(self, values: Tensor) -> bool:
        """Whether the tensor holds exactly `values` now (one comparison on the device, one host sync)."""
        return torch.equal(self.live().detach(), values)


def owns(optimizer: Optimizer, tensor: LinkedTensor) -> bool:
    """Whether `optimizer` steps this very parameter object."""
    parameter = tensor.live()
    return any(parameter is other for group in optimizer.param_groups for other in group["params"])


@dataclass(eq=False)
class Write:
    """One rewrite of one tensor: from pending, through an optimizer step, to a signal the adapter learns from.

    Attributes:
        tensor: what was written.
        settled: the values before the write, in the tensor's dtype.
        written: the values of the write, in the tensor's dtype.
        probe: whether the optimizer must step from `settled` instead of from `written`.
        by_gradient: whether the signal is the gradient instead of the optimizer's movement.
        signal: what training made of the write, set once an optimizer step has consumed it; None while pending.
    """

    tensor: LinkedTensor
    settled: Tensor
    written: Tensor
    probe: bool
    by_gradient: bool
    signal: Tensor | None = None
    _gradient: Tensor | None = field(default=None, repr=False)

    @property
    def pending(self) -> bool:
        """Whether no optimizer step has consumed this write yet."""
        return self.signal is None

    def write(self) -> None:
        """Put the rewritten values in place. An unchanged tensor is left alone, signed zeros included."""
        if not torch.equal(self.settled, self.written):
            self.tensor.put(self.written)

    def settle(self) -> bool:
        """Put the settled values back; False where somebody else has written the tensor since, which is respected."""
        if not self.tensor.holds(self.written):
            return False
        if not torch.equal(self.settled, self.written):
            self.tensor.put(self.settled)
        return True

    def before_step(self, optimizer: Optimizer) -> None:
        """Just before the optimizer steps: keep the gradient where it is the signal, take a probe back."""
        if self.by_gradient:
            self._gradient = _unscaled_gradient(self.tensor.live(), optimizer)
        if not self.tensor.holds(self.written):
            # Loaded or re-initialised between the write and the step: there is nothing of ours to learn from.
            self.signal = torch.zeros_like(self.settled)
        elif self.probe:
            self.settle()

    def after_step(self, *, skipped: bool) -> None:
        """Just after: keep what the step made of the write, or write again where GradScaler skipped the step."""
        if not self.pending:
            return
        if skipped:
            self._gradient = None
            self.write()
            return
        if self.by_gradient:
            self.signal = (
                torch.zeros_like(self.settled) if self._gradient is None else self._gradient
            )
        else:
            stepped_from = self.settled if self.probe else self.written
            self.signal = stepped_from - self.tensor.live().detach()


def _unscaled_gradient(parameter: nn.Parameter, optimizer: Optimizer) -> Tensor | None:
    if parameter.grad is None:
        return None
    gradient = parameter.grad.detach().clone()
    # A fused optimizer unscales inside its kernel: GradScaler hands it the scale as an attribute of that step.
    scale = getattr(optimizer, "grad_scale", None)
    return gradient if scale is None else gradient / scale.to(gradient.device)
