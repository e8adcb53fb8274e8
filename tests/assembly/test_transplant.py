"""Transplants: one architecture is `prune`; others take consistent units, and leave what meets nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from graftlib import Mapping, surgery, trace
from graftlib_adapters.assembly import AssemblyError, transplant


class Residual(nn.Module):
    """A stream that two convolutions write to, norms with statistics, a grouped and a plain head."""

    def __init__(self, stream=8, inner=6, blocks=1, kernel=3):
        super().__init__()
        self.stem = nn.Conv2d(1, stream, kernel, padding=kernel // 2)
        self.ins = nn.ModuleList(nn.Conv2d(stream, inner, 3, padding=1) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(inner) for _ in range(blocks))
        self.outs = nn.ModuleList(nn.Conv2d(inner, stream, 1) for _ in range(blocks))
        self.head = nn.Linear(stream, 5)

    def forward(self, x):
        x = self.stem(x)
        for a, norm, b in zip(self.ins, self.norms, self.outs, strict=True):
            x = x + b(F.relu(norm(a(x))))
        return self.head(F.relu(x).mean((2, 3)))


class Attention(nn.Module):
    """Heads times head_dim on the same axis, and a layer norm."""

    def __init__(self, width=8, heads=4, inner=8):
        super().__init__()
        self.heads = heads
        self.embed, self.norm = nn.Linear(3, width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * inner), nn.Linear(inner, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        h = self.embed(x)
        b, n, _ = h.shape
        q, k, v = self.qkv(self.norm(h)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.head(
            h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        )


class Flat(nn.Module):
    """Channels times positions into a linear layer."""

    def __init__(self, channels=6, hidden=7):
        super().__init__()
        self.conv, self.up, self.head = (
            nn.Conv2d(1, channels, 3),
            nn.Linear(9 * channels, hidden),
            nn.Linear(hidden, 5),
        )

    def forward(self, x):
        return self.head(F.relu(self.up(F.relu(self.conv(x)).flatten(1))))


IMAGE, TOKENS = (torch.zeros(2, 1, 5, 5),), (torch.zeros(2, 3, 3),)
PAIRS = {
    "residual": (lambda: Residual(), lambda: Residual(5, 4), IMAGE),
    "heads": (lambda: Attention(8, 4, 8), lambda: Attention(6, 2, 4), TOKENS),
    "flat": (lambda: Flat(), lambda: Flat(4, 3), IMAGE),
}


def randomised(model, seed=0):
    """Norms and statistics of their own, so that a wrong one shows."""
    random = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.1)
    return model


def mapped(source, target, example):
    return Mapping(trace(source, example), trace(target, example))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("score", ["magnitude", "uniform"])
def test_within_one_architecture_it_is_narrow_to_the_bit(name, score):
    make, slim, example = PAIRS[name]
    source, target = randomised(make()), slim()
    mapping = mapped(source, target, example)
    widths = {
        mine: theirs.size
        for mine, theirs in zip(
            mapping.source.axis_classes, mapping.target.axis_classes, strict=True
        )
        if mine.free and mine.size != theirs.size
    }
    assert widths
    expected = surgery.prune(mapping.source, widths, importance=score, model=source).state_dict()
    done = transplant(mapping, importance=score)
    found = done.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (done.share, done.left) == (1.0, ())


@settings(max_examples=15)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(2, 9), st.integers(2, 9))
def test_every_entry_is_the_sources_or_what_it_was(stream, inner, other, another):
    source, target = randomised(Residual(stream, inner)), randomised(Residual(other, another), 1)
    before = copy.deepcopy(target.state_dict())
    values = {v for t in source.state_dict().values() for v in t.flatten().tolist()}
    done = transplant(mapped(source, target, IMAGE))
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    for key, tensor in done.model.state_dict().items():
        fresh = tensor != before[key]
        assert set(tensor[fresh].flatten().tolist()) <= values, key


def test_a_wider_target_takes_all_and_keeps_its_own_elsewhere():
    source, target = randomised(Flat(4, 3)), randomised(Flat(6, 7), 1)
    own = target.conv.weight.detach().clone()
    done = transplant(mapped(source, target, IMAGE)).model
    assert torch.equal(done.conv.weight[:4], source.conv.weight)
    assert torch.equal(done.conv.weight[4:], own[4:])
    assert torch.equal(done.up.weight[:3, : 4 * 9], source.up.weight)


def test_whoever_reads_a_unit_speaks_of_the_one_that_was_made():
    """The best units are not the first ones, so a forgotten axis shows."""
    source = randomised(Flat(6, 7))
    for i, scale in enumerate((1.0, 9.0, 2.0, 8.0, 7.0, 3.0)):
        source.conv.weight.data[i] *= scale
    rows = torch.stack([torch.arange(9.0).roll(i) for i in range(6)])  # unlike, and equally long
    source.up.weight.data.copy_(rows.flatten().expand(7, -1))
    done = transplant(mapped(source, Flat(3, 7), IMAGE)).model
    kept = [1, 3, 4]  # the largest, in the order they had
    assert torch.equal(done.conv.weight, source.conv.weight[kept])
    assert torch.equal(done.up.weight.view(7, 3, 9), source.up.weight.view(7, 6, 9)[:, kept])


def test_kernels_share_a_centre():
    source, target = randomised(Residual(kernel=3)), Residual(kernel=5)
    own = target.stem.weight.detach().clone()
    done = transplant(mapped(source, target, IMAGE)).model
    assert torch.equal(done.stem.weight[:, :, 1:4, 1:4], source.stem.weight)
    assert torch.equal(done.stem.weight[:, :, 0], own[:, :, 0])
    back = transplant(mapped(done, Residual(kernel=3), IMAGE)).model
    assert torch.equal(back.stem.weight, source.stem.weight)


def test_a_shallower_target_leaves_nothing_undone_and_a_deeper_one_says_what_stays():
    deep, shallow = randomised(Residual(blocks=3)), randomised(Residual(blocks=1), 1)
    assert transplant(mapped(deep, shallow, IMAGE)).share == 1.0
    report = transplant(mapped(shallow, deep, IMAGE))
    left = dict(report.left)
    assert (
        len([name for name in left if name.startswith("ins.")]) == 4
    )  # two blocks: weight and bias
    assert all(why for why in left.values())
    assert 0 < report.share < 1
    assert "left 'ins." in str(report)


def test_another_family_takes_what_meets():
    source, target = randomised(Residual()), randomised(Flat(), 1)
    done = transplant(mapped(source, target, IMAGE))
    assert {w.target for w in done.written} >= {"conv.weight", "conv.bias"}
    stem = set(source.stem.weight.flatten().tolist())
    assert set(done.model.conv.weight.flatten().tolist()) <= stem


def test_links_decide_what_meets():
    source, target = randomised(Residual()), randomised(Residual(5, 4), 1)
    mapping = mapped(source, target, IMAGE).link("head", "head")
    done = transplant(mapping)
    assert {each.target for each in done.written} == {"head.weight", "head.bias"}
    assert torch.equal(done.model.stem.weight, target.stem.weight)


def test_a_score_of_ones_own_chooses_the_units():
    source = randomised(Flat(6, 7))
    last = lambda graph, model, each: torch.arange(each.size, dtype=torch.float64)  # noqa: E731
    done = transplant(mapped(source, Flat(2, 7), IMAGE), importance=last).model
    assert torch.equal(done.conv.weight, source.conv.weight[-2:])


def test_in_place_writes_the_target_itself(device):
    source, target = randomised(Flat()).to(device), Flat().to(device)
    mapping = mapped(source, target, (IMAGE[0].to(device),))
    assert transplant(mapping, inplace=True).model is target
    assert torch.equal(target.conv.weight, source.conv.weight)


def test_a_half_precision_target_stays_one():
    source, target = randomised(Flat()), Flat().half()
    mapping = Mapping(trace(source, IMAGE), trace(target, (IMAGE[0].half(),)))
    done = transplant(mapping).model
    assert done.conv.weight.dtype == torch.float16
    assert torch.equal(done.conv.weight, source.conv.weight.half())


def test_a_model_without_values_is_refused():
    with torch.device("meta"):
        source = Flat()
    with pytest.raises(AssemblyError, match="meta device"):
        transplant(mapped(source, Flat(), IMAGE))


def test_an_unknown_score_is_refused():
    with pytest.raises(AssemblyError, match="'magnitude', 'uniform'"):
        transplant(mapped(Flat(), Flat(), IMAGE), importance="best")
