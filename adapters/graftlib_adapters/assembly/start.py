"""Where the descent of `matching` begins: class by class, each from what is determined by then.

Inputs and outputs have a fixed order; a class is first solved from the cells whose other classes are known. The
published start, the identity, puts wrong neighbours in the place of unknown ones (`examples/benchmarks/planted.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from .alignment_problem import Cell
from .assignment import assign, least
from .gain_cache import GainCache
from .objective import Objective, Reads, determined, read_units
from .permutation import Permutation

__all__ = ["bound", "outward", "undetermined_neighbours"]

_LARGEST_BOUNDED = 4096  # assignments that are solved to bound one class


def outward(
    objective: Objective, gains: GainCache, fixed: Mapping[int, Permutation]
) -> dict[int, Permutation]:
    """Class pair -> permutation: the given ones, then those of which most is known, one after the other."""
    permutations = dict(fixed)
    left = set(range(len(objective.sizes))) - set(permutations)
    while left:
        known = set(permutations)
        reads = {c: each.reads for c, each in permutations.items()}
        c = max(left, key=lambda c: (_determined_share(objective, c, known), -c))
        if _determined_share(objective, c, known):
            permutations[c] = gains.assign(c, gains.cost(c, reads, known))
        else:
            c, permutations[c] = _bounded(objective, reads, left)
        left.discard(c)
    return permutations


def _determined_share(objective: Objective, c: int, known: set[int]) -> float:
    """The share of a class pair's entries that lie in cells whose other classes are known."""
    cells = [objective.cells[i] for i in objective.cells_of[c]]
    entries = sum(cell.entries * determined(cell, c, known) for cell in cells)
    return entries / objective.entries(c) if cells else 0.0


def _bounded(objective: Objective, reads: Reads, left: set[int]) -> tuple[int, Permutation]:
    """No class is determined: the smallest one with exactly one undetermined neighbour, by an upper bound per pair."""
    known = set(reads)
    candidates = [
        c
        for c in left
        if undetermined_neighbours(objective, c, known)
        and prod(objective.sizes[c]) <= _LARGEST_BOUNDED
    ]
    if not candidates:
        return min(left), Permutation.identity(*objective.sizes[min(left)])
    c = min(candidates, key=lambda c: (prod(objective.sizes[c]), c))
    return c, least(bound(objective, c, reads, known=known).neg_())


def undetermined_neighbours(objective: Objective, c: int, known: set[int]) -> set[int]:
    """The class pairs that alone keep a cell of this one undetermined."""
    unknown = (_undetermined(objective.cells[i], c, known) for i in objective.cells_of[c])
    return {each for each in unknown if each is not None}


def _undetermined(cell: Cell, c: int, known: set[int]) -> int | None:
    """The one other class that a cell holds, once, and that is not known; None where there are more or none."""
    unknown = [each for each in cell.classes if each is not None and each not in known]
    others = [each for each in unknown if each != c]
    return others[0] if len(others) == 1 and len(unknown) == 2 else None


def bound(objective: Objective, c: int, reads: Reads, *, known: set[int]) -> Tensor:
    """At most what it gains that base unit i reads source unit j, where one other class is not known yet.

    Heads and head_dim share an axis: which head reads which cannot be said without the order inside of them, nor the
    other way round. Here every pair of units has the best order for itself, which is the true one where the two are
    the same unit. Cells with another number of unknown classes say nothing.

    Args:
        objective: that is maximised.
        c: number of the class pair.
        reads: of the known class pairs.
        known: their numbers.

    Returns:
        (m, p) float64 on the CPU.
    """
    total = torch.zeros(objective.sizes[c], dtype=torch.float64, device="cpu")
    rows: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for i in objective.cells_of[c]:
        inner = _undetermined(objective.cells[i], c, known)
        if inner is not None:
            rows.setdefault(inner, []).append(_rows(objective, objective.cells[i], c, inner, reads))
    for sides in rows.values():
        for i in range(len(total)):
            gain = torch.stack([_inner_gain(objective, ours[i], theirs) for ours, theirs in sides])
            for j, each in enumerate(gain.sum(0).to("cpu", torch.float64)):
                best = assign(each).reads
                matched = (best >= 0).nonzero().flatten()
                total[i, j] += each[matched, best[matched]].sum()
    return total


def _rows(
    objective: Objective, cell: Cell, c: int, inner: int, reads: Reads
) -> tuple[Tensor, Tensor]:
    """Both sides as (units, units inside, all the rest), the rest in the base's units."""
    base, source = objective.views(cell)
    front = (cell.classes.index(c), cell.classes.index(inner))
    for d, each in enumerate(cell.classes):
        if d not in front:
            source = read_units(source, d, each, reads, 0, base.shape[d])
    ours, theirs = (t.to(objective.dtype).movedim(front, (0, 1)) for t in (base, source))
    return ours.reshape(*ours.shape[:2], -1), theirs.reshape(*theirs.shape[:2], -1)


def _inner_gain(objective: Objective, ours: Tensor, theirs: Tensor) -> Tensor:
    """(p, mi, pi) gains inside of one base unit (mi, rest) and each source unit (p, pi, rest)."""
    inner = (theirs @ ours.T).mT
    return inner if objective.name == "inner" else 2 * inner - theirs.square().sum(2)[:, None]
