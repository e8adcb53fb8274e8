"""Which class is meant: by itself, by its number, or by the layers that make it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftlib import trace
from graftlib.errors import GraftError
from graftlib.surgery import SurgeryError, permute, preview, prune, widen


class Residual(nn.Module):
    """Two blocks on one stream: `stem`, `blocks.*.out` share a class, each `blocks.*.up` has its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(8, 12), "out": nn.Linear(12, 8)}) for _ in range(2)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block["out"](block["up"](x).relu())
        return self.head(x)


@pytest.fixture
def graph():
    return trace(Residual().eval(), torch.randn(4, 3))


def widths(model):
    return [block["up"].out_features for block in model.blocks], model.stem.out_features


def test_a_glob_means_the_classes_that_its_layers_make(graph):
    assert widths(prune(graph, {"blocks.*.up": 0.5})) == ([6, 6], 8)
    assert widths(prune(graph, {"blocks.1.up": 5})) == ([12, 5], 8)
    assert widths(widen(graph, {"blocks.0.up": 20})) == ([20, 12], 8)


def test_a_name_and_the_class_mean_the_same(graph):
    by_name = prune(graph, {"stem": [0, 3, 5]})
    by_class = prune(graph, {graph.axis_class("stem"): [0, 3, 5]})
    for one, other in zip(by_name.parameters(), by_class.parameters(), strict=True):
        assert torch.equal(one, other)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    moved = permute(graph, permutations={"blocks.0.up": order})
    x = torch.randn(4, 3)
    torch.testing.assert_close(moved(x), graph.model(x))
    assert not torch.equal(moved.blocks[0]["up"].weight, graph.model.blocks[0]["up"].weight)


def test_a_preview_says_what_each_request_hits(graph):
    """The same requests, the same errors, and nothing is edited."""
    hits = preview(graph, {"blocks.*.up": 0.5, 0: 4}).hits
    assert hits == {
        "blocks.*.up": (graph.axis_class("blocks.0.up"), graph.axis_class("blocks.1.up")),
        0: (graph.axis_class("stem"),),
    }
    assert str(preview(graph, ["blocks.*.up"])).splitlines() == [
        "blocks.*.up  2 classes",
        "  12 units of blocks.0.up.weight[0] and 2 more",
        "  12 units of blocks.1.up.weight[0] and 2 more",
    ]
    with pytest.raises(SurgeryError, match="hits no layer"):
        preview(graph, ["blocks.*.upp"])
    with pytest.raises(SurgeryError, match="another rule asks for"):
        preview(graph, ["stem", "blocks.0.out"])


EDITS = {
    "prune": lambda graph, key: prune(graph, {key: 2}),
    "permute": lambda graph, key: permute(graph, permutations={key: [1, 0]}),
    "widen": lambda graph, key: widen(graph, {key: 24}),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_every_edit_refuses_a_request_that_hits_nothing(graph, edit):
    with pytest.raises(SurgeryError, match="hits no layer") as raised:
        edit(graph, "blocks.*.upp")
    assert raised.value.near
    with pytest.raises(SurgeryError, match="no axis class 99"):
        edit(graph, 99)


def test_another_model_of_the_same_structure_is_edited(graph):
    """The graph holds its model; `model=` is for another, and one of another structure is refused."""
    other = Residual().eval()
    slim = prune(graph, {"stem": [0, 1]}, model=other)
    assert torch.equal(slim.stem.weight, other.stem.weight[:2])
    assert torch.equal(prune(graph, {"stem": [0, 1]}).stem.weight, graph.model.stem.weight[:2])
    with pytest.raises(SurgeryError, match="not the one that was traced"):
        prune(graph, {"stem": 2}, model=slim)


def test_layers_of_one_stream_are_one_class(graph):
    assert widths(prune(graph, {"blocks.*.out": 4})) == ([12, 12], 4)


def test_a_rule_that_hits_nothing_names_the_nearest(graph):
    with pytest.raises(SurgeryError, match="hits no layer") as raised:
        prune(graph, {"blocks.*.upp": 0.5})
    assert any("up" in name for name in raised.value.near)


def test_two_rules_for_one_class_are_refused(graph):
    with pytest.raises(SurgeryError, match="another rule asks for"):
        prune(graph, {"stem": 4, "blocks.0.out": 6})


def test_what_is_frozen_says_by_what(graph):
    with pytest.raises(SurgeryError, match="cannot be edited") as raised:
        prune(graph, {"head": 1})
    assert raised.value.why == "their order is frozen by the output"


def test_a_pattern_that_is_not_well_formed_is_refused(graph):
    with pytest.raises(GraftError):
        prune(graph, {"re:(": 0.5})
