"""Similarities of units by what they do on data, in place of what they weigh.

Pearson correlations for ``align(costs=...)`` (activation matching: Li et al. 2016; Git Re-Basin, section 3.1). A unit
that never changes correlates with none.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

import torch
from torch import Tensor, nn

from .alignment_problem import Problem
from .errors import AssemblyError
from .recording import Batches, evaluating, hooked, makers, run, units

__all__ = ["costs"]


def costs(
    problem: Problem, base_model: nn.Module, source_model: nn.Module, batches: Batches
) -> dict[int, Tensor]:
    """Correlate what paired layers put out, before norms and activations.

    Args:
        problem: which layers and classes are paired.
        base_model: runs in eval mode; parameters and buffers are not changed.
        source_model: the same, on the same batches.
        batches: a tensor, a tuple of arguments or a mapping of keyword arguments each, on the models' devices.

    Returns:
        class pair -> (m, p) float64 on the CPU, the mean over its layers. Class pairs that no layer makes as a whole
        (heads and head_dim of an attention) are absent: their weights decide.

    Raises:
        AssemblyError: there is no batch.
    """
    pairs = {pair: number for pair, number in makers(problem).items() if pair.layer}
    outputs: dict[tuple[str, str], Tensor] = {}
    sums = {pair: _Correlation() for pair in pairs}
    layers = [sorted({pair.layer for pair in pairs}), sorted({pair.source_layer for pair in pairs})]

    def recorder(side: str) -> Callable[[str, nn.Module, object], None]:
        def record(fqn: str, module: nn.Module, output: object) -> None:
            outputs[side, fqn] = units(output, module)

        return record

    count = 0
    with (
        evaluating(base_model, source_model),
        hooked(base_model, layers[0], recorder("base")),
        hooked(source_model, layers[1], recorder("source")),
    ):
        for batch in batches:
            outputs.clear()
            run(base_model, batch)
            run(source_model, batch)
            count += 1
            for pair, total in sums.items():
                ours, theirs = ("base", pair.layer), ("source", pair.source_layer)
                if ours in outputs and theirs in outputs:
                    total.add(outputs[ours], outputs[theirs])
    if not count:
        raise AssemblyError(
            "activations need data, and there is no batch.", fix="pass some batches"
        )
    matrices: dict[int, list[Tensor]] = {}
    for pair, number in pairs.items():
        if sums[pair].count:
            matrices.setdefault(number, []).append(sums[pair].value())
    return {number: torch.stack(each).mean(0) for number, each in matrices.items()}


class _Correlation:
    """Pearson's correlation of every column of one matrix with every column of another, summed up in double."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        a, b = ours.to("cpu", torch.float64), theirs.to("cpu", torch.float64)
        if len(a) != len(b):
            # Other strides give other positions: what is common are the samples of the batch.
            shared = gcd(len(a), len(b))
            a, b = (t.reshape(shared, -1, t.shape[-1]).mean(1) for t in (a, b))
        new = [a.sum(0), b.sum(0), a.square().sum(0), b.square().sum(0), a.T @ b]
        self.sums = [s + n for s, n in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(a)

    def value(self) -> Tensor:
        """(m, p); 0 where a column never changes."""
        a, b, aa, bb, ab = (each / self.count for each in self.sums)
        spread = ((aa - a.square()).clamp(min=0).sqrt(), (bb - b.square()).clamp(min=0).sqrt())
        product = spread[0][:, None] * spread[1][None, :]
        constant = product <= 1e-12 * product.max()
        correlation: Tensor = (ab - a[:, None] * b[None, :]) / product
        return correlation.masked_fill(constant, 0.0)
