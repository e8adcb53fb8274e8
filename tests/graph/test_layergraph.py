"""What a `LayerGraph` answers, prints and writes."""

import json

import networkx as nx
import pytest
import torch
from torch import nn

from graftlib import GraftError
from graftlib.errors import MatchError, ViewError
from graftlib.graph import LayerGraph, trace

from . import traps


@pytest.fixture(scope="module")
def graph():
    return trace(traps.Fused("interleaved"), torch.empty(2, 5, 12))


def test_parameters_are_chosen_by_pattern_kind_and_role(graph):
    assert [p.fqn for p in graph.parameters()] == [
        "qkv.weight",
        "qkv.bias",
        "proj.weight",
        "proj.bias",
    ]
    assert [p.fqn for p in graph.parameters("qkv")] == ["qkv.weight"]
    assert [p.fqn for p in graph.parameters(kind="bias")] == ["qkv.bias", "proj.bias"]
    assert [p.fqn for p in graph.parameters(role="attention.output")] == ["proj.weight"]
    assert graph.parameters("nothing.*") == []
    (value,) = graph.parameters("{m}.weight::value", kind="linear", role="attention.value")
    assert value.address == "qkv.weight::value"
    with pytest.raises(ViewError, match=r"'proj.weight' .* has no part 'value'"):
        graph.parameters("proj.*::value")


def test_an_address_is_exact(graph):
    assert graph.parameter("qkv").fqn == "qkv.weight"
    assert graph.parameter("qkv.weight::query.head[2]").selection.units == (18, 19, 20)
    with pytest.raises(MatchError, match=r"no parameter 'qkw\.weight'") as error:
        graph.parameter("qkw.weight")
    assert error.value.near[0] == "'qkv.weight'"
    with pytest.raises(ViewError):
        graph.parameter("proj.weight::query")
    with pytest.raises(MatchError):
        graph.parameter("qkv.*")


def test_tensors_are_the_live_ones(graph):
    assert graph.tensor("proj.weight") is graph.model.proj.weight
    assert graph.tensor("qkv.weight::value") is graph.model.qkv.weight


def test_json_is_versioned_and_the_same_for_the_same_graph(graph):
    text = graph.to_json()
    assert text == trace(traps.Fused("interleaved"), torch.empty(2, 5, 12)).to_json()
    document = json.loads(text)
    assert (document["format"], document["version"]) == ("graftlib.layergraph", 1)
    assert [layer["name"] for layer in document["layers"]] == [layer.name for layer in graph.layers]
    assert len(document["edges"]) == graph.nx.number_of_edges()
    assert document["parameters"][0]["parts"]["query"]["heads"] == 4


def test_graphml_round_trips(graph, tmp_path):
    path = tmp_path / "graph.graphml"
    graph.to_graphml(path)
    read = nx.read_graphml(path, force_multigraph=True)
    assert set(read.nodes) == {layer.name for layer in graph.layers}
    assert read.number_of_edges() == graph.nx.number_of_edges()
    assert read.nodes["qkv"]["kind"] == "Linear"
    assert [p.name for p in tmp_path.iterdir()] == ["graph.graphml"]


def test_a_failed_write_leaves_what_was_there(graph, tmp_path, monkeypatch):
    path = tmp_path / "graph.graphml"
    path.write_text("before")

    def fail(*args):
        raise OSError(28, "disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(GraftError, match="disk full"):
        graph.to_graphml(path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["graph.graphml"]


def test_names_in_a_model_are_untrusted(tmp_path):
    model = nn.Sequential()
    model.add_module("<script>\x1b[31m\x00\n]]>&", nn.Linear(3, 3))
    graph = trace(model, torch.empty(1, 3))
    assert "\x1b" not in str(graph)
    assert "\x00" not in graph.to_json()
    graph.to_graphml(tmp_path / "graph.graphml")
    assert len(nx.read_graphml(tmp_path / "graph.graphml")) == 1


def test_the_report_is_a_table(graph):
    lines = str(graph).splitlines()
    counts = "624 elements, 6,960 MACs"
    assert lines[0] == f"Fused: 3 layers, 4 parameters, {counts} (seen by the 'meta' tracer)"
    assert lines[1] == "inputs   x 2x5x12"
    assert lines[3].split() == [
        "layer",
        "kind",
        "calls",
        "in",
        "out",
        "parameters",
        "MACs",
        "depth",
    ]
    assert lines[4].split() == ["qkv", "Linear", "1", "2x5x12", "2x5x36", "468", "4,320", "0.00"]


def test_a_long_report_says_how_much_it_leaves_out():
    graph = trace(nn.Sequential(*[nn.Linear(2, 2) for _ in range(70)]), torch.empty(1, 2))
    lines = str(graph).splitlines()
    assert len(lines) == 3 + 1 + 60 + 1
    assert lines[-1] == "... and 10 more"
    assert len(graph.summary().splitlines()) == 3 + 1 + 70
    assert len(graph.summary(rows=2).splitlines()) == 3 + 1 + 2 + 1


def test_a_layer_graph_holds_its_model_by_reference(graph):
    assert isinstance(graph, LayerGraph)
    assert isinstance(graph.model, traps.Fused)
    assert repr(graph) == "<LayerGraph of Fused: 3 layers, 4 parameters>"
