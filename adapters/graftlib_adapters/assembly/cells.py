"""A tensor pair as cells: dense blocks in which every dimension belongs to one class, or to none.

In: a `TensorPair`. Out: `Cell`s that view the two tensors alike: dimension d of the base's view has m units of the
class pair `dims[d]`, that of the source's view p. Always true: views, no copies. A packed query-key-value weight is
three cells of heads x head_dim x input; a kernel of another size meets in its middle. Not here: what is done with the
cells (`objective`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from .records import AxisPair, BlockPair, TensorPair

__all__ = ["Cell", "cells_of"]

# (dimension, start, sizes): take the places from `start`, see them as `sizes`.
_Step = tuple[int, int, tuple[int, ...]]
_Way = tuple[tuple[_Step, ...], tuple[_Step, ...], tuple[int | None, ...]]


@dataclass(frozen=True)
class Cell:
    """One block of a tensor pair.

    Attributes:
        base: FQN of the base tensor.
        source: FQN of the source tensor.
        turns: the source's axes in the base's order.
        base_steps: how the base is viewed.
        source_steps: how the source, its axes turned, is viewed.
        dims: for each dimension of the views the number of its class pair, None where places are fixed.
        role: of the tensor.
    """

    base: str
    source: str
    turns: tuple[int, ...]
    base_steps: tuple[_Step, ...]
    source_steps: tuple[_Step, ...]
    dims: tuple[int | None, ...]
    role: str

    def base_view(self, tensor: Tensor) -> Tensor:
        """The base's block, (m, ...)."""
        return _stepped(tensor, self.base_steps)

    def source_view(self, tensor: Tensor) -> Tensor:
        """The source's block, (p, ...)."""
        return _stepped(tensor.permute(self.turns), self.source_steps)

    def where(self, pair: int) -> tuple[int, ...]:
        """The dimensions that belong to a class pair."""
        return tuple(d for d, each in enumerate(self.dims) if each == pair)


def cells_of(pair: TensorPair) -> tuple[Cell, ...]:
    """All blocks of a tensor pair: one for each choice of a block on each axis."""
    turns = tuple(axis.source_axis for axis in pair.axes)
    found = []
    for ways in product(*(list(_axis(axis)) for axis in pair.axes)):
        base: tuple[_Step, ...] = ()
        source: tuple[_Step, ...] = ()
        dims: tuple[int | None, ...] = ()
        # From the last axis on, so that the places of the axes before stay what they are.
        for axis, way in reversed(list(enumerate(ways))):
            base += _shifted(way[0], axis)
            source += _shifted(way[1], axis)
            dims = way[2] + dims
        found.append(Cell(pair.base, pair.source, turns, base, source, dims, pair.role))
    return tuple(found)


def _stepped(tensor: Tensor, steps: tuple[_Step, ...]) -> Tensor:
    for dim, start, sizes in steps:
        count = 1
        for size in sizes:
            count *= size
        tensor = tensor.narrow(dim, start, count)
        tensor = tensor.reshape(*tensor.shape[:dim], *sizes, *tensor.shape[dim + 1 :])
    return tensor


def _axis(axis: AxisPair) -> Iterator[_Way]:
    for block in axis.blocks:
        yield from _block(block)


def _block(block: BlockPair) -> Iterator[_Way]:
    bases = tuple(factor.bases for factor in block.factors)
    sources = tuple(factor.sources for factor in block.factors)
    inner = [
        [way for term in factor.terms for way in _block(term)] or [((), (), (factor.pair,))]
        for factor in block.factors
    ]
    for ways in product(*inner):
        base: tuple[_Step, ...] = ((0, block.base_start, bases),)
        source: tuple[_Step, ...] = ((0, block.source_start, sources),)
        dims: tuple[int | None, ...] = ()
        for place, way in reversed(list(enumerate(ways))):
            base += _shifted(way[0], place)
            source += _shifted(way[1], place)
            dims = way[2] + dims
        yield base, source, dims


def _shifted(steps: tuple[_Step, ...], by: int) -> tuple[_Step, ...]:
    return tuple((dim + by, start, sizes) for dim, start, sizes in steps)
