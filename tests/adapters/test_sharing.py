"""One shared leading block, averaged."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib.graft import Link, LinkedMatrix
from graftlib_adapters import ParameterSharing
from graftlib_adapters.sharing import shared

sizes = st.integers(1, 6)


def transfer(values, links):
    written = {link.target for link in links}
    matrices = [
        LinkedMatrix(str(i), tuple(w.shape), None, i in written) for i, w in enumerate(values)
    ]
    return ParameterSharing().build(matrices, links)(values)


@given(sizes, sizes, sizes, sizes)
def test_both_ways_the_blocks_become_one(n, m, N, M):
    w, v = torch.randn(n, m), torch.randn(N, M)
    a, b = transfer([w, v], [Link(0, 1, "there"), Link(1, 0, "back")])
    k, j = min(n, N), min(m, M)
    assert torch.equal(a[:k, :j], b[:k, :j])
    torch.testing.assert_close(a[:k, :j], (w[:k, :j] + v[:k, :j]) / 2)
    for new, old in ((a, w), (b, v)):
        outside = torch.ones_like(old, dtype=torch.bool)
        outside[:k, :j] = False
        assert torch.equal(new[outside], old[outside])


def test_one_way_the_source_stays():
    w, v = torch.zeros(2, 3), torch.ones(3, 2)
    new = transfer([w, v], [Link(1, 0, "l")])
    assert len(new) == 1
    assert torch.equal(new[0], torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0]]))
    assert torch.equal(v, torch.ones(3, 2))
    assert torch.equal(w, torch.zeros(2, 3))


def test_several_sources_count_where_they_reach():
    new = shared(torch.zeros(2, 2), [torch.full((1, 2), 3.0), torch.full((1, 1), 6.0)])
    assert torch.equal(new, torch.tensor([[3.0, 1.5], [0.0, 0.0]]))


def test_sharing_twice_is_sharing_once():
    w, v = torch.randn(3, 4), torch.randn(4, 3)
    links = [Link(0, 1, "there"), Link(1, 0, "back")]
    once = transfer([w, v], links)
    assert all(torch.equal(a, b) for a, b in zip(once, transfer(once, links), strict=True))
