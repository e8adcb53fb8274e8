"""Laws of the axis algebra, without any model."""

from __future__ import annotations

import random
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlib.graph.axes.algebra import (
    ONE,
    Atom,
    Expr,
    Prod,
    Sum,
    Untieable,
    cut,
    fixed,
    freeze,
    leaves,
    pieces,
    product,
    resolve,
    split,
    split_all,
    tie,
    total,
)
from graftlib.graph.axes.journal import Journal


@st.composite
def axes(draw: st.DrawFn, size: int, depth: int = 2) -> Expr:
    """Any expression of `size` units."""
    if size == 1:
        return ONE
    kind = draw(st.sampled_from(["atom", "frozen", "sum", "product"])) if depth else "atom"
    if kind == "sum":
        at = draw(st.integers(1, size - 1))
        return total([draw(axes(at, depth - 1)), draw(axes(size - at, depth - 1))])
    divisors = [n for n in range(2, size) if size % n == 0]
    if kind == "product" and divisors:
        outer = draw(st.sampled_from(divisors))
        return product([draw(axes(outer, depth - 1)), draw(axes(size // outer, depth - 1))])
    return Atom(size, "law" if kind == "frozen" else None)


SIZES = st.sampled_from([2, 3, 4, 6, 8, 12, 24])
PAIRS = SIZES.flatmap(lambda n: st.tuples(axes(n), axes(n)))


class Orders(dict[Atom, list[int]]):
    """Any order for each atom, drawn when it is first asked for; a frozen atom keeps its own."""

    def __missing__(self, atom: Atom) -> list[int]:
        order = list(range(atom.size))
        if not atom.frozen:
            random.shuffle(order)
        self[atom] = order
        return order


def moved(axis: Expr, orders: Orders) -> list[int]:
    """The plain version of the algebra: which unit comes to each place when every atom is put in its order."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        return orders[axis]
    if isinstance(axis, Sum):
        places, start = [], 0
        for term in axis.terms:
            places += [start + unit for unit in moved(term, orders)]
            start += term.size
        return places
    rows = [0]
    for factor in axis.factors:
        inside = moved(factor, orders)
        rows = [row * factor.size + unit for row in rows for unit in inside]
    return rows


def same(*axes: Expr) -> bool:
    """Whether the axes move alike, whatever the orders of the atoms."""
    every = []
    for _ in range(3):
        orders = Orders()
        ways = [moved(axis, orders) for axis in axes]
        every += [way == ways[0] for way in ways]
    return all(every)


def shape(axis: Expr) -> object:
    """The structure alone."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        return axis.size, bool(axis.frozen)
    parts = axis.factors if isinstance(axis, Prod) else axis.terms
    return (type(axis).__name__, *map(shape, parts))


def copied(axis: Expr, seen: dict[Atom, Atom]) -> Expr:
    axis = resolve(axis)
    if isinstance(axis, Atom):
        return seen.setdefault(axis, Atom(axis.size, axis.frozen))
    parts = [copied(p, seen) for p in (axis.factors if isinstance(axis, Prod) else axis.terms)]
    return product(parts) if isinstance(axis, Prod) else total(parts)


@given(PAIRS)
def test_tied_axes_are_one(pair):
    a, b = pair
    tie(a, b)
    assert same(a, b)
    tie(b, a)
    assert same(a, b)


def sizes(axis: Expr) -> list[int]:
    """Of all runs from left to right, those that are fixed as a whole taken apart."""
    axis = resolve(axis)
    whole = axis.parts if isinstance(axis, Atom) else axis
    if whole is None:
        return [axis.size]
    parts = whole.factors if isinstance(whole, Prod) else whole.terms
    return [size for part in parts for size in sizes(part)]


@given(SIZES.flatmap(axes))
def test_freezing_is_a_label_and_keeps_the_structure(axis):
    """Inside, one atom; for those who read, the runs that there were."""
    before = sizes(axis)
    freeze(axis, "law")
    assert isinstance(resolve(axis), Atom)
    assert sizes(axis) == before


def test_what_lies_beside_fixed_runs_without_a_common_refinement_stays_free():
    """(6! 4! 5) as (8! 15): had the fixed neighbours not become one atom, the five would be frozen with them."""
    free, other = Atom(5), Atom(15)
    tie(product([Atom(6, "law"), Atom(4, "law"), free]), product([Atom(8, "law"), other]))
    assert shape(other) == ("Prod", (3, True), (5, False))
    assert free.frozen is None


@given(PAIRS)
def test_tying_is_symmetric(pair):
    seen: dict[Atom, Atom] = {}
    a, b = pair
    c, d = copied(a, seen), copied(b, seen)
    tie(a, b)
    tie(d, c)
    assert shape(a) == shape(c)


@given(SIZES.flatmap(lambda n: st.tuples(axes(n), axes(n), axes(n))))
def test_tying_is_transitive(three):
    a, b, c = three
    tie(a, b)
    tie(b, c)
    assert same(a, b, c)


@given(PAIRS)
def test_the_size_stays(pair):
    a, b = pair
    tie(a, b)
    assert resolve(a).size == resolve(b).size == a.size


@given(SIZES.flatmap(axes), st.data())
def test_splitting_refines_every_use(axis, data):
    n = axis.size
    outer = data.draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
    elsewhere = product([axis, Atom(5)])
    a, b = split(axis, outer, n // outer)
    assert (a.size, b.size) == (outer, n // outer)
    assert same(axis, product([a, b]))
    assert resolve(elsewhere).size == 5 * n


@given(SIZES.flatmap(axes), st.data())
def test_cutting_refines_every_use(axis, data):
    at = data.draw(st.integers(0, axis.size))
    a, b = cut(axis, at)
    assert (a.size, b.size) == (at, axis.size - at)
    assert same(axis, total([a, b]))


@given(PAIRS)
def test_freezing_spreads_over_ties(pair):
    a, b = pair
    tie(a, b)
    freeze(a, "law")
    assert all(atom.frozen or atom.size == 1 for atom in leaves(b))


@given(PAIRS)
def test_what_is_frozen_never_thaws(pair):
    a, b = pair
    freeze(a, "law")
    tie(a, b)
    assert all(atom.frozen or atom.size == 1 for axis in (a, b) for atom in leaves(axis))


@given(PAIRS)
def test_tying_never_frees(pair):
    a, b = pair
    before = {atom for axis in (a, b) for atom in leaves(axis) if atom.frozen}
    tie(a, b)
    assert all(atom.frozen for old in before for atom in leaves(old))


def test_sizes_must_agree():
    with pytest.raises(Untieable):
        tie(Atom(2), Atom(3))
    with pytest.raises(Untieable):
        split(Atom(6), 4, 2)
    with pytest.raises(Untieable):
        pieces(Atom(6), [1, 2])


def test_row_major_means_the_last_factor_runs_fastest():
    """Units 0..2 of (2 3) are the first row: a cut there cuts the first factor."""
    outer, inner = Atom(2), Atom(3)
    cut(product([outer, inner]), 3)
    assert shape(outer) == (2, True)  # one unit and one unit
    assert resolve(inner) is inner


def test_a_cut_inside_a_row_singles_the_row_out():
    outer, inner = Atom(4), Atom(3)
    cut(product([outer, inner]), 4)
    assert shape(outer) == ("Sum", (2, True), (2, False))
    assert [leaf.size for leaf in leaves(inner)] == [1, 2]


def test_query_heads_become_groups_of_key_heads():
    query, key = Atom(8), Atom(2)
    kept, repeats = split(query, 2, 4)
    tie(kept, key)
    assert same(query, product([key, repeats]))


def test_sums_of_equal_rows_become_a_product():
    """(a + b) seen as 2 x 3: the halves are tied, their order is fixed."""
    a, b = Atom(3), Atom(3)
    pair, row = split(total([a, b]), 2, 3)
    assert same(a, b, row)
    assert shape(pair) == (2, True)


def test_factors_without_a_common_refinement_freeze():
    a, b, c = Atom(4), Atom(6), Atom(5)
    d, e, f = Atom(6), Atom(4), Atom(5)
    tie(product([a, b, c]), product([d, e, f]))
    assert all(x.frozen for x in (a, b, d, e))
    assert same(c, f)
    assert not resolve(c).frozen  # only the run that does not fit


def test_two_cuts_of_one_axis_meet():
    a = Atom(10)
    cut(a, 4)
    cut(a, 7)
    assert [leaf.size for leaf in leaves(a)] == [4, 3, 3]


def test_split_all_keeps_the_order():
    sizes = [2, 3, 4]
    axis = Atom(prod(sizes))
    assert [part.size for part in split_all(axis, sizes)] == sizes
    assert shape(axis) == ("Prod", (2, False), (3, False), (4, False))


def test_frozen_neighbours_are_one():
    assert shape(product([fixed(2, "x"), fixed(3, "y"), Atom(4)])) == (
        "Prod",
        (6, True),
        (4, False),
    )
    assert isinstance(total([Atom(2), fixed(3, "x"), fixed(4, "y")]), Sum)


def test_a_journal_numbers_ties_and_can_leave_one_out():
    def two_ties(skip):
        a, b, c = Atom(3), Atom(3), Atom(3)
        with Journal(skip) as journal:
            journal.by = "first"
            tie(a, b)
            journal.by = "second"
            tie(b, c)
        return journal.ties, same(a, b), same(b, c)

    assert two_ties(None) == (["first", "second"], True, True)
    assert two_ties(0) == (["first", "second"], False, True)
    assert two_ties(1) == (["first", "second"], True, False)
