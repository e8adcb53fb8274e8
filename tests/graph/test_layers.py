"""Ops become layers; what flows between them are edges; depth follows weights."""

import networkx as nx
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graftlib.graph import trace

from . import traps


class Branches(nn.Module):
    """Functional ops before, between and after children; one activation module called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = x.tanh().neg()
        y = self.act(self.a(x))
        y = y * self.scale
        return self.act(self.b(y)) + x


def test_runs_and_their_names():
    graph = trace(Branches(), torch.empty(2, 4))
    assert [(layer.name, layer.kind) for layer in graph.layers] == [
        ("(root)", "tanh+neg"),
        ("a", "Linear"),
        ("act", "ReLU"),
        ("(root)#2", "mul"),
        ("b", "Linear"),
        ("act#2", "ReLU"),
        ("(root)#3", "add"),
    ]
    layers = {layer.name: layer for layer in graph.layers}
    assert layers["a"].parameters == ("a.weight", "a.bias")
    assert layers["(root)#2"].parameters == ("scale",)
    assert layers["(root)#3"].in_shapes == ((2, 4), (2, 4))
    assert [*graph.nx.edges(keys=False)] == [
        ("(root)", "a"),
        ("(root)", "(root)#3"),
        ("a", "act"),
        ("act", "(root)#2"),
        ("(root)#2", "b"),
        ("b", "act#2"),
        ("act#2", "(root)#3"),
    ]


def test_a_module_with_weights_is_one_layer_however_often_it_runs():
    graph = trace(traps.ReusedConv(), torch.empty(1, 3, 5, 5))
    assert [(layer.name, layer.calls) for layer in graph.layers] == [
        ("conv", 3),
        ("act", 1),
        ("act#2", 1),
        ("act#3", 1),
    ]


def test_every_op_has_a_layer_and_a_module():
    graph = trace(torchvision.models.resnet18(), torch.empty(1, 3, 32, 32))
    names = {layer.name for layer in graph.layers}
    modules = dict(graph.model.named_modules())
    for node in graph.fx.nodes:
        if node.op == "call_function":
            assert node.meta["layer"] in names
            assert node.meta["module"] in modules
        if node.op == "get_attr":
            assert node.meta["layer"] == next(iter(node.users)).meta["layer"]
        if node.op in ("placeholder", "output"):
            assert node.meta["layer"] is None


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "densenet121"])
def test_contraction_makes_no_cycle(name):
    graph = trace(torchvision.models.get_model(name), torch.empty(1, 3, 64, 64))
    assert nx.is_directed_acyclic_graph(graph.nx)
    order = [layer.name for layer in graph.layers]
    assert all(order.index(a) < order.index(b) for a, b in graph.nx.edges())
    edge = next(iter(graph.nx.edges(data=True)))[2]
    assert edge["dtype"] is torch.float32


@settings(max_examples=15)
@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_depth_counts_weights_and_nothing_else(weighted):
    modules = [nn.Linear(3, 3) if w else nn.Tanh() for w in weighted]
    graph = trace(nn.Sequential(*modules), torch.empty(1, 3))
    depths = [p.depth for p in graph.parameters("*.weight")]
    n = sum(weighted)
    expected = [i / (n - 1) if n > 1 else 0.0 for i in range(n)]
    assert depths == pytest.approx(expected)
    assert [layer.depth is None for layer in graph.layers] == [n == 0] * len(weighted)


def test_depth_is_the_longest_chain():
    graph = trace(torchvision.models.resnet18(), torch.empty(1, 3, 32, 32))
    depth = {p.fqn: p.depth for p in graph.parameters("*.weight")}
    assert depth["conv1.weight"] == 0.0
    assert depth["fc.weight"] == 1.0
    assert depth["layer2.0.conv1.weight"] == depth["layer2.0.downsample.0.weight"]
    assert depth["bn1.weight"] == depth["conv1.weight"]


class Skip(nn.Module):
    """As in a U-Net: what leaves the relu is pooled, and read again beside what comes back."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        skip = self.down(x).relu()
        y = nn.functional.interpolate(self.up(nn.functional.max_pool2d(skip, 2)), scale_factor=2.0)
        return torch.cat([skip, y], 1).tanh()


def test_a_branch_leaves_the_op_that_made_it():
    graph = trace(Skip(), torch.empty(1, 2, 4, 4))
    kinds = {layer.name: layer.kind for layer in graph.layers}
    edges = {(kinds[a], kinds[b]) for a, b in graph.nx.edges()}
    assert ("relu", "max_pool2d") in edges
    skips = [(a, b) for a, b in edges if a == "relu" and b != "max_pool2d"]
    # What nobody else reads stays one layer, and where the skip comes back is in its name.
    assert skips == [("relu", "upsample_nearest2d+cat+tanh")]
