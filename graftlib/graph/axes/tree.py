"""The axis tree: what one axis of one parameter is made of, as a frozen expression that prints like an einops pattern.

A leaf is a run of units that move together with their axis class, or whose order something fixes; a product is the
row-major product of axes (heads x head_dim), a sum their concatenation (query, key and value rows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .algebra import Atom, Expr, Prod, resolve
from .algebra import Sum as Total

if TYPE_CHECKING:
    from .classes import AxisClass

__all__ = ["Axis", "Leaf", "Product", "Sum", "outermost", "tree_of"]

Units = Mapping["AxisClass", Tensor]


@dataclass(frozen=True)
class Leaf:
    """Units of one axis class, or units whose order is fixed.

    Attributes:
        size: how many units.
        axis_class: the class that they belong to; None for single units and the positions of a kernel.
        label: how the leaf prints: ``c`` and the number of its class in ``graph.axis_classes`` where they are free,
            else their count.
        frozen_by: what fixes the order, in words; None while it is free.
    """

    size: int
    axis_class: AxisClass | None = field(default=None, repr=False)
    label: str = ""
    frozen_by: str | None = None

    def positions(self, units: Units) -> Tensor:
        """See `Sum.positions`."""
        if self.axis_class is not None and self.axis_class in units:
            return units[self.axis_class]
        return torch.arange(self.size, device="cpu")

    def leaves(self) -> Iterator[Leaf]:
        """This leaf."""
        yield self

    def __str__(self) -> str:
        return self.label or str(self.size)


@dataclass(frozen=True)
class Product:
    """The row-major product of at least two axes.

    Attributes:
        factors: from the outermost to the innermost.
    """

    factors: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """How many units."""
        return prod(factor.size for factor in self.factors)

    def positions(self, units: Units) -> Tensor:
        """See `Sum.positions`."""
        places = torch.zeros(1, dtype=torch.int64, device="cpu")
        for factor in self.factors:
            places = (places[:, None] * factor.size + factor.positions(units)).flatten()
        return places

    def leaves(self) -> Iterator[Leaf]:
        """The leaves from left to right, each as often as it stands there."""
        for factor in self.factors:
            yield from factor.leaves()

    def __str__(self) -> str:
        return "(" + " ".join(map(str, self.factors)) + ")"


@dataclass(frozen=True)
class Sum:
    """The concatenation of at least two axes.

    Attributes:
        terms: in order.
    """

    terms: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """How many units."""
        return sum(term.size for term in self.terms)

    def positions(self, units: Units) -> Tensor:
        """Where the given units of classes lie on this axis.

        Args:
            units: class -> (n,) int64 unit numbers, in any order, repeats allowed; absent classes: all of theirs.

        Returns:
            (m,) int64 on the CPU: for each place of an axis that holds those units alone, the place of this axis
            that it is read from. Without any units given ``arange(size)``.
        """
        runs, start = [], 0
        for term in self.terms:
            runs.append(term.positions(units) + start)
            start += term.size
        return torch.cat(runs)

    def leaves(self) -> Iterator[Leaf]:
        """The leaves from left to right, each as often as it stands there."""
        for term in self.terms:
            yield from term.leaves()

    def __str__(self) -> str:
        return "(" + " + ".join(map(str, self.terms)) + ")"


Axis = Leaf | Product | Sum


def tree_of(expression: Expr, leaf: Callable[[Atom], Leaf]) -> Axis:
    """The frozen tree of an expression of the algebra.

    Args:
        expression: resolved or not; not changed.
        leaf: what an atom prints as and belongs to.
    """
    expression = resolve(expression)
    if isinstance(expression, Atom):
        return leaf(expression)
    if isinstance(expression, Prod):
        return Product(tuple(tree_of(factor, leaf) for factor in expression.factors))
    assert isinstance(expression, Total)
    return Sum(tuple(tree_of(term, leaf) for term in expression.terms))


def outermost(axis: Axis) -> list[AxisClass]:
    """The classes that an axis is made of, free ones before frozen ones and none inside of another.

    In heads x head_dim the heads alone; in a sum each term's. Frozen classes count only where nothing is free.
    """
    free, fixed = _classes(axis, free=True), _classes(axis, free=False)
    return free or fixed


def _classes(axis: Axis, *, free: bool) -> list[AxisClass]:
    if isinstance(axis, Leaf):
        each = axis.axis_class
        return [each] if each is not None and each.free == free else []
    if isinstance(axis, Product):
        return next((c for factor in axis.factors if (c := _classes(factor, free=free))), [])
    return list(dict.fromkeys(c for term in axis.terms for c in _classes(term, free=free)))
