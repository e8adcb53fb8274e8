"""The printed form of a `LayerGraph`: one line a layer."""

from __future__ import annotations

import math
from collections import Counter

from .layers import Layer
from .macs import Shapes, macs
from .traced import TracedGraph

__all__ = ["as_table", "layer_macs"]

ROWS = 60
WIDTH = 44
HEAD = ("layer", "kind", "calls", "in", "out", "parameters", "MACs", "depth")


def as_table(graph: TracedGraph, limit: int | None = ROWS) -> str:
    """A headline, then the first `limit` layers, or all, as aligned text."""
    tensors = {id(p): p.numel() for p in graph.model.parameters()}
    total = sum(tensors.values())
    work = layer_macs(graph)
    lines = [
        f"{_clean(graph.name)}: {len(graph.layers)} layers, {len(tensors)} parameters, "
        f"{total:,} elements, {sum(work.values()):,} MACs (seen by the '{graph.tracer}' tracer)",
        "inputs   " + ", ".join(f"{_clean(n)} {_shape(s)}" for n, s in graph.inputs.items()),
        "outputs  " + ", ".join(_shape(s) for s in graph.outputs),
    ]
    if unknown := graph.evidence.valueless:
        names = list(graph.inputs)
        blank = ", ".join(_clean(names[i]) for i in unknown if i < len(names))
        lines.insert(
            2, f"values   none of {blank}: traced on the meta device, so checks invent them"
        )
    rows = [HEAD, *(_row(graph, layer, work[layer.name]) for layer in graph.layers[:limit])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines += [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    if limit is not None and len(graph.layers) > limit:
        lines.append(f"... and {len(graph.layers) - limit} more")
    return "\n".join(lines)


def layer_macs(graph: TracedGraph) -> Counter[str]:
    """Of each layer, at the traced inputs (their batch size included)."""
    work: Counter[str] = Counter()
    for node in graph.fx.nodes:
        if node.op == "call_function":
            work[node.meta["layer"]] += macs(node, Shapes())
    return work


def _row(graph: TracedGraph, layer: Layer, work: int) -> tuple[str, ...]:
    count = sum(math.prod(graph.parameter(fqn).shape) for fqn in layer.parameters)
    depth = "" if layer.depth is None else f"{layer.depth:.2f}"
    return (
        _clean(layer.name),
        _clean(layer.kind),
        str(layer.calls),
        _shapes(layer.in_shapes),
        _shapes(layer.out_shapes),
        f"{count:,}" if count else "",
        f"{work:,}" if work else "",
        depth,
    )


def _shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    text = " ".join(_shape(s) for s in shapes[:2])
    return text + (f" +{len(shapes) - 2}" if len(shapes) > 2 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _clean(text: str) -> str:
    """A name from a model as one short printable word: it is untrusted."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= WIDTH else f"{text[: WIDTH // 2 - 2]}...{text[-(WIDTH // 2 - 1) :]}"
