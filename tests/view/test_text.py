"""Text and DOT show the same scene, and names drive neither terminal nor Graphviz."""

import json
import re

from graftlib.view import view


def pair(standin, name='<b>\x1b[31m"\\N'):
    source = standin.by_hand("S", {f"m.{name}": {"weight": (2, 3)}, "out": {}})
    target = standin.by_hand("T", {f"block.{i}.fc": {"weight": (4, 4)} for i in range(3)})
    return view(
        source,
        target,
        standin.Mapping(source, target, (standin.Pair(source.held[0], target.held[1], "both"),)),
    )


def test_text_names_trees_folds_and_links(standin):
    text = pair(standin).to_text()
    assert "S: 2 layers, 6 parameters" in text
    assert "×3" in text
    assert "<-> block.1.fc.weight (4, 4)  linear" in text
    assert "\x1b" not in text
    assert str(pair(standin)) == text


def test_dot_quotes_every_name(standin):
    dot = pair(standin).to_dot()
    assert dot.count("{") == dot.count("}")
    assert "dir=both" in dot
    assert len(re.findall(r"n\d+_\d+ \[label=", dot)) == 5
    assert r'label="<b> [31m\"\\N' in dot
    assert "=<" not in dot  # no HTML label


def test_a_mapping_inside_one_model_is_drawn_once(standin):
    graph = standin.by_hand("M", {"a": {"weight": (2, 2)}, "b": {"weight": (2, 2)}})
    shown = view(graph, graph, standin.Mapping(graph, graph, (standin.Pair(*graph.held),)))
    assert len(shown.scene.trees) == 1
    assert shown.scene.links[0].source == (0, 1)
    assert shown.scene.links[0].target == (0, 2)


def test_mermaid_draws_what_the_page_opens_with(standin):
    text = pair(standin).to_mermaid()
    assert text.startswith("flowchart TB\n")
    assert text.count("subgraph") == text.count("  end\n")
    assert "×3" in text
    assert "<-.->" in text
    assert "#60;b#62;" in text  # the name's markup as entities
    assert not set("<\x1b") & set(text.replace("<-", ""))


def test_model_explorer_gets_every_layer_edge_and_link(standin):
    shown = pair(standin, name='a/b"<i>')
    (collection,) = json.loads(shown.to_model_explorer())
    source, target = collection["graphs"]
    assert [source["id"], target["id"]] == ["source: S", "target: T"]
    assert [node["namespace"] for node in source["nodes"]] == ['m/a∕b"<i>', "out"]
    assert [node["namespace"] for node in target["nodes"]] == [f"block/{i}/fc" for i in range(3)]
    ids = {node["id"] for node in target["nodes"]}
    edges = [edge for node in target["nodes"] for edge in node["incomingEdges"]]
    assert len(edges) == 2
    assert {edge["sourceNodeId"] for edge in edges} <= ids
    attributes = {each["key"]: each["value"] for each in target["nodes"][1]["attrs"]}
    assert attributes["block.1.fc.weight"] == 'exchanges with m.a/b"<i>.weight'
