"""A scene as the JSON that Google's Model Explorer opens: one graph a model, modules as namespaces.

In: a `Scene`. Out: a graph collection (https://github.com/google-ai-edge/model-explorer, ``input_graph.ts``). Links
have no place in it: they stand in the attributes of the layers that they join.
"""

from __future__ import annotations

import json
from typing import Any

from .data import shape_text
from .scene import Scene
from .tree import Node, Tree

__all__ = ["scene_to_model_explorer"]

VERBS = {
    "forward": ("writes", "is written by"),
    "backward": ("is written by", "writes"),
    "both": ("exchanges with", "exchanges with"),
}


def scene_to_model_explorer(scene: Scene) -> str:
    """The whole scene; no fold is kept, as Model Explorer finds repeated layers itself."""
    graphs = [_graph(scene, place, tree) for place, tree in enumerate(scene.trees)]
    return json.dumps([{"label": scene.title, "graphs": graphs}], indent=1)


def _graph(scene: Scene, place: int, tree: Tree) -> dict[str, Any]:
    attributes: dict[int, list[dict[str, str]]] = {}
    for link in scene.links:
        ends = ((link.source, link.source_address), (link.target, link.target_address))
        for side, ((graph, node), mine) in enumerate(ends):
            if graph == place:
                verb = VERBS.get(link.direction, VERBS["forward"])[side]
                entry = {"key": mine, "value": f"{verb} {ends[1 - side][1]}"}
                attributes.setdefault(node, []).append(entry)
    incoming: dict[int, list[dict[str, str]]] = {}
    outputs: dict[int, list[str]] = {}
    for u, v, shape in tree.edges:
        # An output is told from another by its shape: a layer's edges say no more.
        shapes = outputs.setdefault(u, [])
        text = shape_text(shape)
        if text not in shapes:
            shapes.append(text)
        edges = incoming.setdefault(v, [])
        edges.append(
            {
                "sourceNodeId": str(u),
                "sourceNodeOutputId": str(shapes.index(text)),
                "targetNodeInputId": str(len(edges)),
            }
        )
    nodes = [
        {
            "id": str(i),
            "label": node.kind or node.label,
            "namespace": _namespace(tree, node),
            "attrs": _attributes(tree, node) + attributes.get(i, []),
            "incomingEdges": incoming.get(i, []),
            "outputsMetadata": [
                {"id": str(number), "attrs": [{"key": "shape", "value": text}]}
                for number, text in enumerate(outputs.get(i, []))
            ],
        }
        for i, node in enumerate(tree.nodes)
        if node.form == "layer"
    ]
    # The first graph is opened; two models of one class need two names.
    name = ("source: ", "target: ")[place] if len(scene.trees) > 1 else ""
    return {"id": name + tree.name, "nodes": nodes}


def _attributes(tree: Tree, node: Node) -> list[dict[str, str]]:
    parameters = [tree.parameters[i] for i in node.parameters]
    rows = [("name", node.path), ("in", "; ".join(map(shape_text, node.in_shapes)))]
    rows += [("out", "; ".join(map(shape_text, node.out_shapes)))]
    rows += [(each.address, f"{shape_text(each.shape)}, {each.kind}") for each in parameters]
    return [{"key": key, "value": value} for key, value in rows if value]


def _namespace(tree: Tree, node: Node) -> str:
    """The modules around the node, outermost first, with a slash between; a layer with a name of its own among them.

    A slash in a name would begin another module.
    """
    names = [node.label] if node.kind and node.label != node.kind else []
    up = node.parent
    while up > 0:
        if tree.nodes[up].form == "module":
            names.append(tree.nodes[up].label)
        up = tree.nodes[up].parent
    return "/".join(name.replace("/", "\N{DIVISION SLASH}") for name in reversed(names))
