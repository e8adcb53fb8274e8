"""W = B A + rest, on either side: exact, as good as an SVD, steady from one transfer to the next."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib_adapters._matrices import add
from graftlib_adapters.mergenet.encoding import (
    Encoding,
    energy_rank,
    first_basis,
    leading_basis,
    next_basis,
    turn,
)

sizes = st.integers(1, 24)
sides = st.sampled_from(["longer", "rows"])


def spectrum(rows, columns, values, dtype=torch.float64):
    """A matrix with the given singular values."""
    n = len(values)
    left = torch.linalg.qr(torch.randn(rows, n, dtype=dtype)).Q
    right = torch.linalg.qr(torch.randn(columns, n, dtype=dtype)).Q
    return left @ torch.diag(torch.tensor(values, dtype=dtype)) @ right.mT


def lost(matrix, basis):
    """Energy outside the basis, as a share of all."""
    rest = matrix - basis @ (basis.mT @ matrix)
    return (rest.square().sum() / matrix.square().sum()).item()


def orthonormal(basis, tolerance=1e-5):
    eye = torch.eye(basis.shape[1], dtype=basis.dtype)
    return (basis.mT @ basis - eye).abs().max() < tolerance


@given(sizes, sizes, st.integers(1, 24), sides, st.sampled_from([torch.float32, torch.float64]))
def test_decoding_an_unchanged_code_gives_the_bits_back(rows, columns, rank, side, dtype):
    w = torch.randn(rows, columns, dtype=dtype)
    encoding = Encoding((rows, columns), min(rank, rows, columns), side).to(dtype)
    basis = encoding(w)
    code = encoding.encode(w, basis)
    assert code.shape == encoding.shape
    assert torch.equal(add(w, encoding.spread(code - code, basis)), w)


@given(sizes, sizes, st.integers(1, 24), sides)
def test_the_new_code_is_the_code_of_the_new_matrix(rows, columns, rank, side):
    """encode(w + spread(change)) = code + change, and the rest stays where it was."""
    w = torch.randn(rows, columns, dtype=torch.float64)
    encoding = Encoding((rows, columns), min(rank, rows, columns), side).double()
    basis = encoding(w)
    code = encoding.encode(w, basis)
    change = torch.randn_like(code)
    new = add(w, encoding.spread(change, basis))
    new_code = encoding.encode(new, basis)
    torch.testing.assert_close(new_code, code + change)
    rest = w - encoding.spread(code, basis)
    torch.testing.assert_close(new - encoding.spread(new_code, basis), rest, atol=1e-9, rtol=0)


@given(st.integers(2, 24), st.integers(2, 24), st.data())
def test_the_longer_side_is_the_one_that_is_replaced(rows, columns, data):
    rank = data.draw(st.integers(1, min(rows, columns) - 1))
    short = min(rows, columns)
    assert sorted(Encoding((rows, columns), rank).shape) == sorted((short, rank))
    assert Encoding((rows, columns), rank, "rows").shape == (rank, columns)


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_a_wide_matrix_is_encoded_as_its_transpose_is(short, more, data):
    """Which side is called rows does not matter..."""
    rank = data.draw(st.integers(1, short))
    # Singular vectors magnify rounding by the inverse of the gap between two singular values: float32 is not enough.
    wide = torch.randn(short, short + more, dtype=torch.float64)
    tall = wide.mT.contiguous()
    one, other = (Encoding(tuple(m.shape), rank).double() for m in (wide, tall))
    basis = one(wide)
    assert (basis is None) == (rank == short)
    torch.testing.assert_close(basis, other(tall))
    torch.testing.assert_close(one.encode(wide, basis), other.encode(tall, basis).mT)


def test_by_rows_it_is_not():
    """...unless it is the rows that are to be replaced, whatever their number: the paper's form."""
    one, other = Encoding((6, 20), 3, "rows"), Encoding((20, 6), 3, "rows")
    assert one.shape == (3, 20)
    assert other.shape == (3, 6)


@pytest.mark.parametrize(
    ("shape", "rank", "side"),
    [
        ((5, 7), None, "longer"),
        ((5, 7), 5, "longer"),
        ((7, 5), 5, "longer"),
        ((5, 7), None, "rows"),
        ((5, 7), 5, "rows"),
    ],
)
def test_the_whole_matrix_needs_no_basis(shape, rank, side):
    encoding = Encoding(shape, rank, side)
    w = torch.randn(shape)
    assert encoding(w) is None
    assert encoding.encode(w, encoding(w)) is w
    assert encoding.shape == shape
    assert encoding.state_dict() == {}


def test_by_rows_a_tall_matrix_is_encoded_at_its_full_rank():
    encoding = Encoding((7, 5), 5, "rows")
    assert encoding.shape == (5, 5)
    assert encoding(torch.randn(7, 5)).shape == (7, 5)


@given(st.integers(2, 20), st.integers(2, 20), st.data())
def test_the_first_basis_is_that_of_the_svd(rows, columns, data):
    """Singular values that halve: the same vectors, up to sign, in the same order."""
    full = min(rows, columns)
    rank = data.draw(st.integers(1, full))
    w = spectrum(rows, columns, [2.0**-i for i in range(full)])
    basis = first_basis(w, rank)
    left = torch.linalg.svd(w, full_matrices=False).U[:, :rank]
    assert orthonormal(basis)
    torch.testing.assert_close(
        (basis * left).sum(0).abs(), torch.ones(rank, dtype=w.dtype), atol=1e-3, rtol=0
    )


