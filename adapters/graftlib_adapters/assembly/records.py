"""The records that say what meets what; they print themselves.

In: nothing but values, made by `pairing`. Out: `Problem` and what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from graftlib.graph.axes import AxisClass

__all__ = ["AxisPair", "BlockPair", "ClassPair", "Factor", "Problem", "TensorPair"]


@dataclass(frozen=True)
class Factor:
    """One factor of a block of an axis.

    Attributes:
        bases: how many base units.
        sources: how many source units.
        pair: number of the class pair in `Problem.classes`; None: the order is fixed, place i meets place i.
        terms: where the factor is a concatenation of its own: its blocks.
    """

    bases: int
    sources: int
    pair: int | None = None
    terms: tuple[BlockPair, ...] = ()


@dataclass(frozen=True)
class BlockPair:
    """A slice of a base axis that reads a slice of a source axis, both seen as row-major products of `factors`."""

    base_start: int
    source_start: int
    factors: tuple[Factor, ...]


@dataclass(frozen=True)
class AxisPair:
    """A base axis and the source axis that it reads.

    Attributes:
        source_axis: of the source tensor.
        blocks: what meets; base places in none of them read nothing.
        partial: base places in no block take no part at all (the keys, where only queries meet). Otherwise they are
            places that the source leaves empty (the rim of a larger kernel).
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

    def __str__(self) -> str:
        return f"{self.base} {self.base_shape} <- {self.source} {self.source_shape}"


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
        pairs: tensors that meet.
        classes: classes that meet; `Factor.pair` counts them.
        refused: (what, why) of what stays as it is in the base.
        names: the class names of base and source.
    """

    pairs: tuple[TensorPair, ...]
    classes: tuple[ClassPair, ...]
    refused: tuple[tuple[str, str], ...]
    names: tuple[str, str] = ("base", "source")

    def __str__(self) -> str:
        base, source = self.names
        lines = [f"{base} <- {source}: {len(self.pairs)} tensors, {len(self.classes)} classes"]
        lines += [f"  {pair}" for pair in self.pairs]
        lines += [f"  class {i}: {pair}" for i, pair in enumerate(self.classes)]
        lines += [f"  stays {what}: {why}" for what, why in self.refused]
        return "\n".join(lines)
