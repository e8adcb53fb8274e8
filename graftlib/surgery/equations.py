"""What a model's code asks of the sizes of its axis classes, as equations between whole numbers.

In: one forward pass at the traced sizes in which numbers remember where they come from (`tagged`), and the axes of
every tensor. Out: `Equations`: for requested sizes the attributes that follow, and the largest sizes that go together.
An equation has a term on each side: a whole number, ``("class", i)``, an attribute (``("at", place)``), or ``(op, left,
right)``. Always true: no model is run here, and none is changed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..graph.axes import AxisClass
from ..graph.axes.algebra import Atom, Expr, Prod, Sum, resolve
from .tagged import Place, Term

__all__ = ["Equations", "Sizes", "boundary", "polynomial"]

Sizes = Mapping[AxisClass, int]
Equation = tuple[Term, Term]
_SIZES_TRIED = 4


def polynomial(axis: Expr, number: Mapping[Atom, int]) -> Term | None:
    """The size of an axis as a term; None where nothing says what becomes of a part of it.

    Args:
        axis: of any tensor.
        number: the place of each atom's class among the classes.
    """
    axis = resolve(axis)
    if isinstance(axis, Atom):
        if axis in number:
            return ("class", number[axis])
        return axis.size if axis.frozen or axis.size <= 1 else None
    word = "*" if isinstance(axis, Prod) else "+"
    parts = axis.factors if isinstance(axis, Prod) else axis.terms
    terms = [polynomial(part, number) for part in parts]
    if any(term is None for term in terms):
        return None
    return _folded(word, terms)


def boundary(axis: Expr, at: int, number: Mapping[Atom, int]) -> Term | None:
    """How many units lie before unit `at` of an axis, as a term; None where `at` lies inside a part."""
    axis = resolve(axis)
    if at in (0, axis.size):
        return polynomial(axis, number) if at else 0
    if isinstance(axis, Sum):
        before: list[Term | None] = []
        for term in axis.terms:
            if at < term.size:
                before.append(boundary(term, at, number))
                break
            before.append(polynomial(term, number))
            at -= term.size
        return None if any(term is None for term in before) else _folded("+", before)
    if isinstance(axis, Prod):
        rest = axis.size // axis.factors[0].size
        if at % rest == 0:
            first = boundary(axis.factors[0], at // rest, number)
            others = [polynomial(factor, number) for factor in axis.factors[1:]]
            if first is not None and all(term is not None for term in others):
                return _folded("*", [first, *others])
        return None
    return at if axis not in number else None


def _folded(word: str, terms: Sequence[Term]) -> Term:
    known = [term for term in terms if isinstance(term, int)]
    others = [term for term in terms if not isinstance(term, int)]
    constant = math.prod(known) if word == "*" else sum(known)
    if not others:
        return constant
    if constant != (1 if word == "*" else 0):
        others.append(constant)
    term = others[0]
    for other in others[1:]:
        term = (word, term, other)
    return term


class Equations:
    """Equations over the sizes of classes and the attributes of modules.

    Args:
        classes: that ``("class", i)`` counts.
        equations: that hold at the traced sizes.
        attributes: the values that attributes have now.
    """

    def __init__(
        self,
        classes: Sequence[AxisClass],
        equations: Iterable[Equation],
        attributes: Mapping[Place, int],
    ) -> None:
        self.classes = list(classes)
        self.attributes = dict(attributes)
        self._number = {each: i for i, each in enumerate(classes)}
        self._defined: dict[Place, Term] = {}
        unique = dict.fromkeys((a, b) for a, b in equations if a != b)
        self._now = [each.size for each in classes]
        self.equations = [one for one in unique if self._holds(one, self._now, {})]
        self._defined = self._definitions()
        self._parts = {one: self._variables(one) for one in self.equations}
        self._by_class: dict[int, list[Equation]] = {}
        for one, (numbers, _) in self._parts.items():
            for number in numbers:
                self._by_class.setdefault(number, []).append(one)

    def attributes_for(self, sizes: Sizes) -> tuple[dict[Place, int], list[Equation]]:
        """The attributes that the sizes ask for, and the equations that do not hold even so.

        An attribute that an equation names is among them though it stays as it is.
        """
        numbers = self._numbers(sizes)
        values = {place: self._value(term, numbers, {}) for place, term in self._defined.items()}
        known = {place: value for place, value in values.items() if value is not None}
        for one in self.equations:
            for place in self._parts[one][1]:
                told = place in self._defined or place in known
                if not told and not self._holds(one, numbers, known):
                    value = self._inverted(one, place, numbers, known)
                    if value is not None:
                        known[place] = value
        for one in self.equations:
            for place in self._parts[one][1]:
                known.setdefault(place, self.attributes[place])
        return known, [one for one in self.equations if not self._holds(one, numbers, known)]

    def feasible(self, requested: Sizes) -> dict[AxisClass, int]:
        """Sizes at which every equation holds: the requested ones, or the nearest to them, or those of now."""
        sizes = dict(requested)
        for _ in range(4 * len(sizes) + 1):
            known, broken = self.attributes_for(sizes)
            if not broken:
                break
            one = broken[0]
            involved = [c for c in self.classes_of(one) if sizes.get(c, c.size) != c.size]
            if not involved:
                # Attributes that say several sizes at once: whatever they say stays.
                involved = [c for c in self._behind(one) if sizes.get(c, c.size) != c.size]
                sizes.update({c: c.size for c in involved})
                if not involved:
                    break
                continue
            moves = [
                (c, size)
                for c in involved
                for size in self._solutions(one, c, requested[c], sizes, known)
            ]
            best = min(moves, key=lambda move: self._cost(move, requested, sizes), default=None)
            if best is None or self._cost(best, requested, sizes)[0] >= self._around(
                involved, sizes
            ):
                sizes.update({c: c.size for c in involved})
            else:
                sizes[best[0]] = best[1]
        return sizes

    def words(self, one: Equation) -> str:
        """An equation, for people."""
        return f"{self._words(one[0])} is {self._words(one[1])}"

    def _words(self, term: Term) -> str:
        if isinstance(term, int):
            return str(term)
        if term[0] == "class":
            each = self.classes[term[1]]
            return f"size of {each.members[0]}"
        if term[0] == "at":
            path, way = term[1]
            return ".".join(str(word) for word in (path, *way) if word != "")
        return f"({self._words(term[1])} {term[0]} {self._words(term[2])})"

    def _cost(
        self, move: tuple[AxisClass, int], requested: Sizes, sizes: Sizes
    ) -> tuple[int, float]:
        each, size = move
        after = {**sizes, each: size}
        return self._around([each], after), abs(math.log(size / requested[each]))

    def _around(self, involved: Iterable[AxisClass], sizes: Sizes) -> int:
        """How many of the equations that speak of the classes do not hold."""
        near = dict.fromkeys(
            one for each in involved for one in self._by_class.get(self._number[each], ())
        )
        numbers = self._numbers(sizes)
        return sum(not self._holds_somehow(one, numbers) for one in near)

    def _solutions(
        self, one: Equation, each: AxisClass, request: int, sizes: Sizes, known: Mapping[Place, int]
    ) -> list[int]:
        """Sizes of a class at which an equation holds, the nearest to the request first."""
        numbers, i = self._numbers(sizes), self._number[each]
        solutions = []
        for size in sorted(range(1, each.size + 1), key=lambda n: abs(math.log(n / request))):
            numbers[i] = size
            if self._holds_somehow(one, numbers):
                solutions.append(size)
            if len(solutions) == _SIZES_TRIED:
                break
        return solutions

    def _holds_somehow(self, one: Equation, numbers: Sequence[int]) -> bool:
        """Whether it holds with the attributes that these sizes define, or with one that nothing else defines."""
        return self._holds(one, numbers, {}) or any(
            place not in self._defined and self._inverted(one, place, numbers, {}) is not None
            for place in self._parts[one][1]
        )

    def _definitions(self) -> dict[Place, Term]:
        """Attribute -> the term that says it, where an equation has it alone on one side."""
        defined: dict[Place, Term] = {}
        for left, right in self.equations:
            for side, other in ((left, right), (right, left)):
                if isinstance(side, tuple) and side[0] == "at" and not set(_places(other)):
                    known = defined.get(side[1])
                    # A definition by classes says more than the number that it comes to now.
                    if known is None or (isinstance(known, int) and not isinstance(other, int)):
                        defined[side[1]] = other
        return defined

    def _variables(self, one: Equation) -> tuple[tuple[int, ...], tuple[Place, ...]]:
        numbers = dict.fromkeys(n for side in one for n in _leaves(side, "class"))
        places = dict.fromkeys(p for side in one for p in _places(side))
        for place in places:
            numbers |= dict.fromkeys(_leaves(self._defined.get(place, 0), "class"))
        return tuple(numbers), tuple(places)

    def classes_of(self, one: Equation) -> list[AxisClass]:
        """The classes that an equation speaks of, through the attributes that classes define too."""
        return [self.classes[number] for number in self._parts[one][0]]

    def _behind(self, one: Equation) -> list[AxisClass]:
        """The classes of all equations that share an attribute with this one."""
        mine = set(self._parts[one][1])
        near = [each for each, (_, places) in self._parts.items() if mine & set(places)]
        return list(dict.fromkeys(c for each in near for c in self.classes_of(each)))

    def _numbers(self, sizes: Sizes) -> list[int]:
        return [sizes.get(each, each.size) for each in self.classes]

    def _holds(self, one: Equation, numbers: Sequence[int], known: Mapping[Place, int]) -> bool:
        left = self._value(one[0], numbers, known)
        return left is not None and left == self._value(one[1], numbers, known)

    def _value(self, term: Term, numbers: Sequence[int], known: Mapping[Place, int]) -> int | None:
        if isinstance(term, int):
            return term
        word = term[0]
        if word == "class":
            size: int = numbers[term[1]]
            return size
        if word == "at":
            place = term[1]
            if place in known:
                return known[place]
            definition = self._defined.get(place)
            if definition is None:
                return self.attributes[place]
            return self._value(definition, numbers, known)
        left = self._value(term[1], numbers, known)
        right = self._value(term[2], numbers, known)
        if left is None or right is None or (word == "//" and right == 0):
            return None
        return _COMPUTE[word](left, right)

    def _inverted(
        self, one: Equation, place: Place, numbers: Sequence[int], known: Mapping[Place, int]
    ) -> int | None:
        """What an attribute must be for an equation to hold; None where no number is."""
        left, right = one
        if place in set(_places(right)):
            left, right = right, left
        due = self._value(right, numbers, known)
        value = None if due is None else self._solved(left, place, due, numbers, known)
        if value is None or value < 1:
            return None
        return value if self._holds(one, numbers, {**known, place: value}) else None

    def _solved(
        self, term: Term, place: Place, due: int, numbers: Sequence[int], known: Mapping[Place, int]
    ) -> int | None:
        if isinstance(term, int) or term[0] == "class":
            return None
        if term[0] == "at":
            return due if term[1] == place else None
        side = 1 if place in set(_places(term[1])) else 2
        other = self._value(term[3 - side], numbers, known)
        inner = None if other is None else _UNDO[term[0], side](due, other)
        return None if inner is None else self._solved(term[side], place, inner, numbers, known)


def _leaves(term: Term, kind: str) -> Iterator[Any]:
    """The classes (their numbers) or the attributes (``"at"``: their places) in a term."""
    if isinstance(term, tuple):
        if term[0] == kind:
            yield term[1]
        elif term[0] not in ("class", "at"):
            yield from _leaves(term[1], kind)
            yield from _leaves(term[2], kind)


def _places(term: Term) -> Iterator[Place]:
    return _leaves(term, "at")


def _divided(number: int, by: int) -> int | None:
    return number // by if by and number % by == 0 else None


_COMPUTE: dict[str, Callable[[int, int], int]] = {
    "*": operator.mul,
    "+": operator.add,
    "-": operator.sub,
    "//": operator.floordiv,
}
# (op, which side is sought) -> what that side is, from the result and the other side.
_UNDO: dict[tuple[str, int], Callable[[int, int], int | None]] = {
    ("*", 1): _divided,
    ("*", 2): _divided,
    ("+", 1): operator.sub,
    ("+", 2): operator.sub,
    ("-", 1): operator.add,
    ("-", 2): lambda due, a: a - due,
    ("//", 1): operator.mul,
    ("//", 2): lambda due, a: a // due if due else None,
}
