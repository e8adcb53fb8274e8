"""Run the adapter once, and teach it what training made of its output.

In: a `Plan` and live weights. Out: a `Flight` (one transfer on its way: written, not yet learned from), and after the
host's optimizer step an update of the adapter: phi <- phi - eta (dW~/dphi)^T dW, one vector-Jacobian product (MergeNet,
section on optimisation). Always true: the host's random numbers, gradients and autocast state are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..match import matrix, unmatrix
from .adapter import Adapter
from .linked import LinkedTensor, Write
from .plan import Plan

__all__ = ["Flight", "Transferor"]


@dataclass(eq=False)
class Flight:
    """One transfer between its write and its lesson.

    Attributes:
        inputs: the matrices the adapter read, copies, one per slot.
        outputs: what it made of them, one per receiving slot, still in its autograd graph.
        writes: one per written tensor.
        before: the module's buffers before this transfer.
        entry: the line that goes into the history.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    writes: dict[LinkedTensor, Write]
    before: dict[str, Tensor]
    entry: dict[str, Any] = field(default_factory=dict)

    @property
    def pending(self) -> list[Write]:
        """The writes that no optimizer step has consumed yet."""
        return [write for write in self.writes.values() if write.pending]

    @property
    def finite(self) -> bool:
        """Whether every output is finite (one host sync)."""
        return all(bool(output.isfinite().all()) for output in self.outputs)


class Transferor:
    """The adapter's module, its optimizer and its learning rate.

    Args:
        lr: of the adapter's own AdamW; on a cosine over `transfers` where that is given, else constant.
        clip: the largest norm of the adapter's gradient.
        seed: of the adapter's initial parameters; the global random state is not touched.
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
    ) -> None:
        self.adapter, self.seed = adapter, seed
        self.lr, self.weight_decay, self.clip = lr, weight_decay, clip
        self.transfers = transfers
        self.build(made)

    def build(self, made: Plan) -> None:
        """Make the adapter's module and its optimizer for `made`, from the seed."""
        self.plan = made
        self.dtype = self._dtype()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(self.seed)
            self.module: nn.Module = self.adapter.build(made.slots, made.links).to(self.dtype)
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = (
            torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
            if parameters
            else None
        )

    def _dtype(self) -> torch.dtype:
        wide = any(t.live().dtype == torch.float64 for t in self.plan.tensors)
        return torch.float64 if wide else torch.float32

    def read(self) -> list[Tensor]:
        """Copies of every slot's matrix, in the adapter's dtype, on the first receiver's device."""
        device = self.plan.tensors[self.plan.receivers[0]].live().device
        values = {tensor: tensor.read() for tensor in dict.fromkeys(self.plan.tensors)}
        return [m.to(device, self.dtype) for m in self.plan.matrices(values)]

    def fly(self, inputs: list[Tensor]) -> Flight:
        """Run the adapter on `inputs` and prepare the writes; nothing is written yet."""
        self._move_to(inputs[0].device)
        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        self.module.train()
        with _own_world(inputs[0].device):
            outputs = list(self.module(inputs))
        return Flight(inputs, outputs, self._writes(outputs), before)

    def _writes(self, outputs: list[Tensor]) -> dict[LinkedTensor, Write]:
        settled: dict[LinkedTensor, Tensor] = {}
        written: dict[LinkedTensor, Tensor] = {}
        for i, output in zip(self.plan.receivers, outputs, strict=True):
            tensor = self.plan.tensors[i]
            if tensor not in settled:
                settled[tensor] = written[tensor] = tensor.read()
            into = written[tensor]
            rewritten = output.detach().to(into.device, into.dtype)
            written[tensor] = unmatrix(self.plan.parameters[i], rewritten, into=into)
        probe = self.adapter.write == "probe"
        by_gradient = self.adapter.signal == "gradient"
        return {
            t: Write(t, settled[t], written[t].contiguous(), probe, by_gradient) for t in settled
        }

    def put_back(self, flight: Flight) -> None:
        """Forget that a flight took place: the module's buffers are as before it."""
        for name, buffer in self.module.named_buffers():
            buffer.copy_(flight.before[name])

    def learn(self, flight: Flight, count: int) -> bool:
        """One update of the adapter from the signals of a flight; `count` transfers were learned from before it.

        Returns:
            Whether the signals were finite; otherwise nothing is learned.
        """
        if self.optimizer is None:
            return True
        outputs, signals = [], []
        for i, output in zip(self.plan.receivers, flight.outputs, strict=True):
            signal = flight.writes[self.plan.tensors[i]].signal
            if signal is not None and output.requires_grad:
                outputs.append(output)
                signals.append(
                    matrix(self.plan.parameters[i], signal).to(output.device, output.dtype)
                )
        if not outputs:
            return True
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        with _own_world(outputs[0].device):
            torch.autograd.backward(outputs, signals, inputs=parameters)
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

    def _move_to(self, device: torch.device) -> None:
        first = next(iter([*self.module.parameters(), *self.module.buffers()]), None)
        if first is None or first.device == device:
            return
        self.module.to(device)
        if self.optimizer is not None:
            # The moments stay behind on the old device; loading them moves them to their parameters'.
            self.optimizer.load_state_dict(self.optimizer.state_dict())


@contextmanager
def _own_world(device: torch.device) -> Iterator[None]:
    """Gradients on, autocast off, outside inference mode: whatever the host has entered around us."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield
