"""Choose pairs of layers whose order rises on both sides and whose axis classes do not contradict each other.

Blocks rise and are paired one to one: the layers of a block go with those of one other block, and a pair of blocks is
worth what the best pairs of layers inside of it are. Dynamic programming sees contradictions between neighbours; those
far apart are settled by weight of evidence, and it runs again without the pairs that lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from graftlib.surgery.blocks import inside

__all__ = ["Blocks", "ClassPairs", "around", "choose", "consistent", "same_depth"]

Blocks = tuple[str, ...]  # FQNs of repeated modules (`graftlib.surgery.blocks`), the outer first
ClassPairs = tuple[tuple[int, int], ...]  # (base class, source class), by number
_Key = tuple[int, int]
_NEVER = -(2**62)


def consistent(
    classes: Sequence[ClassPairs], overlaps: Mapping[tuple[int, int], int] | None = None
) -> dict[int, int]:
    """Base class -> source class: those that most evidence speaks for, one by one, the heaviest first.

    Args:
        classes: that each pair of layers would pair.
        overlaps: class pair -> how much one voice for it weighs; 1 for each without it.

    >>> consistent([((0, 0),), ((0, 0), (1, 1)), ((0, 1),)])
    {0: 0, 1: 1}
    """
    weights: dict[tuple[int, int], int] = {}
    for each in classes:
        for pair in each:
            weights[pair] = weights.get(pair, 0) + (overlaps[pair] if overlaps else 1)
    pairs: dict[int, int] = {}
    for base, source in sorted(weights, key=lambda pair: (-weights[pair], pair)):
        if base not in pairs and source not in pairs.values():
            pairs[base] = source
    return pairs


def around(fqn: str, blocks: Sequence[str]) -> Blocks:
    """The blocks that a tensor lies in."""
    return tuple(block for block in blocks if inside(fqn, block))


def same_depth(
    ones: Sequence[Blocks], others: Sequence[Blocks]
) -> Iterator[tuple[list[Blocks], list[Blocks]]]:
    """Every way in which blocks inside of blocks can be paired, where one model nests them deeper than the other.

    Layers of experts go with plain layers, and the stages or the blocks of a Swin with those of a ViT.

    >>> [*same_depth([("stage", "block")], [("layer",)])]
    [([('stage',)], [('layer',)]), ([('block',)], [('layer',)])]
    """
    depths = [max(map(len, each), default=0) for each in (ones, others)]
    shared = min(depths)
    for levels in combinations(range(depths[0]), shared):
        for other_levels in combinations(range(depths[1]), shared):
            yield _at(ones, levels), _at(others, other_levels)


def _at(every: Sequence[Blocks], levels: Sequence[int]) -> list[Blocks]:
    return [tuple(blocks[level] for level in levels if level < len(blocks)) for blocks in every]


def choose(
    rows: int,
    columns: int,
    worths: Mapping[_Key, int],
    classes: Mapping[_Key, ClassPairs],
    overlaps: Mapping[tuple[int, int], int] | None = None,
    blocks: tuple[Sequence[Blocks], Sequence[Blocks]] | None = None,
) -> list[_Key]:
    """The rising pairs of largest total worth, without contradictions.

    Args:
        rows: base layers, in order.
        columns: source layers, in order.
        worths: (row, column) -> worth above 0, of the candidates.
        classes: (row, column) -> which classes would be paired.
        overlaps: class pair -> how much one voice for it weighs where classes contradict each other.
        blocks: of each row and of each column, the blocks that it lies in, the outer first; None: in none.

    >>> worths = {(i, j): 10 - abs(i - j) for i in range(2) for j in range(2)}
    >>> choose(2, 2, worths, {key: () for key in worths})
    [(0, 0), (1, 1)]

    Two layers a block: without blocks the second base layer takes what lies nearest.

    >>> worths = {(0, 0): 3, (1, 1): 3, (1, 3): 4, (0, 2): 1}
    >>> choose(2, 4, worths, {key: () for key in worths})
    [(0, 0), (1, 3)]
    >>> blocks = [("a",), ("a",)], [("a",), ("a",), ("b",), ("b",)]
    >>> choose(2, 4, worths, {key: () for key in worths}, blocks=blocks)
    [(0, 0), (1, 1)]
    """
    ones, others = blocks or ([()] * rows, [()] * columns)
    grid = _Grid(worths, classes, overlaps, ones, others)
    return sorted(grid.chosen(range(rows), range(columns), 0))


class _Grid:
    """Rows against columns, some of them at a time."""

    def __init__(
        self,
        worths: Mapping[_Key, int],
        classes: Mapping[_Key, ClassPairs],
        overlaps: Mapping[tuple[int, int], int] | None,
        rows: Sequence[Blocks],
        columns: Sequence[Blocks],
    ) -> None:
        self.worths, self.classes, self.overlaps = worths, classes, overlaps
        self.rows, self.columns = rows, columns

    def chosen(
        self,
        rows: Sequence[int],
        columns: Sequence[int],
        level: int,
        settled: Mapping[int, int] | None = None,
    ) -> list[_Key]:
        """The best pairs of some rows and columns, whose blocks up to `level` are paired already."""
        forward = dict(settled or {})
        while True:
            backward = {s: b for b, s in forward.items()}
            chosen = self._best(rows, columns, level, forward, backward)
            pairs = consistent([self.classes[key] for key in chosen], self.overlaps)
            if all(pairs.get(b) == s for key in chosen for b, s in self.classes[key]):
                return chosen
            forward.update(pairs)

    def _best(
        self,
        rows: Sequence[int],
        columns: Sequence[int],
        level: int,
        forward: Mapping[int, int],
        backward: Mapping[int, int],
    ) -> list[_Key]:
        ones, others = _units(rows, self.rows, level), _units(columns, self.columns, level)
        inner: dict[_Key, list[_Key]] = {}
        for i, one in enumerate(ones):
            for j, other in enumerate(others):
                if len(one) == len(other) == 1:
                    key = one[0], other[0]
                    pairs = [key] if self._fits(key, forward, backward) else []
                else:
                    pairs = self.chosen(one, other, level + 1, forward)
                if pairs:
                    inner[i, j] = pairs
        worths = {key: sum(self.worths[pair] for pair in pairs) for key, pairs in inner.items()}
        classes = {
            key: tuple(each for pair in pairs for each in self.classes[pair])
            for key, pairs in inner.items()
        }
        best = _rising(len(ones), len(others), worths, classes)
        return [pair for key in best for pair in inner[key]]

    def _fits(self, key: _Key, forward: Mapping[int, int], backward: Mapping[int, int]) -> bool:
        return key in self.worths and all(
            forward.get(b, s) == s and backward.get(s, b) == b for b, s in self.classes[key]
        )


def _units(places: Sequence[int], blocks: Sequence[Blocks], level: int) -> list[list[int]]:
    """The places of each block at a level, in the order of the first; a place in none stands alone."""
    units: dict[Hashable, list[int]] = {}
    for place in places:
        inside = len(blocks[place]) > level
        units.setdefault(blocks[place][level] if inside else place, []).append(place)
    return list(units.values())


def _rising(
    rows: int, columns: int, worths: Mapping[_Key, int], classes: Mapping[_Key, ClassPairs]
) -> list[_Key]:
    """The best total that ends with each pair; a pair looks at those of the rows and columns beside it."""
    ends = np.full((rows, columns), _NEVER, dtype=np.int64)
    before: dict[_Key, _Key | None] = {}
    # best[i, j]: the largest end among rows < i and columns < j, and where it is.
    best = np.full((rows + 1, columns + 1), _NEVER, dtype=np.int64)
    where: dict[_Key, _Key] = {}
    table = _Table(rows, columns, classes)
    for i in range(rows):
        for j in range(columns):
            if (i, j) in worths:
                gain, origin = _predecessor(i, j, ends, best, where, table)
                ends[i, j] = worths[i, j] + gain
                before[i, j] = origin
            options = [
                (int(best[i, j + 1]), where.get((i, j + 1))),
                (int(best[i + 1, j]), where.get((i + 1, j))),
                (int(ends[i, j]), (i, j)),
            ]
            value, at = max(options, key=lambda option: option[0])  # the first of equals
            best[i + 1, j + 1] = value
            if value > _NEVER and at is not None:
                where[i + 1, j + 1] = at
    at = where.get((rows, columns))
    chosen = []
    while at is not None:
        chosen.append(at)
        at = before[at]
    return chosen[::-1]


def _predecessor(
    i: int,
    j: int,
    ends: NDArray[np.int64],
    best: NDArray[np.int64],
    where: Mapping[_Key, _Key],
    table: _Table,
) -> tuple[int, _Key | None]:
    """The largest end that this pair may follow: anything two away, what does not contradict it beside it."""
    gain, origin = 0, None
    if i and j:
        beside: list[tuple[int, _Key]] = []
        row = np.where(table.agree(i, j, i - 1, slice(0, j)), ends[i - 1, :j], _NEVER)
        beside.append((int(row.max()), (i - 1, int(row.argmax()))))
        column = np.where(table.agree(i, j, slice(0, i), j - 1), ends[:i, j - 1], _NEVER)
        beside.append((int(column.max()), (int(column.argmax()), j - 1)))
        # In this order, so that equal totals go to the diagonal.
        beside.sort(key=lambda each: -each[0])
        if int(best[i - 1, j - 1]) > gain:
            gain, origin = int(best[i - 1, j - 1]), where[i - 1, j - 1]
        for value, at in beside:
            if value > gain or (value == gain and value > 0 and at == (i - 1, j - 1)):
                gain, origin = value, at
    return gain, origin


class _Table:
    """Which pairs contradict each other, looked up for a row or a column of pairs at once."""

    def __init__(self, rows: int, columns: int, classes: Mapping[_Key, ClassPairs]) -> None:
        numbers = [{pair[k] for each in classes.values() for pair in each} for k in (0, 1)]
        self._tables = []
        for side in (0, 1):
            index = {number: i for i, number in enumerate(sorted(numbers[side]))}
            table = np.full((rows, columns, len(index)), -1, dtype=np.int32)
            for (i, j), each in classes.items():
                for pair in each:
                    table[i, j, index[pair[side]]] = pair[1 - side]
            self._tables.append(table)

    def agree(self, i: int, j: int, row: int | slice, column: int | slice) -> NDArray[np.bool_]:
        """For each of the pairs (row, column): whether no class is paired twice in it and in (i, j)."""
        fine: NDArray[np.bool_] = np.array(True)
        for table in self._tables:
            mine, theirs = table[i, j], table[row, column]
            clash = (mine >= 0) & (theirs >= 0) & (mine != theirs)
            fine = fine & ~clash.any(axis=-1)
        return fine
