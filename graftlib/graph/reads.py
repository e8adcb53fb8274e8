"""Which ops read a parameter.

In: a captured graph. Out: for each parameter the ops in which it meets data, and where among their arguments.
A parameter may first be transposed, chunked or normalised; such ops belong to the weight, not to the data, and
are walked through.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from torch import fx

from .ops import READERS, name_of

__all__ = ["Read", "find_reads", "weight_nodes"]


@dataclass(frozen=True)
class Read:
    """One meeting of a parameter with data.

    Attributes:
        source: the ``get_attr`` node of the parameter.
        node: the op.
        value: what the op takes: `source`, or what other ops made of it.
        slot: where `value` stands among the op's arguments: ``"1"``, ``"2.0"`` inside a list, or a keyword.
        path: the ops from `source` to `value`, `source` not included.
    """

    source: fx.Node
    node: fx.Node
    value: fx.Node
    slot: str
    path: tuple[fx.Node, ...]


def weight_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Parameters, buffers, constants and what is made of them before it meets data.

    What an op of `READERS` gives is data even where its input is a constant: the positions that an embedding
    looks up, a learned query that a linear layer projects.
    """
    data: set[fx.Node] = set()
    for node in graph.nodes:
        if (
            node.op == "placeholder"
            or any(source in data for source in node.all_input_nodes)
            or (node.op == "call_function" and _reads_weight(node))
        ):
            data.add(node)
    return {node for node in graph.nodes if node not in data}


def _reads_weight(node: fx.Node) -> bool:
    if name_of(node) == "batch_norm":
        return False  # of constants alone it is how convolutions standardise their weights
    slots = READERS.get(name_of(node), {})
    return any(
        _is_weight(slot, slots) for value in node.all_input_nodes for slot in _slots(node, value)
    )


def _is_weight(slot: str, slots: Container[str]) -> bool:
    return slot in slots or f"{slot.partition('.')[0]}.*" in slots


def find_reads(graph: fx.Graph, parameters: Container[str]) -> dict[str, list[Read]]:
    """FQN -> its reads, in execution order; a parameter that is never read has no entry.

    Args:
        graph: in the normal form.
        parameters: FQNs that are parameters (buffers are read too, and not asked for).
    """
    place = {node: i for i, node in enumerate(graph.nodes)}
    weights = weight_nodes(graph)
    found: dict[str, list[Read]] = {}
    for source in graph.nodes:
        if source.op == "get_attr" and source.target in parameters:
            reads = _follow(source, weights)
            if reads:
                found[str(source.target)] = sorted(reads, key=lambda read: place[read.node])
    return found


def _follow(source: fx.Node, weights: set[fx.Node]) -> list[Read]:
    reads: list[Read] = []
    paths: dict[fx.Node, tuple[fx.Node, ...]] = {source: ()}
    queue = [source]
    while queue:
        value = queue.pop(0)
        for user in value.users:
            if user not in weights:
                if user.op == "call_function":
                    slots = _slots(user, value)
                    reads += [Read(source, user, value, slot, paths[value]) for slot in slots]
            elif user.op == "call_function" and user not in paths:
                paths[user] = (*paths[value], user)
                queue.append(user)
    return reads


def _slots(node: fx.Node, value: fx.Node) -> list[str]:
    slots = []
    for name, given in [*enumerate(node.args), *node.kwargs.items()]:
        if given is value:
            slots.append(str(name))
        elif isinstance(given, (list, tuple)):
            slots += [f"{name}.{i}" for i, item in enumerate(given) if item is value]
    return slots
