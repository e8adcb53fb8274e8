"""`LayerGraph`: a model as `trace` saw it, and what one may ask of it.

The model is kept by reference and never changed or written to a file; names in it are text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..arguments import check
from ..errors import GraftError, MatchError, nearest
from . import axes
from .axes import AxisClass, CheckResult, Pattern
from .axes.tree import with_roles
from .files import as_json, write_graphml
from .report import as_table
from .traced import TracedGraph

__all__ = ["LayerGraph"]


class LayerGraph(TracedGraph):
    """The layers and parameters of one model, at the shapes of one example input.

    Made by `graftlib.trace`. ``print(graph)`` is a table of its layers.

    Attributes:
        model: the traced module, by reference, unwrapped.
        fx: the captured `torch.fx.Graph` of ATen ops. Placeholders are the user's input tensors, flattened;
            ``get_attr`` nodes read parameters and buffers by FQN; ``node.meta["val"]`` holds meta tensors,
            ``node.meta["layer"]`` the name of the layer, ``node.meta["module"]`` the FQN of the module. It
            is for reading: sizes are baked into it.
        ops: the same graph; its nodes say their layers once somebody asked for `fx` or `layers`.
        nx: `networkx.MultiDiGraph`; nodes are layer names with attribute ``layer``, edges are tensors with
            attributes ``shape`` and ``dtype``.
        layers: in execution order.
        tracer: what captured it: ``meta``, ``fake``, ``export`` or ``real``.
        real: real tensors ran.
        answers: tracer -> what it answered, for all that were tried.
        evidence: what was kept of the example inputs; `example` draws by it.
    """

    @property
    def axis_classes(self) -> tuple[AxisClass, ...]:
        """Which axes of which parameters move together: the free classes first, each kind in the model's order.

        Worked out at the first use. A class that is not `free` names in `frozen_by` what fixes its order.
        """
        return axes.axis_classes(self)

    def axes(self, fqn: str) -> Pattern:
        """What each axis of a parameter is made of: trees that print like an einops pattern, with what fixes them.

        A leaf ``c3`` is a run of units of ``graph.axis_classes[3]``, a number a run whose order is fixed (its
        `frozen_by` says by what); ``(c0 c1)`` is a row-major product, ``(c0 + c1)`` a concatenation.

        Args:
            fqn: of a parameter that the forward pass reads, or of a buffer that the state dict carries.

        Raises:
            MatchError: there is none.

        >>> import torch
        >>> from torch import nn
        >>> from graftlib import trace
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 2))
        >>> graph = trace(model, torch.zeros(1, 3, 4, 4))
        >>> print(graph.axes("2.weight"))
        2 | (c0 (2 2))  (2: the output; 2: conv2d in '0')
        """
        try:
            trees = axes.axes_of(self, fqn)
        except LookupError:
            raise MatchError(
                f"'{self.name}' reads no parameter or saved buffer '{fqn}'.",
                near=nearest(fqn, list(self._parameters)),
                fix="name one as in model.named_parameters()",
            ) from None
        parts = dict(self._parameters[fqn].parts) if fqn in self._parameters else {}
        number = next((part.axis for part in parts.values()), None)
        return Pattern(with_roles(a, parts) if i == number else a for i, a in enumerate(trees))

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
        >>> from torch import nn
        >>> from graftlib import trace
        >>> graph = trace(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 3))
        >>> graph.axis_class("0", "out").size, graph.axis_class("2").frozen_by
        (8, 'the output')
        """
        return axes.class_of(self, address, axis)

    @property
    def freedom(self) -> float:
        """The share of the weights that some free class moves, 0.0 to 1.0 (see `graftlib/graph/axes/README.md`)."""
        return axes.freedom(self)

    @property
    def frozen_ops(self) -> dict[str, int]:
        """Ops that froze what they touch for want of a rule -> how often; the most frequent first."""
        return axes.frozen_ops(self)

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
        return axes.check(self, seed=seed, example=example)

    def summary(self, rows: int | None = None) -> str:
        """A table of the layers: kind, calls, shapes, parameters, multiply-accumulates at the traced inputs, depth.

        Args:
            rows: of the first so many layers; all where it is None. ``print(graph)`` shows 60.
        """
        check(GraftError, rows=(rows, (int, type(None))))
        return as_table(self, rows)

    def to_json(self) -> str:
        """The graph as a versioned JSON document; the same text for the same graph."""
        return as_json(self)

    def to_graphml(self, path: str | os.PathLike[str]) -> None:
        """Write the layers and the tensors between them as GraphML, all or nothing.

        Raises:
            GraftError: the path cannot be written.
        """
        write_graphml(self, path)

    def __str__(self) -> str:
        return as_table(self)

    def __repr__(self) -> str:
        count = len(self._skeleton.parameters)
        return f"<LayerGraph of {self.name}: {len(self.layers)} layers, {count} parameters>"

    def _repr_html_(self) -> str:
        from ..view import view

        return view(self)._repr_html_()
