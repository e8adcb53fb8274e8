"""One shared leading block, averaged."""

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftlib import Mapping, attach, surgery, trace
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


def network():
    """Two layers of weights alone, and what they are trained on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    return model, torch.randn(8, 3), torch.randn(8, 2)


def shares(other, model, x, cycle):
    """`model` and `other` as one, each layer both ways, and an optimizer of both."""
    mapping = Mapping(trace(other, x), trace(model, x))
    mapping.link("0", "0", direction="both").link("2", "2", direction="both")
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    return attach(ParameterSharing(), mapping, cycle=cycle).follow(optimizer), optimizer


def test_sharing_with_a_copy_that_nobody_trains_is_lookahead():
    """Zhang et al. 2019, algorithm 1, at half of the way: the slow weights are the copy."""
    model, x, y = network()
    twin, slow = copy.deepcopy(model), copy.deepcopy(model)
    graft, optimizer = shares(copy.deepcopy(model), model, x, cycle=3)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    for t in range(7):
        for one, own in ((model, optimizer), (twin, plain)):
            own.zero_grad()
            (one(x) - y).square().mean().backward()
            own.step()
        if (t + 1) % 3 == 0:
            for fast, behind in zip(twin.parameters(), slow.parameters(), strict=True):
                behind.data.lerp_(fast.data, 0.5)
                fast.data.copy_(behind.data)
    graft.detach()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_sharing_with_the_own_widened_copy_is_netaug():
    """Cai et al. 2021: the shared block descends the mean of both losses, for SGD to rounding."""
    model, x, y = network()
    graph = trace(model, x)
    wide = surgery.widen(graph, {"0": 8})
    alone, around = copy.deepcopy(model), copy.deepcopy(wide)
    graft, optimizer = shares(wide, model, x, cycle=1)
    for _ in range(3):
        optimizer.zero_grad()
        ((model(x) - y).square().mean() + (wide(x) - y).square().mean()).backward()
        optimizer.step()
        for one in (alone, around):
            one.zero_grad()
            (one(x) - y).square().mean().backward()
        for p, q in zip(alone.parameters(), around.parameters(), strict=True):
            block = tuple(slice(n) for n in p.shape)
            mean = p.data - 0.1 * (p.grad + q.grad[block]) / 2
            q.data -= 0.1 * q.grad
            q.data[block] = mean
            p.data.copy_(mean)
        # What is pending now is the mean, which the coming step will start from.
        for p, own in zip(alone.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(own, p)
    graft.detach()
