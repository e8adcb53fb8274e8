"""The proof of an edit: both models are run, as they are, in double precision, on one drawn input.

In: a graph, its model, an edited one that is called alike. Out: how much the outputs differ, relative to the largest.
Always true: neither model is touched.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from ..graph import LayerGraph
from ..graph.axes.trial import Trial, difference
from ..graph.evidence import Evidence

__all__ = ["TOLERANCE", "change"]

# Doubles keep 16 digits; a unit that is not silent shows from about 1e-6 on.
TOLERANCE = 1e-9


def change(
    graph: LayerGraph,
    model: nn.Module,
    edited: nn.Module,
    prepare: Callable[[nn.Module], None] = lambda model: None,
) -> float:
    """The largest difference of the outputs, relative to the largest number of the output that it is in.

    Args:
        graph: whose inputs are drawn.
        model: the one that was traced, or another of the same structure.
        edited: any model that takes these inputs.
        prepare: is given the edited model's copy in doubles before it runs; may write to it.
    """
    before, after = (Trial(_Seen(graph, one), drawn=False) for one in (model, edited))
    prepare(after.model)
    return difference(before.run(), after.run())


class _Seen:
    """A model with another one's graph: what a trial needs of a layer graph."""

    def __init__(self, graph: LayerGraph, model: nn.Module) -> None:
        self.model: nn.Module = model
        self.fx: fx.Graph = graph.fx
        self.evidence: Evidence = graph.evidence
