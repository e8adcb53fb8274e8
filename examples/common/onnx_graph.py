"""An ONNX graph as plain data, for comparing two exports node for node.

In: a path or a loaded model. Out: a list of rows that is equal for two files exactly when their graphs are: inputs,
outputs, initialisers with the hashes of their bytes, nodes with attributes, in order. Metadata and doc strings are
left out.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx
from onnx import helper, numpy_helper

__all__ = ["onnx_graph_signature"]


def onnx_graph_signature(path_or_model: str | Path | Any) -> list[tuple[Any, ...]]:
    """The signature of an ONNX model.

    Args:
        path_or_model: a file, or an ``onnx.ModelProto``.

    Returns:
        Rows ``("opset", domain, version)``, ``("input" | "output", name, element type, shape)``,
        ``("initializer", name, element type, shape, sha256)`` and
        ``("node", domain, op, inputs, outputs, attributes)``; function bodies follow the graph's nodes.
    """
    loads = isinstance(path_or_model, str | Path)
    model: Any = onnx.load(str(path_or_model)) if loads else path_or_model
    rows: list[tuple[Any, ...]] = [("opset", o.domain, o.version) for o in model.opset_import]
    rows += _graph_rows(model.graph)
    for function in model.functions:
        rows.append(("function", function.domain, function.name, tuple(function.input)))
        rows += [_node_row(node) for node in function.node]
    return rows


def _graph_rows(graph: Any) -> list[tuple[Any, ...]]:
    rows = [("input", *_value(value)) for value in graph.input]
    rows += [("output", *_value(value)) for value in graph.output]
    rows += [("initializer", *_tensor(tensor)) for tensor in graph.initializer]
    return rows + [_node_row(node) for node in graph.node]


def _node_row(node: Any) -> tuple[Any, ...]:
    attributes = tuple(
        (a.name, _attribute(a)) for a in sorted(node.attribute, key=lambda a: a.name)
    )
    return ("node", node.domain, node.op_type, tuple(node.input), tuple(node.output), attributes)


def _value(value: Any) -> tuple[Any, ...]:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return value.name, tensor.elem_type, shape


def _tensor(tensor: Any) -> tuple[Any, ...]:
    values = numpy_helper.to_array(tensor)
    return (
        tensor.name,
        tensor.data_type,
        tuple(tensor.dims),
        hashlib.sha256(values.tobytes()).hexdigest(),
    )


def _attribute(attribute: Any) -> Any:
    if attribute.type == onnx.AttributeProto.GRAPH:
        return tuple(_graph_rows(attribute.g))
    if attribute.type == onnx.AttributeProto.TENSOR:
        return _tensor(attribute.t)
    value = helper.get_attribute_value(attribute)
    return (
        tuple(value) if hasattr(value, "__iter__") and not isinstance(value, bytes | str) else value
    )
