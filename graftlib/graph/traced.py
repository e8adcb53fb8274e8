"""What a trace saw of a model, as a record: what reads a graph takes it; `LayerGraph` adds what one may ask of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import networkx as nx
from torch import Tensor, nn
from torch.fx import Graph, Node

from ..arguments import check
from ..errors import MatchError, TraceError, ViewError, nearest, shown
from .caches import Place, without_caches
from .capture import Capture, capture
from .depth import relative_depths
from .describe import describe, with_projections
from .evidence import Evidence
from .layers import Layer, Run, Shapes, contract, flow_between
from .normal import graph_root
from .parameter import Parameter, split_address
from .reads import Read, find_reads
from .roles import find_projections
from .select import select, split_pattern
from .skeleton import Skeleton

__all__ = ["TracedGraph"]


class TracedGraph:
    """The layers and parameters of one model, at the shapes of one example input; see `LayerGraph`."""

    def __init__(
        self,
        model: nn.Module,
        capture: Capture,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        constants: Iterable[Place] = (),
    ) -> None:
        self.model = model
        self.ops: Graph = capture.graph
        self.tracer: str = capture.tracer
        self.real: bool = capture.real
        self.answers: dict[str, str] = dict(capture.answers)
        self.evidence = Evidence.of(args, kwargs)
        # Attributes whose tensors were taken for what they are.
        self._constants = frozenset(constants)
        # Records are made when they are asked for, of the model as it is now.
        self._calls, self._skeleton = capture.calls, Skeleton.of(model)

    @property
    def fx(self) -> Graph:
        """The captured graph, each node with the name of its layer; `ops` is the same before it is asked for names."""
        _ = self._contracted
        return self.ops

    @property
    def layers(self) -> tuple[Layer, ...]:
        """In execution order."""
        return self._contracted[0]

    @cached_property
    def _contracted(self) -> tuple[tuple[Layer, ...], dict[Node, Run]]:
        return contract(self._skeleton, self.ops, self._calls, self._depths)

    @cached_property
    def _reads(self) -> dict[str, list[Read]]:
        return find_reads(self.ops, self._skeleton.parameters)

    @cached_property
    def _depths(self) -> dict[Node, float]:
        return relative_depths(self.ops, self._reads)

    @cached_property
    def nx(self) -> nx.MultiDiGraph[str]:
        """Nodes are layer names with attribute ``layer``, edges tensors with attributes ``shape`` and ``dtype``."""
        return flow_between(*self._contracted)

    @cached_property
    def _parameters(self) -> dict[str, Parameter]:
        # Which weights are whose projections is the dearest question about a graph, and many never ask it.
        projections = find_projections(self.ops, self._reads)
        records = describe(self._skeleton, self._reads, self._depths)
        return {each.fqn: each for each in with_projections(records, projections)}

    @property
    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) that the model takes: `evidence` of the traced ones, as new tensors on the CPU at every call.

        Integers and booleans are the traced ones, floating-point numbers are drawn within what was seen, always the
        same; what was traced on the meta device stays there.
        """
        return self.evidence.drawn()

    @property
    def name(self) -> str:
        """The class name of the model."""
        return type(self.model).__name__

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Input name -> shape, in flattened order."""
        heads = [node for node in self.ops.nodes if node.op == "placeholder"]
        return {str(node.target): tuple(node.meta["val"].shape) for node in heads}

    @property
    def outputs(self) -> Shapes:
        """Shapes of the output tensors, in flattened order."""
        return tuple(tuple(val.shape) for val in self.ops.output_node().meta["val"])

    def parameters(
        self, pattern: str = "*", *, kind: str | None = None, role: str | None = None
    ) -> list[Parameter]:
        """The parameters that `pattern` means, in the model's order.

        Args:
            pattern: as in `graftlib.graph.select`, with an optional ``::part``.
            kind: only those of this kind.
            role: only those of this role; a packed projection is narrowed to its part that has the role.

        Returns:
            records, tied duplicates too (with `tied_to` set); an empty list where nothing matches.

        Raises:
            MatchError: the pattern is not well formed.
            ViewError: of the parameters that are hit, none has such a part.
        """
        check(MatchError, kind=(kind, str | None), role=(role, str | None))
        name, part = split_pattern(pattern, self._parameters)
        hits = [self._parameters[hit.name] for hit in select(name, self._parameters)]
        if kind is not None:
            hits = [p for p in hits if p.kind == kind]
        if part:
            hits = _narrowed(hits, part)
        if role is not None:
            hits = [each for p in hits for each in _of_role(p, role)]
        return hits

    def parameter(self, address: str) -> Parameter:
        """The one parameter at an address: an FQN, a module's name (its ``weight``), or ``fqn::part``.

        Raises:
            MatchError: there is none; ``near`` has the nearest names.
            ViewError: it has no such part.
        """
        fqn, part = split_address(address, self._parameters)
        parameter = self._parameters.get(fqn) or self._parameters.get(f"{fqn}.weight")
        if parameter is None:
            raise MatchError(
                f"{self.name!r} has no parameter {shown(fqn)}.",
                near=lambda: nearest(fqn, list(self._parameters)),
                fix="name a parameter as in model.named_parameters(), or the layer of a weight",
                address=address,
            )
        return parameter.select(part) if part else parameter

    def tensor(self, fqn: str) -> nn.Parameter:
        """The parameter of the model itself, not a record of it.

        Raises:
            MatchError: there is none.
        """
        return self.model.get_parameter(self.parameter(split_address(fqn, self._parameters)[0]).fqn)

    def _runnable(self) -> Graph:
        """The graph with the real value of every constant: run it with ``GraphModule(graph._root(), …)``.

        Raises:
            TraceError: the model has no values, cannot run, or switches autocast on by itself.
        """
        graph = self.ops
        if not self.real:
            args, kwargs = self.example
            fresh = without_caches(self.model, args, kwargs)
            graph = capture(fresh, args, kwargs, tracers=("real",)).graph
        if any("autocast" in node.meta for node in graph.nodes):
            raise TraceError(
                f"the captured graph of '{self.name}' cannot be run by itself.",
                why="its forward pass switches autocast on, which a graph of ops does not hold",
                fix="run the model itself",
            )
        return graph

    def _root(self, graph: Graph | None = None) -> dict[str, Tensor]:
        """What the ``get_attr`` nodes of a graph read: the model's own tensors, and the graph's constants."""
        return graph_root(self.model, graph if graph is not None else self.ops)


def _of_role(parameter: Parameter, role: str) -> list[Parameter]:
    """The parameter, or the part of a packed projection, that has the role; nothing where neither has."""
    if parameter.role == role:
        return [parameter]
    if parameter.role != "attention.fused" or parameter.part is not None:
        return []
    return [parameter.select(name) for name, part in parameter.parts.items() if part.role == role]


def _narrowed(hits: list[Parameter], part: str) -> list[Parameter]:
    """Those that have the part, narrowed to it; ViewError where there are hits and none has it."""
    narrowed, refused = [], None
    for parameter in hits:
        try:
            narrowed.append(parameter.select(part))
        except ViewError as error:
            refused = refused or error
    if refused is not None and not narrowed:
        raise refused
    return narrowed
