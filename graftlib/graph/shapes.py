"""Results on meta tensors of common ops, without asking torch.

Shape, dtype and strides are those that torch gives; where that is not plain from the arguments (mixed dtypes, sizes
that do not fit, strides that are not row-major but for element-wise ops) torch is asked. A table test holds every
function against torch. The meta kernels of torch for norms, linear layers, convolutions, attention and activations are
Python decompositions of one to three milliseconds; attention takes seventeen.
What this buys of a trace on a processor core (with, without; the rows of `trace_cost.py`): resnet50
0.13 s of 0.31 s, convnext_tiny 0.19 s of 0.33 s, swin_t 0.49 s of 0.59 s; an LSTM of 64 steps 0.01 s of 0.44 s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch_private import DisableTorchFunction
from .ops import GATES, named_arguments

__all__ = ["known_result", "recurrent_shapes"]

aten = torch.ops.aten
_META = torch.device("meta")


def known_result(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What `func` gives on meta tensors: empty ones, or its first argument; None where torch has to be asked.

    Args:
        func: an ATen overload.
        args: positional arguments.
        kwargs: arguments by name.
    """
    known = _KNOWN.get(func)
    if known is None or not args:
        return recurrent_shapes(func, args)
    # Modes would be asked about every look at a shape.
    with DisableTorchFunction():
        every = args[0] if isinstance(args[0], (list, tuple)) else args[:1]
        return known(*args, **kwargs) if all(map(_is_real, every)) else None


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """On the meta device; `new_empty` would run as Python code of torch."""
    return torch.empty(shape, dtype=like.dtype, device=_META)


def _is_real(x: Any) -> bool:
    """A tensor of real numbers on the meta device."""
    return isinstance(x, Tensor) and x.is_meta and x.is_floating_point()


def _plain(x: Tensor) -> bool:
    """The same, row-major."""
    return _is_real(x) and x.is_contiguous()


def _alike(x: Tensor, *others: Tensor | None) -> bool:
    return all(other is None or other.dtype == x.dtype for other in others)


