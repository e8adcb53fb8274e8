"""Costs are those of the tensors and of torch's own counter, before and after a prune."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from graftlib import surgery, trace
from graftlib.slim.costs import Polynomial, costs_of
from graftlib.surgery.fit import ties
from graftlib.surgery.whole_model import outer_classes

from . import nets

MODELS = pytest.mark.parametrize(
    "kind",
    [nets.Conv, nets.GroupedHeads, nets.Packed, nets.Recurrent, nets.Residual, nets.Written],
    ids=lambda kind: kind.__name__,
)


def counted(model, x) -> dict[str, int]:
    """By torch: the model on the meta device, so that no kernel of the CPU hides its products."""
    model, x = model.to("meta"), x.to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    state = {id(t): t for t in model.state_dict(keep_vars=True).values()}
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": counter.get_total_flops() // 2,
        "bytes": sum(t.numel() * t.element_size() for t in state.values()),
    }


def of_graph(graph) -> dict[str, int]:
    costs = costs_of(graph).at()
    return {name: costs[name] for name in ("params", "macs", "bytes")}


@MODELS
def test_the_costs_are_those_of_torch(kind):
    model, x = nets.made(kind)
    assert of_graph(trace(model, x)) == counted(model, x)


@MODELS
@settings(max_examples=3)
@given(st.data())
def test_and_after_a_prune_without_building_it(kind, data):
    model, x = nets.made(kind)
    graph = trace(model, x)
    costs = costs_of(graph)
    each = data.draw(
        st.sampled_from(
            [
                c
                for group in ties(model, graph, outer_classes(graph))
                for c in group
                if len(group) == 1
            ]
        )
    )
    count = data.draw(st.integers(1, each.size))
    foretold = costs.at({each: count})
    pruned = surgery.prune(graph, {each: count})
    again = trace(pruned, x)
    assert foretold == costs_of(again).at()
    assert {name: foretold[name] for name in ("params", "macs", "bytes")} == counted(pruned, x)


def test_a_cost_that_forgets_a_factor_is_seen():
    """The law above can fail: sizes that are not told change the answer."""
    model, x = nets.made(nets.Conv)
    graph = trace(model, x)
    each = outer_classes(graph)[0]
    assert costs_of(graph).at({each: each.size - 1})["macs"] < counted(model, x)["macs"]


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 64), ("mobilenet_v2", 64), ("vit_b_16", 224)]
)
def test_costs_of_torchvision_on_meta(name, size):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model, x = torchvision.models.get_model(name).eval(), torch.zeros(1, 3, size, size)
    assert of_graph(trace(model, x)) == counted(model, x)


def test_activations_are_what_the_ops_make():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2))
    graph = trace(model, torch.zeros(1, 3, 2, 2))
    assert costs_of(graph).at()["activations"] == 4 * (4 * 2 * 2 + 2)


@given(st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_polynomials_compute_as_numbers_do(sizes):
    x, y, z = (Polynomial.of(i) for i in range(3))
    a, b, c = sizes
    assert ((x + y * 2) * (z + 1) * x)(sizes) == (a + 2 * b) * (c + 1) * a


@MODELS
def test_the_summary_of_a_graph_adds_up_to_the_same_macs(kind):
    graph = trace(*nets.made(kind))
    words = graph.summary().splitlines()[0]
    assert f"{costs_of(graph).at()['macs']:,} MACs" in words
