"""Assignments: optimal, rectangular as padded, deterministic; large ones over few entries."""

from __future__ import annotations

from itertools import permutations as orders

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib_adapters.assembly import sparse_assignment
from graftlib_adapters.assembly.assignment import assign
from graftlib_adapters.assembly.errors import AssemblyError
from graftlib_adapters.assembly.permutation import Permutation
from graftlib_adapters.assembly.sparse_assignment import priced

sizes = st.integers(1, 5)


def every(m, p):
    """All generalized permutations with min(m, p) matches."""
    for order in orders(range(max(m, p)), m):
        reads = torch.tensor([j if j < p else -1 for j in order])
        if int((reads >= 0).sum()) == min(m, p):
            yield Permutation(reads, p)


def worth(gain, permutation):
    return float((permutation.matrix() * gain).sum())


@given(sizes, sizes, st.integers(0, 1000))
def test_assignment_is_the_best_of_all(m, p, seed):
    gain = torch.randn(m, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = max(worth(gain, each) for each in every(m, p))
    assert worth(gain, assign(gain)) == pytest.approx(best)
    assert assign(gain).matched == min(m, p)


@given(sizes, sizes, st.integers(0, 1000))
def test_rectangular_is_square_padded_with_zeros(m, p, seed):
    """Dropping the pad's rows and columns gives the rectangular optimum."""
    gain = torch.rand(m, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = max(m, p)
    padded = torch.zeros(size, size, dtype=torch.float64)
    padded[:m, :p] = gain
    assert worth(padded, assign(padded)) == pytest.approx(worth(gain, assign(gain)))


def test_ties_fall_the_same_way():
    found = [assign(torch.zeros(4, 6)) for _ in range(3)]
    assert found[0] == found[1] == found[2]


def test_gains_that_are_not_finite_are_refused():
    with pytest.raises(AssemblyError, match="not finite"):
        assign(torch.tensor([[1.0, float("nan")]]))


def test_the_given_gains_stay_what_they_are():
    gain = torch.randn(3, 3, dtype=torch.float64)
    before = gain.clone()
    assign(gain)
    assert torch.equal(gain, before)


# ------------------------------------------------------------------------------------ large ones


def drifting(m, p, seed, *, ties):
    """Costs that change a little from one to the next; with ties whole numbers at first."""
    random = torch.Generator().manual_seed(seed)
    cost = 3 * torch.randn(m, p, generator=random)
    cost = cost.round() if ties else cost
    for _ in range(3):
        yield cost
        cost = cost + 0.3 * torch.randn(m, p, generator=random)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99), st.booleans(), st.booleans())
def test_prices_find_what_the_whole_matrix_gives(m, p, seed, ties, square):
    """Every shape, with and without the prices of the matrix before."""
    prices = None
    for cost in drifting(m, m if square else p, seed, ties=ties):
        found = priced(cost, prices)
        assert found is not None
        prices = found[1]
        assert found[0].matched == min(cost.shape)
        assert worth(cost, found[0]) == pytest.approx(worth(cost, assign(-cost)), abs=1e-6)


def test_the_proof_is_asked_for():
    """Without it a first choice of entries would be taken for all of them, and the result is another one."""
    cost = next(drifting(60, 60, 0, ties=False)) + torch.arange(60.0) ** 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_assignment, "_FIRST", 1)
        right = priced(cost)
        patch.setattr(sparse_assignment._Costs, "paying", lambda *_: torch.empty(0).numpy())
        wrong = priced(cost)
    assert right is not None
    assert wrong is not None
    assert worth(cost, right[0]) == pytest.approx(worth(cost, assign(-cost)))
    assert worth(cost, wrong[0]) > worth(cost, right[0]) + 1


def test_large_costs_without_a_proof_are_solved_whole(monkeypatch):
    monkeypatch.setattr(sparse_assignment, "LARGE", 4)
    cost = next(drifting(6, 6, 3, ties=False))
    assert sparse_assignment.cheapest(cost)[1] is not None
    monkeypatch.setattr(sparse_assignment, "_ROUNDS", 0)
    found, prices = sparse_assignment.cheapest(cost)
    assert prices is None
    assert found == assign(-cost)
    cost[2, 3] = float("nan")
    with pytest.raises(AssemblyError, match="not finite"):
        sparse_assignment.cheapest(cost)


def test_costs_of_low_rank_are_left_to_the_dense_solver():
    """So many entries are nearly equal that sparse matching over them would take minutes."""
    torch.manual_seed(0)
    crowded = torch.randn(1024, 2) @ torch.randn(2, 1024)
    assert sparse_assignment.priced(crowded) is None
    assert sparse_assignment.cheapest(crowded)[0] == assign(-crowded.double())
    assert sparse_assignment.priced(torch.randn(1024, 1024)) is not None
