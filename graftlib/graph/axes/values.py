"""What a tensor is while a graph is read: its axes.

`Axes` is one expression a dimension. A `Stack` is several tensors that lie along one dimension and keep axes of their
own, as query, key and value do in a packed projection.
A `Stack` may at any time be made plain (`plain`): its tensors are then tied, which loses freedom only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .algebra import Atom, Expr, resolve, tie

__all__ = ["Axes", "Stack", "plain"]


class Axes(tuple[Expr, ...]):
    """One expression a dimension.

    Attributes:
        uniform: all elements are alike, so that no use of this tensor ties anything.
    """

    uniform: bool

    # Tuples are made before they are initialised.
    def __new__(cls, axes: Iterable[Expr] = (), *, uniform: bool = False) -> Axes:
        """A tuple of the axes."""
        new = super().__new__(cls, axes)
        new.uniform = uniform
        return new

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every dimension."""
        return tuple(axis.size for axis in self)


class Stack:
    """Tensors side by side along one dimension.

    Args:
        marker: a frozen atom that stands, in the axes of every part, for the dimension they lie along.
        parts: the axes of each, all of the same shape, with `marker` where the dimension is.
    """

    def __init__(self, marker: Atom, parts: Iterable[Axes]) -> None:
        self.marker = marker
        self.parts = tuple(parts)

    @property
    def dim(self) -> int:
        """The dimension that the tensors lie along; -1 where it is not a dimension of its own any more."""
        places = [
            tuple(i for i, axis in enumerate(part) if resolve(axis) is self.marker)
            for part in self.parts
        ]
        same = len(set(places)) == 1 and len(places[0]) == 1
        return places[0][0] if same else -1

    def plain(self) -> Axes:
        """The whole as one tensor: its parts are tied."""
        first = self.parts[0]
        for other in self.parts[1:]:
            for a, b in zip(first, other, strict=True):
                tie(a, b)
        return first

    def part(self, i: int) -> Axes:
        """Tensor `i`, without the dimension they lie along."""
        dim = self.dim
        axes = self.parts[i]
        return Axes((*axes[:dim], *axes[dim + 1 :]))

    def run(self, start: int, stop: int) -> Stack | Axes:
        """Tensors `start` to `stop`, side by side; the dimension stays."""
        dim, size = self.dim, stop - start
        marker = Atom(size, self.marker.frozen)
        parts = [Axes((*axes[:dim], marker, *axes[dim + 1 :])) for axes in self.parts[start:stop]]
        return parts[0] if size == 1 else Stack(marker, parts)


def plain(value: Any) -> Any:
    """`value` with every stack in it, however nested, made plain."""
    if isinstance(value, Stack):
        return value.plain()
    if isinstance(value, Axes):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
