"""Rules of convolution, pooling, interpolation and transforms over positions: the order of positions is fixed."""

# Equations are no sentences.
# ruff: noqa: D403, D415

from __future__ import annotations

from typing import Any

from ..ops import Features, aten, op, rule
from .algebra import Expr, fixed, freeze, product, split, tie
from .combine import fixed_axes, freeze_dims, spatial
from .values import Axes

# What fixes the axes of a kernel: they are positions, no units, and are left out of classes and freedom.
KERNEL = "positions of a kernel"
_CONV = {"1": "weight", "2": "bias"}


@rule(
    *aten("conv1d conv2d conv3d"),
    does="mixes",
    kind="conv",
    slots=_CONV,
    features=Features(0, 1, 2, axis=1, out_axis=0, in_axis=1),
)
def conv(x: Axes, weight: Axes, bias: Axes | None = None, *args: Any, **kwargs: Any) -> Axes:
    """z[n, (g, o), p] = sum_{i, k} x[n, (g, i), p + k] W[(g, o), i, k] + b[(g, o)]"""
    return _conv(x, weight, bias, int(op().named.get("groups", 1)), transposed=False)


@rule(
    *aten("conv_transpose1d conv_transpose2d conv_transpose3d"),
    does="mixes",
    kind="conv",
    slots=_CONV,
)
def conv_transpose(
    x: Axes, weight: Axes, bias: Axes | None = None, *args: Any, **kwargs: Any
) -> Axes:
    """z[n, (g, o), p + k] += sum_i x[n, (g, i), p] W[(g, i), o, k] + b[(g, o)]"""
    return _conv(x, weight, bias, int(op().named.get("groups", 1)), transposed=True)


@rule("aten.convolution", does="mixes", kind="conv", slots=_CONV)
@rule("aten._convolution")
def convolution(x: Axes, weight: Axes, bias: Axes | None = None, *args: Any, **kwargs: Any) -> Axes:
    """either of the two"""
    named = op().named
    return _conv(x, weight, bias, int(named["groups"]), transposed=bool(named["transposed"]))


def _conv(x: Axes, weight: Axes, bias: Axes | None, groups: int, *, transposed: bool) -> Axes:
    rank = len(weight) - 2
    for axis in weight[2:]:
        freeze(axis, KERNEL)
    place = len(x) - rank - 1  # before the positions; there may be no batch
    group, inside = split(x[place], groups, x[place].size // groups)
    if transposed:
        tie(x[place], weight[0])
        out = product([group, weight[1]])
    else:
        tie(inside, weight[1])
        kept, _ = split(weight[0], groups, weight[0].size // groups)
        tie(group, kept)
        out = weight[0]
    if bias is not None:
        tie(out, bias[0])
    return Axes((*x[:place], out, *_positions(x, weight)))


def _positions(x: Axes, weight: Axes) -> list[Expr]:
    """The positions of the result: those of `x` where the kernel looks at one alone, else in a fixed order."""
    rank, named = len(weight) - 2, op().named
    steps, pads = _each(named.get("stride", 1), rank), _each(named.get("padding", 0), rank)
    positions: list[Expr] = []
    for axis, kernel, size, step, pad in zip(
        x[-rank:], weight[2:], op().shape[-rank:], steps, pads, strict=True
    ):
        alone = kernel.size == 1 and step == 1 and pad in (0, "same", "valid")
        if not (alone and size == axis.size):
            freeze(axis)
            axis = fixed(size)
        positions.append(axis)
    return positions


def _each(value: Any, rank: int) -> list[Any]:
    """One value for each dimension of positions, however many were given."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values if len(values) == rank else values[:1] * rank


def _moved(rank: int) -> Any:
    def over_positions(x: Axes, *args: Any, **kwargs: Any) -> Any:
        """z[..., p] from the x[..., q] around it"""
        results = [Axes((*x[: len(x) - rank], *spatial(x, shape, rank))) for shape in op().shapes]
        return results[0] if len(results) == 1 else results

    return over_positions


for _rank in (1, 2, 3):
    rule(
        *(
            f"aten.{name}{_rank}d{suffix}"
            for name in (
                "avg_pool",
                "max_pool",
                "adaptive_avg_pool",
                "adaptive_max_pool",
                "lp_pool",
                "_adaptive_avg_pool",
                "fractional_max_pool",
                "mkldnn_max_pool",
                "max_unpool",
            )
            for suffix in ("", "_with_indices")
        )
    )(_moved(_rank))
rule("aten.upsample_nearest1d", "aten.upsample_linear1d", "aten._upsample_nearest_exact1d")(
    _moved(1)
)
rule(
    "aten.upsample_nearest2d",
    "aten.upsample_bilinear2d",
    "aten.upsample_bicubic2d",
    "aten._upsample_nearest_exact2d",
    "aten._upsample_bilinear2d_aa",
    "aten._upsample_bicubic2d_aa",
)(_moved(2))
rule("aten.upsample_nearest3d", "aten.upsample_trilinear3d", "aten._upsample_nearest_exact3d")(
    _moved(3)
)


@rule(*aten("grid_sampler grid_sampler_2d grid_sampler_3d"))
def grid_sampler(x: Axes, grid: Axes, *args: Any) -> Axes:
    """z[n, c, p] = x[n, c, at grid[n, p]]"""
    tie(x[0], grid[0])
    freeze_dims(grid, range(1, len(grid)))
    return Axes((*x[:2], *spatial(x, op().shape, len(x) - 2)))


@rule("aten.affine_grid_generator")
def affine_grid(theta: Axes, *args: Any) -> Axes:
    """positions"""
    freeze_dims(theta, range(len(theta)))
    return fixed_axes(op().shape)


@rule("torchvision.roi_align", "torchvision.roi_pool")
def roi_align(x: Axes, boxes: Axes, *args: Any) -> Any:
    """z[r, c, p] = x[image of r, c, in box r]"""
    freeze_dims(boxes, range(len(boxes)))
    freeze_dims(x, (0, 2, 3))
    results = [
        Axes((fixed(shape[0]), x[1], *(fixed(n) for n in shape[2:]))) for shape in op().shapes
    ]
    return results[0] if len(results) == 1 else results


@rule("torchvision.deform_conv2d")
def deform_conv2d(x: Axes, weight: Axes, offset: Axes, mask: Axes, bias: Axes, *args: Any) -> Axes:
    """as a convolution, whose positions other channels move"""
    for other in (offset, mask):
        freeze_dims(other, range(len(other)))
    freeze_dims(x, (-1, -2))
    groups = x[1].size // weight[1].size
    return _conv(x, weight, bias, groups, transposed=False)


FFT = [
    f"aten.fft_{name}{n}"
    for name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
    for n in ("", "2", "n")
]


@rule(*FFT, "aten.fft_fftshift", "aten.fft_ifftshift")
def fft(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """each frequency from all positions"""
    dims = op().named.get("dim")
    last = (
        [-2, -1]
        if op().node.name.startswith(
            tuple(f"fft_{n}" for n in ("fft2", "ifft2", "rfft2", "irfft2"))
        )
        else [-1]
    )
    if op().node.name.startswith(
        ("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_fftshift")
    ):
        last = list(range(len(x)))
    every = last if dims is None else dims if isinstance(dims, (list, tuple)) else [dims]
    moved = {int(d) % len(x) for d in every}
    freeze_dims(x, moved)
    return Axes(
        fixed(size) if i in moved else axis
        for i, (axis, size) in enumerate(zip(x, op().shape, strict=True))
    )
