"""Rules of ops that look elements up by position: what is looked up along has a fixed order."""

# Equations are no sentences.
# ruff: noqa: D403, D415

from __future__ import annotations

from typing import Any

from ..ops import aten, op, rule
from .algebra import Expr, fixed, freeze, tie
from .combine import broadcast, dims_of, fixed_axes, freeze_dims
from .values import Axes


@rule("aten.embedding", kind="embedding", slots={"0": "weight"})
def embedding(weight: Axes, index: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z[..., d] = W[x[...], d]"""
    freeze(weight[0])
    return Axes((*index, weight[1]))


@rule("aten.embedding_bag", kind="embedding", slots={"0": "weight"})
@rule("aten._embedding_bag")
def embedding_bag(
    weight: Axes, index: Axes, offsets: Any = None, *args: Any, **kwargs: Any
) -> list[Axes]:
    """z[n, d] = sum over bag n of W[x, d]"""
    freeze(weight[0])
    for operand in (index, offsets):
        if isinstance(operand, Axes):
            freeze_dims(operand, range(len(operand)))
    first, *others = op().shapes
    return [Axes((fixed(first[0]), weight[1])), *(fixed_axes(shape) for shape in others)]


@rule("aten.index_select", does="moves")
def index_select(x: Axes, dim: int, index: Axes) -> Axes:
    """z[i] = x[index[i]] along `dim`"""
    d = dim % len(x)
    freeze(x[d])
    return Axes((*x[:d], index[0] if index else fixed(1), *x[d + 1 :]))


@rule("aten.gather", "aten.take_along_dim")
def gather(x: Axes, dim: Any, index: Axes, **kwargs: Any) -> Axes:
    """z[i, j] = x[index[i, j], j] along `dim`"""
    if isinstance(dim, Axes):  # take_along_dim(x, index, dim)
        dim, index = index, dim
    d = int(dim) % len(x)
    return _beside(x, index, d)


def _beside(x: Axes, other: Axes, d: int) -> Axes:
    """Tie the dimensions in which `other` lies along `x`; along `d` it does not."""
    freeze(x[d])
    out: list[Expr] = []
    for i, (a, b) in enumerate(zip(x, other, strict=True)):
        if i == d:
            out.append(b)
        elif a.size == b.size:
            tie(a, b)
            out.append(a)
        else:
            freeze(a)
            freeze(b)
            out.append(b)
    return Axes(out)


@rule(*aten("scatter scatter_add scatter_reduce"))
def scatter(x: Axes, dim: int, index: Axes, source: Any = None, *args: Any, **kwargs: Any) -> Axes:
    """z[index[i, j], j] = y[i, j] along `dim`"""
    d = dim % len(x)
    _beside(x, index, d)
    freeze(index[d])
    if isinstance(source, Axes) and source:
        _beside(x, source, d)
        freeze(source[d])
    return x


@rule(*aten("index_add index_copy index_fill index_reduce"))
def index_add(
    x: Axes, dim: int, index: Axes, source: Any = None, *args: Any, **kwargs: Any
) -> Axes:
    """z[index[i]] += y[i] along `dim`"""
    d = dim % len(x)
    freeze_dims(index, range(len(index)))
    freeze(x[d])
    if isinstance(source, Axes) and source:
        _beside(x, source, d)
        freeze(source[d])
    return x


@rule("aten.index", "aten._unsafe_index", does="moves")
def index(x: Axes, indices: list[Any]) -> Axes:
    """z[..., p, ...] = x[..., i[p], …]: indices are broadcast together"""
    return _looked_up(x, indices)


def _looked_up(x: Axes, indices: list[Any]) -> Axes:
    shape = op().shape
    places = [d for d, operand in enumerate(indices) if isinstance(operand, Axes)]
    operand = [indices[d] for d in places]
    freeze_dims(x, places)
    out = _index_axes(x, places, operand)
    if [axis.size for axis in out] == list(shape):
        return Axes(out)
    # A mask: it covers as many dimensions as it has and gives as many elements as it holds.
    covered = sum(len(mask) for mask in operand)
    freeze_dims(x, range(places[0], places[0] + covered))
    for mask in operand:
        freeze_dims(mask, range(len(mask)))
    left, right = x[: places[0]], x[places[0] + covered :]
    middle = len(shape) - len(left) - len(right)
    return Axes((*left, *(fixed(n) for n in shape[len(left) : len(left) + middle]), *right))


def _index_axes(x: Axes, places: list[int], operand: list[Axes]) -> list[Expr]:
    spread = broadcast(*operand)
    kept = [axis for d, axis in enumerate(x) if d not in places]
    adjacent = places == list(range(places[0], places[0] + len(places)))
    at = places[0] if adjacent else 0
    return [*kept[:at], *spread, *kept[at:]]


@rule(*aten("index_put _index_put_impl _unsafe_index_put"))
def index_put(x: Axes, indices: list[Any], values: Any, *args: Any, **kwargs: Any) -> Axes:
    """z[..., i[p], …] = y[..., p, …]"""
    places = [d for d, operand in enumerate(indices) if isinstance(operand, Axes)]
    operand = [indices[d] for d in places]
    if any(_is_mask(d) for d in places):
        return _written_where(x, places, operand, values)
    freeze_dims(x, places)
    if isinstance(values, Axes):
        broadcast(Axes(_index_axes(x, places, operand)), values)
    return x


def _written_where(x: Axes, places: list[int], masks: list[Axes], values: Any) -> Axes:
    """z[p, j] = y[k, j] at the k-th place p that the mask lets through: what it covers has a fixed order"""
    covered = len(masks[0]) if places == [0] else len(x)
    freeze_dims(x, range(covered))
    for mask in masks:
        freeze_dims(mask, range(len(mask)))
    if isinstance(values, Axes):
        beside = max(0, len(values) - (len(x) - covered))
        freeze_dims(values, range(beside))
        broadcast(Axes(x[covered:]), Axes(values[beside:]))
    return x


def _is_mask(d: int) -> bool:
    node: Any = op().node.args[1][d]  # type: ignore[index]
    return node is not None and str(node.meta["val"].dtype) in ("torch.bool", "torch.uint8")


@rule(
    *aten(
        """
        nonzero argwhere masked_select unique_consecutive _unique2 unique_dim nonzero_numpy bincount
        take histc
        """
    )
)
def listed(*args: Any, **kwargs: Any) -> Any:
    """the places, or elements, in order"""
    for x in [*args, *kwargs.values()]:
        if isinstance(x, Axes):
            freeze_dims(x, range(len(x)))
    results = [fixed_axes(shape) for shape in op().shapes]
    return results[0] if len(results) == 1 else results


@rule("torchvision.nms")
def nms(boxes: Axes, scores: Axes, *args: Any) -> Axes:
    """the boxes that are kept, in order"""
    freeze_dims(boxes, dims_of(None, len(boxes)))
    freeze_dims(scores, dims_of(None, len(scores)))
    return fixed_axes(op().shape)
