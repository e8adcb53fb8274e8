"""Run the adapter once, and update it from what training made of its output.

In: a `Plan` and live weights. Out: a `PendingTransfer` (written, not yet trained on), and after the host's optimizer
step an update of the adapter: phi <- phi - eta (dW~/dphi)^T dW, one vector-Jacobian product (MergeNet, section on
optimisation). Always true: the host's random numbers, gradients and autocast state are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW

from ..errors import AttachError
from ..match import matrix
from ..random_state import preserved
from .adapter import Adapter
from .history import Change, Spectrum
from .host_read import read_together
from .linked import LinkedTensor, Write
from .optimizer import AdapterOptimizer
from .plan import Plan
from .ranks import Ranks

__all__ = ["AdapterRunner", "PendingTransfer", "set_buffers"]


@dataclass(eq=False)
class PendingTransfer:
    """One transfer between its write and the adapter's update.

    Attributes:
        inputs: the matrices the adapter read, copies, one per linked matrix.
        outputs: what it made of them, one per matrix that is written, still in its autograd graph.
        writes: one per written tensor.
        buffers: the module's before this transfer.
        finite: whether every value to be written is finite in its own dtype.
        changes: what was done to each written matrix, by name.
        facts: what the module reports of itself, link name -> values.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    writes: dict[LinkedTensor, Write]
    buffers: dict[str, Tensor]
    finite: bool
    changes: dict[str, Change]
    facts: dict[str, list[float]]

    @property
    def pending(self) -> list[Write]:
        """The writes that no optimizer step has consumed yet."""
        return [write for write in self.writes.values() if write.pending]


