"""A share of a whole model: what it means for nested classes, and what cannot have it is left and named."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from graftlib.graph import trace
from graftlib.surgery import SurgeryError, SurgeryWarning, prune
from graftlib.surgery.whole_model import outer_classes


class HalfWired(nn.Module):
    """Writes one of its two sizes into its code."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.z = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.z(self.b(self.a(x).view(-1, 6).relu()).relu())


class Interleaved(nn.Module):
    """Attention whose heads lie outside in the queries, keys and values, and inside in what the output layer reads."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.qkv, self.z = nn.Linear(5, 3 * 24), nn.Linear(24, 2)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.z(y.permute(0, 2, 3, 1).flatten(2))


class Shuffled(nn.Module):
    """Interleaves two halves that therefore have to stay alike, in front of a depthwise layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.depthwise, self.z = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        h = torch.cat([self.a(x), self.b(x)], 1)
        n, _, height, width = h.shape
        h = h.view(n, 2, -1, height, width).transpose(1, 2).reshape(n, -1, height, width)
        return self.z(self.depthwise(h).relu())


def test_a_share_is_that_of_every_free_class():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    graph = trace(model, torch.randn(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slim = prune(graph, 0.5)
    by_hand = prune(graph, {c: 0.5 for c in graph.axis_classes if c.free})
    assert [tuple(p.shape) for p in slim.parameters()] == [(3, 3), (3,), (2, 3), (2,), (2, 2), (2,)]
    assert all(map(torch.equal, slim.parameters(), by_hand.parameters()))
    assert prune(graph, 0.01)[0].out_features == 1


def test_whole_heads_and_groups_go():
    """Half of the heads is half of the axis; what lies inside a head stays."""

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.z = (
                nn.Conv2d(3, 12, 1),
                nn.GroupNorm(4, 12),
                nn.Conv2d(12, 2, 1),
            )

        def forward(self, x):
            return self.z(self.norm(self.a(x)).relu())

    model = Grouped()
    graph = trace(model, torch.randn(2, 3, 4, 4))
    assert sorted(c.size for c in graph.axis_classes if c.free) == [3, 4]
    assert [c.size for c in outer_classes(graph)] == [4]
    slim = prune(graph, 0.5)
    assert (slim.norm.num_groups, slim.norm.num_channels, slim.z.in_channels) == (2, 6, 6)


def test_of_classes_that_lie_in_each_other_the_first_goes():
    """Heads x head_dim in one tensor and head_dim x heads in another: none would be the outer one of both."""
    graph = trace(Interleaved(), torch.randn(2, 7, 5))
    sizes = {str(graph.axes(fqn)[axis]) for fqn, axis in (("qkv.weight", 0), ("z.weight", 1))}
    assert len(sizes) == 2  # a product each, in either order
    heads = [c for c in outer_classes(graph) if c.size == 4]
    assert len(heads) == 1
    assert all(c.size != 6 for c in outer_classes(graph))
    slim = prune(graph, 0.5)
    assert (slim.heads, slim.qkv.out_features, slim.z.in_features) == (2, 36, 12)


def test_what_refuses_is_left_and_named():
    model = HalfWired()
    graph = trace(model, torch.randn(4, 3))
    with pytest.warns(SurgeryWarning, match=r"1 of 2 classes .* 6 units of a.weight\[0\]"):
        slim = prune(graph, 0.5)
    assert (slim.a.out_features, slim.b.out_features) == (6, 4)


def test_classes_that_only_go_together_go_together():
    """Where one class is refused beside them, a pair that shares an axis is not torn apart."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.shuffled, self.wired = Shuffled(), HalfWired()

        def forward(self, x):
            return self.shuffled(x), self.wired(x.mean((2, 3)))

    model = Both()
    graph = trace(model, torch.randn(2, 3, 6, 6))
    with pytest.warns(SurgeryWarning, match="1 of"):
        slim = prune(graph, 0.5)
    assert (slim.shuffled.a.out_channels, slim.shuffled.b.out_channels) == (2, 2)
    assert slim.shuffled.depthwise.groups == slim.shuffled.depthwise.in_channels == 4
    assert slim.wired.b.out_features == 4


def test_where_nothing_can_go_it_is_said():
    class Wired(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.z = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.z(self.a(x).view(-1, 6))

    model = Wired()
    with pytest.raises(SurgeryError, match="none of the 1 free classes"):
        prune(trace(model, torch.randn(4, 3)), 0.5)


@pytest.mark.parametrize("share", [0.0, 1.5, 2, True])
def test_a_share_is_a_share(share):
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2))
    with pytest.raises(SurgeryError, match="no share"):
        prune(trace(model, torch.randn(4, 3)), share)


@pytest.mark.parametrize("share", [1.0, 0.99])
def test_a_share_that_leaves_all_units_gives_a_copy(share):
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    kept = prune(trace(model, (x,)), share)
    assert kept is not model
    assert torch.equal(kept(x), model(x))


def test_where_nothing_is_free_the_error_says_what_freezes():
    model = nn.Linear(4, 2)
    with pytest.raises(SurgeryError, match="by the output"):
        prune(trace(model, (torch.randn(3, 4),)), 0.5)
