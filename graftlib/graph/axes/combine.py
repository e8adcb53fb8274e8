"""What many rules share: broadcasting, reduction, reshape, contraction, freezing of dimensions.

In: `Axes` and plain arguments. Out: `Axes`. Each function is the meaning of a family of ops, so that a rule is a
line. Always true: a dimension of one unit carries nothing and ties nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from ..ops import op
from .algebra import ONE, Atom, Expr, cut, fixed, freeze, frozen, product, split_all, tie
from .values import Axes, Stack

__all__ = [
    "broadcast",
    "dims_of",
    "fixed_axes",
    "freeze_dims",
    "fresh",
    "packed",
    "reduced",
    "reshaped",
    "spatial",
    "stacked",
    "tie_axes",
    "uniform",
]


def fresh(size: int) -> Expr:
    """An axis along which all is alike, so that any order of it is as good."""
    return ONE if size == 1 else Atom(size)


def fixed_axes(shape: Iterable[int]) -> Axes:
    """A tensor whose every dimension has a fixed order."""
    return Axes(fixed(size) for size in shape)


def uniform(shape: Iterable[int]) -> Axes:
    """A tensor whose elements are all alike."""
    return Axes((fresh(size) for size in shape), uniform=True)


def tie_axes(a: Sequence[Expr], b: Sequence[Expr]) -> None:
    """Tie dimension by dimension."""
    for x, y in zip(a, b, strict=True):
        tie(x, y)


def broadcast(*values: Any) -> Axes:
    """Element by element, aligned from the right: z[..., i] from x[..., i] or from x[..., 0].

    Numbers and other plain values are passed over.
    """
    tensors = [value for value in values if isinstance(value, Axes)]
    rank = max((len(axes) for axes in tensors), default=0)
    out = [_aligned([axes for axes in tensors if len(axes) >= i], i) for i in range(rank, 0, -1)]
    return Axes(out, uniform=bool(tensors) and all(axes.uniform for axes in tensors))


def _aligned(tensors: Sequence[Axes], i: int) -> Expr:
    long = [axes[-i] for axes in tensors if axes[-i].size != 1 and not axes.uniform]
    for axis in long[1:]:
        tie(long[0], axis)
    if long:
        return long[0]
    return fresh(next((axes[-i].size for axes in tensors if axes[-i].size != 1), 1))


def dims_of(dim: Any, rank: int) -> list[int]:
    """``dim`` as ATen takes it (an int, a list, None for all) as a list of dimensions from 0."""
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(rank))
    if rank == 0:
        return []  # ATen takes 0 and -1 for the dimension that a number has not
    every = dim if isinstance(dim, (list, tuple)) else [dim]
    return [int(d) % rank for d in every]


def freeze_dims(x: Axes, dims: Iterable[int]) -> Axes:
    """Fix the order of dimensions: what stands where along them matters to the op."""
    for d in dims:
        freeze(x[d])
    return x


def reduced(x: Axes, dim: Any, keepdim: bool = False) -> Axes:
    """One value for all units along `dim`, whatever their order."""
    dims = set(dims_of(dim, len(x)))
    if keepdim:
        return Axes(ONE if i in dims else axis for i, axis in enumerate(x))
    return Axes(axis for i, axis in enumerate(x) if i not in dims)


def packed(axis: Expr, *sizes: int) -> list[Expr]:
    """An axis as a product whose first factor, groups or gates, has a fixed order."""
    parts = split_all(axis, sizes)
    freeze(parts[0])
    return parts


def spatial(x: Axes, shape: Sequence[int], rank: int) -> tuple[Expr, ...]:
    """The last `rank` dimensions of a result of `shape`, made by the positions of `x`."""
    freeze_dims(x, range(len(x) - rank, len(x)))
    return tuple(fixed(size) for size in shape[len(shape) - rank :])


def reshaped(x: Axes, shape: Sequence[int]) -> Axes | Stack:
    """The same elements in the same row-major order in another shape.

    Dimensions fall into the smallest runs that hold the same elements before and after. Where the reading knows
    that a new dimension will be taken apart (hint ``"picked"``), its parts become a `Stack`.
    """
    if 0 in shape:
        return fixed_axes(shape)
    out: list[Expr] = [ONE] * len(shape)
    picked = op().hints.get("picked")
    stack: tuple[Atom, list[list[Expr]], list[int]] | None = None
    for before, after in _runs([axis.size for axis in x], shape):
        whole = product(x[i] for i in before)
        sizes = [shape[i] for i in after]
        # The innermost dimension of a run has no axes inside it to tell apart: a cut says it all.
        if picked in after[:-1] and not frozen(whole):
            place = after.index(picked)
            stack = (*_stacked(whole, sizes, place), after)
            continue
        parts = [x[before[0]]] if len(before) == len(after) == 1 else split_all(whole, sizes)
        for i, part in zip(after, parts, strict=True):
            out[i] = part
    if stack is None:
        return Axes(out, uniform=x.uniform)
    marker, kinds, after = stack
    rows = []
    for parts in kinds:
        row = list(out)
        for i, part in zip(after, parts, strict=True):
            row[i] = part
        rows.append(Axes(row))
    return Stack(marker, rows)


def _stacked(whole: Expr, sizes: Sequence[int], place: int) -> tuple[Atom, list[list[Expr]]]:
    """(a b k c d) with k taken apart: a and b are shared, and each of the k has its own c and d."""
    *outer, block = split_all(whole, [*sizes[:place], prod(sizes[place:])])
    marker = Atom(sizes[place], f"taken apart by position ({op().node.name})")
    kinds = []
    for _ in range(sizes[place]):
        row = prod(sizes[place + 1 :])
        piece, block = cut(block, row)
        kinds.append([*outer, marker, *split_all(piece, sizes[place + 1 :])])
    return marker, kinds


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Dimensions longer than one, in the smallest runs that hold the same number of elements."""
    left = [i for i, size in enumerate(before) if size != 1]
    right = [i for i, size in enumerate(after) if size != 1]
    runs = []
    while left or right:
        xs, ys = [left.pop(0)], [right.pop(0)]
        while (m := prod(before[i] for i in xs)) != (n := prod(after[i] for i in ys)):
            if m < n:
                xs.append(left.pop(0))
            else:
                ys.append(right.pop(0))
        runs.append((xs, ys))
    return runs


def stacked(parts: Sequence[Axes], dim: int) -> Stack | Axes:
    """Tensors put side by side along a new dimension `dim`."""
    if len(parts) == 1:
        return Axes((*parts[0][:dim], ONE, *parts[0][dim:]))
    marker = Atom(len(parts), f"side by side ({op().node.name})")
    return Stack(marker, [Axes((*axes[:dim], marker, *axes[dim:])) for axes in parts])
