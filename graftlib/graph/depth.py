"""How deep in the network an op stands.

0.0 (first) to 1.0 (last) for every op that a weight lies before: its place on the longest chain of weighted ops. An op
is weighted when it reads a parameter of two or more axes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from .reads import Read

__all__ = ["relative_depths"]


def relative_depths(graph: fx.Graph, reads: Mapping[str, list[Read]]) -> dict[fx.Node, float]:
    """Depth of each op; empty for a graph without weights.

    Args:
        graph: in the normal form.
        reads: from `reads.find_reads`.
    """
    weighted = {
        read.node for each in reads.values() for read in each if read.source.meta["val"].ndim >= 2
    }
    links: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            before = max((links.get(source, 0) for source in node.all_input_nodes), default=0)
            links[node] = before + (node in weighted)
    longest = max(links.values(), default=0)
    if longest == 0:
        return {}
    span = max(longest - 1, 1)
    return {node: max(place - 1, 0) / span for node, place in links.items()}