def _elementwise(x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    return _combined(x)


def _in_place(x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    return x


def _pairwise(x: Tensor, y: Any, **kwargs: Any) -> Tensor | None:
    if isinstance(y, (int, float)):
        return _combined(x)
    return _combined(x, y) if _is_real(y) and _alike(x, y) else None


def _pairwise_in_place(x: Tensor, y: Any, **kwargs: Any) -> Tensor | None:
    result = _pairwise(x, y)
    return x if result is not None and result.shape == x.shape else None


def _combined(*tensors: Tensor) -> Tensor | None:
    """What an element-wise op makes of tensors, broadcast; laid out in memory as `TensorIterator` does it."""
    shape, *others = [tensor.shape for tensor in tensors]
    if any(other != shape for other in others):
        try:
            shape = torch.broadcast_shapes(shape, *others)  # type: ignore[no-untyped-call]
        except RuntimeError:
            return None
    if all(tensor.is_contiguous() for tensor in tensors):
        return _empty(tensors[0], shape)
    strides = [tensor.expand(shape).stride() for tensor in tensors]

    def outer(one: int, other: int) -> int:
        """1 where dimension `one` is to lie outside of `other`, -1 where inside, 0 where nothing says so."""
        for stride in strides:
            a, b = stride[one], stride[other]
            if a and b and (a != b or shape[one] > shape[other]):
                return 1 if a >= b else -1
        return 0

    order: list[int] = []  # the innermost first
    for dim in reversed(range(len(shape))):
        place, here = len(order), len(order)
        order.append(dim)
        for there in reversed(range(here)):
            which = outer(order[there], order[place])
            if which > 0:
                order[there], order[place] = order[place], order[there]
                place = there
            elif which < 0:
                break
    laid = _empty(tensors[0], [shape[dim] for dim in reversed(order)])
    return laid.permute([len(order) - 1 - order.index(dim) for dim in range(len(shape))])


def _mean(x: Tensor, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> Tensor | None:
    dims = {d % x.ndim for d in dim or () if -x.ndim <= d < x.ndim}
    if dtype not in (None, x.dtype) or not dims or len(dims) != len(dim):
        return None
    return _empty(
        x, [1 if d in dims else n for d, n in enumerate(x.shape) if keepdim or d not in dims]
    )


def _adaptive_pool(x: Tensor, size: Sequence[int]) -> Tensor | None:
    fits = _plain(x) and x.ndim in (3, 4) and len(size) == 2 and min(*size, *x.shape[1:]) > 0
    return _empty(x, (*x.shape[:-2], *size)) if fits else None


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    fits = all(x.ndim == first.ndim and _alike(first, x) and _row_major(x) for x in tensors)
    if not fits or not -first.ndim <= dim < first.ndim:
        return None
    shape = list(first.shape)
    del shape[dim]
    for x in tensors:
        rest = list(x.shape)
        del rest[dim]
        if rest != shape:
            return None
    shape.insert(dim % first.ndim, sum(x.shape[dim] for x in tensors))
    return _empty(first, shape)


def _row_major(x: Tensor) -> bool:
    """Whether what is copied of a tensor is laid out row-major: it is not channels-last, nor may pass for it."""
    return x.is_contiguous() or (x.stride(-1) == 1 < x.shape[-1] and x.stride(1) != 1)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    fits = q.ndim == k.ndim == v.ndim > 2 and _alike(q, k, v) and q.shape[-1] == k.shape[-1]
    if not fits or k.shape[:-1] != v.shape[:-1] or dropout or (mask is not None and is_causal):
        return None
    heads, others = q.shape[-3], k.shape[-3]
    grouped = enable_gqa and others and heads % others == 0
    if q.shape[:-3] != k.shape[:-3] or (heads != others and not grouped):
        return None
    scores = (*q.shape[:-1], k.shape[-2])
    if mask is not None:
        if mask.dtype not in (torch.bool, q.dtype) or mask.ndim > len(scores):
            return None
        pairs = zip(reversed(mask.shape), reversed(scores), strict=False)
        if any(n not in (1, size) for n, size in pairs):
            return None
    return _empty(q, (*q.shape[:-1], v.shape[-1]))


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor | None:
    fits = _plain(x) and len(shifts) == len(dims) and all(-x.ndim <= dim < x.ndim for dim in dims)
    return _empty(x, x.shape) if fits else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    rows = weight.shape[0]
    fits = _plain(x) and weight.ndim == 2 and x.ndim > 1 and x.shape[-1] == weight.shape[1]
    if not fits or not _alike(x, weight, bias) or (bias is not None and bias.shape != (rows,)):
        return None
    return _empty(x, (*x.shape[:-1], rows))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor | None:
    if (
        x.ndim != 4
        or weight.ndim != 4
        or not _plain(x)
        or not _plain(weight)
        or not _alike(x, weight, bias)
    ):
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
    return _empty(x, (x.shape[0], rows, *sides))


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
    tensors = [each for each in (weight, bias, mean, var) if each is not None]
    fits = _plain(x) and x.ndim > 1 and all(each.shape == channels for each in tensors)
    if training or mean is None or var is None or not fits or not _alike(x, *tensors):
        return None
    return _empty(x, x.shape)


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *settings: Any,
) -> Tensor | None:
    shape = tuple(shape)
    tensors = [each for each in (weight, bias) if each is not None]
    fits = x.shape[x.ndim - len(shape) :] == shape and all(each.shape == shape for each in tensors)
    return _empty(x, x.shape) if fits and _plain(x) and _alike(x, *tensors) else None


_KNOWN: dict[Any, Callable[..., Tensor | None]] = {
    aten.linear.default: _linear,
    aten.conv2d.default: _conv2d,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.add.Tensor: _pairwise,
    aten.add_.Tensor: _pairwise_in_place,
    aten.mul.Tensor: _pairwise,
    aten.sub.Tensor: _pairwise,
    aten.div.Tensor: _pairwise,
    aten.pow.Tensor_Scalar: _pairwise,
    aten.mean.dim: _mean,
    aten.adaptive_avg_pool2d.default: _adaptive_pool,
    aten.cat.default: _cat,
    aten.scaled_dot_product_attention.default: _attention,
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
            aten.neg.default,
            aten.rsqrt.default,
            aten.sqrt.default,
            aten.exp.default,
            aten.sin.default,
            aten.cos.default,
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

# --- recurrent layers: torch would run their meta kernels step by step ---------------------------------

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def recurrent_shapes(func: Any, args: Sequence[Any]) -> tuple[Tensor, ...] | None:
    """What a recurrent op gives on meta tensors; None for another op, or on another device.

    Args:
        func: an ATen overload.
        args: its positional arguments: the input (or a packed sequence's data, then its batch sizes), the first
            states, each (layers * directions, ..., size), and what follows.

    Returns:
        the outputs (*input.shape[:-1], directions * size), and the last states, shaped as the first ones.

    Raises:
        RuntimeError: weights, states and input do not fit together. The kernels that run real tensors rely on it: what
            they do otherwise ranges from wrong numbers to a segmentation fault.
    """
    name = func._schema.name.removeprefix("aten::")
    if name not in _RECURRENT or not isinstance(args[0], Tensor) or args[0].device.type != "meta":
        return None
    named = named_arguments(func, args, {})
    x, hidden = args[0], named["hx"]
    states = [hidden] if isinstance(hidden, Tensor) else list(hidden)
    _must_fit(len(GATES.get(name, ("",))), x, states, named)
    width = states[0].shape[-1] * (2 if named["bidirectional"] else 1)
    out = _empty(x, (*x.shape[:-1], width))
    if named.get("batch_first") and x.ndim == 3:
        # torch gives a transposed view of what it computed step by step.
        out = _empty(x, (x.shape[1], x.shape[0], width)).transpose(0, 1)
    return (out, *(_empty(state, state.shape) for state in states))


def _must_fit(gates: int, x: Tensor, states: Sequence[Tensor], named: Mapping[str, Any]) -> None:
    """Every layer and direction has the same hidden size, and the same projection."""
    weights: list[Tensor] = list(named["params"])
    directions = 2 if named["bidirectional"] else 1
    runs = int(named["num_layers"]) * directions
    each = len(weights) // runs
    projected, hidden = states[0].shape[-1], states[-1].shape[-1]
    below = x.shape[-1]
    for run in range(runs):
        layer = run // directions
        width = below if layer == 0 else projected * directions
        expected: list[tuple[int, ...]] = [(gates * hidden, width), (gates * hidden, projected)]
        if named["has_biases"]:
            expected += [(gates * hidden,)] * 2
        if len(states) == 2 and each > len(expected):
            expected.append((projected, hidden))
        shapes = [tuple(tensor.shape) for tensor in weights[run * each : (run + 1) * each]]
        if shapes != expected:
            raise RuntimeError(
                f"layer {layer} of a recurrent module has weights of {shapes}, where its states, its input and the "
                f"layers before it ask for {expected}"
            )
    for state in states:
        if state.shape[0] != runs:
            raise RuntimeError(
                f"first states of {state.shape[0]} layers and directions, not {runs}"
            )
