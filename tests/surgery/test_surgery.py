"""Edits by axis class: what is promised to stay stays, what goes stale is set anew, the rest is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from graftlib.graph import trace
from graftlib.graph.axes import axis_classes, check
from graftlib.surgery import SurgeryError, permute, prune, widen


class Conv(nn.Module):
    """A depthwise layer, a norm with statistics, a group norm, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.wide, self.groups = nn.Conv2d(8, 12, 1), nn.GroupNorm(3, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.depthwise(self.norm(self.stem(x)).relu())
        return self.head(self.groups(self.wide(x)).relu().mean((2, 3)))


class Attention(nn.Module):
    """Holds its number of heads in an attribute, and takes head_dim from what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.embed, self.qkv, self.out = nn.Linear(3, 8), nn.Linear(8, 48), nn.Linear(16, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        b, n, _ = x.shape
        h = self.embed(x)
        q, k, v = self.qkv(h).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(self.norm(h))


class HardWired(nn.Module):
    """Writes a size into its code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.z = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.z(self.a(x).view(-1, 6))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm, self.z = (
            nn.Linear(3, 6),
            nn.LSTM(6, 8, batch_first=True),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        return self.z(self.lstm(self.a(x))[0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mid, self.out = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7)
        self.out.weight = self.table.weight

    def forward(self, ids):
        return self.out(self.mid(self.table(ids)) + self.table(ids))


INPUTS = {
    Conv: torch.randn(2, 3, 8, 8),
    Attention: torch.randn(2, 5, 3),
    Recurrent: torch.randn(2, 5, 3),
    Tied: torch.randint(0, 7, (2, 5)),
}
MODELS = pytest.mark.parametrize("kind", INPUTS, ids=lambda kind: kind.__name__)


def made(kind):
    torch.manual_seed(0)
    model = kind().double().eval()
    x = INPUTS[kind]
    x = x.double() if x.is_floating_point() else x
    return model, x, trace(model, x)


def free(graph):
    return [each for each in axis_classes(graph) if each.free]


@MODELS
@settings(max_examples=5)
@given(st.integers(0, 10_000))
def test_any_order_keeps_the_function(kind, seed):
    model, x, graph = made(kind)
    torch.testing.assert_close(permute(graph, seed=seed)(x), model(x))


@MODELS
def test_an_order_and_its_inverse_give_the_same_bits(kind):
    model, _, graph = made(kind)
    orders = {each: torch.randperm(each.size) for each in free(graph)}
    there = permute(graph, permutations=orders)
    back = permute(
        graph, permutations={each: o.argsort() for each, o in orders.items()}, model=there
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True)
    )
    assert not torch.equal(next(there.parameters()), next(model.parameters()))


def test_the_direction_of_an_order():
    model = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([10.0, 20.0, 30.0]))
    moved = permute(trace(model, torch.randn(2, 1)), permutations={0: [2, 0, 1]})
    assert moved[0].bias.tolist() == [30.0, 10.0, 20.0]


@MODELS
def test_a_copy_is_edited_unless_asked_otherwise(kind):
    model, x, graph = made(kind)
    before = copy.deepcopy(model.state_dict())
    permute(graph, seed=1)
    prune(graph, {free(graph)[0]: 0.5})
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    expected = model(x)
    assert permute(graph, seed=1, inplace=True) is model
    torch.testing.assert_close(model(x), expected)


@MODELS
def test_keeping_all_units_changes_nothing(kind):
    model, x, graph = made(kind)
    kept = prune(graph, {each: each.size for each in free(graph)})
    assert torch.equal(kept(x), model(x))


def test_dropping_units_that_do_nothing_keeps_the_function():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    dead = torch.tensor([1, 4])
    with torch.no_grad():
        model[2].weight[:, dead] = 0
    x = torch.randn(4, 3)
    slim = prune(trace(model, x), {0: 4})
    assert (slim[0].out_features, slim[2].in_features) == (4, 4)
    torch.testing.assert_close(slim(x), model(x))
    assert torch.equal(slim[0].bias, model[0].bias[[0, 2, 3, 5]])


@MODELS
def test_the_slim_model_is_a_model_of_its_own(kind):
    """It runs at other shapes, trains, and has classes that hold."""
    model, x, graph = made(kind)
    keep = {each: 0.5 for each in free(graph) if kind is not Attention or _is_no_head_dim(each)}
    slim = prune(graph, keep)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    slim(x[:1]).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in slim.parameters())
    after = trace(slim, x)
    assert check(after).passed
    halves = [round(each.size / 2) if each in keep else each.size for each in free(graph)]
    assert sorted(each.size for each in free(after)) == sorted(halves)


