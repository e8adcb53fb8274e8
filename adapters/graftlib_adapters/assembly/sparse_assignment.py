"""Large assignments: few entries are looked at, and dual prices prove that the others do not matter.

By column generation: an assignment over the best entries of every unit is solved as a sparse one; its dual prices say
what every other entry would cost; those that would pay are added, until there is none. The result is optimal over all
entries, up to rounding in double precision, and no matrix as large as the costs is made. One assignment of 4,096 units,
as in VGG-11, takes a third to a half of the time of the dense one (`docs/benchmarks/alignment.json`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .assignment import least
from .permutation import Permutation

__all__ = ["cheapest", "priced"]

LARGE = 1024  # units, from which on prices are worth it

_BLOCK = 2**16  # entries that are looked at together: they stay in the cache
_FIRST = 16  # entries of every unit to begin with
_MORE = 40  # entries of a unit that are added at most
_ROUNDS = 12
# Entries of a unit, at first and at last: more are nearly equal, and sparse matching is slow.
_CROWDED = (64, 256)
_TINY = 1e-11  # of the largest cost: less is rounding

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


def cheapest(cost: Tensor, prices: Tensor | None = None) -> tuple[Permutation, Tensor | None]:
    """The permutation of least cost: small ones as `assignment.least`, large ones by `priced`.

    Args:
        cost: (m, p) on the CPU, any float dtype; not changed.
        prices: of an earlier call with the same shape, where it gave some.

    Returns:
        the permutation, and prices where there are any.

    Raises:
        AssemblyError: a cost is not finite.
    """
    if min(cost.shape) >= LARGE and all(math.isfinite(each) for each in cost.aminmax()):
        solved = priced(cost, prices)
        if solved is not None:
            return solved
    return least(cost.double()), None


def priced(cost: Tensor, prices: Tensor | None = None) -> tuple[Permutation, Tensor] | None:
    """The permutation P of least ``sum(P * cost)``, and the prices that prove it.

    Args:
        cost: (m, p) on the CPU, any float dtype, finite; not changed.
        prices: of an earlier call with the same shape; the nearer the costs, the faster this one.

    Returns:
        the permutation and (max(m, p),) float64 prices; None where so many costs are equal, or nearly, that no proof
        was found in some rounds: solve the whole matrix then.
    """
    turned = cost.shape[0] > cost.shape[1]
    costs = _Costs(cost.T if turned else cost)
    m, p = costs.shape
    square = m == p
    start = np.zeros(p) if prices is None else prices.numpy()
    keys = [costs.of_rows(start, _FIRST)]
    if prices is None and square:  # every column needs a row, too
        keys.append(costs.of_columns(_FIRST))
    keys.append(np.arange(m) * (p + 1))  # so that there is one assignment at least
    for turn in range(_ROUNDS):
        chosen = np.unique(np.concatenate(keys))
        if len(chosen) > _CROWDED[turn > 0] * m:
            return None
        values = costs.at(chosen)
        columns = _sparse(chosen, values, costs.shape)
        # Where columns stay free their price is 0, and no other is above it.
        new = _prices(chosen, values, columns, start if square else np.zeros(p), costs.tiny / m)
        if new is None:
            return None
        missing = costs.paying(new, columns)
        if not len(missing):
            permutation = Permutation(torch.from_numpy(columns), p)
            permutation = permutation.inverse() if turned else permutation
            return permutation, torch.from_numpy(new)
        keys, start = [chosen, missing], new
    return None


class _Costs:
    """Costs (m, p), m <= p, read in blocks of rows in double precision. A key is row * p + column."""

    def __init__(self, cost: Tensor) -> None:
        self._cost, self.shape = cost, (cost.shape[0], cost.shape[1])
        self.tiny = _TINY * max(abs(float(each)) for each in cost.aminmax())

    def at(self, keys: Numbers) -> Floats:
        rows, columns = np.divmod(keys, self.shape[1])
        picked = self._cost[torch.from_numpy(rows), torch.from_numpy(columns)]
        values: Floats = picked.double().numpy()
        return values

    def of_rows(self, prices: Floats, count: int) -> Numbers:
        """The keys of entries that are cheap after the columns' prices, so many in a row as a rule."""
        m, p = self.shape
        off = torch.from_numpy(prices).to(self._cost.dtype)
        some = self._cost[:: max(m // 32, 1)] - off
        few = some.topk(min(count, p), 1, largest=False).values
        reach = (few[:, -1] - few[:, 0]).median()
        keys = []
        for start, block in self._blocks(self._cost.dtype):
            block.sub_(off)
            near = block <= block.amin(1, keepdim=True).add_(reach)
            keys.append(np.flatnonzero(near.numpy()) + start * p)
        return np.concatenate(keys)

    def of_columns(self, count: int) -> Numbers:
        """The keys of some entries in every column that are the cheapest."""
        m, p = self.shape
        step = max(_BLOCK // m, 1)
        keys = []
        for start in range(0, p, step):
            block = self._cost[:, start : start + step].T.contiguous()
            rows = block.topk(min(count, m), 1, largest=False, sorted=False).indices
            columns = torch.arange(start, start + len(block))[:, None]
            keys.append((rows * p + columns).flatten())
        return torch.cat(keys).numpy()

    def paying(self, prices: Floats, columns: Numbers) -> Numbers:
        """The keys of entries that would cost less than what a row pays; of many in a row the best."""
        p = self.shape[1]
        off, paid = torch.from_numpy(prices), torch.from_numpy(columns)
        paying = []
        for start, block in self._blocks():
            block.sub_(off)
            bound = block.gather(1, paid[start : start + len(block), None]) - self.tiny
            rows = (block.amin(1, keepdim=True) < bound).nonzero()[:, 0]
            if not len(rows):
                continue
            best = block[rows].topk(min(_MORE, p), 1, largest=False, sorted=False)
            keys = (rows[:, None] + start) * p + best.indices
            paying.append(keys[best.values < bound[rows]])
        return torch.cat(paying).numpy() if paying else np.empty(0, np.int64)

    def _blocks(self, dtype: torch.dtype = torch.float64) -> Iterator[tuple[int, Tensor]]:
        """(first row, costs of some rows, a copy)."""
        step = max(_BLOCK // self.shape[1], 1)
        for start in range(0, self.shape[0], step):
            yield start, self._cost[start : start + step].to(dtype, copy=True)


def _sparse(keys: Numbers, costs: Floats, shape: tuple[int, int]) -> Numbers:
    """(m,) the column of each row in the assignment of least cost over the entries `keys`, sorted."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    rows, columns = np.divmod(keys, shape[1])
    starts = np.searchsorted(rows, np.arange(shape[0] + 1))
    above = costs - costs.min() + 1.0  # an entry of 0 would be no entry
    entries = csr_array((above, columns.astype(np.int32), starts.astype(np.int32)), shape=shape)
    solved: Numbers = min_weight_full_bipartite_matching(entries)[1].astype(np.int64)
    return solved


def _prices(
    keys: Numbers, costs: Floats, columns: Numbers, start: Floats, tiny: float
) -> Floats | None:
    """The columns' prices, at most `start`, under which every row pays least for its own column; None: none were found.

    Over the entries `keys`: price[j] <= cost[i, j] - cost[i, own] + price[own], by Bellman and Ford.
    """
    rows, ends = np.divmod(keys, len(start))
    own = columns[rows]
    paid = np.empty(len(columns))
    mine = ends == own
    paid[rows[mine]] = costs[mine]
    more = costs - paid[rows]
    order = np.argsort(ends)
    more, own, ends = more[order], own[order], ends[order]
    first = np.flatnonzero(np.concatenate(([True], ends[1:] != ends[:-1])))
    present = ends[first]
    prices = start.copy()
    for _ in range(len(start)):
        bound = np.minimum.reduceat(more + prices[own], first)
        lower = bound < prices[present] - tiny
        if not lower.any():
            return prices
        prices[present[lower]] = bound[lower]
    return None
