"""Which units of one tensor does another one read?

Elements are numbered by the unit they belong to, and the ops that move elements are run on the numbers themselves. So a
layout is never recognised, it is read off: concatenated, interleaved and grouped query-key-value weights are all alike.
An op that is not understood raises `Inexact`; there is no guess.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from .ops import arguments, does, keeps_features, moved_args, name_of, spec

__all__ = ["NOTHING", "Inexact", "along", "carry", "moved", "thin", "units_of_rows", "vector"]

NOTHING = -1  # the number of an element that comes from elsewhere
LIMIT = 1 << 26  # elements; beyond it an answer is not worth its memory


class Inexact(Exception):  # noqa: N818  (an answer, not a fault)
    """The numbers cannot be followed exactly."""


class _Mixed:
    """A value that depends on many units at once, like a mean."""


def along(units: Tensor, axis: int, shape: Iterable[int]) -> Tensor:
    """`units` along `axis` of a tensor of `shape`, the same everywhere else; takes no memory."""
    shape = tuple(shape)
    row = [1] * len(shape)
    row[axis] = len(units)
    return units.view(row).expand(shape)


def thin(numbers: Tensor, keep: int) -> Tensor:
    """One position of every axis (but `keep`) along which nothing changes."""
    for i in range(numbers.ndim):
        if numbers.stride(i) == 0 and numbers.shape[i] and i != keep % numbers.ndim:
            numbers = numbers.narrow(i, 0, 1)
    return numbers


def vector(numbers: Tensor, axis: int) -> Tensor:
    """(n,) the numbers along `axis`.

    Raises:
        Inexact: they are not the same at every other position, or there is none.
    """
    rows = _rows(numbers, axis)
    first = rows[0]
    if not torch.equal(rows, first.expand_as(rows)):
        raise Inexact("the units differ from position to position")
    return first


def units_of_rows(numbers: Tensor, axis: int) -> list[list[int]]:
    """The different rows of numbers along `axis`, by first appearance: one row a head.

    Raises:
        Inexact: rows overlap, or hold elements from elsewhere, or there are none.
    """
    rows = _rows(numbers, axis).real.long()
    heads = [
        list(row)
        for row in dict.fromkeys(map(tuple, torch.unique_consecutive(rows, dim=0).tolist()))
    ]
    heads = [row for row in heads if any(unit != NOTHING for unit in row)]
    flat = [unit for row in heads for unit in row]
    if not flat or NOTHING in flat or len({*flat}) != len(flat):
        raise Inexact("the heads do not split the units among them")
    return heads


def _rows(numbers: Tensor, axis: int) -> Tensor:
    """(n, size of `axis`) those that may differ."""
    if not numbers.numel():
        raise Inexact("a tensor without elements has no units to follow")
    rows = thin(numbers, keep=axis).movedim(axis, -1)
    return rows.reshape(-1, rows.shape[-1])


def carry(start: Mapping[fx.Node, Tensor], target: fx.Node) -> Tensor:
    """The numbers of `target`'s elements.

    Args:
        start: node -> the numbers of its elements, of its shape.
        target: a node that depends on one of them.

    Raises:
        Inexact: an op on the way is not one that only moves elements or works on each alone.
    """
    known: dict[fx.Node, Any] = dict(start)
    for node in _between(known, target):
        known[node] = moved(node, known)
    numbers = known.get(target)
    if not isinstance(numbers, Tensor):
        raise Inexact(f"'{target}' holds no single units")
    return numbers


def _between(start: Mapping[fx.Node, Any], target: fx.Node) -> list[fx.Node]:
    """The nodes on the ways from `start` to `target`, in execution order."""
    depends: dict[fx.Node, bool] = dict.fromkeys(start, True)
    order: list[fx.Node] = []
    stack = [target]
    while stack:
        node = stack[-1]
        if node in depends:
            stack.pop()
            continue
        waiting = [s for s in moved_args(node) if s not in depends]
        # What lies behind an op that is not understood cannot change the answer; it raises if it is reached.
        if waiting and _understood(node):
            stack += waiting
            continue
        stack.pop()
        depends[node] = any(depends.get(source, False) for source in moved_args(node))
        if depends[node]:
            order.append(node)
    return order


def _understood(node: fx.Node) -> bool:
    return does(node) in ("moves", "keeps", "activates", "folds") or keeps_features(node)


def moved(node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    """The numbers of one op's result: a tensor, a list of them, or a mark that many units are in each element.

    Args:
        node: an op.
        known: node -> the numbers of its elements, of those that `node` reads.

    Raises:
        Inexact: the op is not one that only moves elements or works on each alone.
    """
    operands = [known[source] for source in moved_args(node) if source in known]
    if does(node) == "folds":
        return _folded(node, operands[0])
    if any(isinstance(value, Tensor) and value.numel() > LIMIT for value in operands):
        raise Inexact("too large to number")
    if does(node) in ("keeps", "activates"):
        return _elementwise(node, operands)
    if all(isinstance(value, _Mixed) for value in operands):
        return _Mixed()
    if keeps_features(node):
        return _everywhere(operands[0], _shape(node))
    if does(node) != "moves":
        raise Inexact(f"'{name_of(node)}' is not understood")
    return _move(node, name_of(node), spec(node).how, known)


def _elementwise(node: fx.Node, operands: list[Any]) -> Any:
    shape = _shape(node)
    numbers = [value.expand(shape) for value in operands if isinstance(value, Tensor)]
    if not numbers:
        return _Mixed()
    for other in numbers[1:]:
        if not _same_units(numbers[0], other):
            raise Inexact(f"'{node}' mixes units of different heads")
    return numbers[0]


def _folded(node: fx.Node, numbers: Any) -> Any:
    """Positions of the same units folded keep their numbers (the query of a pooling attention)."""
    dims: Any = arguments(node).get("dim")
    whole = isinstance(node.meta.get("val"), Tensor) and isinstance(numbers, Tensor)
    if not whole or dims is None or name_of(node) in ("norm", "linalg_vector_norm"):
        return _Mixed()
    first = numbers
    for dim in [dims] if isinstance(dims, int) else dims:
        first = first.narrow(dim, 0, 1)
    if not torch.equal(numbers, first.expand_as(numbers)):
        return _Mixed()
    return first.reshape(_shape(node))


def _everywhere(numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The numbers of a convolution's result (n, c, *positions), where they are the same at every position."""
    first = numbers[(slice(None), slice(None), *[slice(0, 1)] * (len(shape) - 2))]
    if not torch.equal(numbers, first.expand_as(numbers)):
        raise Inexact("the units differ from position to position")
    return first.expand(shape)


