"""Shapes of recurrent layers on meta tensors.

In: an ATen overload and its arguments. Out: its results as empty meta tensors, for the recurrent ops alone. torch
would run their meta kernels step by step: on 32 steps of a small LSTM a third of a second, where the shapes are
known from the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["recurrent_shapes"]

_GATES = {"aten::lstm": 4, "aten::gru": 3, "aten::rnn_tanh": 1, "aten::rnn_relu": 1}


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
    schema = func._schema
    if (
        schema.name not in _GATES
        or not isinstance(args[0], Tensor)
        or args[0].device.type != "meta"
    ):
        return None
    named = dict(zip((argument.name for argument in schema.arguments), args, strict=False))
    given, hidden = args[0], named["hx"]
    states = [hidden] if isinstance(hidden, Tensor) else list(hidden)
    _must_fit(_GATES[schema.name], given, states, named)
    width = states[0].shape[-1] * (2 if named["bidirectional"] else 1)
    out = given.new_empty((*given.shape[:-1], width))
    if named.get("batch_first") and given.ndim == 3:
        # torch gives a transposed view of what it computed step by step.
        out = given.new_empty((given.shape[1], given.shape[0], width)).transpose(0, 1)
    return (out, *(state.new_empty(state.shape) for state in states))


def _must_fit(
    gates: int, given: Tensor, states: Sequence[Tensor], named: Mapping[str, Any]
) -> None:
    """Every layer and direction has the same hidden size, and the same projection."""
    weights: list[Tensor] = list(named["params"])
    directions = 2 if named["bidirectional"] else 1
    runs = int(named["num_layers"]) * directions
    each = len(weights) // runs
    projected, hidden = states[0].shape[-1], states[-1].shape[-1]
    below = given.shape[-1]
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
