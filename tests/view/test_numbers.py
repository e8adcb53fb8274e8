"""Overlays of what the library knows agree with where it is known from."""

import pytest
import torch
from torch import nn

import graftlib
from graftlib import GraftError, Mapping, trace
from graftlib.graph import outline
from graftlib.slim import latency_of
from graftlib.surgery import ranking
from graftlib.view import view
from graftlib_adapters import MergeNet


class Net(nn.Module):
    """A convolution that may be permuted on one side, and a norm."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x))))


def graph():
    torch.manual_seed(0)
    return trace(Net(), torch.zeros(1, 3, 6, 6))


def overlays(*arguments, **options):
    """Title -> path of the layer -> number, of the first model."""
    scene = view(*arguments, **options).scene
    return {
        each.name: {scene.trees[g].nodes[i].path: number for (g, i), number in each.values if not g}
        for each in scene.overlays
    }


def test_what_is_counted_is_asked_for_by_name():
    found = overlays(graph(), overlay=["macs", "parameters", "freedom"])
    assert [*found] == ["MACs", "parameters", "freedom"]
    assert found["MACs"]["a"] == 16 * 6 * 3 * 9  # 4 by 4 places
    assert found["MACs"]["b"] == 16 * 2 * 6
    assert found["parameters"] == {"a": 6 * 3 * 9 + 6, "norm": 12, "b": 2 * 6 + 2}
    assert found["freedom"] == {"a": 0.5, "b": 0.5}  # the inputs and the outputs are fixed
    assert [*overlays(graph(), graph(), overlay="macs")] == ["MACs"]


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(GraftError, match="'mac'") as refused:
        view(graph(), overlay="mac")
    assert refused.value.near == ("'macs'",)
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(GraftError, match="was not"):
        view(outline(model, torch.zeros(1, 2)), overlay="macs")


def test_importances_and_weights_bring_their_own():
    traced = graph()
    rank = ranking("magnitude", traced, traced.model)
    mean = pytest.approx(float(torch.as_tensor(rank(traced.axis_class("a"))).mean()))
    assert overlays(traced, importance=rank)["importance"] == {"a": mean, "norm": mean, "b": mean}
    with torch.no_grad():
        traced.model.b.weight[0] = 0.0
    found = overlays(traced, weights=True)
    std = traced.model.a.weight.detach().double().std(correction=0)
    assert found["standard deviation of weights"]["a"] >= float(std) * 0.9999
    assert found["share of zeros"]["b"] == 0.5
    assert found["share of zeros"]["a"] == 0.0


def test_the_time_of_each_layer_is_an_overlay():
    traced = graph()
    latency = latency_of(traced)
    own = sum(ms for layer, _, _, ms in latency.ops if layer == "a")
    assert overlays(traced, overlay=latency.overlay)["latency in ms"]["a"] == pytest.approx(own)


def test_a_graft_shows_what_its_last_transfer_did():
    source, target = (trace(nn.Sequential(nn.Linear(4, 4)), torch.zeros(1, 4)) for _ in range(2))
    graft = graftlib.attach(
        MergeNet(rank=2), Mapping(source, target).link("0.weight", "0.weight"), cycle=1
    )
    optimizer = torch.optim.SGD(target.model.parameters(), 0.1)
    for _ in range(2):
        with graft.step():
            optimizer.zero_grad()
            target.model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
    scene = view(graft).scene
    (last,) = graft.history[-1].changes.values()
    values = {each.name: [number for _, number in each.values] for each in scene.overlays}
    assert values["size of the last transfer"] == [last.size]
    (omega,) = graft.history[-1].facts.values()
    assert [values[f"adapter: {name}"] for name in graft.fact_names] == [[each] for each in omega]
    assert omega
