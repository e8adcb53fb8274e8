"""The axis algebra: an axis is a sum of products of atoms.

In: sizes. Out: expressions. An **atom** is a set of units that may be put in another order; ``Prod(a, b)`` is the
row-major product of two axes (heads x head_dim), ``Sum(a, b)`` their concatenation. Atoms are refined (`split`,
`cut`) and unified (`tie`) in place, and every earlier use of an atom sees it, as in a union-find.
Always true: an expression never changes its size, and a frozen atom never thaws. Where two structures have no
common refinement the algebra freezes them: that loses freedom and never correctness. Frozen neighbours become one atom,
so that a frozen run can be cut and split at any place and never stands against a refinement of what is free beside it:
``(6! 4! 5)`` tied to ``(8! 15)`` leaves the 5 free. The atom remembers the parts (`Atom.parts`) for those who read.
Not here: what an op ties (`rules_*`), and what a parameter's axes come to (`classes`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from .journal import current

__all__ = [
    "ONE",
    "Atom",
    "Expr",
    "Prod",
    "Sum",
    "Untieable",
    "cut",
    "fixed",
    "freeze",
    "frozen",
    "leaves",
    "pieces",
    "product",
    "resolve",
    "split",
    "split_all",
    "tie",
    "total",
]


class Untieable(ValueError):  # noqa: N818 - the family names what is so
    """Two axes of different sizes were to be tied."""


class Atom:
    """Units that may be put in another order, unless `frozen` names what fixes it.

    Attributes:
        size: how many units.
        frozen: what fixes the order, None while it is free.
        by: the op that first tied this atom to another, None while none has.
        ties: all ops that tied it, in order.
        means: what the atom has become: another atom, a sum or a product; None while it stands for itself.
        parts: of frozen neighbours that became one atom, the product or sum that they were; else None.
    """

    __slots__ = ("by", "frozen", "means", "parts", "size", "ties")

    def __init__(self, size: int, frozen: str | None = None) -> None:
        self.size = size
        self.frozen = frozen
        self.by: str | None = None
        self.ties: dict[str, None] = {}
        self.means: Expr | None = None
        self.parts: Prod | Sum | None = None

    def __repr__(self) -> str:
        return f"{self.size}{'!' if self.frozen else ''}"


@dataclass(frozen=True)
class Prod:
    """The row-major product of at least two axes, each longer than one."""

    factors: tuple[Expr, ...]

    @property
    def size(self) -> int:
        """How many units."""
        return prod(factor.size for factor in self.factors)

    def __repr__(self) -> str:
        return "(" + " ".join(map(repr, self.factors)) + ")"


@dataclass(frozen=True)
class Sum:
    """The concatenation of at least two axes."""

    terms: tuple[Expr, ...]

    @property
    def size(self) -> int:
        """How many units."""
        return sum(term.size for term in self.terms)

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self.terms)) + ")"


Expr = Atom | Prod | Sum
ONE = Atom(1, "one unit")
_MOST_PARTS = 16


def fixed(size: int, why: str | None = None) -> Expr:
    """An axis whose order is fixed from the start, by `why` or by the op that is being read."""
    return ONE if size == 1 else Atom(size, why or current().by)


def resolve(axis: Expr) -> Expr:
    """What `axis` has become: no atom in it that means something else, sums in sums and products in products undone.

    >>> axis = Atom(6)
    >>> _ = split(axis, 2, 3)
    >>> resolve(axis)
    (2 3)
    """
    if isinstance(axis, Atom):
        if axis.means is None:
            return axis
        axis.means = resolve(axis.means)
        return axis.means
    parts = axis.factors if isinstance(axis, Prod) else axis.terms
    resolved = [resolve(part) for part in parts]
    if all(old is new for old, new in zip(parts, resolved, strict=True)) and not _mergeable(parts):
        return axis
    return product(resolved) if isinstance(axis, Prod) else total(resolved)


def _mergeable(parts: Sequence[Expr]) -> bool:
    return any(frozen(a) and frozen(b) for a, b in itertools.pairwise(parts))


def product(factors: Iterable[Expr]) -> Expr:
    """The row-major product; axes of one unit drop out, and frozen neighbours become one.

    >>> product([Atom(2), ONE, Atom(3)])
    (2 3)
    """
    flat: list[Expr] = []
    for factor in map(resolve, factors):
        for part in factor.factors if isinstance(factor, Prod) else (factor,):
            if part.size != 1:
                flat.append(part)
    if not flat:
        return ONE
    if any(part.size == 0 for part in flat):
        return Atom(0, "no unit")
    flat = _merged(flat, Prod)
    return flat[0] if len(flat) == 1 else Prod(tuple(flat))


def total(terms: Iterable[Expr]) -> Expr:
    """The concatenation; empty axes drop out, and frozen neighbours become one (one unit alone is frozen).

    >>> total([Atom(2), Atom(3)])
    (2 + 3)
    """
    flat: list[Expr] = []
    for term in map(resolve, terms):
        for part in term.terms if isinstance(term, Sum) else (term,):
            if part.size:
                flat.append(part)
    if not flat:
        return Atom(0, "no unit")
    flat = _merged(flat, Sum)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def _merged(parts: Sequence[Expr], whole: type[Prod | Sum]) -> list[Expr]:
    """The parts of a product or sum, with frozen neighbours as one atom that remembers them."""
    out: list[Expr] = []
    for is_fixed, run in itertools.groupby(parts, lambda part: frozen(part) is not None):
        neighbours = list(run)
        if is_fixed and len(neighbours) > 1:
            flat = [part for each in neighbours for part in _remembered(each, whole)]
            merged = Atom(whole(tuple(flat)).size, frozen(neighbours[0]))
            merged.parts = whole(tuple(flat)) if len(flat) <= _MOST_PARTS else None
            out.append(merged)
        else:
            out += neighbours
    return out


def _remembered(axis: Expr, whole: type[Prod | Sum]) -> tuple[Expr, ...]:
    if not isinstance(axis, Atom) or not isinstance(axis.parts, whole):
        return (axis,)
    return axis.parts.factors if isinstance(axis.parts, Prod) else axis.parts.terms


def frozen(axis: Expr) -> str | None:
    """What fixes the order of a resolved axis that is frozen as a whole; None otherwise.

    Sums and products of frozen axes alone do not exist: `total` and `product` make one atom of them.
    """
    if not isinstance(axis, Atom):
        return None
    return axis.frozen or ("one unit" if axis.size == 1 else None)


def leaves(axis: Expr) -> Iterator[Atom]:
    """The atoms of an axis, from left to right, each as often as it stands there."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        yield axis
        return
    for part in axis.factors if isinstance(axis, Prod) else axis.terms:
        yield from leaves(part)


