"""Two axes side by side: which places of a source axis those of a base axis may read.

Axes are trees (`LayerGraph.axes`); two of them are paired where they are made alike, term by term and factor by factor,
each pair of leaves free in both models or fixed in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod

from graftlib.graph import Axis, AxisClass, Leaf, Product, Sum

from .alignment_problem import BlockPair, Places

__all__ = ["AxisPairing", "Incompatible", "Term", "centred", "numbers_of", "resized", "terms_of"]

Term = tuple[int, Axis]  # its first place, and what it is made of


class Incompatible(Exception):  # noqa: N818 - an answer, not a fault
    """Two tensors cannot be paired; the text says why."""


def numbers_of(classes: Sequence[AxisClass]) -> dict[int, int]:
    """The id of a class -> its number: classes are large to compare, and a graph has each of them once."""
    return {id(each): i for i, each in enumerate(classes)}


def terms_of(axis: Axis) -> tuple[Term, ...]:
    """The terms of a concatenation, or the one that an axis is; neighbours that no class moves are one."""
    terms: list[Term] = []
    start = 0
    for term in axis.terms if isinstance(axis, Sum) else (axis,):
        each = _plain(term)
        if _is_plain(each) and terms and _is_plain(terms[-1][1]):
            terms[-1] = (terms[-1][0], Leaf(terms[-1][1].size + each.size))
        else:
            terms.append((start, each))
        start += each.size
    return tuple(terms)


def resized(axis: Axis, sizes: Mapping[int, int]) -> Axis:
    """An axis whose classes have other sizes; `sizes` by the id of the class."""
    if isinstance(axis, Leaf):
        return Leaf(sizes.get(id(axis.axis_class), axis.size), axis.axis_class, "", axis.frozen_by)
    if isinstance(axis, Product):
        return Product(tuple(resized(factor, sizes) for factor in axis.factors))
    return Sum(tuple(resized(term, sizes) for term in axis.terms))


def centred(bases: int, sources: int) -> tuple[BlockPair, ...]:
    """The common middle of two kernels."""
    shared = min(bases, sources)
    base, source = (Places((size - shared) // 2, (shared,), (1,)) for size in (bases, sources))
    return (BlockPair(base, source, (None,)),)


class AxisPairing:
    """The axes of two tensors, paired one after the other.

    Args:
        base: id of a class -> its number, in the base.
        source: the same in the source.

    Attributes:
        free: (number in the base, number in the source) of the classes that are thereby paired, in order.
        fixed: the same of classes whose order is fixed.
    """

    def __init__(self, base: Mapping[int, int], source: Mapping[int, int]) -> None:
        self._base, self._source = base, source
        self.free: dict[tuple[int, int], None] = {}
        self.fixed: dict[tuple[int, int], None] = {}

    def blocks(self, base: Sequence[Term], source: Sequence[Term]) -> Iterator[BlockPair]:
        """The blocks of two axes, their classes numbered as in the base.

        Raises:
            Incompatible: the two are not made alike.
        """
        if len(base) != len(source):
            raise Incompatible(f"an axis of {len(base)} parts and one of {len(source)}")
        for (base_start, one), (source_start, other) in zip(base, source, strict=True):
            ones, others = _factors(one), _factors(other)
            if len(ones) != len(others):
                raise Incompatible(f"units packed as {_packing(ones)} and as {_packing(others)}")
            factors = [list(self._factor(a, b)) for a, b in zip(ones, others, strict=True)]
            for choice in product(*factors):
                yield BlockPair(
                    _joined([each.base for each in choice], ones, base_start),
                    _joined([each.source for each in choice], others, source_start),
                    tuple(number for each in choice for number in each.classes),
                )

    def _factor(self, one: Axis, other: Axis) -> Iterator[BlockPair]:
        if isinstance(one, Leaf) and isinstance(other, Leaf):
            base, source = (Places(0, (each.size,), (1,)) for each in (one, other))
            yield BlockPair(base, source, (self._class(one, other),))
        elif isinstance(one, Leaf) or isinstance(other, Leaf):
            raise Incompatible("one packs several parts in its rows and the other does not")
        else:
            yield from self.blocks(terms_of(one), terms_of(other))

    def _class(self, one: Leaf, other: Leaf) -> int | None:
        numbers = self._base.get(id(one.axis_class)), self._source.get(id(other.axis_class))
        free = [n is not None and leaf.axis_class is not None and leaf.axis_class.free
                for n, leaf in zip(numbers, (one, other), strict=True)]  # fmt: skip
        if free[0] != free[1]:
            side, leaf = ("source", other) if free[0] else ("base", one)
            raise Incompatible(f"the {side}'s order is fixed by {_why(leaf)}")
        if not free[0] and one.size != other.size:
            raise Incompatible(
                f"{one.size} places and {other.size} whose order is fixed by {_why(one)}"
            )
        if numbers[0] is not None and numbers[1] is not None:
            (self.free if free[0] else self.fixed)[numbers[0], numbers[1]] = None
        return numbers[0] if free[0] else None


def _plain(axis: Axis) -> Axis:
    """The axis, or as many fixed places where no class is in it."""
    return axis if any(leaf.axis_class for leaf in axis.leaves()) else Leaf(axis.size)


def _is_plain(axis: Axis) -> bool:
    return isinstance(axis, Leaf) and axis.axis_class is None


def _factors(axis: Axis) -> tuple[Axis, ...]:
    return tuple(map(_plain, axis.factors)) if isinstance(axis, Product) else (axis,)


def _joined(places: Sequence[Places], factors: Sequence[Axis], start: int) -> Places:
    """Places of each factor as places of the row-major product of the factors."""
    inner = [prod(factor.size for factor in factors[i + 1 :]) for i in range(len(factors))]
    along = list(zip(places, inner, strict=True))
    return Places(
        start + sum(each.start * step for each, step in along),
        tuple(size for each in places for size in each.sizes),
        tuple(stride * step for each, step in along for stride in each.strides),
    )


def _packing(factors: Sequence[Axis]) -> str:
    return " x ".join(str(factor.size) for factor in factors)


def _why(leaf: Leaf) -> str:
    return (leaf.axis_class and leaf.axis_class.frozen_by) or "its place"
