"""Assignment: the generalized permutation of largest gain.

In: gains, or two matrices. Out: `Permutation`s. Always true: every permutation has min(m, p) matches; the result
depends on nothing but the arguments. Here: one class at a time, and one free pair of matrices (`alternate`). Not
here: all classes of two models at once (`matching`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from graftlib.errors import MissingExtraError

from .permutation import AssemblyError, Permutation

__all__ = ["Score", "alternate", "assign", "distance", "gains", "least"]

Score = Literal["l2", "inner"]
_RISE = 1e-12  # of the objective, relative: less is rounding
_SWEEPS = 100


def assign(gain: Tensor) -> Permutation:
    """The permutation P of largest ``sum(P * gain)``, by the Jonker-Volgenant algorithm of SciPy.

    Args:
        gain: (m, p) on any device, what it is worth that base unit i reads source unit j. Finite.

    Returns:
        a permutation with min(m, p) matches; equal gains always fall the same way.

    Raises:
        AssemblyError: a gain is not finite.
        MissingExtraError: SciPy is missing.

    >>> assign(torch.tensor([[1.0, 5.0, 0.0], [2.0, 9.0, 0.0]])).reads  # 1 + 9 beats 5 + 2
    tensor([0, 1])
    """
    return least(gain.detach().to("cpu", torch.float64, copy=True).neg_())


def least(cost: Tensor) -> Permutation:
    """The permutation of least cost, see `assign`; `cost` is (m, p) float64 on the CPU and is not copied."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingExtraError(
            "aligning models solves assignments with SciPy.",
            fix='pip install "graftlib[assembly]"',
        ) from error
    if not math.isfinite(float(cost.sum())):  # without a table of booleans as large as the costs
        raise AssemblyError(
            "a gain is not finite.",
            why="the weights hold infinities or NaN, or their squares overflow",
            fix="align models whose weights are finite",
        )
    rows, columns = linear_sum_assignment(cost.numpy())
    reads = torch.full((cost.shape[0],), -1, dtype=torch.int64, device="cpu")
    reads[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return Permutation(reads, cost.shape[1])


def gains(base: Tensor, source: Tensor, *, score: Score = "l2") -> Tensor:
    """What it is worth that base unit i reads source unit j, all else being aligned.

    ``inner``: <B[i], T[j]>. ``l2``: 2 <B[i], T[j]> - |T[j]|^2, so that the best assignment has the least distance
    |B - P T|^2 also where source units are dropped (m < p).

    Args:
        base: (m, n) one row a unit; a bias is one more column.
        source: (p, n) in the base's columns.
        score: which of the two.

    Returns:
        (m, p) of their dtype and device.
    """
    inner = base @ source.T
    if score == "inner":
        return inner
    return 2 * inner - source.square().sum(1)


def distance(base: Tensor, source: Tensor, rows: Permutation, columns: Permutation) -> float:
    """|B - P T Q^T|^2 for a matrix pair (m, n), (p, q)."""
    moved = columns.apply(rows.apply(source, 0), 1)
    return float((base - moved).double().square().sum())


def alternate(
    base: Tensor,
    source: Tensor,
    *,
    restarts: int = 20,
    seed: int = 0,
    score: Score = "l2",
) -> tuple[Permutation, Permutation, tuple[float, ...]]:
    """Both sides free: P and Q of least |B - P T Q^T|^2 (``l2``) or largest <B, P T Q^T> (``inner``), by turns.

    A local search: each turn solves one side exactly while the other stays. It starts from the identity and from
    random Q; the best is kept. A column order that is found here knows nothing of what the layer before emits: where
    the layers before and after are aligned too, use `match`.

    Args:
        base: (m, n).
        source: (p, q).
        restarts: random starts beside the identity.
        seed: of the random starts.
        score: what is optimised.

    Returns:
        P (m, p), Q (n, q), and the objective, larger is better, before and after each turn of the best start; it
        never falls.
    """
    random = torch.Generator().manual_seed(seed)
    (m, n), (p, q) = base.shape, source.shape
    base, source = base.detach().double(), source.detach().double()
    starts = [Permutation.identity(n, q)]
    starts += [Permutation.random(n, q, random) for _ in range(restarts)]
    found = [_by_turns(base, source, Permutation.identity(m, p), each, score) for each in starts]
    return max(found, key=lambda each: each[2][-1])  # the first of equals


def _by_turns(
    base: Tensor, source: Tensor, rows: Permutation, columns: Permutation, score: Score
) -> tuple[Permutation, Permutation, tuple[float, ...]]:
    history = [_objective(base, source, rows, columns, score)]
    for _ in range(_SWEEPS):
        rows = assign(gains(base, columns.apply(source, 1), score=score))
        history.append(_objective(base, source, rows, columns, score))
        columns = assign(gains(base.T, rows.apply(source, 0).T, score=score))
        history.append(_objective(base, source, rows, columns, score))
        if history[-1] - history[-3] <= _RISE * max(abs(history[-1]), 1.0):
            break
    return rows, columns, tuple(history)


def _objective(
    base: Tensor, source: Tensor, rows: Permutation, columns: Permutation, score: Score
) -> float:
    moved = columns.apply(rows.apply(source, 0), 1)
    inner = float((base * moved).sum())
    return inner if score == "inner" else 2 * inner - float(moved.square().sum())
