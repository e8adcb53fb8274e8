"""Assignments: optimal, rectangular as padded, deterministic; and two free sides by turns."""

from __future__ import annotations

from itertools import pairwise
from itertools import permutations as orders

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib_adapters.assembly import pricing
from graftlib_adapters.assembly.permutation import AssemblyError, Permutation
from graftlib_adapters.assembly.pricing import priced
from graftlib_adapters.assembly.solvers import alternate, assign, distance, gains

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


@given(sizes, sizes, sizes, st.integers(0, 1000))
def test_l2_gains_give_the_least_distance(m, p, n, seed):
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(m, n, generator=random, dtype=torch.float64)
    source = torch.randn(p, n, generator=random, dtype=torch.float64)
    found = assign(gains(base, source))
    same = Permutation.identity(n, n)
    least = min(distance(base, source, each, same) for each in every(m, p))
    assert distance(base, source, found, same) == pytest.approx(least)


def test_inner_products_are_worse_where_units_are_dropped():
    """m < p: a long source row has the larger product and the larger distance."""
    base, source = torch.tensor([[1.0, 0.0]]), torch.tensor([[9.0, 9.0], [1.0, 0.0]])
    assert assign(gains(base, source, score="inner")).reads.tolist() == [0]
    assert assign(gains(base, source, score="l2")).reads.tolist() == [1]


@given(sizes, sizes, sizes, sizes, st.integers(0, 500), st.sampled_from(["l2", "inner"]))
def test_by_turns_never_falls(m, n, p, q, seed, score):
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(m, n, generator=random)
    source = torch.randn(p, q, generator=random)
    rows, columns, history = alternate(base, source, restarts=2, seed=seed, score=score)
    assert (rows.bases, rows.sources) == (m, p)
    assert (columns.bases, columns.sources) == (n, q)
    # Inner products with columns dropped may prefer an objective that only l2 bounds: each turn is optimal in both.
    assert all(b >= a - 1e-9 for a, b in pairwise(history))


def test_restarts_find_the_optimum_that_one_start_misses():
    """Random 4 x 4 pairs: 20 random starts find the global optimum, the identity start alone does not always."""
    hit = {0: 0, 20: 0}
    for seed in range(6):
        random = torch.Generator().manual_seed(seed)
        base = torch.randn(4, 4, generator=random, dtype=torch.float64)
        source = torch.randn(4, 4, generator=random, dtype=torch.float64)
        least = min(
            distance(base, source, rows, columns) for rows in every(4, 4) for columns in every(4, 4)
        )
        for restarts in hit:
            rows, columns, _ = alternate(base, source, restarts=restarts)
            hit[restarts] += distance(base, source, rows, columns) <= least + 1e-9
    assert hit[20] == 6
    assert hit[0] < 6


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
        patch.setattr(pricing, "_FIRST", 1)
        right = priced(cost)
        patch.setattr(pricing._Costs, "paying", lambda *_: torch.empty(0).numpy())
        wrong = priced(cost)
    assert right is not None
    assert wrong is not None
    assert worth(cost, right[0]) == pytest.approx(worth(cost, assign(-cost)))
    assert worth(cost, wrong[0]) > worth(cost, right[0]) + 1


def test_large_costs_without_a_proof_are_solved_whole(monkeypatch):
    monkeypatch.setattr(pricing, "LARGE", 4)
    cost = next(drifting(6, 6, 3, ties=False))
    assert pricing.cheapest(cost)[1] is not None
    monkeypatch.setattr(pricing, "_ROUNDS", 0)
    found, prices = pricing.cheapest(cost)
    assert prices is None
    assert found == assign(-cost)
    cost[2, 3] = float("nan")
    with pytest.raises(AssemblyError, match="not finite"):
        pricing.cheapest(cost)


def test_costs_of_low_rank_are_left_to_the_dense_solver():
    """So many entries are nearly equal that sparse matching over them would take minutes."""
    torch.manual_seed(0)
    crowded = torch.randn(1024, 2) @ torch.randn(2, 1024)
    assert pricing.priced(crowded) is None
    assert pricing.cheapest(crowded)[0] == assign(-crowded.double())
    assert pricing.priced(torch.randn(1024, 1024)) is not None
