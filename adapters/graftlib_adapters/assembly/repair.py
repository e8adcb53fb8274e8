"""REPAIR: give the units of a merged model the statistics that lie between those of its parents.

After Jordan et al. 2022 (arXiv 2211.08403): averaging shrinks the variance of every unit, which is undone unit by unit.
It needs data, so a merge that uses it is no longer data-free. Base and source are as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .alignment import Alignment
from .errors import AssemblyError
from .merging import selected
from .permutation import reading
from .recording import CONVS, Batches, evaluating, hooked, makers, run, units

__all__ = ["repair"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_EPS = 1e-5  # as in torch's batch norm


def repair(
    merged_model: nn.Module,
    base_model: nn.Module,
    source_model: nn.Module,
    alignment: Alignment,
    batches: Batches,
    factor: float,
    *,
    layers: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Reset the statistics of a merged model, in place.

    Norms with running statistics get those of the merged model's own units. A linear layer or convolution without such
    a norm behind it is scaled and shifted, unit by unit, so that its mean and standard deviation are
    ``(1 - factor) of the base's + factor of the source's``; units without a partner get the base's.

    Args:
        merged_model: of the base's architecture; changed in place.
        base_model: the base.
        source_model: the source.
        alignment: of the two.
        batches: gone through several times, so a list or a loader, no generator. See `activations.costs`.
        factor: the merging factor of `merged_model`.
        layers: only these modules of the base, and those inside of them, are scaled: those that were merged. None: all.

    Returns:
        FQNs of the layers that were set, in the model's order.

    Raises:
        AssemblyError: there is no batch, `batches` is an iterator, or a layer meets nothing.
    """
    if iter(batches) is batches or not any(True for _ in batches):
        raise AssemblyError(
            "REPAIR goes through the data several times.", fix="pass a list of batches, or a loader"
        )
    goals = _goals(merged_model, base_model, source_model, alignment, batches, factor, layers)
    done = set(_scaled(merged_model, goals, batches)) | set(_renormed(merged_model, batches))
    return tuple(fqn for fqn, _ in merged_model.named_modules() if fqn in done)


Goals = dict[str, tuple[Tensor, Tensor]]


class _Moments:
    """Mean and standard deviation of every unit, summed up in double."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Any = 0.0
        self.second: Any = 0.0

    def add(self, values: Tensor) -> None:
        values = values.double()
        self.count += len(values)
        self.first = self.first + values.sum(0)
        self.second = self.second + values.square().sum(0)

    def value(self) -> tuple[Tensor, Tensor]:
        mean = self.first / self.count
        return mean, (self.second / self.count - mean.square()).clamp(min=0).sqrt()


def _measured(model: nn.Module, layers: Sequence[str], batches: Batches) -> Goals:
    moments = {fqn: _Moments() for fqn in layers}

    def record(fqn: str, module: nn.Module, output: Any) -> None:
        moments[fqn].add(units(output, module))

    with evaluating(model), hooked(model, layers, record):
        for batch in batches:
            run(model, batch)
    return {fqn: each.value() for fqn, each in moments.items() if each.count}


def _goals(
    merged_model: nn.Module,
    base_model: nn.Module,
    source_model: nn.Module,
    alignment: Alignment,
    batches: Batches,
    factor: float,
    layers: Sequence[str] | None,
) -> Goals:
    """FQN -> goal mean and goal deviation of every layer that is to be scaled."""
    problem = alignment.problem
    wanted = selected(alignment, layers)
    normed = {
        i
        for i, pair in enumerate(problem.classes)
        if any(member.fqn.endswith("running_mean") for member in pair.base.members)
    }
    pairs = [
        pair
        for pair, number in makers(problem).items()
        if number not in normed
        and pair.base in wanted
        and getattr(merged_model.get_submodule(pair.layer), "bias", None) is not None
    ]
    ours = _measured(base_model, [pair.layer for pair in pairs], batches)
    theirs = _measured(source_model, [pair.source_layer for pair in pairs], batches)
    goals = {}
    for pair in pairs:
        if pair.layer not in ours or pair.source_layer not in theirs:
            continue
        reads = alignment.reads(pair.base, pair.out or 0)
        matched = (reads >= 0).to(ours[pair.layer][0].device)
        mixed = []
        for mine, other in zip(ours[pair.layer], theirs[pair.source_layer], strict=True):
            moved = reading(other, {0: reads}).to(mine.device)
            mixed.append(torch.where(matched, mine + factor * (moved - mine), mine))
        goals[pair.layer] = (mixed[0], mixed[1])
    return goals


def _scaled(model: nn.Module, goals: Goals, batches: Batches) -> list[str]:
    """One pass in which every layer is already corrected for the layers behind it, then weights take that over."""
    sums = {fqn: _Moments() for fqn in goals}

    def correct(fqn: str, module: nn.Module, output: Tensor) -> Tensor:
        values = units(output, module)
        sums[fqn].add(values)
        mean, spread = values.mean(0), values.std(0, correction=0)
        gain, shift = _affine(goals[fqn], mean.double(), spread.double())
        shape = [1, -1, *[1] * (output.ndim - 2)]
        if not isinstance(module, CONVS):
            shape = [1] * (output.ndim - 1) + [-1]
        return output * gain.to(output).view(shape) + shift.to(output).view(shape)

    if not goals:
        return []
    with evaluating(model), hooked(model, list(goals), correct):
        for batch in batches:
            run(model, batch)
    for fqn, goal in goals.items():
        module: Any = model.get_submodule(fqn)
        gain, shift = _affine(goal, *sums[fqn].value())
        axis = 1 if _transposed(module) else 0
        shape = [-1 if i == axis else 1 for i in range(module.weight.ndim)]
        with torch.no_grad():
            module.weight.mul_(gain.to(module.weight).view(shape))
            module.bias.mul_(gain.to(module.bias)).add_(shift.to(module.bias))
    return list(goals)


def _affine(goal: tuple[Tensor, Tensor], mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and shift that bring (mean, spread) to the goal."""
    gain = goal[1].to(mean.device) / (spread.square() + _EPS).sqrt()
    return gain, goal[0].to(mean.device) - gain * mean


def _transposed(module: nn.Module) -> bool:
    """Whether a layer's units are on the second axis of its weight."""
    return bool(getattr(module, "transposed", False)) or type(module).__name__ == "Conv1D"


def _renormed(model: nn.Module, batches: Batches) -> list[str]:
    """Running statistics anew, as the mean over the batches."""
    norms: dict[str, Any] = {
        fqn: module
        for fqn, module in model.named_modules()
        if isinstance(module, _BATCH_NORMS) and module.running_mean is not None
    }
    if not norms:
        return []
    momenta = {fqn: norm.momentum for fqn, norm in norms.items()}
    with evaluating(model):
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        try:
            for batch in batches:
                run(model, batch)
        finally:
            for fqn, norm in norms.items():
                norm.momentum = momenta[fqn]
    return list(norms)
