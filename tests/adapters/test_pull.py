"""AlignedPull: towards the source, unit by unit, for as long as its cycle lasts."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graftlib import Mapping, attach, surgery, trace
from graftlib.errors import GraftError
from graftlib.graft import TransferCycle
from graftlib_adapters import AlignedPull, ParameterSharing, transplant

UNITS = ("largest", "matched")
EARLY = TransferCycle(every=1, stop=0.5)
widths = st.integers(2, 6)


class TwoConvs(nn.Module):
    """Two convolutions and a classifier, two axis classes."""

    def __init__(self, width=4, second=3, kernel=3):
        super().__init__()
        self.one = nn.Conv2d(2, width, kernel, padding=kernel // 2, bias=False)
        self.two = nn.Conv2d(width, second, 1, bias=False)
        self.fc = nn.Linear(second, 3, bias=False)

    def forward(self, x):
        return self.fc(self.two(self.one(x).relu()).relu().mean((2, 3)))


LAYERS = ("one", "two", "fc")
X = torch.linspace(-1, 1, 4 * 2 * 5 * 5).view(4, 2, 5, 5)


def mapped(source, target):
    x = X.to(source.fc.weight.dtype)
    mapping = Mapping(trace(source, x), trace(target, x))
    for layer in LAYERS:
        mapping.link(layer, layer)
    return mapping


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def still(model):
    """An optimizer that moves nothing."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(X.to(model.fc.weight.dtype)).square().mean().backward()
        optimizer.step()


def pulled(mapping, steps=1, **options):
    """The target's weights after `steps` transfers, which the optimizer adds nothing to."""
    target = mapping.target.model
    optimizer = still(target)
    graft = attach(AlignedPull(mapping, **options), mapping, cycle=1).follow(optimizer)
    train(target, optimizer, steps)
    graft.detach()
    return weights(target)


@settings(max_examples=4)
@given(widths, widths, widths, widths)
def test_the_whole_way_is_a_transplant_of_what_is_linked(w, v, m, n):
    source, target = TwoConvs(w, v), TwoConvs(m, n)
    mapping = mapped(source, target)
    expected = weights(transplant(mapping).model)
    assert same(pulled(mapping, share=1.0), expected)


@pytest.mark.parametrize(("units", "share"), [("largest", 0.3), ("matched", 0.9)])
def test_each_transfer_leaves_the_rest_of_the_way(units, share):
    """W' - S = (1 - share) (W - S), with S in the target's order."""
    torch.manual_seed(5)
    source, target = TwoConvs(5, 4).double(), TwoConvs(3, 2).double()
    goal = pulled(mapped(source, copy.deepcopy(target)), share=1.0, units=units)
    before = weights(target)
    # Units are matched once: a pull of two steps goes to the goal of the first.
    for steps in (1, 2):
        now = pulled(mapped(source, copy.deepcopy(target)), steps, share=share, units=units)
        for name, there in goal.items():
            left = (1 - share) ** steps * (before[name] - there)
            torch.testing.assert_close(now[name] - there, left)


def test_half_of_the_way_is_sharing_with_what_was_carried():
    """The two are one graft: a gain of one is no second evidence beside a gain of the other."""
    torch.manual_seed(6)
    source, target = TwoConvs(5, 4).double(), TwoConvs(3, 2).double()
    goal = transplant(mapped(source, target)).model
    twin = copy.deepcopy(target)
    mapping, optimizer = mapped(goal, twin), still(twin)
    graft = attach(ParameterSharing(), mapping, cycle=1).follow(optimizer)
    train(twin, optimizer, 2)
    graft.detach()
    now = pulled(mapped(source, target), steps=2, share=0.5)
    for name, weight in weights(twin).items():
        torch.testing.assert_close(now[name], weight)


@pytest.mark.parametrize("seed", range(3))
def test_a_source_in_another_order_has_nothing_to_say_to_its_own_copy(seed):
    """The matching finds the order, and equal entries keep their bits..."""
    torch.manual_seed(seed)
    target = TwoConvs(5, 4)
    source = surgery.permute(trace(target, X), seed=seed + 1)
    before = weights(target)
    assert same(pulled(mapped(source, target), units="matched"), before)


def test_units_by_size_do_not_look_at_the_target():
    """...which the other choice of units does not: the law above is able to fail."""
    torch.manual_seed(0)
    target = TwoConvs(5, 4)
    source = surgery.permute(trace(target, X), seed=3)
    before = weights(target)
    assert not same(pulled(mapped(source, target), units="largest"), before)


@pytest.mark.parametrize("units", UNITS)
def test_what_has_no_counterpart_keeps_its_bits(units):
    """A wider target with a larger kernel: its other units, and the rim of its kernels."""
    torch.manual_seed(1)
    source, target = TwoConvs(2, 3, kernel=1), TwoConvs(4, 3, kernel=3)
    before = weights(target)
    now = pulled(mapped(source, target), units=units)
    rim = torch.ones(3, 3, dtype=torch.bool)
    rim[1, 1] = False
    assert torch.equal(now["one.weight"][..., rim], before["one.weight"][..., rim])
    middle = now["one.weight"][..., 1, 1] != before["one.weight"][..., 1, 1]
    assert middle.any(1).sum() == 2
    units_read = (now["two.weight"] != before["two.weight"]).any(0).flatten()
    assert torch.equal(units_read, middle.any(1))


