"""Widening over norms and scores: exact where that can be, by repeated units or by units of zero; else refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from graftlib.graph import trace
from graftlib.surgery import SurgeryError, widen
from graftlib.surgery.rescale import _rms_offset


class Written(nn.Module):
    """An RMS norm written out, with a gain of 1 + weight and a small number that matters."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.zeros(width)), 0.3

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon) * (1 + self.weight)


NORMS = {
    "layer": lambda: nn.LayerNorm(6),
    "rms": lambda: nn.RMSNorm(6, eps=0.1),
    "rms without eps": lambda: nn.RMSNorm(6),
    "rms of 1 + gain": lambda: Written(6),
}


def normed(norm, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), NORMS[norm](), nn.Linear(6, 2))
    with torch.no_grad():
        for parameter in model[1].parameters():
            parameter.copy_(torch.rand(6) + 0.5)
    return model.to(dtype), torch.randn(5, 3, dtype=dtype)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("times", [2, 3])
def test_a_multiple_of_the_width_repeats_all_units_equally(norm, times):
    model, x = normed(norm)
    wide = widen(trace(model, x), {0: 6 * times})
    torch.testing.assert_close(wide(x), model(x))
    assert wide[0].out_features == wide[2].in_features == 6 * times
    counts = [(wide[0].weight == row).all(1).sum().item() for row in model[0].weight]
    assert counts == [times] * 6
    assert not wide[2].weight[:, 6:].any()


@settings(max_examples=5)
@given(st.sampled_from(["rms", "rms without eps", "rms of 1 + gain"]), st.integers(7, 15))
def test_an_rms_norm_takes_units_of_zero_at_any_width(norm, width):
    model, x = normed(norm, torch.float64)
    graph = trace(model, x)
    wide = widen(graph, {0: width}, fill="zero")
    torch.testing.assert_close(wide(x), model(x))
    assert not wide[0].weight[6:].any()
    assert not wide[0].bias[6:].any()
    torch.testing.assert_close(widen(graph, {0: width}, fill="zero", inplace=True)(x), wide(x))


def test_gain_and_eps_follow_the_width():
    model, x = normed("rms")
    wide = widen(trace(model, x), {0: 24}, fill="zero")
    assert wide[1].eps == pytest.approx(0.1 / 4)
    torch.testing.assert_close(wide[1].weight[:6], model[1].weight / 2)
    assert model[1].eps == 0.1


def test_a_norm_is_known_by_what_it_does():
    assert _rms_offset(nn.RMSNorm(6), (6,)) == 0.0
    assert _rms_offset(Written(6), (6,)) == 1.0
    assert _rms_offset(nn.LayerNorm(6, bias=False), (6,)) is None
    assert _rms_offset(nn.PReLU(6), (6,)) is None


@pytest.mark.parametrize(
    ("norm", "width", "fill", "fix"),
    [
        ("layer", 9, "like", "multiple of 6"),
        ("layer", 12, "zero", "multiple of 6 with fill='like'"),
        ("rms", 9, "like", "fill='zero' takes any width"),
    ],
)
def test_what_cannot_be_exact_is_refused_and_the_advice_holds(norm, width, fill, fix):
    model, x = normed(norm)
    graph, before = trace(model, x), [p.clone() for p in model.parameters()]
    with pytest.raises(SurgeryError, match="a norm goes over the units") as caught:
        widen(graph, {0: width}, fill=fill, inplace=True)
    assert fix in str(caught.value)
    assert all(map(torch.equal, before, model.parameters()))
    advised = {"like": 12} if "like" in fix or norm == "layer" else {"zero": width}
    for way, size in advised.items():
        torch.testing.assert_close(widen(graph, {0: size}, fill=way)(x), model(x))


class Groups(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12)
        self.statistics, self.z = nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        return self.z(self.statistics(self.norm(self.a(x))).relu())


def test_inside_of_groups_and_whole_groups():
    model, x = Groups().eval(), torch.randn(2, 3, 4, 4)
    graph = trace(model, x)
    inside, groups = sorted((c for c in graph.axis_classes if c.free), key=lambda c: -c.size)
    assert (inside.size, groups.size) == (4, 3)
    for widths, fill in (({inside: 8}, "like"), ({groups: 5}, "like"), ({groups: 5}, "zero")):
        torch.testing.assert_close(widen(graph, widths, fill=fill)(x), model(x))
    both = widen(graph, {inside: 8, groups: 5})
    torch.testing.assert_close(both(x), model(x))
    assert (both.norm.num_groups, both.norm.num_channels) == (5, 40)
    with pytest.raises(SurgeryError, match="a norm goes over the units"):
        widen(graph, {inside: 8}, fill="zero")