def _is_no_head_dim(each):
    return not any(len(m.factors) > 1 and m.position == len(m.factors) - 1 for m in each.members)


def test_sizes_that_went_stale_are_set():
    model, _, graph = made(Conv)
    stem, *_ = free(graph)
    slim = prune(graph, {stem: [0, 3, 5]})
    assert (slim.stem.out_channels, slim.norm.num_features) == (3, 3)
    assert (slim.depthwise.groups, slim.depthwise.in_channels, slim.depthwise.out_channels) == (
        3,
        3,
        3,
    )
    assert slim.wide.in_channels == 3
    assert torch.equal(slim.norm.running_var, model.norm.running_var[[0, 3, 5]])


def test_groups_and_what_lies_inside_them():
    _, _, graph = made(Conv)
    by_size = {each.size: each for each in free(graph)}
    fewer = prune(graph, {by_size[3]: 2})
    assert (fewer.groups.num_groups, fewer.groups.num_channels, fewer.head.in_features) == (2, 8, 8)
    thinner = prune(graph, {by_size[4]: 2})
    assert (thinner.groups.num_groups, thinner.groups.num_channels) == (3, 6)


def test_heads_are_dropped_whole():
    model, x, graph = made(Attention)
    heads = next(
        each
        for each in free(graph)
        if any(m.factors == (4, 4) and m.position == 0 for m in each.members)
    )
    slim = prune(graph, {heads: [1, 2]})
    assert slim.num_heads == 2
    rows = [16 * part + 4 * head + i for part in range(3) for head in (1, 2) for i in range(4)]
    assert torch.equal(slim.qkv.weight, model.qkv.weight[rows])
    assert slim(x).shape == model(x).shape


def test_tied_parameters_stay_tied():
    _, _, graph = made(Tied)
    slim = prune(graph, {free(graph)[0]: 3})
    assert slim.out.weight is slim.table.weight
    assert (slim.table.embedding_dim, slim.out.in_features) == (3, 3)


def test_scores_by_name_and_by_function():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = trace(model, torch.randn(4, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 7.0)[:, None].expand(6, 3))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0, 1.0]).expand(2, 6))
    kept = {
        score: prune(graph, {0: 2}, importance=score)[0].weight[:, 0].tolist()
        for score in ("magnitude", "uniform")
    }
    assert kept == {"magnitude": [1.0, 6.0], "uniform": [1.0, 6.0]} or kept["magnitude"] == [
        1.0,
        6.0,
    ]
    mine = prune(
        graph, {0: 2}, importance=lambda graph, model, each: torch.tensor([0, 0, 1, 1, 0, 0.0])
    )
    assert mine[0].weight[:, 0].tolist() == [3.0, 4.0]


def test_what_is_frozen_is_refused():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = trace(model, torch.randn(4, 3))
    frozen = next(each for each in axis_classes(graph) if not each.free)
    with pytest.raises(SurgeryError, match="frozen by the input"):
        prune(graph, {frozen: 1})
    with pytest.raises(SurgeryError, match="no axis class 9"):
        permute(graph, permutations={9: [0]})
    with pytest.raises(SurgeryError, match="names each of 0 … 5 once"):
        permute(graph, permutations={0: [0, 0, 1, 2, 3, 4]})
    with pytest.raises(SurgeryError, match="7 of 6 units"):
        prune(graph, {0: 7})
    with pytest.raises(SurgeryError, match="between 0 and 5"):
        prune(graph, {0: [6]})
    with pytest.raises(SurgeryError, match="either"):
        permute(graph)


def test_a_size_in_the_code_is_refused_and_the_model_left_alone():
    model = HardWired()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match="do not run with these sizes") as caught:
        prune(trace(model, torch.randn(4, 3)), {0: 3}, inplace=True)
    assert "6 -> 3" in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert (model.a.out_features, model.z.in_features) == (6, 6)


