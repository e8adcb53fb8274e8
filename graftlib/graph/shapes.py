"""Results on meta tensors of common ops, without asking torch.

In: an ATen overload and its arguments. Out: its result, an empty meta tensor (an op that writes in place gives its
first argument back), or None: then torch's own meta kernel has to be asked. Those of a norm, a linear layer, a
convolution or an activation are Python decompositions of one to three milliseconds, the greater part of a trace.
Always true: shape, dtype and strides are those that torch gives; where that is not plain from the arguments (mixed
dtypes, broadcasting, strides that are not row-major, sizes that do not fit) the answer is None. A table test holds
every function against torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["known_result"]

aten = torch.ops.aten


def known_result(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What `func` gives on meta tensors; None where torch has to be asked.

    Args:
        func: an ATen overload.
        args: positional arguments.
        kwargs: arguments by name.
    """
    known = _KNOWN.get(func)
    if known is None or not args or not isinstance(args[0], Tensor):
        return None
    # Modes would be asked about every look at a shape.
    with torch._C.DisableTorchFunction():
        return known(*args, **kwargs) if _plain(args[0]) else None


def _plain(x: Tensor) -> bool:
    """A row-major tensor of real numbers on the meta device."""
    return x.device.type == "meta" and x.is_floating_point() and x.is_contiguous()


def _alike(x: Tensor, *others: Tensor | None) -> bool:
    return all(other is None or other.dtype == x.dtype for other in others)


def _elementwise(x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    return x.new_empty(x.shape)


def _in_place(x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    return x


def _pairwise(x: Tensor, y: Any, **kwargs: Any) -> Tensor | None:
    if isinstance(y, Tensor) and _plain(y) and y.shape == x.shape and _alike(x, y):
        return x.new_empty(x.shape)
    return None


def _pairwise_in_place(x: Tensor, y: Any, **kwargs: Any) -> Tensor | None:
    return None if _pairwise(x, y) is None else x


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor | None:
    fits = len(shifts) == len(dims) and all(-x.ndim <= dim < x.ndim for dim in dims)
    return x.new_empty(x.shape) if fits else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    rows = weight.shape[0]
    fits = weight.ndim == 2 and x.ndim > 1 and x.shape[-1] == weight.shape[1]
    if not fits or not _alike(x, weight, bias) or (bias is not None and bias.shape != (rows,)):
        return None
    return x.new_empty((*x.shape[:-1], rows))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor | None:
    if x.ndim != 4 or weight.ndim != 4 or not _plain(weight) or not _alike(x, weight, bias):
        return None
    rows, (stride, padding, dilation) = weight.shape[0], map(tuple, (stride, padding, dilation))
    fits = x.shape[1] == weight.shape[1] * groups and rows % groups == 0
    if not fits or any(len(each) != 2 for each in (stride, padding, dilation)):
        return None
    sides = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(
            x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    if min(sides) < 1 or (bias is not None and bias.shape != (rows,)):
        return None
    return x.new_empty((x.shape[0], rows, *sides))


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    *settings: Any,
) -> Tensor | None:
    channels = x.shape[1:2]
    given = [each for each in (weight, bias, mean, var) if each is not None]
    fits = x.ndim > 1 and all(each.shape == channels for each in given)
    if training or mean is None or var is None or not fits or not _alike(x, *given):
        return None
    return x.new_empty(x.shape)


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *settings: Any,
) -> Tensor | None:
    shape = tuple(shape)
    given = [each for each in (weight, bias) if each is not None]
    fits = x.shape[x.ndim - len(shape) :] == shape and all(each.shape == shape for each in given)
    return x.new_empty(x.shape) if fits and _alike(x, *given) else None


_KNOWN: dict[Any, Callable[..., Tensor | None]] = {
    aten.linear.default: _linear,
    aten.conv2d.default: _conv2d,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.add.Tensor: _pairwise,
    aten.add_.Tensor: _pairwise_in_place,
    aten.mul.Tensor: _pairwise,
    aten.roll.default: _roll,
    **dict.fromkeys(
        (
            aten.relu.default,
            aten.relu6.default,
            aten.hardtanh.default,
            aten.gelu.default,
            aten.silu.default,
            aten.sigmoid.default,
            aten.tanh.default,
            aten.hardswish.default,
            aten.hardsigmoid.default,
            aten.elu.default,
            aten.leaky_relu.default,
        ),
        _elementwise,
    ),
    **dict.fromkeys(
        (
            aten.relu_.default,
            aten.relu6_.default,
            aten.hardtanh_.default,
            aten.silu_.default,
            aten.sigmoid_.default,
            aten.tanh_.default,
            aten.hardswish_.default,
            aten.hardsigmoid_.default,
            aten.elu_.default,
            aten.leaky_relu_.default,
        ),
        _in_place,
    ),
}
