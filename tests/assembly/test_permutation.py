"""Generalized permutations: a small algebra, and what a layer's output keeps when it is carried."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib_adapters.assembly.errors import AssemblyError
from graftlib_adapters.assembly.permutation import Permutation, reading

sizes = st.integers(1, 6)


@st.composite
def permutations(draw, bases=None, sources=None):
    """Any number of base and source units, any of the permutations with min(m, p) matches."""
    m = draw(sizes) if bases is None else bases
    p = draw(sizes) if sources is None else sources
    random = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    return Permutation.random(m, p, random)


@given(permutations())
def test_matrix_is_a_partial_permutation(one):
    """Rows and columns sum to 1 at most, and min(m, p) entries stand."""
    matrix = one.matrix()
    assert matrix.shape == (one.bases, one.sources)
    assert matrix.sum(0).max() <= 1
    assert matrix.sum(1).max() <= 1
    assert matrix.sum() == one.matched == min(one.bases, one.sources)


@given(permutations(), st.data())
def test_apply_is_the_matrix_product(one, data):
    t = torch.randn(3, one.sources, 2, dtype=torch.float64)
    expected = torch.einsum("ij,ajb->aib", one.matrix(), t)
    torch.testing.assert_close(one.apply(t, 1), expected, rtol=0, atol=0)


@given(st.data())
def test_composition_is_the_product_of_matrices(data):
    m, k, p = (data.draw(sizes) for _ in range(3))
    one, other = data.draw(permutations(m, k)), data.draw(permutations(k, p))
    torch.testing.assert_close((one @ other).matrix(), one.matrix() @ other.matrix())
    t = torch.randn(p, 2)
    assert torch.equal((one @ other).apply(t, 0), one.apply(other.apply(t, 0), 0))


@given(permutations())
def test_inverse_is_the_transpose_and_undoes_what_reads_every_source(one):
    assert torch.equal(one.inverse().matrix(), one.matrix().T)
    assert one.inverse().inverse() == one
    if one.bases >= one.sources:
        assert one.inverse() @ one == Permutation.identity(one.sources, one.sources)


def test_direction_is_pinned():
    """A 3-cycle: entry i is the unit that is read, not the place that it goes to."""
    cycle = Permutation(torch.tensor([2, 0, 1]), 3)
    assert cycle.apply(torch.tensor([10.0, 20.0, 30.0]), 0).tolist() == [30.0, 10.0, 20.0]
    assert cycle.matrix().tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_empty_places_hold_what_is_asked_for():
    variance = torch.tensor([4.0, 9.0])
    assert reading(variance, {0: torch.tensor([1, -1, 0])}, empty=1.0).tolist() == [9.0, 1.0, 4.0]


def test_values_are_carried_not_computed(device):
    """-1 must not reach the values as a factor of 0: infinities stay out."""
    t = torch.tensor([float("inf"), 2.0], device=device, dtype=torch.bfloat16)
    made = reading(t, {0: torch.tensor([-1, 1])})
    assert made.tolist() == [0.0, 2.0]
    assert made.dtype == t.dtype
    assert made.device == t.device


@pytest.mark.parametrize("reads", [[0, 0], [-2, 1], [0, 3]])
def test_what_is_no_permutation_is_refused(reads):
    with pytest.raises(AssemblyError):
        Permutation(torch.tensor(reads), 3)


def test_shapes_that_do_not_compose_are_named():
    with pytest.raises(AssemblyError, match=r"\(2, 3\) and \(2, 3\) do not compose"):
        Permutation.identity(2, 3) @ Permutation.identity(2, 3)


def test_equal_seeds_give_equal_permutations():
    made = [Permutation.random(5, 7, torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert made[0] == made[1]
    assert hash(made[0]) == hash(made[1])
    assert made[0] != made[2]


WIDTHS = [(m, p) for m in (2, 3, 4) for p in (3,)]


@pytest.mark.parametrize(("m", "p"), WIDTHS)
@pytest.mark.parametrize(("n", "q"), WIDTHS)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_layers_output_is_kept_where_no_input_is_lost(m, p, n, q, kind):
    """P s(W x + b) = s(P W Q^T (Q x) + P b), exactly where n >= q, and not where inputs are lost (n < q)."""
    random = torch.Generator().manual_seed(m + 10 * n)
    rows, columns = Permutation.random(m, p, random), Permutation.random(n, q, random)
    kernel = (3, 3) if kind == "conv" else ()
    weight = torch.randn(p, q, *kernel, dtype=torch.float64)
    bias = torch.randn(p, dtype=torch.float64)
    x = torch.randn(5, q, *((6, 6) if kernel else ()), dtype=torch.float64)
    layer = torch.nn.functional.conv2d if kernel else torch.nn.functional.linear
    before = rows.apply(layer(x, weight, bias).relu(), 1)
    moved = columns.apply(rows.apply(weight, 0), 1)
    after = layer(columns.apply(x, 1), moved, rows.apply(bias, 0)).relu()
    kept = torch.allclose(before, after, atol=1e-12)
    assert kept == (n >= q)
