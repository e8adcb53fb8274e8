"""Axis classes: which axes of which parameters must be put in another order together.

In: a layer graph. Out: `AxisClass` records, the share of the weights that is free, the ops that cost freedom.
Always true: the members of a class that is not frozen may be permuted alike, with any permutation, and the function
stays; `check` runs the model to say so. Axes of kernels are positions and not listed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import MatchError, nearest
from ...reports import Report
from ..traced import TracedGraph
from .algebra import Atom, Expr, Prod, Sum, leaves, resolve
from .blind import blind_parts
from .infer import Inference, infer
from .rules_spatial import KERNEL
from .tree import Leaf, Pattern, outermost, tree_of
from .values import Axes

__all__ = [
    "AxisClass",
    "Member",
    "axes_of",
    "axis_classes",
    "class_of",
    "class_of_atoms",
    "classes_of",
    "constant_sizes",
    "freedom",
    "freedom_of",
    "frozen_ops",
    "frozen_shares",
    "numbers_of_atoms",
    "reading",
]


@dataclass(frozen=True)
class Member:
    """A part of one axis of one parameter that moves with its class.

    The slice of `axis` from `start`, of as many units as `factors` multiply to, is seen as an array of shape
    `factors`; the class moves along dimension `position` of that array.

    Attributes:
        fqn: of a parameter, or of a buffer that the state dict carries (running statistics).
        axis: of the tensor.
        start: first unit of the slice.
        factors: shape of the slice, row-major.
        position: the factor that moves; it has as many units as the class.
        blind: the function provably does not depend on this member (a key's bias under softmax).
        tied_by: the op that first tied it to another member, in words.

    Members are equal where they lie in one place; why they are there does not count.
    """

    fqn: str
    axis: int
    start: int
    factors: tuple[int, ...]
    position: int
    blind: bool = field(default=False, compare=False)
    tied_by: str | None = field(default=None, compare=False)

    @property
    def places(self) -> range:
        """The slice of the axis."""
        return range(self.start, self.start + prod(self.factors))

    @property
    def block(self) -> tuple[str, int, int, tuple[int, ...]]:
        """The slice of the tensor, and its shape: what members share that are factors of one product."""
        return self.fqn, self.axis, self.start, self.factors

    def units(self, tensor: Tensor, dim: int | None = None) -> Tensor:
        """(units, ...): a view of `tensor` with the units of the class in front.

        Args:
            tensor: the member's, or anything that has its axis.
            dim: where that axis is, None for where it is in the member's tensor.

        >>> Member("w", 0, 2, (3, 2), 0).units(torch.arange(8))
        tensor([[2, 3],
                [4, 5],
                [6, 7]])
        """
        dim = self.axis if dim is None else dim
        run = tensor.narrow(dim, self.start, len(self.places))
        return torch.unflatten(run, dim, self.factors).movedim(dim + self.position, 0)

    def __str__(self) -> str:
        word = f"{self.fqn}[{self.axis}]"
        if len(self.factors) > 1 or self.start:
            shape = " ".join(
                f"*{size}*" if i == self.position else str(size)
                for i, size in enumerate(self.factors)
            )
            word += f" from {self.start} as ({shape})"
        return word + (" (blind)" if self.blind else "")


@dataclass(frozen=True)
class AxisClass(Report):
    """Parts of parameters whose units must be renamed together to keep the function.

    Attributes:
        size: how many units.
        members: in the model's order.
        frozen_by: what fixes the order of the units, in words; None where they are free.
        ties: the ops that tied the members to each other, in the order of the graph; they do not compare.

    >>> members = (Member("0.weight", 0, 0, (64,), 0, tied_by="linear in '0'"), Member("0.bias", 0, 0, (64,), 0))
    >>> print(AxisClass(64, members))
    64 units, free
      0.weight[0]  linear in '0'
      0.bias[0]
    """

    size: int
    members: tuple[Member, ...]
    frozen_by: str | None = None
    ties: tuple[str, ...] = field(default=(), compare=False)

    # Equal classes have an equal first member, and a class may have hundreds.
    def __hash__(self) -> int:
        return hash(self.members[:1])

    @property
    def free(self) -> bool:
        """Whether the units may be renamed."""
        return self.frozen_by is None

    def __str__(self) -> str:
        lines = [
            f"{self.size} units, " + (f"frozen by {self.frozen_by}" if self.frozen_by else "free")
        ]
        width = max((len(str(member)) for member in self.members), default=0)
        lines += [
            f"  {member!s:<{width}}  {member.tied_by or ''}".rstrip() for member in self.members
        ]
        lines += [f"  tied by {', '.join(self.ties)}"] if self.ties else []
        return "\n".join(lines)


class Reading(NamedTuple):
    """What was read of a graph: its axes, its classes, and the number of the class of each atom of a weight."""

    inference: Inference
    classes: tuple[AxisClass, ...]
    number: dict[Atom, int]


# A graph is read once; what was read goes when the graph goes.
_read: weakref.WeakKeyDictionary[TracedGraph, Reading] = weakref.WeakKeyDictionary()


def reading(graph: TracedGraph) -> Reading:
    """The reading of a graph, made at the first use."""
    if graph not in _read:
        inference = infer(graph.model, graph.ops, real=graph.real)
        classes = classes_of(inference, blind_parts(graph.ops))
        _read[graph] = Reading(inference, classes, numbers_of_atoms(inference, classes))
    return _read[graph]


def axis_classes(graph: TracedGraph) -> tuple[AxisClass, ...]:
    """The classes of a graph: the free ones first, each kind in the order of the model."""
    return reading(graph).classes


def axes_of(graph: TracedGraph, fqn: str) -> Pattern:
    """See `LayerGraph.axes`, but without roles and for constant buffers, too; LookupError where none is read."""
    inference, classes, number = reading(graph)

    def leaf(atom: Atom) -> Leaf:
        if atom not in number:
            return Leaf(atom.size, frozen_by=atom.frozen)
        each = classes[number[atom]]
        return Leaf(atom.size, each, f"c{number[atom]}" if each.free else "", each.frozen_by)

    axes = inference.axes[fqn] if fqn in inference.axes else inference.constants[fqn]
    return Pattern(tree_of(axis, leaf) for axis in axes)


def constant_sizes(
    graph: TracedGraph, sizes: Mapping[AxisClass, int]
) -> dict[tuple[str, int], int]:
    """(FQN, axis) of a buffer that the state dict does not carry -> its size there, where classes get other sizes.

    Only of axes along which a buffer is the same everywhere; another one is fixed.
    """
    trees = (
        (fqn, i, axis)
        for fqn in reading(graph)[0].constants
        for i, axis in enumerate(axes_of(graph, fqn))
    )
    due = {(fqn, i): (axis.size, axis.resized(sizes).size) for fqn, i, axis in trees}
    return {key: new for key, (old, new) in due.items() if new != old}


def class_of(graph: TracedGraph, address: str, axis: str | int | None) -> AxisClass:
    """See `LayerGraph.axis_class`."""
    parameter = graph.parameter(address)
    where = {"parameter": parameter.fqn, "axes": " ".join(parameter.axes)}
    words = list(parameter.axes)
    if axis is None:
        axis = "out" if "out" in words else 0
    number = words.index(axis) if axis in words else axis
    if not isinstance(number, int) or not 0 <= number < len(words):
        raise MatchError(
            f"'{parameter.fqn}' has no axis {axis!r}.",
            where=where,
            near=nearest(str(axis), words),
            fix="name an axis by its word, or by its number",
        )
    try:
        tree = axes_of(graph, parameter.fqn)[number]
    except LookupError:
        raise MatchError(
            f"the forward pass never reads '{parameter.fqn}'.",
            where=where,
            fix="name a parameter that takes part on the traced inputs",
        ) from None
    classes = outermost(tree)
    if len(classes) != 1:
        raise MatchError(
            f"{len(classes)} axis classes lie on axis '{words[number]}' of '{parameter.fqn}'.",
            where={**where, "made of": str(tree)},
            fix="take the one that is meant from graph.axis_classes, by its number in that pattern"
            if classes
            else "name an axis of channels, neurons or heads; this one holds positions of a kernel or one unit",
        )
    return classes[0]


def freedom(graph: TracedGraph) -> float:
    """See `freedom_of`."""
    return freedom_of(reading(graph)[0])


def frozen_ops(graph: TracedGraph) -> dict[str, int]:
    """Ops that froze something for want of a rule -> how often; the most frequent first."""
    counts = reading(graph)[0].frozen_ops
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def frozen_shares(graph: TracedGraph) -> dict[str, float]:
    """What fixes the order of the weights that are not free -> its share of all weights; the largest first.

    Counted as `freedom_of` counts. An axis whose parts are fixed by several things counts for each by its units,
    so that the shares and the freedom add up to about 1.
    """
    shares: dict[str, float] = {}
    every = 0
    for _, count, axis in _counted(reading(graph)[0]):
        every += count
        lost = axis.size - _free_units(resolve(axis))
        fixed = [atom for atom in leaves(axis) if atom.frozen is not None]
        units = sum(atom.size for atom in fixed)
        for atom in fixed if lost else ():
            why = atom.frozen or ""
            shares[why] = shares.get(why, 0.0) + count * lost / axis.size * atom.size / units
    return {why: n / every for why, n in sorted(shares.items(), key=lambda item: -item[1])}


def freedom_of(inference: Inference) -> float:
    """The share of the weights that may move: 0 to 1; 1 for a model without weights.

    Over all weights of two and more dimensions and their axes longer than one, kernels' positions left out: the
    elements whose place along the axis some free class moves, by the elements on all.
    """
    free, every = 0.0, 0
    for _, count, axis in _counted(inference):
        free += count * _free_units(resolve(axis)) / axis.size
        every += count
    return free / every if every else 1.0


def freedom_by_parameter(graph: TracedGraph) -> dict[str, float]:
    """Name of each weight whose axes `freedom_of` counts -> the mean share of their units that may move, 0 to 1."""
    shares: dict[str, list[float]] = {}
    for fqn, _, axis in _counted(reading(graph)[0]):
        shares.setdefault(fqn, []).append(_free_units(resolve(axis)) / axis.size)
    return {fqn: sum(each) / len(each) for fqn, each in shares.items()}


def _counted(inference: Inference) -> Iterator[tuple[str, int, Expr]]:
    """(name, elements of the weight, axis) for each axis that freedom counts."""
    for fqn, axes in inference.axes.items():
        if len(axes) < 2:
            continue
        count = prod(axes.shape)
        for axis in axes:
            if axis.size > 1 and not _is_kernel(axis):
                yield fqn, count, axis


def _is_kernel(axis: Expr) -> bool:
    return all(atom.frozen == KERNEL for atom in leaves(axis))


def _free_units(axis: Expr) -> int:
    if isinstance(axis, Sum):
        return sum(_free_units(term) for term in axis.terms)
    if isinstance(axis, Prod):
        free = any(_free_units(factor) for factor in axis.factors if isinstance(factor, Atom))
        if free:
            return axis.size
        return max(_free_units(factor) * (axis.size // factor.size) for factor in axis.factors)
    return axis.size if axis.frozen is None and axis.size > 1 else 0


def classes_of(
    inference: Inference, blind: Mapping[tuple[str, int], frozenset[int]] | None = None
) -> tuple[AxisClass, ...]:
    """The classes of a reading.

    Args:
        inference: the reading.
        blind: (FQN, axis) -> units that the function does not depend on.
    """
    members: dict[Atom, list[Member]] = {}
    for atom, (fqn, axis, start, factors, position) in _members(inference):
        if atom.size > 1 and atom.frozen != KERNEL:
            unseen = (blind or {}).get((fqn, axis), frozenset())
            why = _first_tie(inference.axes[fqn], axis) or atom.by
            unread = unseen.issuperset(range(start, start + prod(factors)))
            member = Member(fqn, axis, start, factors, position, unread, why)
            members.setdefault(atom, []).append(member)
    classes = [
        AxisClass(atom.size, tuple(each), atom.frozen, tuple(atom.ties))
        for atom, each in members.items()
    ]
    return (*(c for c in classes if c.free), *(c for c in classes if not c.free))


def class_of_atoms(inference: Inference, classes: Iterable[AxisClass]) -> dict[Atom, AxisClass]:
    """The class of each atom that weights are made of; `classes` may be of another reading of the same model."""
    by_place = {
        (m.fqn, m.axis, m.start, m.factors, m.position): each
        for each in classes
        for m in each.members
    }
    known: dict[Atom, AxisClass] = {}
    for atom, place in _members(inference):
        if place in by_place:
            known.setdefault(atom, by_place[place])
    return known


def numbers_of_atoms(inference: Inference, classes: Sequence[AxisClass]) -> dict[Atom, int]:
    """`class_of_atoms`, with the place of each class in its stead."""
    number = {each: i for i, each in enumerate(classes)}
    return {atom: number[each] for atom, each in class_of_atoms(inference, classes).items()}


def _members(
    inference: Inference,
) -> Iterator[tuple[Atom, tuple[str, int, int, tuple[int, ...], int]]]:
    """Every atom of every tensor with the place where it lies, as in a `Member`, in the model's order."""
    for fqn, axes in inference.axes.items():
        for i, axis in enumerate(axes):
            for atom, start, factors, position in _places(resolve(axis), 0):
                yield atom, (fqn, i, start, factors, position)


def _first_tie(axes: Axes, i: int) -> str | None:
    own: Any = axes[i]
    return own.by if isinstance(own, Atom) else None


def _places(axis: Expr, start: int) -> Iterator[tuple[Atom, int, tuple[int, ...], int]]:
    """(atom, start, factors, position) of every atom of a resolved axis that begins at unit `start`."""
    if isinstance(axis, Atom):
        yield axis, start, (axis.size,), 0
    elif isinstance(axis, Sum):
        for term in axis.terms:
            yield from _places(term, start)
            start += term.size
    else:
        yield from _factors(axis, start)


def _factors(axis: Prod, start: int) -> Iterator[tuple[Atom, int, tuple[int, ...], int]]:
    sizes = tuple(factor.size for factor in axis.factors)
    for i, factor in enumerate(axis.factors):
        if isinstance(factor, Atom):
            yield factor, start, sizes, i
            continue
        # A sum inside a product: its terms lie in every row of the factors before it.
        inner = prod(sizes[i + 1 :])
        for row in range(prod(sizes[:i])):
            at = start + row * factor.size * inner
            for atom, offset, factors, position in _places(factor, 0):
                packed = (*factors, inner) if inner > 1 else factors
                yield atom, at + offset * inner, packed, position
