"""Run the adapter once, and teach it what training made of its output.

In: a `Plan` and live weights. Out: a `Flight` (one transfer on its way: written, not yet learned from), and after the
host's optimizer step an update of the adapter: phi <- phi - eta (dW~/dphi)^T dW, one vector-Jacobian product (MergeNet,
section on optimisation). Always true: the host's random numbers, gradients and autocast state are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW

from ..errors import AttachError
from ..match import matrix, unmatrix
from ..random_state import preserved
from .adapter import Adapter
from .linked import LinkedTensor, Write
from .plan import Plan
from .ranks import Ranks

__all__ = ["Flight", "Transferor"]


@dataclass(eq=False)
class Flight:
    """One transfer between its write and its lesson.

    Attributes:
        inputs: the matrices the adapter read, copies, one per slot.
        outputs: what it made of them, one per receiving slot, still in its autograd graph.
        writes: one per written tensor.
        before: the module's buffers before this transfer.
        sound: 0-D bool on the device, whether every value to be written is finite in its own dtype.
        entry: the line that goes into the history.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    writes: dict[LinkedTensor, Write]
    before: dict[str, Tensor]
    sound: Tensor
    entry: dict[str, Any] = field(default_factory=dict)

    @property
    def pending(self) -> list[Write]:
        """The writes that no optimizer step has consumed yet."""
        return [write for write in self.writes.values() if write.pending]

    @property
    def finite(self) -> bool:
        """Whether everything to be written is finite (one host sync)."""
        return bool(self.sound)


