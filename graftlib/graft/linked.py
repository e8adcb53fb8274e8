"""One linked parameter tensor, and one write to it that can be taken back.

In: a model and an FQN; values in the tensor's own dtype and on its own device. Out: reads and in-place writes under
`no_grad`, which never replace the parameter object. Always true: a write that no optimizer step has consumed can be
settled, that is, the tensor gets back the very bits it had before.

A sharded parameter (a DTensor, as FSDP2's ``fully_shard`` makes it) is gathered where its whole value is needed, and
written part by part: every process keeps, compares and writes its own part, without communication.

This file is the only one that touches the user's parameters.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import TransferError, nearest
from .host_read import read_together

__all__ = ["AbandonedWrites", "LinkedTensor", "TransferWarning", "Write", "in_place", "owns"]

# Names under which wrappers hold the module that they wrap: torch.compile, DDP, activation checkpointing, FSDP1.
WRAPPED = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


class TransferWarning(UserWarning):
    """A transfer was skipped, was lost, or cannot do what it is for; the text says which and why."""


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
        """The parameter as the model holds it now, through whatever wrappers its modules have been put into since.

        Raises:
            TransferError: the model no longer has a parameter of that name.
        """
        chain, parameter = self._look_up()
        manager = _fsdp_manager(chain)
        if manager is not None and parameter is not None and not _is_sharded(parameter):
            # After an evaluation's forward pass FSDP2 leaves its root gathered. What is written there is lost.
            manager.reshard()
            chain, parameter = self._look_up()
        if parameter is None:
            names = [name for name, _ in self.model.named_parameters()]
            raise TransferError(
                f"the {self.side} model has no parameter '{self.fqn}' any more.",
                why="its modules were replaced after the graft was attached",
                near=nearest(self.fqn, names),
                fix="detach the graft before surgery, trace again, and attach to the new model",
            )
        return parameter

    def _look_up(self) -> tuple[list[nn.Module], nn.Parameter | None]:
        """The modules from the model down to the parameter's owner, and the parameter."""
        *path, name = self.fqn.split(".")
        chain = [self.model]
        for step in path:
            chain.append(_child(chain[-1], step))
        parameter = next(
            (m._parameters[name] for m in _unwrapped(chain[-1]) if name in m._parameters), None
        )
        return chain, parameter if isinstance(parameter, nn.Parameter) else None

    @property
    def sharded(self) -> bool:
        """Whether every process holds a part of the tensor only."""
        return _is_sharded(self.live())

    def read(self) -> Tensor:
        """A copy of all values, outside autograd; a sharded tensor is gathered (one collective call)."""
        live: Any = self.live().detach()
        if _is_sharded(live):
            live = live.full_tensor()
        copy: Tensor = self._with_values(live).clone()
        return copy

    def local(self) -> Tensor:
        """The values that this process holds, outside autograd: the parameter's own memory, not a copy.

        Raises:
            TransferError: the model has no parameter of that name any more, or it is on the meta device.
        """
        return self._with_values(_local(self.live().detach()))

    def _with_values(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta":
            raise TransferError(
                f"'{self.name}' has no values any more: it is on the meta device.",
                why="the model was moved there while a graft was attached to it",
                fix="graft.detach() before model.to('meta'); attach again once the weights are loaded",
            )
        return tensor

    def part(self, values: Tensor) -> Tensor:
        """What this process holds of the given whole `values`; `values` itself where the tensor is not sharded."""
        live: Any = self.live()
        if not _is_sharded(live):
            return values
        from torch.distributed.tensor import distribute_tensor

        # src_data_rank=None: every process cuts its part from its own equal copy, and nothing is sent.
        return _local(
            distribute_tensor(values, live.device_mesh, live.placements, src_data_rank=None)
        ).contiguous()

    def whole(self, part: Tensor) -> Tensor:
        """All values from the `part` of each process (one collective call); `part` itself where not sharded."""
        live: Any = self.live()
        if not _is_sharded(live):
            return part
        from torch.distributed.tensor import DTensor

        size: Any = {"run_check": False, "shape": live.shape, "stride": live.stride()}
        return DTensor.from_local(part, live.device_mesh, live.placements, **size).full_tensor()

    def put(self, part: Tensor, *, versioned: bool = True) -> None:
        """Write this process's `part` in place, outside autograd; the parameter object stays the same.

        Args:
            part: the values, of the shape of `local`.
            versioned: let autograd know, which then refuses a backward pass through the values before.
        """
        with torch.no_grad():
            local = self.local()
            (local if versioned else local.data).copy_(part)


def _child(module: nn.Module, name: str) -> nn.Module:
    """The child `name` of `module`, or of what it wraps; an empty module where there is none."""
    for each in _unwrapped(module):
        # Not by its truth: a module's is its length, and not every module has one.
        if (child := each._modules.get(name)) is not None:
            return child
    return nn.Module()


def _unwrapped(module: nn.Module) -> Iterator[nn.Module]:
    """`module`, then what it wraps, from the outside in."""
    yield module
    inner = next((m for n in WRAPPED if (m := module._modules.get(n)) is not None), None)
    if inner is not None:
        yield from _unwrapped(inner)


def _is_sharded(tensor: Tensor) -> bool:
    # By its method, because importing DTensor costs a third of a second that most processes never need.
    return hasattr(tensor, "full_tensor")


def _local(tensor: Any) -> Tensor:
    part: Tensor = tensor.to_local() if _is_sharded(tensor) else tensor
    return part


def _fsdp_manager(chain: list[nn.Module]) -> Any:
    """The innermost module that FSDP2 shards as one, or None."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return None
    return next((module for module in reversed(chain) if isinstance(module, fsdp.FSDPModule)), None)


def owns(optimizer: Optimizer, tensor: LinkedTensor) -> bool:
    """Whether `optimizer` steps this very parameter object."""
    parameter = tensor.live()
    return any(parameter is other for group in optimizer.param_groups for other in group["params"])


@dataclass(eq=False)
class Write:
    """One rewrite of one tensor: from pending, through an optimizer step, to what the adapter is updated from.

    Attributes:
        tensor: what was written.
        settled: the values before the write, in the tensor's dtype; of a sharded tensor this process's part.
        written: the values of the write, likewise.
        probe: whether the optimizer must step from `settled` instead of from `written`.
        by_gradient: whether the signal is the gradient instead of the optimizer's movement.
        changed: whether `written` differs from `settled` in any value.
        signal: what training made of the write, set once an optimizer step has consumed it; None while pending. Of a
            sharded tensor this process's part.
    """

    tensor: LinkedTensor
    settled: Tensor
    written: Tensor
    probe: bool
    by_gradient: bool
    changed: bool = True
    signal: Tensor | None = None
    _gradient: Tensor | None = field(default=None, repr=False)

    @property
    def pending(self) -> bool:
        """Whether no optimizer step has consumed this write yet."""
        return self.signal is None

    def write(self) -> None:
        """Put the rewritten values in place. An unchanged tensor is left alone, signed zeros included."""
        if self.changed:
            self.tensor.put(self.written)

    def settle(self, *, versioned: bool = True) -> bool:
        """Put the settled values back; False where somebody else has written the tensor since, which is respected.

        A model that was cast or moved since gets them in its new dtype, on its new device.
        """
        if self.in_place():
            self._put_settled(versioned=versioned)
            return True
        live = self.tensor.local()
        if live.dtype != self.settled.dtype:
            warnings.warn(
                f"'{self.tensor.name}' was cast from {self.settled.dtype} to {live.dtype} and changed while a "
                "transfer that was not trained on was written to it: it stays as it is, the weights before the "
                "transfer are lost",
                TransferWarning,
                stacklevel=3,
            )
        return False

    def _put_settled(self, *, versioned: bool = True) -> None:
        if self.changed:
            self.tensor.put(self.settled, versioned=versioned)

    def restore(self) -> None:
        """The inverse of `settle`: put the write in place again, where the tensor still holds the settled values."""
        if self.pending and self._holds(lambda: self.settled):
            self.write()

    def in_place(self) -> bool:
        """Whether the tensor holds the write now (one host read)."""
        return self._holds(lambda: self.written)

    def _holds(self, values: Callable[[], Tensor]) -> bool:
        """Whether the tensor holds `values()`, as they are or cast with the model; then the record is cast, too."""
        live = self.tensor.local()
        for cast in _casts(live):
            if _equal(live, cast(values())):
                self.settled, self.written = cast(self.settled), cast(self.written)
                return True
        return False

    def before_step(self, optimizer: Optimizer, *, in_place: bool) -> None:
        """Just before the optimizer steps: keep the gradient where it is the signal, take a probe back."""
        if self.by_gradient:
            self._gradient = _unscaled_gradient(self.tensor.live(), optimizer)
        if not in_place:
            # Loaded or re-initialised between the write and the step: there is nothing of ours to learn from.
            self.signal = torch.zeros_like(self.settled)
        elif self.probe:
            self._put_settled()

    def after_step(self, *, skipped: bool) -> None:
        """Just after: keep what the step made of the write, or write again where GradScaler skipped the step."""
        if not self.pending:
            return
        if skipped:
            self._gradient = None
            self.write()
            return
        if not self.by_gradient:
            self.signal = (self.settled if self.probe else self.written) - self.tensor.local()
        elif self._gradient is None:
            self.signal = torch.zeros_like(self.settled)
        else:
            self.signal = self._gradient


def in_place(writes: Sequence[Write]) -> list[bool]:
    """For each write whether its tensor holds it now: one host read for all of them, more only where one does not."""
    locals_ = [write.tensor.local() for write in writes]
    same = [torch.zeros(()) for _ in writes]
    for i, (live, write) in enumerate(zip(locals_, writes, strict=True)):
        mine = write.written
        if (live.dtype, live.device, live.shape) == (mine.dtype, mine.device, mine.shape):
            same[i] = (live == mine).all()
    answers = read_together(*same)
    return [bool(a) or write.in_place() for (a,), write in zip(answers, writes, strict=True)]


class AbandonedWrites:
    """The pending writes of a graft, held without the graft or its models, for when it is garbage-collected."""

    def __init__(self) -> None:
        self._writes: list[tuple[weakref.ref[nn.Module], str, str, Tensor, Tensor]] = []

    def remember(self, writes: Iterable[Write]) -> None:
        """From now on these are pending, and no others."""
        self._writes = [
            (weakref.ref(w.tensor.model), w.tensor.side, w.tensor.fqn, w.settled, w.written)
            for w in writes
        ]

    def settle(self) -> None:
        """Take back what is pending, wherever the model still lives and holds it."""
        for reference, side, fqn, settled, written in self._writes:
            model = reference()
            if model is None:
                continue
            write = Write(LinkedTensor(side, model, fqn), settled, written, False, False)
            with suppress(TransferError):
                write.settle(versioned=False)


def _casts(live: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """What may have happened to a tensor that is now `live`: it was cast or moved; or cast down, and up again."""
    yield lambda values: values.to(live.device, live.dtype)
    for low in (torch.float16, torch.bfloat16):
        yield lambda values, low=low: values.to(low).to(live.device, live.dtype)  # type: ignore[misc]


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one dtype have equal values, NaN being equal to NaN."""
    if torch.equal(one, other):
        return True
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _unscaled_gradient(parameter: nn.Parameter, optimizer: Optimizer) -> Tensor | None:
    if parameter.grad is None:
        return None
    gradient = _local(parameter.grad.detach()).clone()
    # A fused optimizer unscales inside its kernel: GradScaler hands it the scale as an attribute of that step.
    scale = getattr(optimizer, "grad_scale", None)
    return gradient if scale is None else gradient / scale.to(gradient.device)
