"""Rules of ops that only move elements: reshape, permute, join, take apart, pad, repeat."""

# Equations are no sentences.
# ruff: noqa: D403, D415

from __future__ import annotations

import operator
from typing import Any

from ..ops import aten, op, order_of, rule
from .algebra import ONE, Expr, cut, fixed, freeze, pieces, product, split, tie, total
from .combine import dims_of, fixed_axes, freeze_dims, fresh, reshaped, stacked
from .values import Axes, Stack

rule("getitem", does="moves", how="split")(operator.getitem)


@rule(
    *aten(
        """
        view reshape _unsafe_view flatten unflatten view_as reshape_as _reshape_alias squeeze
        unsqueeze ravel atleast_1d
        """
    ),
    batchwise=True,
    does="moves",
    how="reshape",
)
def reshape(x: Axes, *args: Any, **kwargs: Any) -> Any:
    """the same elements in row-major order, in another shape"""
    return reshaped(x, op().shape)


@rule(
    *aten("permute transpose t movedim moveaxis swapaxes swapdims numpy_T mT mH matrix_H adjoint"),
    batchwise=True,
    does="moves",
    how="permute",
)
def permute(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z's dimensions are x's in another order"""
    return Axes((x[i] for i in order_of(op().node)), uniform=x.uniform)


@rule(*aten("expand expand_as broadcast_to"), batchwise=True, does="moves", how="expand")
def expand(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z[r, i] = x[i], z[r, i] = x[0, i]"""
    shape = op().shape
    padded = [ONE] * (len(shape) - len(x)) + list(x)
    axes = [
        fresh(size) if axis.size == 1 else axis for axis, size in zip(padded, shape, strict=True)
    ]
    return Axes(axes, uniform=x.uniform)


@rule(*aten("cat concat concatenate"), does="moves", how="join")
def cat(tensors: list[Axes], dim: int = 0) -> Axes:
    """z = x_1, x_2, … along `dim`"""
    # An empty tensor of one dimension joins anything.
    joined = [x for x in tensors if x.shape != (0,)] or tensors
    d = dim % len(joined[0])
    return _cat(joined, d)


def _cat(joined: list[Axes], d: int) -> Axes:
    first = next((x for x in joined if not x.uniform), joined[0])
    for x in joined:
        for i, (a, b) in enumerate(zip(first, x, strict=True)):
            if i != d and not x.uniform:
                tie(a, b)
    return Axes(total([x[d] for x in joined]) if i == d else axis for i, axis in enumerate(first))


@rule("aten.hstack", "aten.column_stack")
def hstack(tensors: list[Axes]) -> Axes:
    """z = x_1, x_2, … along the second dimension, or the first of vectors"""
    return _cat(tensors, 0 if len(tensors[0]) == 1 else 1)


@rule("aten.vstack")
def vstack(tensors: list[Axes]) -> Axes:
    """z = x_1, x_2, … along the first dimension"""
    return _cat([Axes((ONE, *x)) if len(x) == 1 else x for x in tensors], 0)


@rule("aten.stack", does="moves", how="join")
def stack(tensors: list[Axes], dim: int = 0) -> Any:
    """z[k] = x_k"""
    return stacked(tensors, dim % (len(tensors[0]) + 1))


@rule(
    *aten(
        """
        split split_with_sizes chunk unsafe_split unsafe_chunk tensor_split split_copy
        split_with_sizes_copy unsafe_split_with_sizes
        """
    ),
    stacks=True,
    does="moves",
    how="split",
)
def take_apart(x: Axes | Stack, *args: Any, **kwargs: Any) -> list[Any]:
    """x = z_1, z_2, … along `dim`"""
    d = op().named.get("dim", 0) or 0
    if isinstance(x, Stack):
        rank = len(x.parts[0])
        if d % rank == x.dim:
            ends = _ends([shape[d] for shape in op().shapes])
            return [x.run(start, stop) for start, stop in ends]
        x = x.plain()
    d %= len(x)
    cuts = pieces(x[d], [shape[d] for shape in op().shapes])
    return [Axes((*x[:d], piece, *x[d + 1 :]), uniform=x.uniform) for piece in cuts]


def _ends(sizes: list[int]) -> list[tuple[int, int]]:
    ends, start = [], 0
    for size in sizes:
        ends.append((start, start + size))
        start += size
    return ends


@rule("aten.unbind", "aten.unbind_copy", stacks=True, does="moves", how="split")
def unbind(x: Axes | Stack, dim: int = 0) -> list[Axes]:
    """z_k = x[k]"""
    if isinstance(x, Stack):
        if dim % len(x.parts[0]) == x.dim:
            return [x.part(k) for k in range(len(x.parts))]
        x = x.plain()
    d = dim % len(x)
    freeze(x[d])
    rest = Axes((*x[:d], *x[d + 1 :]), uniform=x.uniform)
    return [rest for _ in op().shapes]


@rule("aten.select", "aten.select_copy", stacks=True, does="moves", how="split")
def select(x: Axes | Stack, dim: int, index: Any) -> Axes:
    """z = x[index]"""
    if isinstance(x, Stack):
        if dim % len(x.parts[0]) == x.dim:
            return x.part(index % len(x.parts))
        x = x.plain()
    d = dim % len(x)
    if isinstance(index, int):
        i = index % x[d].size
        pieces(x[d], [i, 1, x[d].size - i - 1])
    else:
        freeze(x[d])
    return Axes((*x[:d], *x[d + 1 :]), uniform=x.uniform)


@rule(*aten("slice narrow slice_copy narrow_copy"), stacks=True, does="moves", how="split")
def slice_(
    x: Axes | Stack, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Any:
    """z[i] = x[start + step i]"""
    rank = len(x.parts[0]) if isinstance(x, Stack) else len(x)
    d = dim % rank
    count = op().shape[d]
    if op().node.name.startswith("narrow"):
        step = 1  # its third argument is a length
    if not isinstance(start, int | None):
        x = x.plain() if isinstance(x, Stack) else x
        freeze(x[d])
        return Axes((*x[:d], fixed(count), *x[d + 1 :]))
    if isinstance(x, Stack):
        if d == x.dim and step == 1:
            first = _first(start, len(x.parts))
            return x.run(first, first + count) if count else fixed_axes(op().shape)
        x = x.plain()
    axis = x[d]
    first = _first(start, axis.size)
    if count == axis.size:
        return x
    if step == 1:
        _, piece, _ = pieces(axis, [first, count, axis.size - first - count])
    elif axis.size % step == 0 and count == axis.size // step:
        piece, offset = split(axis, count, step)
        freeze(offset)
    else:
        freeze(axis)
        piece = fixed(count)
    return Axes((*x[:d], piece, *x[d + 1 :]), uniform=x.uniform)


def _first(start: int | None, size: int) -> int:
    start = start or 0
    return min(start + size, size) if start < 0 and start + size >= 0 else max(min(start, size), 0)


@rule(*aten("flip fliplr flipud rot90"), does="moves")
def flip(x: Axes, dims: Any = (-1,), *args: Any) -> Axes:
    """z[i] = x[n - 1 - i]"""
    every = dims_of(dims, len(x)) if op().node.name.startswith("flip_") else range(len(x))
    freeze_dims(x, every)
    return Axes(
        fixed(size) if size != axis.size else axis for axis, size in zip(x, op().shape, strict=True)
    )


@rule("aten.roll", does="moves")
def roll(x: Axes, shifts: Any, dims: Any = ()) -> Axes:
    """z[i] = x[i - shift]"""
    return freeze_dims(x, dims_of(dims, len(x)))


@rule("aten.triu", "aten.tril")
def triangle(x: Axes, *args: Any) -> Axes:
    """z[i, j] = x[i, j] where i <= j"""
    return freeze_dims(x, (-1, -2))


@rule(*aten("diagonal diag diag_embed trace linalg_diagonal"))
def diagonal(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z[i] = x[i, i]"""
    freeze_dims(x, range(len(x)))
    return fixed_axes(op().shape)


@rule("aten.repeat", "aten.tile", does="moves")
def repeat(x: Axes, *args: Any) -> Axes:
    """z[r n + i] = x[i]"""
    shape = op().shape
    padded = [ONE] * (len(shape) - len(x)) + list(x)
    return Axes(
        product([fresh(size // axis.size), axis]) if axis.size else fixed(size)
        for axis, size in zip(padded, shape, strict=True)
    )


@rule("aten.repeat_interleave", does="moves")
def repeat_interleave(x: Axes, repeats: Any = None, dim: Any = None, **kwargs: Any) -> Axes:
    """z[r i + k] = x[i]"""
    if dim is None or not isinstance(repeats, int):
        freeze_dims(x, range(len(x)))
        return fixed_axes(op().shape)
    d = dim % len(x)
    return Axes((*x[:d], product([x[d], fresh(repeats)]), *x[d + 1 :]))


@rule("aten.pad", does="moves")
@rule("aten.constant_pad_nd")
def pad(x: Axes, pads: list[int], mode: Any = "constant", value: Any = None) -> Axes:
    """z = c, …, x, …, c along the last dimensions; other modes repeat what stands at the ends"""
    constant = not isinstance(mode, str) or mode == "constant"
    out = list(x)
    for k in range(len(pads) // 2):
        d, before, after = len(x) - 1 - k, int(pads[2 * k]), int(pads[2 * k + 1])
        if before or after:
            out[d] = _padded(x[d], before, after, constant)
    return Axes(out)


def _padded(axis: Expr, before: int, after: int, constant: bool) -> Expr:
    if not constant:
        freeze(axis)
        return fixed(axis.size + before + after)
    if before < 0:
        _, axis = cut(axis, -before)
    if after < 0:
        axis, _ = cut(axis, axis.size + after)
    ends = [fresh(n) if n > 0 else fixed(0) for n in (before, after)]
    return total([ends[0], axis, ends[1]])


@rule(
    *aten(
        """
        reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d
        """
    )
)
def edge_pad(x: Axes, pads: list[int]) -> Axes:
    """z repeats what stands at the ends of x"""
    return pad(x, pads, "edge")


@rule("aten.pixel_shuffle")
def pixel_shuffle(x: Axes, factor: int) -> Axes:
    """z[c, r y + i, r x + j] = x[c r r + i r + j, y, x]"""
    kept, inside = split(x[-3], x[-3].size // factor**2, factor**2)
    for axis in (inside, x[-1], x[-2]):
        freeze(axis)
    return Axes((*x[:-3], kept, *(fixed(size) for size in op().shape[-2:])))


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(x: Axes, factor: int) -> Axes:
    """z[c r r + i r + j, y, x] = x[c, r y + i, r x + j]"""
    freeze_dims(x, (-1, -2))
    inside = fixed(factor**2)
    return Axes((*x[:-3], product([x[-3], inside]), *(fixed(size) for size in op().shape[-2:])))


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(x: Axes, groups: int) -> Axes:
    """z[c g + k] = x[k (C/g) + c]"""
    group, channel = split(x[1], groups, x[1].size // groups)
    return Axes((x[0], product([channel, group]), *x[2:]))


@rule("aten.unfold", "aten.unfold_copy")
def unfold(x: Axes, dim: int, size: int, step: int) -> Axes:
    """z[..., i, ..., k] = x[..., step i + k, ...]"""
    d = dim % len(x)
    freeze(x[d])
    return Axes((*x[:d], fixed(op().shape[d]), *x[d + 1 :], fixed(size)))


@rule("aten.im2col")
def im2col(x: Axes, kernel: list[int], *args: Any) -> Axes:
    """z[n, (c, kh, kw), l] = x[n, c, patch l]"""
    freeze_dims(x, (-1, -2))
    inside = fixed(kernel[0] * kernel[1])
    return Axes((*x[:-3], product([x[-3], inside]), fixed(op().shape[-1])))


@rule("aten.col2im")
def col2im(x: Axes, size: list[int], kernel: list[int], *args: Any) -> Axes:
    """z[n, c, y, x] = the sum of x[n, (c, kh, kw), l] that fall there"""
    area = kernel[0] * kernel[1]
    kept, inside = split(x[-2], x[-2].size // area, area)
    freeze(inside)
    freeze(x[-1])
    return Axes((*x[:-2], kept, *(fixed(n) for n in op().shape[-2:])))


@rule("aten.as_strided", "aten.as_strided_copy")
def as_strided(
    x: Axes, size: list[int], stride: list[int], storage_offset: int | None = None
) -> Axes:
    """z[i, …] = the element of x at Σ i·stride; an axis stays whose place no other index moves (overlapping windows)"""
    node: Any = op().node.args[0]
    value = node.meta["val"]
    if storage_offset not in (None, value.storage_offset()) or not _is_dense(value):
        raise NotImplementedError("elements that are none of x's")
    if sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= value.numel():
        raise NotImplementedError("elements that are none of x's")
    axes = list(fixed_axes(size))
    for d, (n, step) in enumerate(zip(value.shape, value.stride(), strict=True)):
        k = _apart(n, step, size, stride) if n > 1 else None
        if k is None:
            freeze(x[d])
        else:
            axes[k] = x[d]
    return Axes(axes)


def _is_dense(value: Any) -> bool:
    """Whether its elements fill a run of the memory, each at a place of its own."""
    due = 1
    for step, n in sorted(zip(value.stride(), value.shape, strict=True)):
        if n > 1 and step != due:
            return False
        due *= n
    return True


def _apart(n: int, step: int, sizes: list[int], steps: list[int]) -> int | None:
    """The dimension that runs over an axis of `n` units, `step` elements apart, where no other moves along it."""
    others = [(m, s, k) for k, (m, s) in enumerate(zip(sizes, steps, strict=True)) if m > 1]
    same = [k for m, s, k in others if (m, s) == (n, step)]
    below = sum((m - 1) * s for m, s, _ in others if s < step)
    above = all(s % (n * step) == 0 for _, s, k in others if s >= step and k not in same)
    return same[0] if len(same) == 1 and below < step and above else None
