"""A share for a whole model: which classes it means, and the largest feasible subset of them.

In: a graph. Out: the free classes, of nested ones (heads x head_dim, groups x group size) only the outer; and the
largest sizes of a list of classes that go together. Always true: what is left out of the second is named.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torch import nn

from ..graph import LayerGraph
from ..graph.axes import AxisClass, axes_of, axis_classes
from ..graph.axes.tree import nesting, outer
from .fit import Plan, plan
from .refusal import SurgeryWarning

__all__ = ["largest_feasible", "outer_classes"]


def outer_classes(graph: LayerGraph) -> list[AxisClass]:
    """The free classes, without those that lie inside another free one.

    Where an axis is heads x head_dim, half of the heads is half of the axis, and half of both would be a quarter. Whole
    heads and whole groups go, as what is computed inside of them stays as it was.
    """
    free = [each for each in axis_classes(graph) if each.free]
    # A class that is a whole axis lies in no other there.
    parts = (m for each in free for m in each.members if len(m.factors) > 1)
    names = dict.fromkeys(member.fqn for member in parts)
    return outer(
        free, {pair for fqn in names for axis in axes_of(graph, fqn) for pair in nesting(axis)}
    )


def largest_feasible(
    model: nn.Module, graph: LayerGraph, requests: Mapping[AxisClass, int]
) -> Plan:
    """As many of the requested sizes as go together.

    Args:
        model: the traced one, or another of the same structure.
        graph: of it.
        requests: class -> how many units it shall keep.

    Raises:
        SurgeryError: none of the classes can be edited.

    Warns:
        SurgeryWarning: some were left as they are, or keep more units than requested.
    """
    feasible = plan(model, graph, requests, fixed=False)
    left = {c: why for c, why in feasible.refused.items() if feasible.sizes[c] == c.size}
    if left:
        why = " ".join(dict.fromkeys(left.values()))
        _warn(f"{len(left)} of {len(requests)} classes were left as they are", left, why[:400])
    tied = [c for c, n in feasible.sizes.items() if n != requests[c] and c not in left]
    if tied:
        sizes = ", ".join(f"{feasible.sizes[c]} instead of {requests[c]}" for c in tied[:8])
        _warn(
            f"{len(tied)} of {len(requests)} classes got other sizes, as the code ties them",
            tied,
            sizes,
        )
    return feasible


def _warn(what: str, classes: Iterable[AxisClass], why: str) -> None:
    listed = list(classes)
    named = "; ".join(f"{each.size} units of {each.members[0]}" for each in listed[:8])
    more = f"; and {len(listed) - 8} more" if len(listed) > 8 else ""
    warnings.warn(f"{what}: {named}{more}. {why}", SurgeryWarning, stacklevel=5)