class Transferor:
    """The adapter's module, its optimizer and its learning rate.

    Args:
        lr: of the adapter's own AdamW; on a cosine over `transfers` where that is given, else constant.
        clip: the largest norm of the adapter's gradient.
        seed: of the adapter's initial parameters; the global random state is not touched.
        ranks: the processes that share the training.
        deterministic: attention by plain products, whose sums have one order.
    """

    def __init__(
        self,
        adapter: Adapter,
        made: Plan,
        *,
        lr: float,
        weight_decay: float,
        clip: float,
        seed: int,
        transfers: int | None,
        ranks: Ranks | None = None,
        deterministic: bool = False,
    ) -> None:
        self.adapter, self.seed = adapter, seed
        self.ranks, self.deterministic = ranks or Ranks(), deterministic
        self.lr, self.weight_decay, self.clip = lr, weight_decay, clip
        self.transfers = transfers
        self.plan = made
        self.build(made)

    def build(self, made: Plan) -> None:
        """Make the adapter's module and its optimizer for `made`, from the seed.

        Raises:
            AttachError: the adapter makes no module.
        """
        self.install(made, *self.prepare(made))

    def prepare(self, made: Plan) -> tuple[nn.Module, AdamW | None]:
        """A new module for `made`, on the CPU, and its optimizer (None: nothing to learn); nothing is changed."""
        with preserved(self.seed), torch.device("cpu"), torch.inference_mode(False):
            module: Any = self.adapter.build(made.slots, made.links)
            if not isinstance(module, nn.Module):
                raise AttachError(
                    f"{type(self.adapter).__name__}.build returned {type(module).__name__}, not an nn.Module.",
                    fix="return the module whose forward maps the matrices to new ones",
                )
            module = module.to(self.dtype_of_weights())
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            return module, None
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return module, AdamW(groups, lr=self.lr)

    def install(self, made: Plan, module: nn.Module, optimizer: AdamW | None) -> None:
        """Go on with these instead of the present ones."""
        self.plan, self.dtype = made, self.dtype_of_weights()
        self.module, self.optimizer = module, optimizer

    def dtype_of_weights(self) -> torch.dtype:
        """What the adapter computes in: double precision where a linked tensor is, else single."""
        wide = any(t.live().dtype == torch.float64 for t in self.plan.tensors)
        return torch.float64 if wide else torch.float32

    def read(self) -> dict[LinkedTensor, Tensor]:
        """Copies of every linked tensor's values; sharded ones are gathered."""
        return {tensor: tensor.read() for tensor in dict.fromkeys(self.plan.tensors)}

    def matrices(self, values: dict[LinkedTensor, Tensor]) -> list[Tensor]:
        """Every slot's matrix, in the adapter's dtype, on the first receiver's device."""
        device = values[self.plan.tensors[self.plan.receivers[0]]].device
        # A receiver's values are what `settle` puts back: the adapter gets a copy that it may spoil.
        return [
            m.to(device, self.dtype, copy=slot.receives)
            for m, slot in zip(self.plan.matrices(values), self.plan.slots, strict=True)
        ]

    def fly(self, values: dict[LinkedTensor, Tensor], inputs: list[Tensor] | None = None) -> Flight:
        """Run the adapter and prepare the writes; nothing is written yet.

        Args:
            values: what `read` gave; owned by the flight from now on.
            inputs: matrices to read instead of those in `values`, to redo a saved transfer.
        """
        device = values[self.plan.tensors[self.plan.receivers[0]]].device
        inputs = self.matrices(values) if inputs is None else [m.to(device) for m in inputs]
        self._move_to(inputs[0].device)
        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        self.module.train()
        with _own_world(inputs[0].device, deterministic=self.deterministic):
            outputs = self._outputs(inputs)
        written = self._rewritten(values, outputs)
        self.ranks.broadcast(written.values())
        sound = torch.stack([w.isfinite().all().to(inputs[0].device) for w in written.values()])
        return Flight(inputs, outputs, self._writes(values, written), before, sound.all())

    def _outputs(self, inputs: list[Tensor]) -> list[Tensor]:
        try:
            return list(self.module(inputs))
        except LinAlgError:
            # A decomposition of what is not finite, or overflowed on the way: not finite, like any other answer.
            return [torch.full_like(inputs[i], math.nan) for i in self.plan.receivers]

    def _rewritten(
        self, values: dict[LinkedTensor, Tensor], outputs: list[Tensor]
    ) -> dict[LinkedTensor, Tensor]:
        """The whole values to write, in each tensor's own dtype."""
        written: dict[LinkedTensor, Tensor] = {}
        for i, output in zip(self.plan.receivers, outputs, strict=True):
            tensor = self.plan.tensors[i]
            into = written.get(tensor, values[tensor])
            rewritten = output.detach().to(into.device, into.dtype)
            written[tensor] = unmatrix(self.plan.parameters[i], rewritten, into=into)
        return {tensor: value.contiguous() for tensor, value in written.items()}

    def _writes(
        self, values: dict[LinkedTensor, Tensor], written: dict[LinkedTensor, Tensor]
    ) -> dict[LinkedTensor, Write]:
        probe = self.adapter.write == "probe"
        by_gradient = self.adapter.signal == "gradient"
        return {
            t: Write(t, t.part(values[t]), t.part(written[t]), probe, by_gradient) for t in written
        }

    def put_back(self, flight: Flight) -> None:
        """Forget that a flight took place: the module's buffers are as before it."""
        for name, buffer in self.module.named_buffers():
            buffer.copy_(flight.before[name])

    def learn(self, flight: Flight, signals: dict[LinkedTensor, Tensor], count: int) -> bool:
        """One update of the adapter from the whole signals of a flight; it has learned `count` times before.

        Returns:
            Whether the signals were finite; otherwise nothing is learned.
        """
        if self.optimizer is None:
            return True
        outputs, lessons = [], []
        for i, output in zip(self.plan.receivers, flight.outputs, strict=True):
            signal = signals.get(self.plan.tensors[i])
            if signal is not None and output.requires_grad:
                outputs.append(output)
                lessons.append(
                    matrix(self.plan.parameters[i], signal).to(output.device, output.dtype)
                )
        if not outputs:
            return True
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        with _own_world(outputs[0].device, deterministic=self.deterministic):
            torch.autograd.backward(outputs, lessons, inputs=parameters)
            norm = nn.utils.clip_grad_norm_(parameters, self.clip)
            finite = bool(norm.isfinite())
            if finite:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate(count)
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return finite

    def learning_rate(self, count: int) -> float:
        """The adapter's learning rate for its update number `count` (the first is 0)."""
        if not self.transfers:
            return self.lr
        return self.lr * (1 + math.cos(math.pi * min(count / self.transfers, 1.0))) / 2

    def facts(self) -> dict[str, list[float]]:
        """What the module reports of itself, link name -> values; empty where it reports nothing."""
        report = getattr(self.module, "facts", None)
        return dict(report()) if callable(report) else {}

    def fact_names(self) -> list[str]:
        """What the numbers of one link's facts are called; empty where the module does not say."""
        return [str(name) for name in getattr(self.module, "fact_names", ())]

    def _move_to(self, device: torch.device) -> None:
        first = next(iter([*self.module.parameters(), *self.module.buffers()]), None)
        if first is None or first.device == device:
            return
        self.module.to(device)
        if self.optimizer is not None:
            # The moments stay behind on the old device; loading them moves them to their parameters'.
            self.optimizer.load_state_dict(self.optimizer.state_dict())


@contextmanager
def _own_world(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Gradients on, autocast off, outside inference mode: whatever the host has entered around us."""
    with ExitStack() as world:
        world.enter_context(torch.inference_mode(False))
        world.enter_context(torch.enable_grad())
        world.enter_context(torch.autocast(device.type, enabled=False))
        if deterministic:
            world.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
