"""Scenes of real graphs, mappings and grafts."""

import networkx as nx
import torch
from torch import nn

from graftlib.graph import trace
from graftlib.match import Mapping
from graftlib.view import view


class Block(nn.Module):
    """Computes something itself, between two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


def blocks(count):
    return nn.Sequential(*(Block() for _ in range(count)), nn.Linear(4, 2))


def test_a_traced_model_folds_its_blocks_with_their_own_operations_inside():
    (tree,) = view(trace(blocks(3), (torch.randn(2, 4),))).scene.trees
    assert [node.repeats for node in tree.nodes if node.form == "fold"] == [3]
    own = [node for node in tree.nodes if node.form == "layer" and not node.parameters]
    assert {tree.nodes[node.parent].kind for node in own} == {"Block"}


def test_a_mapping_of_traced_models_ends_at_the_layers_that_read():
    x = torch.randn(2, 4)
    mapping = Mapping(trace(blocks(2), (x,)), trace(blocks(3), (x,))).link(
        "1.a", "2.b", direction="both"
    )
    (link,) = view(mapping).scene.links
    first, second = view(mapping).scene.trees
    assert first.nodes[link.source[1]].path == "1.a"
    assert second.nodes[link.target[1]].path == "2.b"
    assert link.kind == "linear"
    assert link.direction == "both"


def test_a_joined_graph_shows_who_writes_whom(standin):
    source, target = (standin.by_hand(name, {"l": {"weight": (2, 2)}}) for name in "ST")
    joined = nx.MultiDiGraph()
    joined.add_node("adapter:0", link="first")
    joined.add_edge("target:l", "adapter:0", parameter="l.weight")  # it reads target and source...
    joined.add_edge("source:l", "adapter:0", parameter="l.weight")
    joined.add_edge("adapter:0", "source:l", parameter="l.weight")  # ...and writes the source

    class Joined:
        adapters = ("adapter:0",)

    grafted = Joined()
    grafted.source, grafted.target, grafted.nx = source, target, joined
    (link,) = view(grafted).scene.links
    assert link.source == (0, 1)
    assert link.target == (1, 1)
    assert link.direction == "backward"
    assert link.rule == "first"
