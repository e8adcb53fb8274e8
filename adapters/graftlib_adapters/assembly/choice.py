"""Choose pairs of layers whose order rises on both sides and whose classes do not contradict each other.

In: what each pair is worth and which classes would meet; in which blocks the layers lie. Out: the pairs. Always true:
rows and columns rise strictly, blocks rise and meet one to one, the layers of a block meet those of one other block;
the result depends on nothing but the arguments. Dynamic programming sees contradictions between neighbours; those far
apart are settled by weight of evidence, and it runs again without the pairs that lost. A pair of blocks is worth what
the best pairs of layers inside of it are.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks

__all__ = ["Evidence", "Meets", "choose", "consistent"]

Meets = tuple[tuple[int, int], ...]
_Key = tuple[int, int]
_NEVER = -(2**62)


@dataclass(frozen=True)
class Evidence:
    """Class pairs of which none shares a class with another.

    Attributes:
        pairs: (base class, source class), by number.
    """

    pairs: tuple[tuple[int, int], ...]

    def clash(self, meets: Meets) -> tuple[int, int] | None:
        """The first of some meetings that is none of the pairs; None where all are."""
        kept = set(self.pairs)
        return next((meet for meet in meets if meet not in kept), None)


def consistent(
    meets: Sequence[Meets], alike: Mapping[tuple[int, int], int] | None = None
) -> Evidence:
    """The class pairs that most evidence speaks for, taken one by one, the heaviest first.

    Args:
        meets: of each pair of layers.
        alike: class pair -> how much one voice for it weighs; 1 for each without it.

    >>> consistent([((0, 0),), ((0, 0), (1, 1)), ((0, 1),)]).pairs
    ((0, 0), (1, 1))
    """
    weights: dict[tuple[int, int], int] = {}
    for each in meets:
        for meet in each:
            weights[meet] = weights.get(meet, 0) + (alike[meet] if alike else 1)
    kept: list[tuple[int, int]] = []
    for base, source in sorted(weights, key=lambda meet: (-weights[meet], meet)):
        if all(base != b and source != s for b, s in kept):
            kept.append((base, source))
    return Evidence(tuple(sorted(kept)))


def choose(
    rows: int,
    columns: int,
    worths: Mapping[_Key, int],
    meets: Mapping[_Key, Meets],
    alike: Mapping[tuple[int, int], int] | None = None,
    blocks: tuple[Sequence[Blocks], Sequence[Blocks]] | None = None,
) -> list[_Key]:
    """The rising pairs of largest total worth, without contradictions.

    Args:
        rows: base layers, in order.
        columns: source layers, in order.
        worths: (row, column) -> worth above 0, of the pairs that may be.
        meets: (row, column) -> which classes would meet.
        alike: class pair -> how much one voice for it weighs where classes contradict each other.
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
    grid = _Grid(worths, meets, alike, ones, others)
    return sorted(grid.chosen(range(rows), range(columns), 0))


class _Grid:
    """Rows against columns, some of them at a time."""

    def __init__(
        self,
        worths: Mapping[_Key, int],
        meets: Mapping[_Key, Meets],
        alike: Mapping[tuple[int, int], int] | None,
        rows: Sequence[Blocks],
        columns: Sequence[Blocks],
    ) -> None:
        self.worths, self.meets, self.alike = worths, meets, alike
        self.rows, self.columns = rows, columns

    def chosen(
        self,
        rows: Sequence[int],
        columns: Sequence[int],
        level: int,
        settled: Mapping[int, int] | None = None,
    ) -> list[_Key]:
        """The best pairs of some rows and columns, whose blocks up to `level` meet already."""
        forward = dict(settled or {})
        while True:
            backward = {s: b for b, s in forward.items()}
            taken = self._best(rows, columns, level, forward, backward)
            kept = consistent([self.meets[key] for key in taken], self.alike)
            if all(kept.clash(self.meets[key]) is None for key in taken):
                return taken
            forward.update(kept.pairs)

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
        meets = {
            key: tuple(meet for pair in pairs for meet in self.meets[pair])
            for key, pairs in inner.items()
        }
        best = _rising(len(ones), len(others), worths, meets)
        return [pair for key in best for pair in inner[key]]

    def _fits(self, key: _Key, forward: Mapping[int, int], backward: Mapping[int, int]) -> bool:
        return key in self.worths and all(
            forward.get(b, s) == s and backward.get(s, b) == b for b, s in self.meets[key]
        )


def _units(places: Sequence[int], blocks: Sequence[Blocks], level: int) -> list[list[int]]:
    """The places of each block at a level, in the order of the first; a place in none stands alone."""
    found: dict[Hashable, list[int]] = {}
    for place in places:
        inside = len(blocks[place]) > level
        found.setdefault(blocks[place][level] if inside else place, []).append(place)
    return list(found.values())


def _rising(
    rows: int, columns: int, worths: Mapping[_Key, int], meets: Mapping[_Key, Meets]
) -> list[_Key]:
    """The best total that ends with each pair; a pair looks at those of the rows and columns beside it."""
    ends = np.full((rows, columns), _NEVER, dtype=np.int64)
    before: dict[_Key, _Key | None] = {}
    # best[i, j]: the largest end among rows < i and columns < j, and where it is.
    best = np.full((rows + 1, columns + 1), _NEVER, dtype=np.int64)
    where: dict[_Key, _Key] = {}
    table = _Table(rows, columns, meets)
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
    taken = []
    while at is not None:
        taken.append(at)
        at = before[at]
    return taken[::-1]


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

    def __init__(self, rows: int, columns: int, meets: Mapping[_Key, Meets]) -> None:
        numbers = [{meet[k] for each in meets.values() for meet in each} for k in (0, 1)]
        self._tables = []
        for side in (0, 1):
            index = {number: i for i, number in enumerate(sorted(numbers[side]))}
            table = np.full((rows, columns, len(index)), -1, dtype=np.int32)
            for (i, j), each in meets.items():
                for meet in each:
                    table[i, j, index[meet[side]]] = meet[1 - side]
            self._tables.append(table)

    def agree(self, i: int, j: int, row: int | slice, column: int | slice) -> NDArray[np.bool_]:
        """For each of the pairs (row, column): whether no class meets two in it and in (i, j)."""
        fine: NDArray[np.bool_] = np.array(True)
        for table in self._tables:
            mine, theirs = table[i, j], table[row, column]
            clash = (mine >= 0) & (theirs >= 0) & (mine != theirs)
            fine = fine & ~clash.any(axis=-1)
        return fine
