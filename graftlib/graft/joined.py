"""Two layer graphs joined by adapter nodes: the transform that attaching stands for, to look at and to run.

In: a `Plan`. Out: a networkx graph with one node per link between source and target layers, and a runnable
`torch.fx.GraphModule` in which the target reads its linked parameters through the adapter. Always true: both are new
objects; the models and their own graphs are not changed.
"""

from __future__ import annotations

import operator
from copy import deepcopy
from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor, nn

from ..graph import LayerGraph
from .plan import Plan
from .transfer import AdapterRunner, PendingTransfer, set_buffers

__all__ = ["JoinedGraph", "joined", "spliced"]


@dataclass(frozen=True)
class JoinedGraph:
    """What a graft made of two layer graphs.

    Attributes:
        source: the mapping's source graph.
        target: the mapping's target graph.
        nx: nodes ``source:LAYER``, ``target:LAYER`` (attribute ``layer``) and ``adapter:I`` (attribute ``link``, its
            name); an adapter's edges carry ``parameter``, the address it reads or writes. A model linked to itself
            appears once, as the target.
    """

    source: LayerGraph
    target: LayerGraph
    nx: nx.MultiDiGraph[str]

    @property
    def adapters(self) -> list[str]:
        """Names of the adapter nodes."""
        return [node for node in self.nx if node.startswith("adapter:")]

    def __str__(self) -> str:
        head = f"{self.source.name} and {self.target.name} joined by {len(self.adapters)} adapter nodes"
        return "\n".join([head, *(f"  {self.nx.nodes[node]['link']}" for node in self.adapters)])


def joined(plan: Plan) -> JoinedGraph:
    """The joined graph of a plan."""
    source, target = plan.mapping.source, plan.mapping.target
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    for side, layers in (("source", source), ("target", target)):
        if side == "target" or source.model is not target.model:
            graph.update(
                nx.relabel_nodes(layers.nx, {name: f"{side}:{name}" for name in layers.nx})
            )
    for i, link in enumerate(plan.links):
        node = f"adapter:{i}"
        graph.add_node(node, link=link.name)
        for position in (link.source, link.target):
            address = plan.parameters[position].address
            graph.add_edge(_layer(plan, position), node, parameter=address)
        graph.add_edge(node, _layer(plan, link.target), parameter=address)
    return JoinedGraph(source, target, graph)


def _layer(plan: Plan, position: int) -> str:
    source, target = plan.mapping.source, plan.mapping.target
    model = plan.tensors[position].model
    side, graph = ("target", target) if model is target.model else ("source", source)
    fqn = plan.parameters[position].fqn
    for layer in graph.layers:
        if fqn in layer.parameters:
            return f"{side}:{layer.name}"
    return f"{side}:{plan.parameters[position].layer}"


def spliced(
    plan: Plan, runner: AdapterRunner, pending: PendingTransfer | None
) -> torch.fx.GraphModule:
    """The target's captured graph with its written parameters read through the adapter; see `Graft.to_fx`."""
    target = plan.mapping.target
    captured = target._runnable()
    reading = _Reading(plan, runner, pending)
    graph = torch.fx.Graph()
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    rewritten: torch.fx.Node | None = None
    for node in captured.nodes:
        if node.op == "get_attr" and node.target in reading.names:
            rewritten = rewritten or graph.call_module("graft")
            place = reading.names.index(str(node.target))
            copied[node] = graph.call_function(operator.getitem, (rewritten, place))
        else:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.lint()
    root = {**target._root(captured), "graft": reading}
    return torch.fx.GraphModule(root, graph, class_name=f"Grafted{target.name}")


class _Reading(nn.Module):
    """The linked tensors, settled, and the adapter between them: no inputs, the rewritten target tensors as outputs."""

    def __init__(self, plan: Plan, runner: AdapterRunner, pending: PendingTransfer | None) -> None:
        super().__init__()
        self.plan, self.dtype = plan, runner.dtype
        self.tensors = list(dict.fromkeys(plan.tensors))
        self.values = nn.ParameterList(nn.Parameter(tensor.read()) for tensor in self.tensors)
        target = plan.mapping.target.model
        self.names = [tensor.fqn for tensor in plan.written if tensor.model is target]
        device = plan.tensors[plan.targets[0]].read().device
        # Of a graft that has not transferred yet it is on the CPU still.
        self.adapter = deepcopy(runner.module).eval().to(device)
        if pending is not None and pending.pending:
            # The pending transfer was made from the state before it; so is this one.
            set_buffers(self.adapter, pending.buffers)

    def forward(self) -> tuple[Tensor, ...]:
        values = dict(zip(self.tensors, self.values, strict=True))
        inputs = [m.to(self.plan.device(values), self.dtype) for m in self.plan.views(values)]
        written = self.plan.rewritten(values, self.adapter(inputs))
        target = self.plan.mapping.target.model
        return tuple(written[tensor] for tensor in self.plan.written if tensor.model is target)
