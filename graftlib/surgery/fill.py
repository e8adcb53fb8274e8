"""New units in every tensor of a class: where they lie, what they are made like, what they hold.

In: a graph, the old unit that each new place is like. Out: a `Fill`: the rows to read, and the places that are new on
each axis; and `FILLS`, which write those places. Always true: the units there were come first and keep their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..graph import LayerGraph
from ..graph.axes import AxisClass, axes_of
from .edits import Rows, rows_of, tensor_of
from .importance import reads
from .rescale import role_places, scores_only

__all__ = ["FILLS", "Fill", "grown"]


@dataclass
class Fill:
    """What becomes of each axis.

    Attributes:
        rows: (FQN, axis) -> for each place of the new axis, the old place that it reads.
        new: (FQN, axis) -> the places of new units.
        silent: likewise, those that are zero whatever a new unit is made like: its readers, and the keys where
            only the scores of an attention read it.
    """

    rows: Rows = field(default_factory=dict)
    new: Rows = field(default_factory=dict)
    silent: Rows = field(default_factory=dict)


def grown(graph: LayerGraph, units: Mapping[AxisClass, Tensor]) -> Fill:
    """The places of new units.

    Args:
        graph: of the model that is widened.
        units: class -> the old unit that each new place is like, the old ones first.
    """
    fill = Fill(rows_of(graph, units))
    sizes = {each: len(like) for each, like in units.items()}
    old = {each: torch.arange(each.size, device="cpu") for each in units}
    members = {(m.fqn, m.axis): m for each in units for m in each.members}
    scored = {(m.fqn, m.axis) for each in units if scores_only(graph, each) for m in each.members}
    for key in members:
        rows = fill.rows[key]
        is_new = torch.ones(len(rows), dtype=torch.bool, device="cpu")
        is_new[axes_of(graph, key[0])[key[1]].resized(sizes).positions(old)] = False
        new = fill.new[key] = is_new.nonzero().flatten()
        if reads(graph, members[key]):
            fill.silent[key] = new
        elif key in scored:
            keys = role_places(graph, *key, "attention.key")
            fill.silent[key] = new[torch.isin(rows[new], keys)]
    return fill


def _like(model: nn.Module, fill: Fill) -> None:
    for (fqn, axis), places in fill.silent.items():
        _write(model, fqn, axis, places, 0.0)


def _zero(model: nn.Module, fill: Fill) -> None:
    for (fqn, axis), places in fill.new.items():
        _write(model, fqn, axis, places, 1.0 if fqn.endswith("running_var") else 0.0)


def _write(model: nn.Module, fqn: str, axis: int, places: Tensor, value: float) -> None:
    tensor = tensor_of(model, fqn).detach()
    tensor.index_fill_(axis, places.to(tensor.device), value)


FILLS: dict[str, Callable[[nn.Module, Fill], None]] = {"like": _like, "zero": _zero}
