"""Multiply-accumulates of one op, from the sizes of what it reads and makes.

The sizes may be numbers or anything else that adds and multiplies, such as the polynomials of `graftlib.slim`. At the
traced shapes the sum over all ops is half of what `torch.utils.flop_counter` counts, which has two FLOPs a MAC; as
there, norms, activations and pooling are free and a causal mask saves nothing.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, fx

from .ops import overload

__all__ = ["Shapes", "Sizes", "macs", "short_name"]


class Sizes(Protocol):
    """Sizes of the tensors of a graph."""

    def sizes(self, node: Any) -> Sequence[Any]:
        """Of each dimension of a tensor; of tensors side by side, of the first."""
        ...

    def elements(self, node: Any) -> Any:
        """Of one tensor."""
        ...


class Shapes:
    """The sizes at the traced inputs, as numbers."""

    def sizes(self, node: Any) -> Sequence[int]:
        """See `Sizes.sizes`."""
        return tuple(node.meta["val"].shape)

    def elements(self, node: Any) -> int:
        """See `Sizes.elements`."""
        value = node.meta["val"]
        return value.numel() if isinstance(value, Tensor) else _product(self.sizes(node))


def macs(node: fx.Node, sizes: Sizes) -> Any:
    """Of one op; 0 for one that multiplies no tensors with each other.

    >>> import torch
    >>> from graftlib import trace
    >>> graph = trace(torch.nn.Linear(3, 8), torch.zeros(5, 3))
    >>> sum(macs(node, Shapes()) for node in graph.fx.nodes if node.op == "call_function")
    120
    """
    rule = _MACS.get(short_name(node))
    return 0 if rule is None else rule(sizes, node, list(node.args))


def short_name(node: fx.Node) -> str:
    """``conv2d`` of ``aten.conv2d.default``."""
    return overload(node).rpartition(".")[0].removeprefix("aten.")


def _product(sizes: Iterable[Any]) -> Any:
    return functools.reduce(operator.mul, sizes, 1)


_Rule = Callable[[Sizes, fx.Node, list[Any]], Any]


def _matrix(first: int) -> _Rule:
    """z[..., o] = sum_i x[..., i] w[i, o], where x is the argument number `first`."""
    return lambda sizes, node, args: sizes.elements(node) * sizes.sizes(args[first])[-1]


def _conv(sizes: Sizes, node: fx.Node, args: list[Any]) -> Any:
    """Each element of the result reads a window of the input channels of its group."""
    return sizes.elements(node) * _product(sizes.sizes(args[1])[1:])


def _transposed(sizes: Sizes, node: fx.Node, args: list[Any]) -> Any:
    """Each element of the input is written to a window of the output channels of its group."""
    return sizes.elements(args[0]) * _product(sizes.sizes(args[1])[1:])


def _convolution(sizes: Sizes, node: fx.Node, args: list[Any]) -> Any:
    return (_transposed if args[6] else _conv)(sizes, node, args)


def _attention(sizes: Sizes, node: fx.Node, args: list[Any]) -> Any:
    """Queries times keys, and weights times values."""
    return (sizes.elements(args[0]) + sizes.elements(node)) * sizes.sizes(args[1])[-2]


def _recurrent(sizes: Sizes, node: fx.Node, args: list[Any]) -> Any:
    """Every weight matrix once for each step of each sequence."""
    weights = next(a for a in args[2:4] if isinstance(a, (list, tuple)) and len(a) > 1)
    matrices = [w for w in weights if isinstance(w, fx.Node) and w.meta["val"].ndim == 2]
    return _product(sizes.sizes(args[0])[:-1]) * sum(map(sizes.elements, matrices))


def _cell(sizes: Sizes, node: fx.Node, args: list[Any]) -> Any:
    return _product(sizes.sizes(args[0])[:-1]) * sum(map(sizes.elements, args[2:4]))


def _einsum(sizes: Sizes, node: fx.Node, args: list[Any]) -> Any:
    """Of two tensors: all letters that both have, or that one has and the result keeps."""
    left, _, out = str(args[0]).replace(" ", "").partition("->")
    words, operands = left.split(","), list(args[1])
    if len(words) != 2 or not out or "." in left:
        return 0
    size_of = {
        letter: size
        for word, operand in zip(words, operands, strict=True)
        for letter, size in zip(word, sizes.sizes(operand), strict=True)
    }
    both = set(words[0]) & set(words[1])
    return _product(size for letter, size in size_of.items() if letter in both or letter in out)


def _rules() -> Iterator[tuple[str, _Rule]]:
    for name in ("linear", "mm", "bmm", "matmul", "mv", "dot"):
        yield name, _matrix(0)
    for name in ("addmm", "baddbmm", "addmm_", "addbmm", "addmv"):
        yield name, _matrix(1)
    for n in (1, 2, 3):
        yield f"conv{n}d", _conv
        yield f"conv_transpose{n}d", _transposed
    yield "convolution", _convolution
    yield "scaled_dot_product_attention", _attention
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        yield name, _recurrent
        yield f"{name}_cell", _cell
    yield "einsum", _einsum


_MACS: dict[str, _Rule] = dict(_rules())
