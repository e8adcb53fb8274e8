"""The generalized permutation of largest gain for one axis class, all others being aligned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graftlib.errors import optional

from .errors import AssemblyError
from .permutation import Permutation

__all__ = ["assign", "least"]


def assign(gain: Tensor) -> Permutation:
    """The permutation P of largest ``sum(P * gain)``, by the Jonker-Volgenant algorithm of SciPy.

    Args:
        gain: (m, p) on any device, what it gains that base unit i reads source unit j. Finite.

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
    what = "aligning models solves assignments with SciPy."
    solver = optional("scipy.optimize", what, "assembly").linear_sum_assignment
    if not math.isfinite(float(cost.sum())):  # without a table of booleans as large as the costs
        raise AssemblyError(
            "a gain is not finite.",
            why="the weights hold infinities or NaN, or their squares overflow",
            fix="align models whose weights are finite",
        )
    rows, columns = solver(cost.numpy())
    reads = torch.full((cost.shape[0],), -1, dtype=torch.int64, device="cpu")
    reads[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return Permutation(reads, cost.shape[1])
