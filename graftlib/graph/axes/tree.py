"""The axis tree: what one axis of one tensor is made of, as a frozen expression that prints like an einops pattern.

A leaf is a run of units that move together with their axis class, or whose order something fixes; a product is the
row-major product of axes (heads x head_dim), a sum their concatenation (query, key and value rows).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

import networkx as nx
import torch
from torch import Tensor

from ...errors import MatchError, nearest, shown
from .algebra import Atom, Expr, Prod, resolve
from .algebra import Sum as Total

if TYPE_CHECKING:
    from ..parameter import Part
    from .classes import AxisClass

__all__ = [
    "Axis",
    "Leaf",
    "Pattern",
    "Product",
    "Sum",
    "nesting",
    "outer",
    "outermost",
    "tree_of",
    "with_roles",
]

Units = Mapping["AxisClass", Tensor]
_WITHIN = ("heads", "head_dim")  # of an operand


class _Node:
    """What leaves, products and sums can do."""

    def find(self, role: str) -> Axis:
        """The part of this axis that has a role in an attention.

        Args:
            role: ``"query"``, ``"key"``, ``"value"`` or ``"output"``: the rows (or columns) of that operand, heads and
                what is inside of them. ``"heads"`` or ``"head_dim"``: the factor that counts the heads, or that lies
                inside of one.

        Raises:
            MatchError: nothing has the role, or several parts have it that differ: name the operand first,
                ``axis.find("query").find("heads")``.
        """
        assert isinstance(self, Leaf | Product | Sum)
        word = role.rpartition(".")[2]
        parts = list(dict.fromkeys(_parts(self, word)))
        if len(parts) == 1:
            return parts[0]
        roles = sorted({each for leaf in _runs(self) for each in leaf.roles})
        raise MatchError(
            f"{len(parts) or 'no'} parts of {self} have the role {shown(role)}.",
            near=nearest(word, roles) or roles,
            fix="name the operand first: axis.find('query').find('heads')"
            if parts
            else "name a role of an attention's projection whose heads are read off exactly",
        )


@dataclass(frozen=True)
class Leaf(_Node):
    """Units of one axis class, or units whose order is fixed.

    Attributes:
        size: how many units.
        axis_class: the class that they belong to; None for single units and the positions of a kernel.
        label: how the leaf prints: ``c`` and the number of its class in ``graph.axis_classes`` where they are free,
            else their count.
        frozen_by: what fixes the order, in words; None while it is free.
        structure: of units that are fixed as a whole, the product or sum that they are; None where there is none. Its
            leaves say what fixes each; they are of no class of their own.
        roles: as in `find`; none where the graph was not asked for them.
    """

    size: int
    axis_class: AxisClass | None = field(default=None, repr=False)
    label: str = ""
    frozen_by: str | None = None
    structure: Axis | None = None
    roles: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def positions(self, units: Units) -> Tensor:
        """See `Sum.positions`."""
        if self.axis_class is not None and self.axis_class in units:
            return units[self.axis_class]
        return torch.arange(self.size, device="cpu")

    def leaves(self) -> Iterator[Leaf]:
        """This leaf."""
        yield self

    def resized(self, sizes: Mapping[AxisClass, int]) -> Leaf:
        """See `Sum.resized`."""
        size = self.size if self.axis_class is None else sizes.get(self.axis_class, self.size)
        return replace(self, size=size)

    def __str__(self) -> str:
        return str(self.structure or self.label or self.size)


@dataclass(frozen=True)
class Product(_Node):
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

    def resized(self, sizes: Mapping[AxisClass, int]) -> Product:
        """See `Sum.resized`."""
        return Product(tuple(factor.resized(sizes) for factor in self.factors))

    def __str__(self) -> str:
        return "(" + " ".join(map(str, self.factors)) + ")"


@dataclass(frozen=True)
class Sum(_Node):
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

    def resized(self, sizes: Mapping[AxisClass, int]) -> Sum:
        """The same axis where the units of classes are as many as `sizes` says."""
        return Sum(tuple(term.resized(sizes) for term in self.terms))

    def __str__(self) -> str:
        return "(" + " + ".join(map(str, self.terms)) + ")"


Axis = Leaf | Product | Sum
"""What one axis of a tensor is made of."""


class Pattern(tuple[Axis, ...]):
    """The axes of one tensor.

    ``print`` shows them in one line like an einops pattern, and behind it what fixes the order of each fixed run:
    ``10 | c10  (10: the output)``.
    """

    __slots__ = ()

    def __str__(self) -> str:
        runs = [leaf for axis in self for leaf in _runs(axis) if leaf.frozen_by and leaf.size > 1]
        reasons = "; ".join(dict.fromkeys(f"{leaf}: {leaf.frozen_by}" for leaf in runs))
        return " | ".join(map(str, self)) + (f"  ({reasons})" if reasons else "")


def tree_of(expression: Expr, leaf: Callable[[Atom], Leaf]) -> Axis:
    """The frozen tree of an expression of the algebra.

    Args:
        expression: resolved or not; not changed.
        leaf: what an atom prints as and belongs to.
    """
    expression = resolve(expression)
    if isinstance(expression, Atom):
        if expression.parts is None:
            return leaf(expression)
        structure = _tree_of_parts(
            expression.parts, lambda atom: Leaf(atom.size, frozen_by=atom.frozen)
        )
        return replace(leaf(expression), structure=structure)
    return _tree_of_parts(expression, leaf)


def _tree_of_parts(expression: Prod | Total, leaf: Callable[[Atom], Leaf]) -> Axis:
    if isinstance(expression, Prod):
        return Product(tuple(tree_of(factor, leaf) for factor in expression.factors))
    return Sum(tuple(tree_of(term, leaf) for term in expression.terms))


def nesting(axis: Axis) -> set[tuple[AxisClass, AxisClass]]:
    """(outer, inner) for each free class that lies inside of another: in heads x head_dim what is inside of a head."""
    if isinstance(axis, Leaf):
        return set()
    if isinstance(axis, Sum):
        return set().union(*map(nesting, axis.terms))
    pairs: set[tuple[AxisClass, AxisClass]] = set()
    outer: set[AxisClass] = set()
    for factor in axis.factors:
        here = set(_free(factor))
        pairs |= nesting(factor) | {(a, b) for a in outer for b in here if a != b}
        outer |= here
    return pairs


def outer(
    classes: Sequence[AxisClass], pairs: Iterable[tuple[AxisClass, AxisClass]]
) -> list[AxisClass]:
    """The classes that lie in no other; the first of those that lie in each other (heads x head_dim, head_dim x heads).

    Args:
        classes: in the order of the model.
        pairs: (outer, inner), as `nesting` gives them.
    """
    graph: nx.DiGraph[AxisClass] = nx.DiGraph()
    graph.add_nodes_from(classes)
    graph.add_edges_from(pairs)
    within = nx.condensation(graph)
    groups = [within.nodes[i]["members"] for i in within if not within.in_degree(i)]
    place = {each: i for i, each in enumerate(classes)}
    return [classes[i] for i in sorted(min(place[each] for each in group) for group in groups)]


def outermost(axis: Axis) -> list[AxisClass]:
    """The free classes that an axis is made of, none inside of another; where nothing is free, the frozen ones."""
    free = outer(list(dict.fromkeys(_free(axis))), nesting(axis))
    fixed = (leaf.axis_class for leaf in axis.leaves() if leaf.axis_class is not None)
    return free or list(dict.fromkeys(fixed))


def _free(axis: Axis) -> Iterator[AxisClass]:
    return (c for leaf in axis.leaves() if (c := leaf.axis_class) is not None and c.free)


def _runs(axis: Axis) -> Iterator[Leaf]:
    """The leaves, and in their place those of what they are made of where they are fixed as a whole."""
    for leaf in axis.leaves():
        yield from _runs(leaf.structure) if leaf.structure else (leaf,)


def _parts(axis: Axis, word: str) -> Iterator[Axis]:
    """See `_Node.find`: of a sum the terms together, or each by itself for what lies within an operand."""
    if isinstance(axis, Leaf):
        if word in axis.roles:
            yield axis
        elif axis.structure is not None:
            yield from _parts(axis.structure, word)
        return
    if isinstance(axis, Sum):
        parts = [part for term in axis.terms for part in _parts(term, word)]
        if word in _WITHIN or len(parts) <= 1:
            yield from parts
        else:
            yield Sum(tuple(parts))
        return
    inside = [list(_parts(factor, word)) for factor in axis.factors]
    if not any(inside):
        return
    # What lies around an operand's rows, and inside of them, is theirs.
    others = [[] if word in _WITHIN else [factor] for factor in axis.factors]
    choices = [parts or rest for parts, rest in zip(inside, others, strict=True)]
    for factors in itertools.product(*filter(None, choices)):
        yield factors[0] if len(factors) == 1 else Product(factors)


def with_roles(axis: Axis, parts: Mapping[str, Part]) -> Axis:
    """The same axis, its leaves with the roles that they have.

    Args:
        axis: of a parameter.
        parts: name -> units of this axis, as in `Parameter.parts`.
    """
    # For each place of the axis: which part it is of, which head of it, and its place inside of the head.
    numbers = torch.full((3, axis.size), -1, device="cpu")
    words = []
    for name, part in parts.items():
        words.append((part.role or "").rpartition(".")[2] if name == "heads" else name)
        units, count = torch.tensor(part.units, device="cpu"), len(part.units) // (part.heads or 1)
        places = torch.arange(len(units), device="cpu")
        numbers[0, units] = len(words) - 1
        if part.heads:
            numbers[1, units], numbers[2, units] = places // count, places % count
    return _labelled(axis, numbers[:, None, :, None], words)


def _labelled(axis: Axis, numbers: Tensor, words: list[str]) -> Axis:
    """`numbers` is (3, before, size of the axis, behind)."""
    if isinstance(axis, Sum):
        runs = torch.split(numbers, [term.size for term in axis.terms], 2)
        return Sum(tuple(_labelled(*each, words) for each in zip(axis.terms, runs, strict=True)))
    if isinstance(axis, Product):
        factors, before = [], numbers.shape[1]
        for factor in axis.factors:
            numbers = numbers.reshape(3, before, factor.size, -1)
            factors.append(_labelled(factor, numbers, words))
            before *= factor.size
        return Product(tuple(factors))
    part, still = (
        torch.unique(numbers[0]),
        (numbers == numbers[:, :, :1]).flatten(1).all(1).tolist(),
    )
    roles = [words[int(part)]] if len(part) == 1 and part >= 0 else []
    if still[1] != still[2] and bool((numbers[1:] >= 0).all()):
        roles.append("head_dim" if still[1] else "heads")
    structure = axis.structure and _labelled(axis.structure, numbers, words)
    return replace(axis, roles=tuple(roles), structure=structure)
