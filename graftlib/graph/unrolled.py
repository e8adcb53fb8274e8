"""Shapes of recurrent layers on meta tensors.

In: an ATen overload and its arguments. Out: its results as empty meta tensors, for the recurrent ops alone. torch
would run their meta kernels step by step: on 32 steps of a small LSTM a third of a second, where the shapes are
known from the arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["recurrent_shapes"]

_OPS = frozenset({"aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"})


def recurrent_shapes(func: Any, args: Sequence[Any]) -> tuple[Tensor, ...] | None:
    """What a recurrent op gives on meta tensors; None for another op, or on another device.

    Args:
        func: an ATen overload.
        args: its positional arguments: the input (or a packed sequence's data, then its batch sizes), the first
            states, each (layers * directions, ..., size), and what follows.

    Returns:
        the outputs (*input.shape[:-1], directions * size), and the last states, shaped as the first ones.
    """
    schema = func._schema
    if schema.name not in _OPS or not isinstance(args[0], Tensor) or args[0].device.type != "meta":
        return None
    named = dict(zip((argument.name for argument in schema.arguments), args, strict=False))
    given, hidden = args[0], named["hx"]
    states = [hidden] if isinstance(hidden, Tensor) else list(hidden)
    width = states[0].shape[-1] * (2 if named["bidirectional"] else 1)
    out = given.new_empty((*given.shape[:-1], width))
    if named.get("batch_first") and given.ndim == 3:
        # torch gives a transposed view of what it computed step by step.
        out = given.new_empty((given.shape[1], given.shape[0], width)).transpose(0, 1)
    return (out, *(state.new_empty(state.shape) for state in states))
