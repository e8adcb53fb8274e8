"""Which ops read a parameter.

A parameter may first be transposed, chunked or normalised; such ops belong to the weight, not to the data, and
are walked through.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from torch import fx

from .ops import name_of, spec
from .walk import reach

__all__ = ["Read", "find_reads", "weight_nodes"]


@dataclass(frozen=True)
class Read:
    """One op in which a parameter meets data.

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

    What an op with slots for weights gives is data even where its input is a constant: the positions that an
    embedding looks up, a learned query that a linear layer projects.
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
    entry = spec(node)
    return bool(entry.slots) and any(
        entry.role(slot) for value in node.all_input_nodes for slot in _slots(node, value)
    )


def find_reads(graph: fx.Graph, parameters: Container[str]) -> dict[str, list[Read]]:
    """FQN -> its reads, in execution order; a parameter that is never read has no entry.

    Args:
        graph: in the normal form.
        parameters: FQNs that are parameters (buffers are read too, and not asked for).
    """
    place = {node: i for i, node in enumerate(graph.nodes)}
    weights = weight_nodes(graph)
    reads: dict[str, list[Read]] = {}
    for source in graph.nodes:
        if source.op == "get_attr" and source.target in parameters:
            own = sorted(_follow(source, weights), key=lambda read: place[read.node])
            reads |= {str(source.target): own} if own else {}
    return reads


def _follow(source: fx.Node, weights: set[fx.Node]) -> list[Read]:
    paths: dict[fx.Node, tuple[fx.Node, ...]] = {source: ()}

    def own_ops(value: fx.Node) -> list[fx.Node]:
        ops = [user for user in value.users if user in weights and user.op == "call_function"]
        for user in ops:
            paths.setdefault(user, (*paths[value], user))
        return ops

    return [
        Read(source, user, value, slot, paths[value])
        for value in [source, *reach([source], own_ops, lambda node: True)]
        for user in value.users
        if user not in weights and user.op == "call_function"
        for slot in _slots(user, value)
    ]


def _slots(node: fx.Node, value: fx.Node) -> list[str]:
    slots = []
    for name, argument in [*enumerate(node.args), *node.kwargs.items()]:
        if argument is value:
            slots.append(str(name))
        elif isinstance(argument, (list, tuple)):
            slots += [f"{name}.{i}" for i, item in enumerate(argument) if item is value]
    return slots
