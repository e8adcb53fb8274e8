"""A cache of gains: what did not change since the last call is not multiplied again.

In: an `Objective` and, call by call, the reads of all class pairs. Out: the negative gains, as from the objective
itself up to rounding. Always true: a call reads every cell at the reads that it is given. Between calls a class of many
products is kept as one matrix in the working dtype, within a share of the weights' memory; when a neighbour changes,
only the units that changed are multiplied. Where no class has many, everything is computed anew, to the same bits as
without this. Only reads here, no relaxed permutations.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .objective import Objective, is_determined
from .permutation import Permutation
from .pricing import cheapest

__all__ = ["GainCache"]

_MANY = 2**27
"""Products of a class, from which on its gains are kept."""
_SHARE = 1 / 6
"""Of the weights of both models, for what is kept."""
_COLUMNS = 128
"""Of the matrices that are multiplied at once: little memory, which is found in the cache again."""
_PART = 2**17
"""Elements of a tensor that are carried at once, where classes are kept."""

# Class pair -> reads at which something was computed.
Reads = dict[int, Tensor]


class GainCache:
    """Costs (negative gains) along one descent, and the assignments over them.

    Args:
        objective: what is maximised.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._cached = _worth_caching(objective)
        self._costs: dict[int, Tensor] = {}
        self._cells: dict[int, dict[int, Reads]] = {pair: {} for pair in self._cached}
        self._prices: dict[int, Tensor] = {}

    @property
    def caches(self) -> bool:
        """Whether the gains of some class are cached; else everything is computed anew."""
        return bool(self._cached)

    def cost(self, pair: int, moves: Mapping[int, Tensor], known: set[int] | None = None) -> Tensor:
        """The negative of `Objective.gain`; (m, p) on the CPU, not to be changed.

        Args:
            pair: number of the class pair.
            moves: the reads of all class pairs.
            known: as for `Objective.gain`; a class that is in it once stays in it in later calls.
        """
        objective = self._objective
        if pair not in self._cached:
            if self.caches:
                return objective.gain(pair, moves, known=known, part=_PART).neg_()
            return objective.gain(pair, moves, known=known).neg_()
        if not self._costs:
            self._costs = self._fresh()
        for i in objective.of[pair]:
            if known is None or is_determined(objective.cells[i], pair, known):
                self._update(self._costs[pair], i, pair, moves)
        return self._costs[pair]

    def _update(self, total: Tensor, number: int, pair: int, moves: Mapping[int, Tensor]) -> None:
        objective, seen = self._objective, self._cells[pair].get(number)
        part = _COLUMNS * max(objective.sizes[pair])
        others = {each for each in objective.cells[number].dims if each not in (None, pair)}
        if seen is None:
            objective.add_gain(total, number, pair, moves, sign=-1.0, part=part)
        else:
            # One class after the other: those before are new already, those behind still old.
            for other in sorted(others):
                if not _same(seen[other], moves[other]):
                    change = other, seen[other], moves[other]
                    objective.add_gain(
                        total, number, pair, seen, change=change, sign=-1.0, part=part
                    )
                    seen[other] = moves[other]
        self._cells[pair][number] = {each: moves[each] for each in others}

    def _fresh(self) -> dict[int, Tensor]:
        """Zeros for every class that is cached, in one piece: pieces between others would leave gaps when they go."""
        pairs = sorted(self._cached)
        sizes = [self._objective.sizes[pair] for pair in pairs]
        whole = torch.zeros(sum(m * p for m, p in sizes), dtype=self._objective.dtype, device="cpu")
        parts = torch.split(whole, [m * p for m, p in sizes])
        return {pair: part.view(size) for pair, part, size in zip(pairs, parts, sizes, strict=True)}

    def close(self, moves: Mapping[int, Tensor]) -> float:
        """The objective at the end of the descent. The cache is emptied first; a later call begins anew."""
        self._costs = {}
        self._cells = {pair: {} for pair in self._cached}
        return self._objective.value(moves, part=_PART)

    def assign(self, pair: int, cost: Tensor) -> Permutation:
        """The permutation of least cost; the prices of the last solution of this class shorten the way."""
        permutation, prices = cheapest(cost, self._prices.get(pair))
        if prices is not None:
            self._prices[pair] = prices
        return permutation


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)


def _worth_caching(objective: Objective) -> set[int]:
    """The classes whose gains are cached: those of many products, the most for their size first."""
    item = torch.finfo(objective.dtype).bits // 8
    worth = {}
    for pair, (m, p) in enumerate(objective.sizes):
        plain = all(
            len(set(inner)) == len(inner)
            for inner in (
                [d for d in objective.cells[i].dims if d is not None] for i in objective.of[pair]
            )
        )
        products = objective.entries(pair) * p
        if plain and products >= _MANY:
            worth[pair] = products / (m * p)
    left = objective.weight * _SHARE
    cached = set()
    for pair in sorted(worth, key=lambda each: (-worth[each], each)):
        size = objective.sizes[pair][0] * objective.sizes[pair][1] * item
        if size <= left:
            cached.add(pair)
            left -= size
    return cached
