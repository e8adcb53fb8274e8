"""Sums of the squares of a weight along its axes, for all who ask with one look at each weight.

In: a tensor. Out: doubles. Always true: 0 only where every entry is 0, as far as doubles tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

__all__ = ["Squares", "rows_at_once", "sums_of_squares"]

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
    if groups > 1 or flat.numel() <= _BLOCK:
        squares = flat.to("cpu", torch.float64, copy=True)
        squares.mul_(squares)
        rows, columns = squares.sum(1), squares.view(groups, size // groups, -1).sum(1)
    else:
        rows, columns = _of_parts([flat], size, flat.shape[1])
    return rows, columns.reshape(groups * inner, -1).sum(1)


def rows_at_once(width: int) -> int:
    """How many rows of so many numbers each are summed at a time."""
    return max(_BLOCK // max(width, 1), 1)


def _of_parts(parts: Iterable[Tensor], size: int, width: int) -> tuple[Tensor, Tensor]:
    """Along both axes of a matrix (size, width) that comes in parts, one below the other."""
    step, start = rows_at_once(width), 0
    rows = torch.empty(size, dtype=torch.float64, device="cpu")
    columns = torch.zeros(width, dtype=torch.float64, device="cpu")
    # One place for all squares: new ones each time would leave holes in memory as large as the matrix in doubles.
    place = torch.empty(min(step, size), width, dtype=torch.float64, device="cpu")
    for part in parts:
        for some in torch.split(part, step):
            squares = place[: len(some)].copy_(some)
            squares.mul_(squares)
            torch.sum(squares, 1, out=rows[start : start + len(some)])
            columns += squares.sum(0)
            start += len(some)
    return rows, columns


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

    def read(self, names: Iterable[str], shape: Sequence[int], parts: Iterable[Tensor]) -> None:
        """Learn those of a tensor that comes in parts along its first axis, the same to the bit as from the whole.

        Args:
            names: of the tensor.
            shape: of the whole, of one axis or more.
            parts: of a multiple of `rows_at_once` rows each, but for the last.
        """
        inner = shape[1] if len(shape) > 1 else 1
        width = prod(shape[1:])
        flat = (part.detach().reshape(-1, width) for part in parts)
        rows, columns = _of_parts(flat, shape[0], width)
        sums = rows, columns.reshape(inner, -1).sum(1)
        self._known |= {(name, 1): sums for name in names}

    def along(self, name: str, weight: Tensor, axis: int) -> Tensor:
        """(size,) along one axis; over all others."""
        if axis < 2:
            return self.of(name, weight)[axis]
        return sums_of_squares(weight.movedim(axis, 0))[0]
