"""`widen`: more units in an axis class, without a change of the function.

A new unit is made like one that is there and is read with weights of zero, so that training can put it to use. Always
true: the wider model was run next to the old one, in double precision, and gave the same; where that cannot be (a layer
norm over the new units, the scores of an attention), the edit is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph import LayerGraph, trace
from ..graph.axes import AxisClass, Member, axis_classes
from ..graph.axes.trial import Trial, difference
from .edits import Request, editable, requested, tensor_of
from .fit import fitted
from .refusal import SurgeryError
from .scores import reads

__all__ = ["widen"]

# Doubles keep 16 digits; a unit that is not silent shows from about 1e-6 on.
TOLERANCE = 1e-9


def widen(
    model: nn.Module,
    graph: LayerGraph,
    widths: Mapping[Request, int],
    *,
    seed: int = 0,
    inplace: bool = False,
) -> nn.Module:
    """Add units to classes and keep the function.

    Args:
        model: the traced one, or another of the same structure.
        graph: from `graftlib.trace`.
        widths: class (or its number) -> how many units it shall have, at least as many as now.
        seed: which units the new ones are made like.
        inplace: edit `model` itself; otherwise a copy is made.

    Returns:
        the edited model: the same modules with larger tensors; the units there were come first.

    Raises:
        SurgeryError: a class is frozen or unknown, a width is too small, the modules do not run with these sizes, or
            the function would change. The model is as it was.
    """
    wanted = requested(graph, widths)
    for each, width in wanted.items():
        if width < each.size:
            raise SurgeryError(f"{each.size} units cannot be widened to {width}.", fix="use narrow")
    editable(model, graph, wanted, inplace=True)  # is it the model of the graph?
    wide = _all_widened(model, graph, wanted, seed, inplace=False)
    if not inplace:
        return wide
    return _all_widened(model, graph, wanted, seed, inplace=True)


def _all_widened(
    model: nn.Module,
    graph: LayerGraph,
    wanted: Mapping[AxisClass, int],
    seed: int,
    *,
    inplace: bool,
) -> nn.Module:
    wide, seen = editable(model, graph, wanted, inplace=inplace), graph
    for each, width in wanted.items():
        # The classes are found anew: two of them may meet in one axis.
        place = _place(each)
        here = next(c for c in axis_classes(seen) if c.free and _place(c) == place)
        wide = _widened(wide, seen, here, width, seed, inplace)
        seen = trace(wide, *graph._example)
    return wide


def _place(each: AxisClass) -> frozenset[tuple[str, int, int]]:
    return frozenset((m.fqn, m.axis, m.position) for m in each.members)


def _widened(
    model: nn.Module, graph: LayerGraph, each: AxisClass, width: int, seed: int, inplace: bool
) -> nn.Module:
    random = torch.Generator().manual_seed(seed)
    like = torch.randint(each.size, (width - each.size,), generator=random, device="cpu")
    units = torch.cat([torch.arange(each.size, device="cpu"), like])
    rows, silent = _rows(model, graph, each, units)

    def finish(edited: nn.Module) -> None:
        for (fqn, axis), places in silent.items():
            tensor = tensor_of(edited, fqn).detach()
            tensor.index_fill_(axis, places.to(tensor.device), 0)
        _must_agree(model, edited, graph, each, width)

    return fitted(model, graph, rows, {each: width}, inplace=inplace, finish=finish)


Places = dict[tuple[str, int], Tensor]


def _rows(
    model: nn.Module, graph: LayerGraph, each: AxisClass, units: Tensor
) -> tuple[Places, Places]:
    """Where each place of the new axes reads, and the new places at which they are read with zeros."""
    rows: Places = {}
    silent: Places = {}
    by_axis: dict[tuple[str, int], list[Member]] = {}
    for member in each.members:
        by_axis.setdefault((member.fqn, member.axis), []).append(member)
    for key, members in by_axis.items():
        fqn, axis = key
        size, at = tensor_of(model, fqn).shape[axis], 0
        places: list[Tensor] = []
        new: list[Tensor] = []
        for member in sorted(members, key=lambda m: m.start):
            places.append(torch.arange(at, member.start, device="cpu"))
            at = member.start + prod(member.factors)
            block = torch.arange(member.start, at, device="cpu").view(member.factors)
            grown = block.index_select(member.position, units)
            fresh = torch.zeros_like(grown, dtype=torch.bool)
            index: list[Any] = [slice(None)] * grown.ndim
            index[member.position] = slice(each.size, None)
            fresh[tuple(index)] = True
            start = sum(len(run) for run in places)
            places.append(grown.flatten())
            new.append(start + fresh.flatten().nonzero().flatten())
        rows[key] = torch.cat([*places, torch.arange(at, size, device="cpu")])
        if reads(graph, members[0]):
            silent[key] = torch.cat(new)
    return rows, silent


def _must_agree(
    model: nn.Module, edited: nn.Module, graph: LayerGraph, each: AxisClass, width: int
) -> None:
    """Both are run as they are, in double precision, on one drawn input."""
    if model is edited:
        return  # the copy has agreed
    before, after = (Trial(_Seen(graph, one), drawn=False).run() for one in (model, edited))
    error = difference(before, after)
    if error > TOLERANCE:
        raise SurgeryError(
            f"{each.size} units cannot be widened to {width} without a change of the function.",
            where={
                "class": ", ".join(map(str, each.members[:3])),
                "relative change": f"{error:.1e}",
            },
            why="an op looks at all units at once (a norm over them, a product of queries and keys)",
            fix="widen a class that no norm goes over, such as the inside of an MLP",
        )


class _Seen:
    """A model with another one's graph: what a trial needs of a layer graph."""

    def __init__(self, graph: LayerGraph, model: nn.Module) -> None:
        self.model: nn.Module = model
        self.fx: fx.Graph = graph.fx
        self._example: Any = graph._example