@dataclass(eq=False)
class AdapterRunner:
    """The adapter's module, its optimizer and its learning rate.

    Attributes:
        options: of the adapter's own AdamW.
        seed: of the adapter's initial parameters; the global random state is not touched.
        transfers: of the whole training, for a cosine of the learning rate; None for a constant one.
        ranks: the processes that share the training.
        deterministic: attention by plain products, whose sums have one order.
    """

    adapter: Adapter
    plan: Plan
    options: AdapterOptimizer
    _: KW_ONLY
    seed: int
    transfers: int | None
    ranks: Ranks
    deterministic: bool

    def __post_init__(self) -> None:
        self.install(self.plan, *self.prepare(self.plan))

    def prepare(self, plan: Plan) -> tuple[nn.Module, AdamW | None]:
        """A new module for `plan`, on the CPU, and its optimizer (None: nothing to learn); nothing is changed.

        Raises:
            AttachError: the adapter makes no module.
        """
        with preserved(self.seed), torch.device("cpu"), torch.inference_mode(False):
            module: Any = self.adapter.build(plan.matrices, plan.links)
            if not isinstance(module, nn.Module):
                raise AttachError(
                    f"{type(self.adapter).__name__}.build returned {type(module).__name__}, not an nn.Module.",
                    fix="return the module whose forward maps the matrices to new ones",
                )
            module = module.to(self.dtype_of_weights())
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            return module, None
        decay = self.options.weight_decay
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return module, AdamW(groups, lr=self.options.lr)

    def install(self, plan: Plan, module: nn.Module, optimizer: AdamW | None) -> None:
        """Go on with these instead of the present ones."""
        self.plan, self.dtype = plan, self.dtype_of_weights()
        self.module, self.optimizer = module, optimizer

    def dtype_of_weights(self) -> torch.dtype:
        """What the adapter computes in: double precision where a linked tensor is, else single."""
        wide = any(t.live().dtype == torch.float64 for t in self.plan.tensors)
        return torch.float64 if wide else torch.float32

    def read(self) -> dict[LinkedTensor, Tensor]:
        """Copies of every linked tensor's values; sharded ones are gathered."""
        return {tensor: tensor.read() for tensor in dict.fromkeys(self.plan.tensors)}

    def run(
        self,
        values: dict[LinkedTensor, Tensor],
        inputs: list[Tensor] | None = None,
        *,
        spectra: bool = False,
    ) -> PendingTransfer:
        """Run the adapter and prepare the writes; nothing is written yet.

        Args:
            values: what `read` gave; owned by the transfer from now on.
            inputs: matrices to read instead of those in `values`, to redo a saved transfer.
            spectra: compute singular values before and after.
        """
        device = self.plan.device(values)
        inputs = self._inputs(values, device) if inputs is None else [m.to(device) for m in inputs]
        self._move_to(device)
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        self.module.train()
        with _own_modes(device, deterministic=self.deterministic):
            outputs = self._outputs(inputs)
        rewritten = self.plan.rewritten(values, [output.detach() for output in outputs])
        written = {tensor: value.contiguous() for tensor, value in rewritten.items()}
        self.ranks.broadcast(written.values())
        writes = self._writes(values, written)
        finite, changes, facts = self._measured(inputs, outputs, written, writes, spectra)
        return PendingTransfer(inputs, outputs, writes, buffers, finite, changes, facts)

    def _inputs(self, values: dict[LinkedTensor, Tensor], device: torch.device) -> list[Tensor]:
        """Every linked matrix, in the adapter's dtype."""
        # A target's values are what `settle` puts back: the adapter gets a copy that it may spoil.
        return [
            m.to(device, self.dtype, copy=linked.written)
            for m, linked in zip(self.plan.views(values), self.plan.matrices, strict=True)
        ]

    def _outputs(self, inputs: list[Tensor]) -> list[Tensor]:
        try:
            return list(self.module(inputs))
        except LinAlgError:
            # A decomposition of what is not finite, or overflowed on the way: not finite, like any other answer.
            return [torch.full_like(inputs[i], math.nan) for i in self.plan.targets]

    def _writes(
        self, values: dict[LinkedTensor, Tensor], written: dict[LinkedTensor, Tensor]
    ) -> dict[LinkedTensor, Write]:
        probe = self.adapter.write == "probe"
        by_gradient = self.adapter.signal == "gradient"
        return {
            t: Write(t, t.part(values[t]), t.part(written[t]), probe, by_gradient) for t in written
        }

    def _measured(
        self,
        inputs: list[Tensor],
        outputs: list[Tensor],
        written: dict[LinkedTensor, Tensor],
        writes: dict[LinkedTensor, Write],
        spectra: bool,
    ) -> tuple[bool, dict[str, Change], dict[str, list[float]]]:
        """Whether all is finite, what changed, and the module's facts: one host read, and one more for spectra."""
        device = inputs[0].device
        finite = torch.stack([_all_finite(value).to(device) for value in written.values()])
        changed = [(write.settled != write.written).any() for write in writes.values()]
        pairs = [
            (inputs[i], output.detach())
            for i, output in zip(self.plan.targets, outputs, strict=True)
        ]
        sizes = [torch.stack(_size_and_cosine(*pair)) for pair in pairs]
        report = getattr(self.module, "facts", None)
        facts = {
            link: values
            if isinstance(values, Tensor)
            else torch.tensor(values, dtype=torch.float64)
            for link, values in (report() if callable(report) else {}).items()
        }
        numbers = iter(read_together(finite.all(), *changed, *sizes, *facts.values()))
        (all_finite,) = next(numbers)
        for write in writes.values():
            write.changed = bool(next(numbers)[0])
        records = {}
        for i, pair in zip(self.plan.targets, pairs, strict=True):
            size, cosine = next(numbers)
            spectrum = _spectrum(*pair) if spectra and all_finite else None
            name = self.plan.matrices[i].name
            records[name] = Change(size=size, cosine=cosine, spectrum=spectrum)
        return bool(all_finite), records, dict(zip(facts, numbers, strict=True))

    def undo(self, transfer: PendingTransfer) -> None:
        """Forget that a transfer took place: the module's buffers are as before it."""
        set_buffers(self.module, transfer.buffers)

    def update(
        self, transfer: PendingTransfer, signals: dict[LinkedTensor, Tensor], count: int
    ) -> tuple[bool, dict[str, float]]:
        """Update the adapter from the whole signals of a transfer; it has been updated `count` times before.

        Returns:
            Whether the signals were finite, otherwise nothing is updated; and the norm of each signal, by the name of
            its tensor. One host read.
        """
        norms = [torch.linalg.vector_norm(signal.float()) for signal in signals.values()]
        outputs, gradients = [], []
        for i, output in zip(self.plan.targets, transfer.outputs, strict=True):
            signal = signals.get(self.plan.tensors[i])
            if signal is not None and output.requires_grad:
                outputs.append(output)
                gradients.append(
                    matrix(self.plan.parameters[i], signal).to(output.device, output.dtype)
                )
        finite = True
        if self.optimizer is None or not outputs:
            numbers = read_together(*norms)
        else:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            with _own_modes(outputs[0].device, deterministic=self.deterministic):
                torch.autograd.backward(outputs, gradients, inputs=parameters)
                norm = nn.utils.clip_grad_norm_(parameters, self.options.clip)
                (of_gradient,), *numbers = read_together(norm, *norms)
                finite = math.isfinite(of_gradient)
                if finite:
                    for group in self.optimizer.param_groups:
                        group["lr"] = self.learning_rate(count)
                    self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        names = [tensor.name for tensor in signals]
        return finite, {name: norm for name, (norm,) in zip(names, numbers, strict=True)}

    def learning_rate(self, count: int) -> float:
        """The adapter's learning rate for its update number `count` (the first is 0)."""
        if not self.transfers:
            return self.options.lr
        return self.options.lr * (1 + math.cos(math.pi * min(count / self.transfers, 1.0))) / 2

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


def set_buffers(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Set a module's buffers to these values, in place; persistent ones through ``load_state_dict``."""
    persistent = module.state_dict().keys()
    module.load_state_dict({n: b for n, b in buffers.items() if n in persistent}, strict=False)
    for name, buffer in module.named_buffers():
        if name not in persistent:
            buffer.copy_(buffers[name])


@contextmanager
def _own_modes(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Gradients on, autocast off, outside inference mode: whatever the host has entered around us."""
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        modes.enter_context(torch.autocast(device.type, enabled=False))
        if deterministic:
            modes.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _all_finite(values: Tensor) -> Tensor:
    """Whether all are, in one pass: a maximum of sizes hides no infinity and no NaN."""
    largest: Tensor = torch.linalg.vector_norm(values, math.inf)
    return largest.isfinite()


def _size_and_cosine(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The length of the change over that of `before`, and the cosine between the two; 0 where one is zero."""
    start, end = before.flatten(), after.flatten()
    first, last = (torch.linalg.vector_norm(each).clamp_min(1e-30) for each in (start, end))
    change = torch.linalg.vector_norm(end - start)
    return change / first, (torch.dot(start, end) / first / last).clamp(-1, 1)


def _spectrum(before: Tensor, after: Tensor) -> Spectrum:
    values = [torch.linalg.svdvals(matrix.float())[:64] for matrix in (before, after)]
    first, last = read_together(*values)
    return Spectrum(before=first, after=last)
