"""Ops contracted to layers.

Consecutive ops of one module call are one run. All runs of a module that calls no other module and has
parameters are one layer, however often it is called. Any other run is a layer of its own, and ends behind an op that
another run reads too: ``fqn``, then ``fqn#2``, and so on; the root's are ``(root)``. Runs are contiguous, so only
calling a layer again closes a cycle.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
from torch import Tensor, fx

from .call_stack import Call
from .ops import does, name_of
from .skeleton import Skeleton
from .tensors import tensor_leaves

__all__ = ["ROOT", "Layer", "Run", "contract", "flow_between"]

ROOT = "(root)"
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Layer:
    """One node of the layer graph.

    Attributes:
        name: unique in the graph: the FQN, with ``#n`` for further runs.
        fqn: of the module; ``""`` for the root.
        kind: the module's class name where it calls no other module, else the names of its ops.
        parameters: FQNs of its parameters; of those it only borrows (functional use), the first FQN.
        in_shapes: of the tensors that enter at its first call.
        out_shapes: of the tensors that leave at its first call.
        calls: how often it ran.
        depth: 0.0 to 1.0 by the longest chain of weighted ops; None in a graph without weights.
    """

    name: str
    fqn: str
    kind: str
    parameters: tuple[str, ...]
    in_shapes: Shapes
    out_shapes: Shapes
    calls: int
    depth: float | None


@dataclass
class Run:
    """Consecutive ops of one module call."""

    call: Call
    nodes: list[fx.Node] = field(default_factory=list)
    layer: str = ""


def contract(
    model: Skeleton,
    graph: fx.Graph,
    calls: Sequence[Call],
    depths: Mapping[fx.Node, float],
) -> tuple[tuple[Layer, ...], dict[fx.Node, Run]]:
    """Contract ops to layers; writes ``node.meta["layer"]`` (None for the inputs and the output).

    Args:
        model: the traced one.
        graph: in the normal form.
        calls: that ``node.meta["call"]`` counts.
        depths: relative depth of each op.

    Returns:
        the layers, and the run that each op is in.
    """
    runs = [
        part
        for run in _runs(graph, calls)
        for part in ([run] if _is_one_layer(run.call, model) else _parts(run))
    ]
    _name(runs, model)
    home = {node: run for run in runs for node in run.nodes}
    for node in graph.nodes:
        node.meta["layer"] = home[node].layer if node in home else None
    for node in graph.nodes:
        if node.op == "get_attr":
            node.meta["layer"] = next((user.meta["layer"] for user in node.users), None)
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.layer, []).append(run)
    layers = tuple(_layer(name, group, model, depths) for name, group in grouped.items())
    return layers, home


def _runs(graph: fx.Graph, calls: Sequence[Call]) -> Iterator[Run]:
    run: Run | None = None
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        call = calls[node.meta["call"]]
        if run is None or run.call is not call:
            if run is not None:
                yield run
            run = Run(call)
        run.nodes.append(node)
    if run is not None:
        yield run


def _parts(run: Run) -> Iterator[Run]:
    """The run, cut behind every op that another run reads: merged with what follows, a branch would be hidden."""
    own, part, branches = {*run.nodes}, Run(run.call), False
    for node in run.nodes:
        picks = node.target is operator.getitem and node.args[0] in part.nodes
        if branches and not picks:
            yield part
            part, branches = Run(run.call), False
        part.nodes.append(node)
        branches = branches or any(user not in own and user.op != "output" for user in node.users)
    yield part


def _name(runs: Sequence[Run], model: Skeleton) -> None:
    counts: dict[str, int] = {}
    for run in runs:
        fqn = run.call.fqn
        own = fqn or ROOT
        if _is_one_layer(run.call, model):
            run.layer = own
            continue
        counts[own] = counts.get(own, 0) + 1
        run.layer = own if counts[own] == 1 else f"{own}#{counts[own]}"


def _is_one_layer(call: Call, model: Skeleton) -> bool:
    return call.leaf and bool(call.fqn) and bool(model.within(call.fqn))


def _layer(
    name: str,
    runs: Sequence[Run],
    model: Skeleton,
    depths: Mapping[fx.Node, float],
) -> Layer:
    call = runs[0].call
    nodes = [node for run in runs for node in run.nodes]
    read = [
        str(source.target)
        for node in nodes
        for source in node.all_input_nodes
        if source.op == "get_attr" and source.target in model.parameters
    ]
    leaf = call.leaf and bool(call.fqn)
    module = model.modules.get(call.fqn) if leaf else None
    own = [] if module is None else model.within(call.fqn)
    mine = {model.parameters[fqn].origin for fqn in own}
    first = {*runs[0].nodes}
    entering = dict.fromkeys(
        source
        for node in runs[0].nodes
        for source in node.all_input_nodes
        if source not in first and source.op != "get_attr"
    )
    leaving = [
        node
        for node in runs[0].nodes
        if any(user not in first for user in node.users) and isinstance(node.meta["val"], Tensor)
    ]
    known = [depths[node] for node in nodes if node in depths]
    return Layer(
        name=name,
        fqn=call.fqn,
        kind=_kind(nodes) if module is None else module.kind.__name__,
        parameters=tuple(dict.fromkeys([*own, *(fqn for fqn in read if fqn not in mine)])),
        in_shapes=_shapes(entering),
        out_shapes=_shapes(leaving),
        calls=len({run.call.id for run in runs}) if leaf else 1,
        depth=max(known) if known else None,
    )


def _shapes(nodes: Any) -> Shapes:
    values = (node.meta["val"] for node in nodes)
    tensors = ((v,) if type(v) is Tensor else tensor_leaves(v) for v in values)
    return tuple(tuple(t.shape) for each in tensors for t in each)


def _kind(nodes: Sequence[fx.Node]) -> str:
    """``softmax+matmul``: the ops that compute or join tensors, or, where none does, those that move elements."""
    ops = [node for node in nodes if node.target is not operator.getitem]
    computing = [node for node in ops if does(node) != "moves" or _joins(node)] or ops
    names = list(dict.fromkeys(map(name_of, computing))) or ["getitem"]
    return "+".join(names[:3]) + ("+..." if len(names) > 3 else "")


def _joins(node: fx.Node) -> bool:
    """Whether it reads several tensors: where a skip comes back is seen."""
    return sum(each.op != "get_attr" for each in node.all_input_nodes) > 1


def flow_between(layers: Sequence[Layer], home: Mapping[fx.Node, Run]) -> nx.MultiDiGraph[str]:
    """The tensors between layers.

    Args:
        layers: from `contract`.
        home: the run that each op is in.
    """
    flow: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    for layer in layers:
        flow.add_node(layer.name, layer=layer)
    for node, run in home.items():
        if not isinstance(node.meta["val"], Tensor):
            continue
        for user in node.users:
            other = home.get(user)
            if other is None or other is run:
                continue
            if not flow.has_edge(run.layer, other.layer, node.name):
                shape, dtype = tuple(node.meta["val"].shape), node.meta["val"].dtype
                flow.add_edge(run.layer, other.layer, node.name, shape=shape, dtype=dtype)
    return flow