def test_units_of_zero_in_running_statistics():
    model, x = Groups().eval(), torch.randn(2, 3, 4, 4)
    graph = trace(model, x)
    groups = next(c for c in graph.axis_classes if c.size == 3)
    wide = widen(graph, {groups: 5}, fill="zero")
    new = slice(12, None)
    assert wide.statistics.running_var[new].tolist() == [1.0] * 8
    zeros = (
        wide.statistics.running_mean,
        wide.norm.weight,
        wide.norm.bias,
        wide.a.weight,
        wide.a.bias,
    )
    assert not any(tensor[new].any() for tensor in zeros)
    assert not wide.z.weight[:, new].any()


class Heads(nn.Module):
    """Divides the scores by the width of a head as it finds it, or by the one that it began with."""

    def __init__(self, fixed):
        super().__init__()
        self.fixed = 4**-0.5 if fixed else None
        self.embed, self.qkv, self.out = nn.Linear(3, 8), nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x):
        q, k, v = self.qkv(self.embed(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(
            F.scaled_dot_product_attention(q, k, v, scale=self.fixed).transpose(1, 2).flatten(2)
        )


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("fill", ["like", "zero"])
def test_the_width_of_a_head(fixed, fill):
    """Queries take the factor sqrt(D / d) where the model divides by D, and only there; keys read them with zeros."""
    model, x = Heads(fixed).eval(), torch.randn(2, 5, 3)
    graph = trace(model, x)
    inner = [c for c in graph.axis_classes if c.size == 4 and c.free]
    assert len(inner) == 2
    wide = widen(graph, dict.fromkeys(inner, 9), fill=fill)
    torch.testing.assert_close(wide(x), model(x), rtol=1e-5, atol=1e-6)
    factor = 1.0 if fixed else 1.5
    torch.testing.assert_close(wide.qkv.weight[:4], model.qkv.weight[:4] * factor)
    assert torch.equal(wide.qkv.weight[18:22], model.qkv.weight[8:12])
    assert wide.qkv.weight[4:9].any() == (fill == "like")
    assert not wide.qkv.weight[22:27].any()


def test_the_spread_of_new_units():
    """Every unit is repeated before any is repeated again, whatever the seed."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    graph = trace(model, x)
    for seed in range(3):
        wide = widen(graph, {0: 10}, seed=seed)
        counts = [(wide[0].weight == row).all(1).sum().item() for row in model[0].weight]
        assert sorted(counts) == [2, 2, 3, 3]
        torch.testing.assert_close(wide(x), model(x))


def test_a_fill_has_a_name():
    model, x = normed("layer")
    with pytest.raises(SurgeryError, match="'like', 'zero', not 'noise'"):
        widen(trace(model, x), {0: 12}, fill="noise")


class SharedKeys(nn.Module):
    """Two keys, each read by three queries; the code holds how many read one."""

    def __init__(self):
        super().__init__()
        self.num_key_value_groups = 3
        self.q, self.k, self.v = nn.Linear(5, 24), nn.Linear(5, 8), nn.Linear(5, 8)
        self.out = nn.Linear(24, 4)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.num_key_value_groups, 1) for t in (k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("keys", "queries"), [(2, 5), (3, 3), (3, 4)])
@pytest.mark.parametrize("fill", ["like", "zero"])
def test_queries_that_share_a_key(keys, queries, fill):
    model, x = SharedKeys().eval(), torch.randn(2, 6, 5)
    graph = trace(model, x)
    sizes = {c: {2: keys, 3: queries}[c.size] for c in graph.axis_classes if c.size in (2, 3)}
    assert len(sizes) == 2
    wide = widen(graph, sizes, fill=fill)
    torch.testing.assert_close(wide(x), model(x), rtol=1e-5, atol=1e-6)
    assert wide.num_key_value_groups == queries
    assert wide.k.out_features == 4 * keys
    assert wide.q.out_features == 4 * keys * queries
