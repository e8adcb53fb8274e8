"""Wrong arguments are refused by name, at once, whatever their type; nothing is attached and nothing is written."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib import GraftError, attach
from graftlib.graft import AdapterOptimizer, TransferCycle
from graftlib.graft.registry import grafts_of
from graftlib_adapters import MergeNet

NAN, INF = math.nan, math.inf
NO_NUMBERS = ["x", b"x", [], {}, (1,), 1j, torch.ones(()), Fraction(1, 2), object()]
WRONG_FOR_THE_OPTIMIZER = {
    "lr": [-1, NAN, INF, 10**400, None, True, *NO_NUMBERS],
    "weight_decay": [-1e-9, NAN, INF, None, True, *NO_NUMBERS],
    "clip": [-1, 0, 0.0, NAN, -INF, None, True, *NO_NUMBERS],
}
WRONG = {
    "optimizer": [3, "x", {}, True],
    "seed": [2**70, -(2**70), 1.0, None, True, *NO_NUMBERS],
    "nan_limit": [0, -1, 1.5, 10**30, None, True, *NO_NUMBERS],
    "total_steps": [0, -5, 1.5, 10**30, True, *NO_NUMBERS],
    "deterministic": [0, 1, "yes", []],
    "cycle": [0, -1, 1.5, None, True, "x", [4], torch.ones(())],
    "record": [-1, 1.5, None, "x"],
    "verify_every": [-1, 1.5, None, "x"],
    "sync": ["", "verifi", None, 3, ["verify"]],
}


@pytest.mark.parametrize("name", WRONG_FOR_THE_OPTIMIZER)
def test_a_wrong_option_of_the_adapters_optimizer_is_named(name):
    for value in WRONG_FOR_THE_OPTIMIZER[name]:
        with pytest.raises(GraftError, match=name):
            AdapterOptimizer(**{name: value})


def test_the_models_optimizer_is_not_taken_for_the_adapters(world, nudge):
    optimizer = torch.optim.SGD(world.target.parameters(), lr=0.1)
    with pytest.raises(GraftError, match="takes an AdapterOptimizer, not SGD"):
        attach(nudge(), world.mapping, optimizer=optimizer)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option_of_attach_is_named(world, nudge, name):
    said = "every" if name == "cycle" else name
    for value in WRONG[name]:
        with pytest.raises(GraftError, match=said):
            attach(nudge(), world.mapping, **{name: value})
    assert not grafts_of(world.target)


def test_the_right_options_are_taken(world, nudge):
    """The negative control, with the values at the edges."""
    optimizer = AdapterOptimizer(lr=0, weight_decay=0, clip=INF)
    edges = {"optimizer": optimizer, "seed": -(2**63), "nan_limit": 1, "record": True}
    attach(nudge(), world.mapping, total_steps=2**53, **edges).detach()


@pytest.mark.parametrize("wrong", [None, 3, "x", [], object()])
def test_a_wrong_mapping_or_adapter_is_named(world, nudge, wrong):
    with pytest.raises(GraftError, match="takes a Mapping second"):
        attach(nudge(), wrong)
    with pytest.raises(GraftError, match="takes an Adapter first"):
        attach(wrong, world.mapping)
    with pytest.raises(GraftError, match="closure="):
        attach(nudge(), world.mapping).follow(
            torch.optim.SGD(world.target.parameters(), lr=0.1), closure=wrong
        )


@pytest.mark.parametrize("rank", [0, -1, 10**9, 1.5, True, "x"])
def test_an_adapter_with_a_wrong_rank_is_named(world, nudge, monkeypatch, rank):
    monkeypatch.setattr(nudge, "rank", lambda self, matrix, limit: rank)
    with pytest.raises(GraftError, match="rank returned"):
        attach(nudge(), world.mapping)


def test_an_adapter_that_writes_otherwise_or_builds_nothing_is_named(world, nudge, monkeypatch):
    with pytest.raises(GraftError, match=r"write.*scribble"):
        attach(nudge(write="scribble"), world.mapping)
    monkeypatch.setattr(nudge, "build", lambda self, matrices, links: None)
    with pytest.raises(GraftError, match=r"not an nn\.Module"):
        attach(nudge(), world.mapping)


@pytest.mark.parametrize("edge", [NAN, INF, -INF, -0.1, 1.1, -1, True, "x", [], None])
@pytest.mark.parametrize("name", ["start", "stop"])
def test_an_edge_of_a_cycle_that_is_none_is_named(name, edge):
    if name == "stop" and edge is None:
        return
    with pytest.raises(GraftError, match=name):
        TransferCycle(4, **{name: edge})


edges = st.one_of(st.integers(0, 30), st.floats(0, 1))


@given(
    st.integers(1, 7),
    st.integers(0, 9),
    edges,
    st.one_of(st.none(), edges),
    st.integers(1, 40),
    st.integers(0, 45),
    st.integers(0, 45),
)
def test_transfers_are_counted_without_going_through_the_steps(
    every, offset, start, stop, total, first, end
):
    try:
        cycle = TransferCycle(every, offset, start, stop)
    except GraftError:
        return
    expected = sum(cycle.transfers(t, total) for t in range(first, end))
    assert cycle.between(first, end, total) == expected
    assert cycle.count(total) == sum(cycle.transfers(t, total) for t in range(total))


def test_a_training_of_any_length_is_attached_at_once(world):
    attach(MergeNet(), world.mapping, cycle=TransferCycle(2, stop=0.5), total_steps=2**53).detach()