@given(st.integers(2, 20), st.integers(2, 20))
def test_the_first_code_has_orthogonal_rows_in_order_and_fixed_signs(rows, columns):
    """However flat the spectrum: one basis of the space, and not another."""
    w = torch.randn(rows, columns, dtype=torch.float64)
    basis = first_basis(w, max(1, min(rows, columns) // 2))
    code = basis.mT @ w
    gram = code @ code.mT
    energies = gram.diagonal()
    torch.testing.assert_close(gram, torch.diag(energies))
    assert (energies[:-1] >= energies[1:]).all()
    assert (basis.amax(0) >= -basis.amin(0)).all()


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64)])
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_even_a_flat_spectrum_is_encoded_nearly_as_well_as_possible(shape, rank):
    w = torch.randn(shape)
    values = torch.linalg.svdvals(w).square()
    best = (values[rank:].sum() / values.sum()).item()
    assert best <= lost(w, first_basis(w, rank)) <= best + 0.02


def test_one_warm_iteration_follows_a_moving_matrix():
    w = torch.randn(40, 90)
    basis = first_basis(w, 8)
    for _ in range(20):
        w = w + 0.05 * torch.randn(40, 90)
        basis = next_basis(w, basis)
    values = torch.linalg.svdvals(w).square()
    assert lost(w, basis) <= (values[8:].sum() / values.sum()).item() + 0.02
    stale = first_basis(torch.randn(40, 90), 8)
    assert lost(w, stale) > lost(w, basis) + 0.1


def test_columns_keep_their_meaning_over_small_changes():
    """Two equal singular values: an SVD may mix their vectors at will, Procrustes does not..."""
    w = spectrum(20, 30, [4.0, 4.0, 4.0, 4.0, 0.1, 0.1])
    basis = first_basis(w, 4)
    w = w + 1e-3 * torch.randn_like(w)
    assert (next_basis(w, basis) - basis).norm() < 0.01


def test_without_the_rotation_they_do_not():
    """...and without it the same subspace comes back in other coordinates."""
    w = spectrum(20, 30, [4.0, 4.0, 4.0, 4.0, 0.1, 0.1])
    basis = first_basis(w, 4)
    w = w + 1e-3 * torch.randn_like(w)
    fresh = torch.linalg.svd(w, full_matrices=False).U[:, :4]
    assert (fresh - basis).norm() > 0.5
    assert (turn(fresh, basis) - basis).norm() < 0.01


def test_directions_that_the_matrix_does_not_reach_stay():
    w = torch.randn(20, 3) @ torch.randn(3, 30)
    basis = first_basis(w, 8)
    moved = next_basis(w * (1 + 1e-3 * torch.randn(30)), basis)
    assert (moved - basis).norm() < 0.05
    thrown = torch.linalg.qr(w @ (w.mT @ basis)).Q  # no shift
    assert (turn(thrown, basis) - basis).norm() > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("true_rank", [1, 3])
def test_degenerate_matrices_get_a_basis(dtype, scale, true_rank):
    w = scale * torch.randn(9, true_rank, dtype=dtype) @ torch.randn(true_rank, 12, dtype=dtype)
    basis = first_basis(w, 6)
    for _ in range(3):
        assert orthonormal(basis)
        assert scale == 0 or lost(w / scale, basis) < 1e-6
        basis = next_basis(w, basis)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_spoils_no_basis(bad):
    w = torch.randn(9, 12)
    encoding = Encoding((9, 12), 4)
    encoding(w)
    w[2, 3] = bad
    assert orthonormal(encoding(w))
    assert not torch.isfinite(encoding.encode(w, encoding.basis)).all()


def test_a_cold_start_is_always_the_same_and_touches_no_random_state():
    w = torch.randn(9, 12)
    before = torch.get_rng_state()
    first = first_basis(w, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(first_basis(w, 4), first)


def test_the_basis_moves_in_training_mode_only():
    encoding = Encoding((9, 12), 4).eval()
    seen = encoding(torch.randn(9, 12))
    assert not encoding.basis.any()
    assert orthonormal(seen)
    encoding.train()(torch.randn(9, 12))
    assert orthonormal(encoding.basis)


def test_a_column_iteration_converges_to_the_leading_space():
    w = spectrum(12, 15, [8.0, 4.0, 0.5, 0.1])
    start = torch.linalg.qr(torch.randn(12, 2, dtype=w.dtype)).Q
    shares = [lost(w, leading_basis(w, start, n)) for n in (0, 1, 3)]
    assert shares[0] > shares[1] >= shares[2]
    assert shares[2] < 1.001 * (0.26 / 80.26)


@pytest.mark.parametrize(
    ("share", "rank"), [(0.01, 1), (0.49, 1), (0.6, 2), (0.79, 2), (0.81, 3), (0.999, 4)]
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_share_of_the_energy_resolves_to_the_smallest_rank(share, rank, turned):
    """Energies 5, 3, 1.5, 0.5 of 10: half, 80 %, 95 %, all."""
    w = spectrum(6, 9, [5**0.5, 3**0.5, 1.5**0.5, 0.5**0.5])
    assert energy_rank(w.mT if turned else w, share, 6) == rank
    assert energy_rank(1e-25 * w.float(), share, 6) == rank
    assert energy_rank(w, share, 2) == min(rank, 2)


def test_zeros_have_rank_one():
    assert energy_rank(torch.zeros(4, 5), 0.9, 4) == 1
