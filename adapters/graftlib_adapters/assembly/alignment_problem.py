"""What is to be aligned: which tensors and axis classes of a source are read by those of a base.

Made by `pairing`; every record prints itself. A `Cell` is a dense block of a tensor pair in which each dimension
belongs to one axis class or to none: queries, keys and values packed in one weight are three cells of heads x head_dim
x input. Cells are views of the tensors, never copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod

import torch
from torch import Tensor

from graftlib.graph import AxisClass

__all__ = [
    "AxisPair",
    "BlockPair",
    "Cell",
    "ClassPair",
    "Places",
    "Problem",
    "TensorPair",
    "places_of",
]


@dataclass(frozen=True)
class Places:
    """Places of an axis as a strided array, row-major, as in `torch.as_strided`.

    Attributes:
        start: the first place.
        sizes: units of each dimension.
        strides: how far apart two neighbours of each dimension lie.
    """

    start: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, units: Sequence[Tensor]) -> Tensor:
        """(n,) int64: the places of some units of each dimension; -1 where any of the units is -1."""
        places = torch.full((1,), self.start, dtype=torch.int64, device="cpu")
        for unit, stride in zip(units, self.strides, strict=True):
            none = (places[:, None] < 0) | (unit < 0)
            places = (places[:, None] + unit * stride).masked_fill(none, -1).flatten()
        return places

    def all(self) -> Tensor:
        """(n,) int64: all places."""
        return self.read([torch.arange(size, device="cpu") for size in self.sizes])


@dataclass(frozen=True)
class BlockPair:
    """Places of a base axis beside those of a source axis, dimension by dimension.

    Attributes:
        base: in the base.
        source: in the source.
        classes: for each dimension the number of its pair in `Problem.classes`; None: the order is fixed, place i
            reads place i.
    """

    base: Places
    source: Places
    classes: tuple[int | None, ...]

    def numbered(self, numbers: Mapping[int, int]) -> BlockPair:
        """The same with each class counted by `numbers`."""
        return replace(self, classes=tuple(None if c is None else numbers[c] for c in self.classes))


@dataclass(frozen=True)
class AxisPair:
    """A base axis and the source axis that it reads.

    Attributes:
        source_axis: of the source tensor.
        blocks: what is read; base places in none of them read nothing.
        partial: base places in no block take no part at all (the keys, where only queries are paired). Otherwise they
            are places that the source leaves empty (the rim of a larger kernel).
    """

    source_axis: int
    blocks: tuple[BlockPair, ...]
    partial: bool = False


@dataclass(frozen=True)
class TensorPair:
    """A base tensor and the source tensor that it reads.

    Attributes:
        base: FQN of a parameter or buffer of the base.
        source: FQN in the source.
        base_shape: its shape.
        source_shape: its shape.
        axes: one for each base axis.
        role: as in `Parameter.role`, or ``"mean"`` / ``"variance"`` for running statistics.
        layer: FQN of the base module that owns the tensor: the layer that one selects.
        source_layer: FQN of the source module that owns the tensor.
        out: the base axis that holds the units which the layer makes; None for an embedding's entries and others.
    """

    base: str
    source: str
    base_shape: tuple[int, ...]
    source_shape: tuple[int, ...]
    axes: tuple[AxisPair, ...]
    role: str
    layer: str
    source_layer: str = ""
    out: int | None = None

    def cells(self) -> Iterator[Cell]:
        """One for each choice of a block on each axis."""
        for blocks in product(*(axis.blocks for axis in self.axes)):
            yield Cell(self, blocks)

    def __str__(self) -> str:
        return f"{self.base} {self.base_shape} <- {self.source} {self.source_shape}"


@dataclass(frozen=True)
class Cell:
    """One dense block of a tensor pair; `blocks` holds one of each base axis."""

    pair: TensorPair
    blocks: tuple[BlockPair, ...]

    @cached_property
    def classes(self) -> tuple[int | None, ...]:
        """For each dimension of the views the number of its class pair; None where the order is fixed."""
        return tuple(number for block in self.blocks for number in block.classes)

    @cached_property
    def entries(self) -> int:
        """How many entries of the base tensor the block holds."""
        return prod(size for block in self.blocks for size in block.base.sizes)

    def base_view(self, tensor: Tensor) -> Tensor:
        """The base's block, (m, …)."""
        return _strided(tensor, [block.base for block in self.blocks])

    def source_view(self, tensor: Tensor) -> Tensor:
        """The source's block, (p, …), its dimensions in the base's order."""
        turned = tensor.permute([axis.source_axis for axis in self.pair.axes])
        return _strided(turned, [block.source for block in self.blocks])


def _strided(tensor: Tensor, places: Sequence[Places]) -> Tensor:
    along = list(zip(places, tensor.stride(), strict=True))
    return tensor.as_strided(
        [size for each in places for size in each.sizes],
        [stride * step for each, step in along for stride in each.strides],
        tensor.storage_offset() + sum(each.start * step for each, step in along),
    )


@dataclass(frozen=True)
class ClassPair:
    """A free base class and the free source class that it reads."""

    base: AxisClass
    source: AxisClass

    @property
    def bases(self) -> int:
        """m, units of the base."""
        return self.base.size

    @property
    def sources(self) -> int:
        """p, units of the source."""
        return self.source.size

    def __str__(self) -> str:
        first = (self.base.members[0].fqn, self.source.members[0].fqn)
        return f"{self.bases} units of {first[0]} <- {self.sources} of {first[1]}"


@dataclass(frozen=True)
class Problem:
    """What is to be aligned.

    Attributes:
        pairs: tensors of the base with those that they read.
        classes: classes of the base with those that they read; `BlockPair.classes` counts them.
        refused: (what, why) of what stays as it is in the base.
        names: the class names of base and source.
    """

    pairs: tuple[TensorPair, ...]
    classes: tuple[ClassPair, ...]
    refused: tuple[tuple[str, str], ...]
    names: tuple[str, str] = ("base", "source")

    def by_base(self) -> dict[str, list[TensorPair]]:
        """FQN of a base tensor -> its pairs; several where it packs what the source holds apart."""
        groups: dict[str, list[TensorPair]] = {}
        for pair in self.pairs:
            groups.setdefault(pair.base, []).append(pair)
        return groups

    def __str__(self) -> str:
        base, source = self.names
        lines = [f"{base} <- {source}: {len(self.pairs)} tensors, {len(self.classes)} classes"]
        lines += [f"  {pair}" for pair in self.pairs]
        lines += [f"  class {i}: {pair}" for i, pair in enumerate(self.classes)]
        lines += [f"  stays {what}: {why}" for what, why in self.refused]
        return "\n".join(lines)


def places_of(blocks: Sequence[BlockPair], *, base: bool) -> int:
    """How many places of the base's axis, or of the source's, some blocks hold."""
    return sum(prod((block.base if base else block.source).sizes) for block in blocks)
