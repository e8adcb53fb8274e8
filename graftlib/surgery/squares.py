"""Sums of the squares of a weight along its axes, for all who ask with one look at each weight.

In: a tensor. Out: doubles. Always true: 0 only where every entry is 0, as far as doubles tell.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Squares", "sums_of_squares"]

# So many numbers stay in the fast memory of a core: in doubles a whole weight would be twice as large as it is.
_BLOCK = 1 << 16


def sums_of_squares(weight: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Along the first axis over all others, and along the second over all others.

    Args:
        weight: (n, m, *kernel) of any floating dtype; (n,) counts as (n, 1).
        groups: blocks of the first axis over which the second sum is taken, one after the other.

    Returns:
        (n,) and (groups * m,) doubles on the CPU.
    """
    size, inner = weight.shape[0], weight.shape[1] if weight.ndim > 1 else 1
    flat = weight.detach().reshape(size, -1)
    if groups > 1:
        squares = flat.to("cpu", torch.float64).square()
        rows, columns = squares.sum(1), squares.view(groups, size // groups, -1).sum(1)
    else:
        step = max(_BLOCK // max(flat.shape[1], 1), 1)
        rows = torch.empty(size, dtype=torch.float64, device="cpu")
        columns = torch.zeros(flat.shape[1], dtype=torch.float64, device="cpu")
        block = torch.empty(step, flat.shape[1], dtype=torch.float64, device="cpu")
        for start in range(0, size, step):
            squares = block[: size - start].copy_(flat[start : start + step])
            squares.mul_(squares)
            torch.sum(squares, 1, out=rows[start : start + step])
            columns += squares.sum(0)
    return rows, columns.reshape(groups * inner, -1).sum(1)


class Squares:
    """`sums_of_squares` of named tensors, each computed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def of(self, name: str, weight: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
        """Of the tensor that has this name."""
        key = name, groups
        if key not in self._known:
            self._known[key] = sums_of_squares(weight, groups)
        return self._known[key]

    def along(self, name: str, weight: Tensor, axis: int) -> Tensor:
        """(size,) along one axis; over all others."""
        if axis < 2:
            return self.of(name, weight)[axis]
        return sums_of_squares(weight.movedim(axis, 0))[0]