def test_another_model_is_refused():
    graph = trace(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2)), torch.randn(4, 3))
    with pytest.raises(SurgeryError, match="not the one that was traced"):
        permute(graph, seed=0, model=nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 2)))
    with pytest.raises(SurgeryError, match="missing"):
        permute(graph, seed=0, model=nn.Sequential(nn.Linear(3, 6)))


class Views(nn.Module):
    """Its view takes any size: a number of heads that nobody may set."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.z, self._h = nn.Linear(3, 16), nn.Linear(16, 2), 4

    def forward(self, x):
        h = self.a(x).view(x.shape[0], self._h, -1)
        return self.z((h * h.softmax(-1)).flatten(1))


def test_a_model_that_runs_as_something_else_is_refused():
    """Two heads of four are not four heads of two, though a view with -1 takes both."""
    model = Views()
    graph = trace(model, torch.randn(2, 3))
    heads = next(each for each in free(graph) if each.members[0].position == 0)
    with pytest.raises(SurgeryError, match="not as what they were"):
        prune(graph, {heads: 2})


def test_wider_is_the_same_function():
    """A depthwise layer, running statistics, groups of a group norm; the units there were come first."""
    model, x, graph = made(Conv)
    by_size = {each.size: each for each in free(graph)}
    wide = widen(graph, {by_size[8]: 13, by_size[3]: 5})
    torch.testing.assert_close(wide(x), model(x))
    assert (wide.depthwise.groups, wide.norm.num_features) == (13, 13)
    assert (wide.groups.num_groups, wide.groups.num_channels) == (5, 20)
    assert torch.equal(wide.stem.weight[:8], model.stem.weight)
    assert check(trace(wide, x)).passed


def test_new_units_can_learn():
    """What reads them is zero and what makes them is not, so the first gradient goes to their readers."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(4, 3)
    wide = widen(trace(model, x), {0: 9})
    assert not wide[2].weight[:, 6:].any()
    wide(x).square().sum().backward()
    assert bool((wide[2].weight.grad[:, 6:] != 0).any())


def test_more_heads_are_the_same_function():
    model, x, graph = made(Attention)
    heads = next(
        each
        for each in free(graph)
        if any(m.factors == (4, 4) and m.position == 0 for m in each.members)
    )
    wide = widen(graph, {heads: 6})
    assert wide.num_heads == 6
    torch.testing.assert_close(wide(x), model(x))


@MODELS
def test_widened_in_place_or_not(kind):
    model, x, graph = made(kind)
    before = copy.deepcopy(model.state_dict())
    each = next((c for c in free(graph) if not _is_normed(kind, c)), None)
    if each is None:
        return
    expected = model(x)
    widen(graph, {each: each.size + 2})
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert widen(graph, {each: each.size + 2}, inplace=True) is model
    torch.testing.assert_close(model(x), expected)


def _is_normed(kind, each):
    inside_group = kind is Conv and each.size == 4
    return (
        inside_group
        or (kind is Attention and (each.size == 8 or not _is_no_head_dim(each)))
        or kind is Tied
    )


def test_what_cannot_be_widened_is_refused_and_left_alone():
    model, _, graph = made(Attention)
    stream = next(each for each in free(graph) if any(m.fqn == "norm.weight" for m in each.members))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match="change of the function"):
        widen(graph, {stream: 10}, inplace=True)
    with pytest.raises(SurgeryError, match=r"use surgery\.prune"):
        widen(graph, {stream: 3})
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.embed.out_features == 8


@MODELS
def test_what_was_widened_can_be_narrowed_back(kind):
    model, x, graph = made(kind)
    each = next((c for c in free(graph) if not _is_normed(kind, c)), None)
    if each is None:
        return
    wide = widen(graph, {each: each.size + 3})
    again = trace(wide, x)
    place = {(m.fqn, m.axis, m.position) for m in each.members}
    here = next(c for c in free(again) if {(m.fqn, m.axis, m.position) for m in c.members} == place)
    back = prune(again, {here: range(each.size)})
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True)
    )
