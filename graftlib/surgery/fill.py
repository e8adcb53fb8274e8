"""New units in every tensor of a class: where they lie, what they are made like, what they hold.

In: a model, the old unit that each new place is like. Out: a `Fill`: the rows to read, and the places that are new on
each axis; and `FILLS`, which write those places. Always true: the units there were come first and keep their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import LayerGraph
from ..graph.axes import AxisClass, Member
from .edits import tensor_of
from .rescale import role_places, scores_only
from .scores import reads

__all__ = ["FILLS", "Fill", "grown"]

Places = dict[tuple[str, int], Tensor]


@dataclass
class Fill:
    """What becomes of each axis.

    Attributes:
        rows: (FQN, axis) -> for each place of the new axis, the old place that it reads.
        new: (FQN, axis) -> the places of new units.
        silent: likewise, those that are zero whatever a new unit is made like: its readers, and the keys where
            only the scores of an attention read it.
    """

    rows: Places = field(default_factory=dict)
    new: Places = field(default_factory=dict)
    silent: Places = field(default_factory=dict)


def grown(model: nn.Module, graph: LayerGraph, units: Mapping[AxisClass, Tensor]) -> Fill:
    """The places of new units.

    Args:
        model: that is widened.
        graph: of it.
        units: class -> the old unit that each new place is like, the old ones first.
    """
    held: dict[tuple[str, int], list[tuple[Member, AxisClass]]] = {}
    for each in units:
        for member in each.members:
            held.setdefault((member.fqn, member.axis), []).append((member, each))
    fill = Fill()
    for key, members in held.items():
        size = tensor_of(model, key[0]).shape[key[1]]
        fill.rows[key], fill.new[key] = _axis(size, members, units)
        if reads(graph, members[0][0]):
            fill.silent[key] = fill.new[key]
        elif any(scores_only(graph, each) for _, each in members):
            keys = role_places(graph, key[0], key[1], "attention.key")
            new = fill.new[key]
            fill.silent[key] = new[torch.isin(fill.rows[key][new], keys)]
    return fill


def _axis(
    size: int, members: list[tuple[Member, AxisClass]], units: Mapping[AxisClass, Tensor]
) -> tuple[Tensor, Tensor]:
    blocks: dict[tuple[int, tuple[int, ...]], list[tuple[int, AxisClass]]] = {}
    for member, each in members:
        blocks.setdefault((member.start, member.factors), []).append((member.position, each))
    at, places, fresh = 0, [], []
    for (start, factors), parts in sorted(blocks.items(), key=lambda item: item[0][0]):
        places.append(torch.arange(at, start, device="cpu"))
        at = start + prod(factors)
        block = torch.arange(start, at, device="cpu").view(factors)
        for position, each in parts:
            block = block.index_select(position, units[each])
        new = torch.zeros_like(block, dtype=torch.bool)
        for position, each in parts:
            index: list[Any] = [slice(None)] * block.ndim
            index[position] = slice(each.size, None)
            new[tuple(index)] = True
        fresh += [torch.zeros(len(places[-1]), dtype=torch.bool, device="cpu"), new.flatten()]
        places.append(block.flatten())
    places.append(torch.arange(at, size, device="cpu"))
    return torch.cat(places), torch.cat(fresh).nonzero().flatten()


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