def test_attaching_changes_nothing_and_the_pull_ends_with_its_cycle():
    torch.manual_seed(2)
    source, target = TwoConvs(5, 4), TwoConvs(3, 2)
    mapping, before = mapped(source, target), weights(target)
    random = torch.get_rng_state()
    graft = attach(AlignedPull(mapping), mapping, cycle=EARLY, total_steps=8)
    assert same(weights(target), before)
    assert torch.equal(torch.get_rng_state(), random)
    optimizer = still(target)
    graft.follow(optimizer)
    seen = []
    for _ in range(8):
        train(target, optimizer, 1)
        with graft.settled():
            seen.append(weights(target))
    assert len(graft.history) == 4
    assert not same(seen[2], seen[3])
    assert same(seen[3], seen[7])
    assert torch.equal(torch.get_rng_state(), random)
    graft.detach()
    assert same(weights(target), seen[7])
    assert same(weights(source), weights(mapping.source.model))


@pytest.mark.parametrize("units", UNITS)
def test_a_resumed_pull_goes_on_to_the_bit(units):
    """The units are those of the first attaching, whatever the weights have become since."""
    torch.manual_seed(3)
    source, target = TwoConvs(5, 4), TwoConvs(3, 2)
    twin = copy.deepcopy(target)

    def begun(model):
        mapping = mapped(source, model)
        adapter = AlignedPull(mapping, share=0.1, units=units)
        graft = attach(adapter, mapping, cycle=2, total_steps=8)
        return graft, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

    graft, optimizer = begun(target)
    graft.follow(optimizer)
    train(target, optimizer, 3)
    with graft.settled():
        saved = copy.deepcopy([m.state_dict() for m in (target, optimizer, graft)])
    train(target, optimizer, 4)
    graft.detach()

    twin.load_state_dict(saved[0])
    again, other = begun(twin)
    other.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    again.follow(other)
    train(twin, other, 4)
    again.detach()
    assert same(weights(twin), weights(target))


def test_parts_of_a_packed_weight_read_their_own_source():
    """Three heads' weights in one tensor here, apart there."""

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(4, 12, bias=False), nn.Linear(4, 3, bias=False)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.out(nn.functional.scaled_dot_product_attention(q, k, v))

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(4, 4, bias=False) for _ in range(3))
            self.out = nn.Linear(4, 3, bias=False)

        def forward(self, x):
            return self.out(
                nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
            )

    torch.manual_seed(4)
    source, target, x = Apart(), Packed(), torch.randn(2, 5, 4)
    mapping = Mapping(trace(source, x), trace(target, x))
    for name, part in (("q", "query"), ("k", "key"), ("v", "value")):
        mapping.link(name, f"qkv::{part}")
    optimizer = still(target)
    graft = attach(AlignedPull(mapping, share=1.0), mapping, cycle=1).follow(optimizer)
    target(x).sum().backward()
    optimizer.step()
    graft.detach()
    whole = torch.cat([source.q.weight, source.k.weight, source.v.weight])
    assert torch.equal(target.qkv.weight, whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 0}, "share=0 is no share of the way"),
        ({"share": 1.5}, "share=1.5 is no share of the way"),
        ({"share": "half"}, "share='half' is no share of the way"),
        ({"units": "best"}, "units='best' is not a choice"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(GraftError, match=words):
        AlignedPull(mapped(TwoConvs(), TwoConvs()), **options)


def test_it_needs_the_mapping():
    with pytest.raises(GraftError, match="takes the mapping first, not float"):
        AlignedPull(0.5)


def test_other_links_than_its_own_are_refused():
    mine, other = (mapped(TwoConvs(), TwoConvs()) for _ in range(2))
    other.link("one", "fc")
    with pytest.raises(GraftError, match="made for other links than these"):
        attach(AlignedPull(mine), other)


def test_a_link_backward_is_refused():
    mapping = Mapping(trace(TwoConvs(), X), trace(TwoConvs(), X))
    mapping.link("fc", "fc", direction="both")
    with pytest.raises(GraftError, match="links that go forward"):
        attach(AlignedPull(mapping), mapping)


def test_two_sources_of_one_target_are_refused():
    mapping = mapped(TwoConvs(4, 4), TwoConvs(4, 4)).link("one", "two")
    with pytest.raises(GraftError, match="a pull goes towards one"):
        attach(AlignedPull(mapping), mapping)


def test_weights_that_are_made_differently_are_named():
    mapping = Mapping(trace(TwoConvs(), X), trace(TwoConvs(), X)).link("one", "fc")
    with pytest.raises(GraftError, match="nothing that these links could pull towards") as said:
        attach(AlignedPull(mapping), mapping)
    assert "'one.weight' -> 'fc.weight'" in str(said.value)