def freeze(axis: Expr, why: str | None = None) -> bool:
    """Fix the order of every atom in `axis`; what is tied to them is fixed with them.

    Returns:
        True where something of more than one unit was free until now.
    """
    why = why or current().by
    changed = False
    for atom in leaves(axis):
        if atom.frozen is None:
            atom.frozen = why
            changed |= atom.size > 1
    return changed


def tie(a: Expr, b: Expr) -> None:
    """Make two axes one: from here on their units move together.

    Raises:
        Untieable: their sizes differ.

    >>> heads, dim, rows = Atom(2), Atom(3), Atom(6)
    >>> tie(rows, product([heads, dim]))
    >>> resolve(rows)
    (2 3)
    >>> freeze(heads, "the output")
    True
    >>> resolve(rows)
    (2! 3)
    """
    a, b = resolve(a), resolve(b)
    if a is b or a == b:
        return
    if a.size != b.size:
        raise Untieable(f"axes of {a.size} and {b.size} units")
    if a.size <= 1:
        return
    if isinstance(a, Atom) and isinstance(b, Atom):
        _join(a, b)
    elif isinstance(a, Atom):
        assert not isinstance(b, Atom)
        _become(a, b)
    elif isinstance(b, Atom):
        _become(b, a)
    elif isinstance(a, Sum):
        _tie_terms(a, b)
    elif isinstance(b, Sum):
        _tie_terms(b, a)
    else:
        _tie_factors(a, b)


