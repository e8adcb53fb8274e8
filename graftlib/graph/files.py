"""A `LayerGraph` as JSON text and as a GraphML file. Weights are never written."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from typing import Any

import networkx as nx

from ..disk import write_whole
from .parameter import Parameter, Part
from .traced import TracedGraph

__all__ = ["FORMAT", "VERSION", "as_json", "write_graphml"]

FORMAT = "graftlib.layergraph"
VERSION = 1


def as_json(graph: TracedGraph) -> str:
    """The whole graph: layers, edges and parameters; no weights, and nothing of the example's evidence but shapes."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "name": graph.name,
        "tracer": graph.tracer,
        "real": graph.real,
        "answers": graph.answers,
        "inputs": [{"name": name, "shape": shape} for name, shape in graph.inputs.items()],
        "outputs": [{"shape": shape} for shape in graph.outputs],
        "layers": [
            {
                "name": layer.name,
                "fqn": layer.fqn,
                "kind": layer.kind,
                "parameters": layer.parameters,
                "in_shapes": layer.in_shapes,
                "out_shapes": layer.out_shapes,
                "calls": layer.calls,
                "depth": layer.depth,
            }
            for layer in graph.layers
        ],
        "edges": [
            {
                "source": source,
                "target": target,
                "tensor": key,
                "shape": edge["shape"],
                "dtype": _dtype(edge["dtype"]),
            }
            for source, target, key, edge in graph.nx.edges(keys=True, data=True)
        ],
        "parameters": [_parameter(parameter) for parameter in graph.parameters()],
    }
    return json.dumps(document, indent=1, ensure_ascii=True)


def write_graphml(graph: TracedGraph, path: str | os.PathLike[str]) -> None:
    """Write the layers and the tensors between them; see `LayerGraph.to_graphml`."""
    plain: nx.MultiDiGraph[str] = nx.MultiDiGraph(name=_xml(graph.name))
    for layer in graph.layers:
        plain.add_node(
            _xml(layer.name),
            fqn=_xml(layer.fqn),
            kind=_xml(layer.kind),
            parameters=_xml(" ".join(layer.parameters)),
            in_shapes=_shapes(layer.in_shapes),
            out_shapes=_shapes(layer.out_shapes),
            calls=layer.calls,
            **({} if layer.depth is None else {"depth": layer.depth}),
        )
    for source, target, key, edge in graph.nx.edges(keys=True, data=True):
        shape, dtype = _shapes([edge["shape"]]), _dtype(edge["dtype"])
        plain.add_edge(_xml(source), _xml(target), key=key, shape=shape, dtype=dtype)
    text = io.BytesIO()
    nx.write_graphml_xml(plain, text)
    write_whole(path, text.getvalue())


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "fqn": parameter.fqn,
        "shape": parameter.shape,
        "dtype": _dtype(parameter.dtype),
        "kind": parameter.kind,
        "role": parameter.role,
        "layer": parameter.layer,
        "depth": parameter.depth,
        "axes": parameter.axes,
        "tied_to": parameter.tied_to,
        "groups": parameter.groups,
        "heads": parameter.heads,
        "parts": {name: _part(part) for name, part in parameter.parts.items()},
    }


def _part(part: Part) -> dict[str, Any]:
    units: Any = part.units
    if isinstance(units, range):
        units = {"start": units.start, "stop": units.stop}
    return {"axis": part.axis, "units": units, "heads": part.heads, "role": part.role}


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return " ".join("x".join(map(str, shape)) or "()" for shape in shapes)


def _xml(text: str) -> str:
    """XML has no way to write control characters; names in a model are untrusted."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
