"""Results on meta tensors of common ops, without asking torch.

Shape, dtype and strides are those that torch gives; where that is not plain from the arguments (mixed dtypes,
broadcasting, strides that are not row-major, sizes that do not fit) torch is asked. A table test holds every function
against torch. The meta kernels of torch for norms, linear layers, convolutions and activations are Python
decompositions of one to three milliseconds.
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


def known_result(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What `func` gives on meta tensors: empty ones, or its first argument; None where torch has to be asked.

    Args:
        func: an ATen overload.
        args: positional arguments.
        kwargs: arguments by name.
    """
    known = _KNOWN.get(func)
    if known is None or not args or not isinstance(args[0], Tensor):
        return recurrent_shapes(func, args)
    # Modes would be asked about every look at a shape.
    with DisableTorchFunction():
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
    tensors = [each for each in (weight, bias, mean, var) if each is not None]
    fits = x.ndim > 1 and all(each.shape == channels for each in tensors)
    if training or mean is None or var is None or not fits or not _alike(x, *tensors):
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
    tensors = [each for each in (weight, bias) if each is not None]
    fits = x.shape[x.ndim - len(shape) :] == shape and all(each.shape == shape for each in tensors)
    return x.new_empty(x.shape) if fits and _alike(x, *tensors) else None


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
    out = x.new_empty((*x.shape[:-1], width))
    if named.get("batch_first") and x.ndim == 3:
        # torch gives a transposed view of what it computed step by step.
        out = x.new_empty((x.shape[1], x.shape[0], width)).transpose(0, 1)
    return (out, *(state.new_empty(state.shape) for state in states))


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
