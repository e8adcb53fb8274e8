"""An axis of a tensor as blocks of factors, read off the axis classes.

In: a layer graph. Out: for every parameter and carried buffer, per axis, `Block` records that follow each other without
a gap. Always true: the blocks cover the axis, and each factor names the class that moves it. A packed query-key-value
axis is three blocks of heads x head_dim; a Linear after Flatten reads one block of channels x positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from graftlib.graph import LayerGraph
from graftlib.graph.axes import AxisClass, Member

__all__ = ["Block", "Span", "axes_of", "tensors_of"]


@dataclass(frozen=True)
class Span:
    """One factor of a block.

    Attributes:
        size: how many units.
        number: of its class in ``graph.axis_classes``, free or frozen; None for a kernel's positions or one unit.
        terms: its blocks, where the factor is a concatenation of its own (heads x (query, key, value)).
    """

    size: int
    number: int | None = None
    terms: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Block:
    """The slice of an axis from `start`, seen as the row-major product of `factors`."""

    start: int
    factors: tuple[Span, ...]

    @property
    def size(self) -> int:
        """How many places of the axis."""
        return prod(factor.size for factor in self.factors)


Axis = tuple[Block, ...]
_Key = tuple[int, tuple[int, ...]]


def tensors_of(graph: LayerGraph) -> dict[str, Tensor]:
    """FQN -> parameter or buffer of the traced model, in the model's order; a tied tensor by its first name."""
    found = dict(graph.model.named_parameters())
    return {**found, **dict(graph.model.named_buffers())}


def axes_of(graph: LayerGraph) -> dict[str, tuple[Axis, ...]]:
    """FQN -> blocks of each axis, for every tensor that some class moves or fixes.

    An axis whose classes lie in it in a way that is no concatenation of products is left out with its tensor.
    """
    held: dict[str, dict[int, list[tuple[Member, int]]]] = {}
    for number, each in enumerate(graph.axis_classes):
        for member in each.members:
            held.setdefault(member.fqn, {}).setdefault(member.axis, []).append((member, number))
    found = {}
    for fqn, tensor in tensors_of(graph).items():
        if fqn not in held:
            continue
        try:
            found[fqn] = tuple(
                _axis(held[fqn].get(i, []), size) for i, size in enumerate(tensor.shape)
            )
        except _Packed:
            continue
    return found


def free(classes: Sequence[AxisClass], span: Span) -> bool:
    """Whether the units of a factor may be renamed."""
    return span.number is not None and classes[span.number].free


class _Packed(Exception):  # noqa: N818 - the axis is packed in no way that is known
    pass


def _axis(members: Sequence[tuple[Member, int]], size: int) -> Axis:
    spans: dict[_Key, dict[int, int]] = {}
    for member, number in members:
        spans.setdefault((member.start, member.factors), {})[member.position] = number
    return _blocks(spans, size)


def _blocks(spans: dict[_Key, dict[int, int]], size: int) -> Axis:
    """Blocks over ``0 … size``: spans side by side, those inside another one its terms, and what is between."""
    made: list[Block] = []
    at = 0
    rest = sorted(spans, key=lambda key: (key[0], -prod(key[1])))
    while rest:
        start, factors = key = rest.pop(0)
        end = start + prod(factors)
        if start < at or end > size:
            raise _Packed
        inside = [other for other in rest if other[0] < end]
        rest = rest[len(inside) :]
        if start > at:
            made.append(Block(at, (Span(start - at),)))
        made.append(_block(key, spans[key], {other: spans[other] for other in inside}))
        at = end
    if at < size:
        made.append(Block(at, (Span(size - at),)))
    return tuple(made)


def _block(key: _Key, numbers: dict[int, int], inside: dict[_Key, dict[int, int]]) -> Block:
    start, sizes = key
    open_ = [i for i, size in enumerate(sizes) if i not in numbers and size > 1]
    spans = [Span(size, numbers.get(i)) for i, size in enumerate(sizes)]
    if inside:
        if len(open_) != 1:
            raise _Packed
        at = open_[0]
        inner = prod(sizes[at + 1 :])
        # Every row repeats the same terms: the first one says it all.
        first = start + sizes[at] * inner
        terms = {
            ((begin - start) // inner, shape[:-1] if inner > 1 else shape): each
            for (begin, shape), each in inside.items()
            if begin < first
        }
        spans[at] = Span(sizes[at], None, _blocks(terms, sizes[at]))
    return Block(start, tuple(spans))
