"""Draws look like the example, at any batch size."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib.export import probes

sizes = st.integers(1, 5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(sizes, sizes, sizes, st.integers(0, 99))
def test_only_the_batch_changes(batch, new, width, seed):
    tree = {
        "x": torch.randn(batch, width),
        "table": torch.randn(batch + 1, 2),
        "flag": True,
        "n": None,
    }
    drawn = probes.draw(tree, new, generator(seed))
    assert drawn["x"].shape == (new, width)
    assert drawn["table"].shape == (batch + 1, 2)
    assert drawn["flag"] is True
    assert drawn["n"] is None
    assert probes.batch_of(drawn) == new


@given(
    st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=1, max_size=4), sizes
)
def test_integer_rows_are_permutations_of_rows_of_the_example(rows, batch):
    drawn = probes.draw(torch.tensor(rows), batch, generator())
    known = {tuple(sorted(row)) for row in rows}
    assert all(tuple(sorted(row)) in known for row in drawn.tolist())


def test_floats_follow_mean_and_spread_and_constants_get_some():
    drawn = probes.draw(5 + 3 * torch.randn(400, 50, generator=generator(1)), None, generator())
    assert abs(drawn.mean() - 5) < 0.1
    assert abs(drawn.std() - 3) < 0.1
    assert probes.draw(torch.zeros(50, 50), None, generator()).std() > 0.5


def test_the_same_seed_draws_the_same():
    tree = (torch.randn(2, 3), torch.arange(4).reshape(2, 2), torch.tensor([True, False]))
    first, second = (probes.draw(tree, 5, generator(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=3))
def test_the_odd_batch_is_no_other_size(shapes):
    tree = [torch.zeros(shape) for shape in shapes]
    odd = probes.odd_batch(tree)
    assert odd >= 2
    assert all(odd not in shape for shape in shapes)
