"""Which modules to merge, and how much, where no data say so: compare the source with scrambled copies of itself.

The test is our own and in no paper. A solver finds some agreement with any weights, so random permutations are no
yardstick: noise that was aligned beats them. The yardstick here is the same source with the entries of every tensor
shuffled, aligned by the same solver. A module is merged where its residual lies below the scrambled sources' mean by
more than `SPREADS` of their deviations and more than the share `LEAST`; the factor is half of the share by which the
residual of all merged modules lies below: 0.5 for a twin of the base, 0 for noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .alignment import Alignment
from .options import Solver
from .paired_source import PairedSource

__all__ = ["LEAST", "SCRAMBLED", "SPREADS", "Significance", "permutation_test", "residuals"]

SCRAMBLED = 5
"""How many scrambled sources are aligned."""
LEAST = 0.02
"""By what share of the scrambled sources' mean a residual must lie below it."""
SPREADS = 5.0
"""By how many of their standard deviations: five draws are few, and a model has many modules."""


@dataclass(frozen=True)
class Significance:
    """The result of the test for one source.

    Attributes:
        layers: the base's modules to merge; empty: refuse.
        factor: the merging factor.
        residual: of those modules (of all where there is none): ``|W_B - W'| / |W_B|`` over entries that read one.
        chance: the mean of that over scrambled sources.
    """

    layers: tuple[str, ...]
    factor: float
    residual: float
    chance: float

    @property
    def reason(self) -> str:
        """For the log."""
        figures = f"residual {self.residual:.3f}, {self.chance:.3f} where the source is scrambled"
        return figures if self.layers else f"no module is nearer than by chance: {figures}"


def permutation_test(
    paired: PairedSource,
    alignment: Alignment,
    base_state: Mapping[str, Tensor],
    solver: Solver,
    *,
    seed: int = 0,
) -> Significance:
    """Test one source.

    Args:
        paired: the source beside the base.
        alignment: of the source to `base_state`, by `solver` and `seed`.
        base_state: the base's tensors that take part.
        solver: that aligns the scrambled sources.
        seed: of the solver and of the scrambling.
    """
    groups = paired.module_groups
    mine = residuals(paired, alignment, base_state)
    others = []
    for draw in range(SCRAMBLED):
        scrambled = PairedSource(paired.problem, _scrambled(paired.state, seed + draw))
        aligned = scrambled.align(base_state, solver, seed=seed)
        others.append(residuals(scrambled, aligned, base_state))
    merged = []
    for i in range(len(groups)):
        chances = [_relative(other[i : i + 1]) for other in others]
        mean, spread = statistics.mean(chances), statistics.stdev(chances)
        if _relative(mine[i : i + 1]) < mean - max(LEAST * mean, SPREADS * spread):
            merged.append(i)
    counted = merged or range(len(groups))
    residual = _relative([mine[i] for i in counted])
    chance = sum(_relative([other[i] for i in counted]) for other in others) / SCRAMBLED
    layers = tuple(name for i in merged for name in groups[i])
    return Significance(layers, 0.5 * (1 - residual / chance) if merged else 0.0, residual, chance)


def residuals(
    paired: PairedSource, alignment: Alignment, base_state: Mapping[str, Tensor]
) -> list[tuple[float, float]]:
    """For each group of modules: squared distance and squared norm of the base, over weights that read one."""
    groups = paired.module_groups
    group_of = {layer: i for i, group in enumerate(groups) for layer in group}
    sums = [[0.0, 0.0] for _ in groups]
    moved = alignment.transported(paired.state)
    for pair in {pair.base: pair for pair in paired.problem.pairs}.values():
        if len(pair.base_shape) < 2 or pair.layer not in group_of:
            continue
        base = base_state[pair.base].double()
        mask = alignment.mask(pair.base).to(base.device)
        apart = (base - moved[pair.base].to(base)).masked_fill(~mask, 0).square().sum()
        sums[group_of[pair.layer]][0] += float(apart)
        sums[group_of[pair.layer]][1] += float(base.masked_fill(~mask, 0).square().sum())
    return [(a, b) for a, b in sums]


def _relative(sums: Sequence[tuple[float, float]]) -> float:
    """|W_B - W'| / |W_B|; infinite where nothing of the base is matched."""
    apart, norm = sum(a for a, _ in sums), sum(b for _, b in sums)
    return (apart / norm) ** 0.5 if norm else float("inf")


def _scrambled(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Every tensor with its entries in a drawn order."""
    random = torch.Generator().manual_seed(seed)
    scrambled = {}
    for name, tensor in state.items():
        order = torch.randperm(tensor.numel(), generator=random, device="cpu").to(tensor.device)
        scrambled[name] = tensor.flatten()[order].view(tensor.shape)
    return scrambled
