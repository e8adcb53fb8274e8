"""A cache of gains beside `matching`: what did not change since the last call is not multiplied again.

A class of many products is kept as one matrix in the working dtype, within a share of the weights' memory; when a
neighbour changes, only the units that changed are multiplied. Where no class has many, every gain is computed anew, to
the same bits. On ResNet-50 the alignment takes 4.7 times as long without it (``without the gain cache`` in
`docs/benchmarks/alignment.json`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .alignment_problem import Cell
from .objective import Objective, add_product_gain, determined
from .permutation import Permutation, reading
from .sparse_assignment import cheapest

__all__ = ["GainCache"]

MANY = 2**27
"""Products of a class, from which on its gains are kept."""
SHARE = 1 / 6
"""Of the weights of both models, for what is kept."""
_COLUMNS = 128
"""Of the matrices that are multiplied at once: little memory, which is found in the cache again."""
_PART = 2**17
"""Elements of a tensor that are read at once, where classes are kept."""


class GainCache:
    """Costs (negative gains) along one descent, and the assignments over them.

    Args:
        objective: what is maximised.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._classes = _worth_caching(objective)
        self._costs: dict[int, Tensor] = {}
        # (class, cell) -> the reads of the cell's other classes at which its gain was added.
        self._reads: dict[tuple[int, int], dict[int, Tensor]] = {}
        self._prices: dict[int, Tensor] = {}

    @property
    def caches(self) -> bool:
        """Whether the gains of some class are cached; else everything is computed anew."""
        return bool(self._classes)

    def cost(self, c: int, reads: Mapping[int, Tensor], known: set[int] | None = None) -> Tensor:
        """The negative of `Objective.gain`; (m, p) on the CPU, not to be changed.

        Args:
            c: number of the class pair.
            reads: of all class pairs.
            known: as for `Objective.gain`; a class that is in it once stays in it in later calls.
        """
        objective = self._objective
        if c not in self._classes:
            part = {"part": _PART} if self.caches else {}
            return objective.gain(c, reads, known=known, **part).neg_()
        if not self._costs:
            self._costs = self._zeros()
        for i in objective.cells_of[c]:
            if known is None or determined(objective.cells[i], c, known):
                self._update(self._costs[c], c, i, reads)
        return self._costs[c]

    def _update(self, total: Tensor, c: int, i: int, reads: Mapping[int, Tensor]) -> None:
        objective, cell, before = self._objective, self._objective.cells[i], self._reads.get((c, i))
        others = {each for each in cell.classes if each not in (None, c)}
        if before is None:
            part = _COLUMNS * max(objective.sizes[c])
            objective.add_cell_gain(total, cell, c, reads, scale=-1.0, part=part)
        else:
            # One class after the other: those before are new already, those behind still old.
            for other in sorted(each for each in others if each is not None):
                if not _same(before[other], reads[other]):
                    self._follow(total, cell, c, other, before, reads[other])
                    before[other] = reads[other]
        self._reads[c, i] = {each: reads[each] for each in others if each is not None}

    def _follow(
        self,
        total: Tensor,
        cell: Cell,
        c: int,
        other: int,
        reads: Mapping[int, Tensor],
        new: Tensor,
    ) -> None:
        """Take off `total` what the gain of a cell rises by when one other class changes: its changed units alone."""
        objective, old = self._objective, reads[other]
        dim, place = cell.classes.index(c), cell.classes.index(other)
        classes = [None if d in (dim, place) else each for d, each in enumerate(cell.classes)]
        base, source = objective.views(cell)
        part = _COLUMNS * max(objective.sizes[c])
        size = max(each.numel() // max(each.shape[place], 1) for each in (base, source))
        # Squares are no differences: where norms count, both sides are multiplied.
        normed = objective.name == "l2" and total.shape[0] < total.shape[1]
        changed = (old != new).nonzero().flatten()
        for units in torch.split(changed, max(part // max(size, 1), 1)):
            ours = reading(base, {place: units})
            after, before = (
                reading(source, {place: each[units]}).to(objective.dtype) for each in (new, old)
            )
            sides = ((after, -1.0), (before, 1.0)) if normed else ((after.sub_(before), -1.0),)
            del before
            for theirs, scale in sides:
                add_product_gain(
                    total, objective, ours, theirs, classes, dim, reads, scale=scale, part=part
                )

    def _zeros(self) -> dict[int, Tensor]:
        """Zeros for every class that is cached, in one piece: pieces between others would leave gaps when they go."""
        classes = sorted(self._classes)
        sizes = [self._objective.sizes[c] for c in classes]
        whole = torch.zeros(sum(m * p for m, p in sizes), dtype=self._objective.dtype, device="cpu")
        pieces = torch.split(whole, [m * p for m, p in sizes])
        return {c: piece.view(size) for c, piece, size in zip(classes, pieces, sizes, strict=True)}

    def close(self, reads: Mapping[int, Tensor]) -> float:
        """The objective at the end of the descent. The cache is emptied first; a later call begins anew."""
        self._costs, self._reads = {}, {}
        return self._objective.value(reads, part=_PART)

    def assign(self, c: int, cost: Tensor) -> Permutation:
        """The permutation of least cost; the prices of the last solution of this class shorten the way."""
        permutation, prices = cheapest(cost, self._prices.get(c))
        if prices is not None:
            self._prices[c] = prices
        return permutation


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)


def _worth_caching(objective: Objective) -> set[int]:
    """The classes whose gains are cached: those of many products, the most for their size first."""
    item = torch.finfo(objective.dtype).bits // 8
    worth = {}
    for c, (m, p) in enumerate(objective.sizes):
        products = objective.entries(c) * p
        if products >= MANY and all(_once(objective.cells[i]) for i in objective.cells_of[c]):
            worth[c] = products / (m * p)
    left = objective.stored_bytes * SHARE
    cached = set()
    for c in sorted(worth, key=lambda each: (-worth[each], each)):
        size = objective.sizes[c][0] * objective.sizes[c][1] * item
        if size <= left:
            cached.add(c)
            left -= size
    return cached


def _once(cell: Cell) -> bool:
    """Whether a cell holds each of its classes once."""
    classes = [each for each in cell.classes if each is not None]
    return len(set(classes)) == len(classes)