def _same_units(one: Tensor, other: Tensor) -> bool:
    """Whether both hold the same units along the last axis, in whatever order (a rotation pairs them up)."""
    one, other = _thin_both(one, other)
    if torch.equal(one, other):
        return True
    if one.is_complex() or other.is_complex():
        return False
    return torch.equal(one.sort(-1).values, other.sort(-1).values)


def _move(node: fx.Node, name: str, how: str, known: Mapping[fx.Node, Any]) -> Any:
    if isinstance(known.get(node.all_input_nodes[0]), _Mixed):
        return _Mixed()
    first: Any = node.args[0]
    if how == "same":
        return known[first]
    if how == "reshape":
        return _reshape(known[first], _shape(node))
    if how == "expand":
        return known[first].expand(_shape(node))
    if how == "join":
        return _join(node, known)
    if name == "getitem":
        return operator.getitem(known[first], node.args[1])
    if name == "pad":
        return torch.nn.functional.pad(known[first], arguments(node)["pad"], value=NOTHING)
    if name == "view_as_complex":
        return torch.view_as_complex(known[first].double().contiguous())
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: _value(source, known))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _value(source: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    """Numbers, or the value of a constant (a list of positions to read)."""
    if source in known:
        return known[source]
    constant = source.meta.get("constant")
    if constant is None or constant.device.type == "meta":
        raise Inexact(f"'{source}' tells where to read, and its values are not known")
    return constant.cpu()


def _join(node: fx.Node, known: Mapping[fx.Node, Any]) -> Tensor:
    sources: Any = node.args[0]
    pieces = [_numbers_or_nothing(source, known) for source in sources]
    axis: Any = arguments(node)["dim"]
    thin = list(pieces)
    rank = pieces[0].ndim
    joined = axis % (rank + 1 if name_of(node) == "stack" else rank)
    keep = joined if name_of(node) != "stack" else None
    free = [
        i
        for i in range(rank)
        if i != keep and all(p.stride(i) == 0 or p.shape[i] == 1 for p in pieces)
    ]
    for i in free:
        thin = [piece.narrow(i, 0, 1) for piece in thin]
    op: Callable[..., Tensor] = torch.stack if name_of(node) == "stack" else torch.cat
    return op(thin, joined).expand(_shape(node))


def _numbers_or_nothing(source: fx.Node, known: Mapping[fx.Node, Any]) -> Tensor:
    value = known.get(source)
    if isinstance(value, _Mixed):
        raise Inexact(f"'{source}' holds no single units")
    if isinstance(value, Tensor):
        return value
    return torch.tensor(NOTHING).expand(_shape(source))


def _reshape(numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`numbers.reshape(shape)`, leaving constant axes alone that are the same at both ends."""
    before = tuple(numbers.shape)
    n = min(len(before), len(shape))
    head = next((i for i in range(n) if before[i] != shape[i]), n)
    tail = next((i for i in range(n - head) if before[-1 - i] != shape[-1 - i]), n - head)
    front = list(range(head))
    back = list(range(-tail, 0))
    target = list(shape)
    for i in [*front, *back]:
        if numbers.stride(i) == 0:
            numbers = numbers.narrow(i, 0, 1)
            target[i] = 1
    return numbers.reshape(target).expand(shape)


def _thin_both(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    for i in range(one.ndim - 1):
        if one.stride(i) == 0 and other.stride(i) == 0:
            one, other = one.narrow(i, 0, 1), other.narrow(i, 0, 1)
    return one, other


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)
