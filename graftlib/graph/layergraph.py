"""`LayerGraph`: a model as `trace` saw it.

In: a captured graph. Out: layers, parameters, tensors' shapes; printed, as JSON, as GraphML.
Always true: the model is kept by reference and never changed or written to a file; names in it are text.
Elsewhere: how the graph was captured (`capture`), how ops became layers (`layers`), what a parameter is
(`kinds`, `roles`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import networkx as nx
from torch import Tensor, fx, nn

from ..arguments import check
from ..errors import MatchError, TraceError, ViewError, nearest, shown
from .caches import Place, without_caches
from .capture import Capture, capture
from .depth import relative_depths
from .describe import describe, with_projections
from .evidence import Evidence
from .layers import Layer, Shapes, contract
from .normal import graph_root
from .parameter import Parameter, split_address
from .reads import find_reads
from .roles import find_projections
from .select import select, split_pattern

if TYPE_CHECKING:
    from .axes import Axis, AxisClass, CheckResult

__all__ = ["LayerGraph"]


class LayerGraph:
    """The layers and parameters of one model, at the shapes of one example input.

    Made by `graftlib.trace`. ``print(graph)`` is a table of its layers.

    Attributes:
        model: the traced module, by reference, unwrapped.
        fx: the captured `torch.fx.Graph` of ATen ops. Placeholders are the user's input tensors, flattened;
            ``get_attr`` nodes read parameters and buffers by FQN; ``node.meta["val"]`` holds meta tensors,
            ``node.meta["layer"]`` the name of the layer, ``node.meta["module"]`` the FQN of the module. It
            is for reading: sizes are baked into it.
        nx: `networkx.MultiDiGraph`; nodes are layer names with attribute ``layer``, edges are tensors with
            attributes ``shape`` and ``dtype``.
        layers: in execution order.
        rung: what captured it: ``meta``, ``fake``, ``export`` or ``real``.
        real: real tensors ran.
        answers: rung -> what it answered, for all that were tried.
        evidence: what was kept of the example inputs; `example` draws by it.
    """

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
        self.fx: fx.Graph = capture.graph
        self.rung: str = capture.rung
        self.real: bool = capture.real
        self.answers: dict[str, str] = dict(capture.answers)
        self.evidence = Evidence.of(args, kwargs)
        # Attributes whose tensors were taken for what they are.
        self._constants = frozenset(constants)
        names = dict(model.named_parameters())
        reads = find_reads(self.fx, names)
        depths = relative_depths(self.fx, reads)
        self.layers: tuple[Layer, ...]
        self.nx: nx.MultiDiGraph[str]
        self.layers, self.nx = contract(model, self.fx, capture.calls, depths)
        self._reads = reads
        self._records = describe(model, reads, depths)

    @cached_property
    def _parameters(self) -> dict[str, Parameter]:
        # Which weights are whose projections is the dearest question about a graph, and many never ask it.
        projections = find_projections(self.fx, self._reads)
        return {each.fqn: each for each in with_projections(self._records, projections)}

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
        heads = [node for node in self.fx.nodes if node.op == "placeholder"]
        return {str(node.target): tuple(node.meta["val"].shape) for node in heads}

    @property
    def outputs(self) -> Shapes:
        """Shapes of the output tensors, in flattened order."""
        return tuple(tuple(val.shape) for val in self.fx.output_node().meta["val"])

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
            hits = [found for p in hits for found in _of_role(p, role)]
        return hits

    def parameter(self, address: str) -> Parameter:
        """The one parameter at an address: an FQN, a module's name (its ``weight``), or ``fqn::part``.

        Raises:
            MatchError: there is none; ``near`` has the nearest names.
            ViewError: it has no such part.
        """
        fqn, part = split_address(address, self._parameters)
        found = self._parameters.get(fqn) or self._parameters.get(f"{fqn}.weight")
        if found is None:
            raise MatchError(
                f"{self.name!r} has no parameter {shown(fqn)}.",
                near=lambda: nearest(fqn, list(self._parameters)),
                fix="name a parameter as in model.named_parameters()",
                address=address,
            )
        return found.select(part) if part else found

    def tensor(self, fqn: str) -> nn.Parameter:
        """The live parameter of the model itself.

        Raises:
            MatchError: there is none.
        """
        return self.model.get_parameter(self.parameter(split_address(fqn, self._parameters)[0]).fqn)

    @property
    def axis_classes(self) -> tuple[AxisClass, ...]:
        """Which axes of which parameters move together: the free classes first, each kind in the model's order.

        Worked out at the first use. A class that is not `free` names in `frozen_by` what fixes its order.
        """
        from .axes import axis_classes

        return axis_classes(self)

    def axes(self, fqn: str) -> tuple[Axis, ...]:
        """What each axis of a parameter is made of: trees that print like an einops pattern.

        A leaf ``c3`` is a run of units of ``graph.axis_classes[3]``, a number a run whose order is fixed (its
        `frozen_by` says by what); ``(c0 c1)`` is a row-major product, ``(c0 + c1)`` a concatenation.

        Args:
            fqn: of a parameter that the forward pass reads, or of a buffer that the state dict carries.

        Raises:
            MatchError: there is none.

        >>> import torch
        >>> from graftlib import trace
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 2))
        >>> graph = trace(model, torch.zeros(1, 3, 4, 4))
        >>> print(*graph.axes("2.weight"), sep=" | ")
        2 | (c0 4)
        """
        from .axes import axes_of

        try:
            return axes_of(self, fqn)
        except LookupError:
            raise MatchError(
                f"'{self.name}' reads no parameter or saved buffer '{fqn}'.",
                near=nearest(fqn, list(self._parameters)),
                fix="name one as in model.named_parameters()",
            ) from None

    def axis_class(self, address: str, axis: str | int | None = None) -> AxisClass:
        """The axis class of a layer's channels, neurons or heads.

        Args:
            address: a layer's name (its ``weight``) or a parameter's FQN.
            axis: by its word (``"out"``, ``"in"``, see `Parameter.axes`) or its number; None: ``"out"`` where there is
                such an axis, else the first (the channels of a norm).

        Returns:
            the free class on that axis, the outer one of nested ones (heads, not what lies inside of a head); a
            frozen one, whose `frozen_by` says why, where none is free.

        Raises:
            MatchError: there is no such parameter or axis, several classes lie side by side on it, or none.

        >>> import torch
        >>> from graftlib import trace
        >>> graph = trace(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 3))
        >>> graph.axis_class("0", "out").size, graph.axis_class("2").frozen_by
        (8, 'the output')
        """
        from .axes import class_of

        return class_of(self, address, axis)

    @property
    def freedom(self) -> float:
        """The share of the weights that some free class moves, 0.0 to 1.0 (see `graftlib/graph/axes/README.md`)."""
        from .axes import freedom

        return freedom(self)

    @property
    def frozen_ops(self) -> dict[str, int]:
        """Ops that froze what they touch for want of a rule -> how often; the most frequent first."""
        from .axes import frozen_ops

        return frozen_ops(self)

    def check(
        self,
        *,
        seed: int = 0,
        example: tuple[Sequence[Any], Mapping[str, Any]] | None = None,
    ) -> CheckResult:
        """The permutation check: shuffle every free class in a copy of the model, run both, compare.

        In float64 and eval mode on the CPU, with norms and running statistics drawn at random first; the model itself
        is not changed. A model on the meta device gets random weights.

        Args:
            seed: for weights, inputs and permutations.
            example: (args, kwargs) with real values to run on; None draws inputs by `evidence`.

        Raises:
            TraceError: the model does not run on these inputs.
        """
        from .axes import check

        return check(self, seed=seed, example=example)

    def to_json(self) -> str:
        """The graph as a versioned JSON document; the same text for the same graph."""
        from .files import as_json

        return as_json(self)

    def to_graphml(self, path: str | os.PathLike[str]) -> None:
        """Write the layers and the tensors between them as GraphML, all or nothing.

        Raises:
            GraftError: the path cannot be written.
        """
        from .files import write_graphml

        write_graphml(self, path)

    def __str__(self) -> str:
        from .report import as_table

        return as_table(self)

    def __repr__(self) -> str:
        count = len(self._records)
        return f"<LayerGraph of {self.name}: {len(self.layers)} layers, {count} parameters>"

    def _repr_html_(self) -> str:
        from ..view import view

        return view(self)._repr_html_()

    def _runnable(self) -> fx.Graph:
        """The graph with the real value of every constant: run it with ``GraphModule(graph._root(), …)``.

        Raises:
            TraceError: the model has no values, cannot run, or switches autocast on by itself.
        """
        graph = self.fx
        if not self.real:
            args, kwargs = self.example
            fresh = without_caches(self.model, args, kwargs)
            graph = capture(fresh, args, kwargs, rungs=("real",)).graph
        if any("autocast" in node.meta for node in graph.nodes):
            raise TraceError(
                f"the captured graph of '{self.name}' cannot be run by itself.",
                why="its forward pass switches autocast on, which a graph of ops does not hold",
                fix="run the model itself",
            )
        return graph

    def _root(self, graph: fx.Graph | None = None) -> dict[str, Tensor]:
        """What the ``get_attr`` nodes of a graph read: the model's live tensors, and the graph's constants."""
        return graph_root(self.model, graph if graph is not None else self.fx)


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
