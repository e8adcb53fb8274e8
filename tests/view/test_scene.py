"""Scenes of real graphs, mappings and grafts."""

import networkx as nx
import pytest
import torch
from torch import nn

from graftlib.errors import GraftError
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


def test_a_graph_and_a_mapping_show_themselves_in_a_notebook():
    graph = trace(blocks(2), (torch.randn(2, 4),))
    assert graph._repr_html_() == view(graph)._repr_html_()
    mapping = Mapping(graph, trace(blocks(3), (torch.randn(2, 4),)))
    assert mapping._repr_html_() == view(mapping)._repr_html_()


def test_axis_classes_are_part_of_the_scene():
    (tree,) = view(trace(blocks(1), (torch.randn(2, 4),))).scene.trees
    free = [each for each in tree.classes if each.frozen_by is None]
    assert [each.size for each in free] == [4]
    fqns = {(tree.parameters[place].fqn, axis) for place, axis in free[0].members}
    assert fqns == {("0.a.weight", 0), ("0.a.bias", 0), ("0.b.weight", 1)}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"overlay": {"nowhere": 1}}, "names 'nowhere'"),
        ({"overlay": {"0": float("nan")}}, "no finite number"),
        ({"overlay": [("0", 1)]}, "name -> number"),
        ({"theme": "pink"}, "theme='pink'"),
        ({"height": 0}, "height=0"),
        ({"diff": True}, "there is one"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments, says):
    graph = trace(blocks(1), (torch.randn(2, 4),))
    with pytest.raises(GraftError, match=says):
        view(graph, **arguments)


def test_an_overlay_may_name_one_side_and_levels_may_be_opened():
    first, second = (trace(blocks(2), (torch.randn(2, 4),)) for _ in range(2))
    (overlay,) = view(first, second, overlay={"source:1": 2, "target:0.a.weight": 3}).scene.overlays
    assert [(g, value) for (g, _), value in overlay.values] == [(0, 2.0), (1, 3.0)]
    opened = lambda depth: sum(node.open for node in view(first, depth=depth).scene.trees[0].nodes)  # noqa: E731
    assert opened(1) < opened(2) < opened(3)


def test_show_writes_a_page_and_opens_it(monkeypatch):
    asked = []
    monkeypatch.setattr("webbrowser.open", asked.append)
    path = view(trace(blocks(1), (torch.randn(2, 4),))).show()
    assert asked == [path.as_uri()]
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