def _join(a: Atom, b: Atom) -> None:
    by = current().by
    for atom in (a, b):
        atom.by = atom.by or by
    if a.frozen is None and b.frozen is None and not current().note():
        return
    if len(b.ties) > len(a.ties):
        a, b = b, a  # the longer list takes in the shorter one
    a.frozen = a.frozen or b.frozen
    a.parts = a.parts or b.parts
    a.ties.update(b.ties)
    a.ties[by] = None
    b.means = a


def _become(atom: Atom, axis: Prod | Sum) -> None:
    atom.by = atom.by or current().by
    for part in leaves(axis):
        part.by = part.by or current().by
        part.ties.update(atom.ties)
        part.ties[current().by] = None
    if atom.frozen is not None:
        freeze(axis, atom.frozen)
    elif not current().note():
        return
    atom.means = axis


def _tie_terms(a: Sum, b: Prod | Sum) -> None:
    cuts = [term.size for term in a.terms]
    if isinstance(b, Sum):
        ends = itertools.accumulate
        both = sorted({*ends(cuts), *ends(term.size for term in b.terms)})
        cuts = [end - start for start, end in itertools.pairwise([0, *both])]
    for left, right in zip(pieces(a, cuts), pieces(b, cuts), strict=True):
        tie(left, right)


