"""Which modules to merge, and how much, where no data say so: compare the source with a scrambled copy of itself.

In: an alignment and the tensors of both sides. Out: `Verdict`. The rule is our own and in no paper. A solver finds some
agreement with any weights, so random permutations are no yardstick: noise that was aligned beats them. The yardstick
here is the same source with the entries of every tensor shuffled, aligned by the same solver. A module is taken where
its residual lies below the scrambled sources' mean by more than `SPREADS` of their deviations and more than the share
`LEAST`; the factor is half of the share by which the residual of all taken modules lies below: 0.5 for a twin of the
base, 0 for noise. Always true: the same seed gives the same verdict.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .matching import Alignment
from .meeting import Meeting, runs

__all__ = ["LEAST", "SCRAMBLED", "Verdict", "judge", "residuals"]

SCRAMBLED = 5
"""How many scrambled sources are aligned."""
LEAST = 0.02
"""By what share of the scrambled sources' mean a residual must lie below it."""
SPREADS = 5.0
"""By how many of their standard deviations: five draws are few, and a model has many modules."""


@dataclass(frozen=True)
class Verdict:
    """What the rule says of one source.

    Attributes:
        layers: the base's modules to merge; empty: refuse.
        factor: the merging factor.
        residual: of the taken modules (of all where none is): ``|W_B - W'| / |W_B|`` over entries that read one.
        chance: the mean of that over scrambled sources.
    """

    layers: tuple[str, ...]
    factor: float
    residual: float
    chance: float

    @property
    def reason(self) -> str:
        """For the log."""
        seen = f"residual {self.residual:.3f}, {self.chance:.3f} where the source is scrambled"
        return seen if self.layers else f"no module is nearer than by chance: {seen}"


def judge(
    meeting: Meeting,
    alignment: Alignment,
    base_state: Mapping[str, Tensor],
    options: Mapping[str, Any],
    *,
    seed: int = 0,
) -> Verdict:
    """Judge one source.

    Args:
        meeting: of base and source.
        alignment: of the source to `base_state`.
        base_state: the base's tensors that take part.
        options: those that `Meeting.align` was called with.
        seed: of the scrambling.
    """
    groups = runs(meeting.problem)
    mine = residuals(meeting, alignment, base_state, groups)
    others = []
    for draw in range(SCRAMBLED):
        scrambled = Meeting(meeting.problem, _scrambled(meeting.source_state, seed + draw))
        noise = scrambled.align(base_state, **options)
        others.append(residuals(scrambled, noise, base_state, groups))
    taken = []
    for i in range(len(groups)):
        reached = [_share(other[i : i + 1]) for other in others]
        mean, spread = statistics.mean(reached), statistics.stdev(reached)
        if _share(mine[i : i + 1]) < mean - max(LEAST * mean, SPREADS * spread):
            taken.append(i)
    chosen = taken or range(len(groups))
    residual = _share([mine[i] for i in chosen])
    chance = sum(_share([other[i] for i in chosen]) for other in others) / SCRAMBLED
    layers = tuple(name for i in taken for name in groups[i])
    return Verdict(layers, 0.5 * (1 - residual / chance) if taken else 0.0, residual, chance)


def residuals(
    meeting: Meeting,
    alignment: Alignment,
    base_state: Mapping[str, Tensor],
    groups: Sequence[Sequence[str]],
) -> list[tuple[float, float]]:
    """For each group of modules: squared distance and squared norm of the base, over weights that read one."""
    place = {layer: i for i, group in enumerate(groups) for layer in group}
    sums = [[0.0, 0.0] for _ in groups]
    moved = alignment.transported(meeting.source_state)
    for pair in {pair.base: pair for pair in meeting.problem.pairs}.values():
        if len(pair.base_shape) < 2 or pair.layer not in place:
            continue
        base = base_state[pair.base].double()
        mask = alignment.mask(pair.base).to(base.device)
        apart = (base - moved[pair.base].to(base)).masked_fill(~mask, 0).square().sum()
        sums[place[pair.layer]][0] += float(apart)
        sums[place[pair.layer]][1] += float(base.masked_fill(~mask, 0).square().sum())
    return [(a, b) for a, b in sums]


def _share(sums: Sequence[tuple[float, float]]) -> float:
    """|W_B - W'| / |W_B|; infinite where nothing of the base is matched."""
    apart, norm = sum(a for a, _ in sums), sum(b for _, b in sums)
    return (apart / norm) ** 0.5 if norm else float("inf")


def _scrambled(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Every tensor with its entries in a drawn order."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in state.items():
        order = torch.randperm(tensor.numel(), generator=random, device="cpu").to(tensor.device)
        found[name] = tensor.flatten()[order].view(tensor.shape)
    return found