def _tie_factors(a: Prod, b: Prod) -> None:
    """From the left, splitting the larger of two factors by the smaller."""
    left, right = list(a.factors), list(b.factors)
    while left and right:
        x, y = _pop(left), _pop(right)
        if x.size == y.size:
            tie(x, y)
        elif x.size % y.size == 0:
            x, rest = split(x, y.size, x.size // y.size)
            tie(x, y)
            left.insert(0, rest)
        elif y.size % x.size == 0:
            y, rest = split(y, x.size, y.size // x.size)
            tie(x, y)
            right.insert(0, rest)
        else:
            _freeze_until_even([x], [y], left, right)


def _pop(factors: list[Expr]) -> Expr:
    """The first factor, resolved again: an earlier tie may have refined it."""
    first = resolve(factors.pop(0))
    if isinstance(first, Prod):
        factors[:0] = first.factors[1:]
        return first.factors[0]
    return first


def _freeze_until_even(xs: list[Expr], ys: list[Expr], left: list[Expr], right: list[Expr]) -> None:
    """No common refinement: fix the order of all factors up to where both sides hold as many units."""
    while (m := prod(x.size for x in xs)) != (n := prod(y.size for y in ys)):
        if m < n:
            xs.append(_pop(left))
        else:
            ys.append(_pop(right))
    for axis in [*xs, *ys]:
        freeze(axis, f"factors without a common refinement ({current().by})")


def split(axis: Expr, outer: int, inner: int) -> tuple[Expr, Expr]:
    """See an axis as ``outer x inner``; wherever it stands it is that product from now on.

    Raises:
        Untieable: the sizes do not multiply to the axis'.

    >>> a = Atom(12)
    >>> outer, inner = split(a, 3, 4)
    >>> _ = split(inner, 2, 2)
    >>> resolve(a)
    (3 2 2)
    """
    axis = resolve(axis)
    if outer * inner != axis.size:
        raise Untieable(f"an axis of {axis.size} units as {outer} x {inner}")
    if outer == 1:
        return ONE, axis
    if inner == 1:
        return axis, ONE
    if why := frozen(axis):
        return Atom(outer, why), Atom(inner, why)
    if isinstance(axis, Atom):
        a, b = _child(axis, outer), _child(axis, inner)
        axis.means = Prod((a, b))
        return a, b
    if isinstance(axis, Sum):
        return _split_sum(axis, outer, inner)
    return _split_product(axis, outer, inner)


def _child(parent: Atom, size: int) -> Atom:
    child = Atom(size)
    child.by = parent.by
    child.ties = dict(parent.ties)
    return child


def _split_product(axis: Prod, outer: int, inner: int) -> tuple[Expr, Expr]:
    done = 1
    for i, factor in enumerate(axis.factors):
        missing = outer // done
        if outer % (done * factor.size) == 0:
            done *= factor.size
            if done == outer:
                return product(axis.factors[: i + 1]), product(axis.factors[i + 1 :])
        elif factor.size % missing == 0 and outer % done == 0:
            a, b = split(factor, missing, factor.size // missing)
            return product([*axis.factors[:i], a]), product([b, *axis.factors[i + 1 :]])
        else:
            break
    why = f"factors without a common refinement ({current().by})"
    freeze(axis, why)
    return Atom(outer, why), Atom(inner, why)


def _split_sum(axis: Sum, outer: int, inner: int) -> tuple[Expr, Expr]:
    """Rows of `inner` units. Terms made of whole rows stay; a row that several terms share is one kind of row."""
    heads: list[Expr] = []
    rows: list[Expr] = []
    block: list[Expr] = []
    for term in axis.terms:
        block.append(term)
        size = sum(part.size for part in block)
        if size % inner:
            continue
        if len(block) == 1:
            head, row = split(block[0], size // inner, inner)
            heads.append(head)
            rows.append(row)
        else:
            heads.append(fixed(size // inner))
            rows += pieces(total(block), [inner] * (size // inner))
        block = []
    for row in rows[1:]:
        tie(rows[0], row)
    return total(heads), rows[0]


def split_all(axis: Expr, sizes: Sequence[int]) -> list[Expr]:
    """See an axis as a product of `sizes`.

    >>> [part.size for part in split_all(Atom(24), [2, 3, 4])]
    [2, 3, 4]
    """
    parts = []
    for i, size in enumerate(sizes[:-1]):
        part, axis = split(axis, size, prod(sizes[i + 1 :]))
        parts.append(part)
    return [*parts, axis]


def cut(axis: Expr, at: int) -> tuple[Expr, Expr]:
    """See an axis as its first `at` units and the others; wherever it stands it is that sum from now on.

    >>> a = Atom(5)
    >>> _ = cut(a, 2)
    >>> resolve(a)
    (2 + 3)
    """
    axis = resolve(axis)
    if not 0 <= at <= axis.size:
        raise Untieable(f"an axis of {axis.size} units cut at {at}")
    if at in (0, axis.size):
        empty = Atom(0, "no unit")
        return (empty, axis) if at == 0 else (axis, empty)
    if why := frozen(axis):
        return fixed(at, why), fixed(axis.size - at, why)
    if isinstance(axis, Atom):
        a, b = _child(axis, at), _child(axis, axis.size - at)
        axis.means = total([a, b])
        return a, b
    if isinstance(axis, Sum):
        return _cut_sum(axis, at)
    return _cut_product(axis, at)


def _cut_sum(axis: Sum, at: int) -> tuple[Expr, Expr]:
    left: list[Expr] = []
    right: list[Expr] = []
    for term in axis.terms:
        here = min(max(at, 0), term.size)
        a, b = cut(term, here)
        left.append(a)
        right.append(b)
        at -= term.size
    return total(left), total(right)


def _cut_product(axis: Prod, at: int) -> tuple[Expr, Expr]:
    """``(a + b) x rest = a x rest + b x rest``; a cut inside a row singles that row out."""
    first, rest = axis.factors[0], product(axis.factors[1:])
    row, inside = divmod(at, rest.size)
    before, others = cut(first, row)
    if inside == 0:
        return product([before, rest]), product([others, rest])
    _, after = cut(others, 1)
    a, b = cut(rest, inside)
    left = total([product([before, rest]), a]) if row else a
    right = total([b, product([after, rest])]) if after.size else b
    return left, right


def pieces(axis: Expr, sizes: Sequence[int]) -> list[Expr]:
    """Cut an axis into runs of `sizes`, which add up to its size.

    >>> pieces(Atom(6), [1, 2, 3])
    [1, 2, 3]
    """
    runs = []
    for size in sizes:
        run, axis = cut(axis, size)
        runs.append(run)
    if axis.size:
        raise Untieable(f"{axis.size} units are left over")
    return runs
