"""Which units are worth keeping: a number for each unit of a class, larger is better.

In: a graph, the model, a class. Out: (size,) doubles. `SCORES` are the ones that `narrow` knows by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import MatchError
from ..graph import LayerGraph
from ..graph.axes import AxisClass, Member
from .edits import tensor_of

__all__ = ["SCORES", "Score", "magnitude", "reads", "uniform"]

Score = Callable[[LayerGraph, nn.Module, AxisClass], Tensor]
_READS = ("in",)


def magnitude(graph: LayerGraph, model: nn.Module, each: AxisClass) -> Tensor:
    """The norm of what makes a unit times the norm of what reads it."""
    made = [m for m in each.members if not reads(graph, m)]
    read = [m for m in each.members if reads(graph, m)]
    score = torch.ones(each.size, dtype=torch.float64, device="cpu")
    for side in (made, read):
        if side:
            score = score * _energy(model, side).sqrt()
    return score


def uniform(graph: LayerGraph, model: nn.Module, each: AxisClass) -> Tensor:
    """Evenly spaced units, whatever they weigh: low-discrepancy numbers by place."""
    places = torch.arange(each.size, dtype=torch.float64, device="cpu")
    return -(places * 0.6180339887498949).frac()


SCORES: dict[str, Score] = {"magnitude": magnitude, "uniform": uniform}


def reads(graph: LayerGraph, member: Member) -> bool:
    """Whether the tensor reads the units, rather than makes them."""
    try:
        return graph.parameter(member.fqn).axes[member.axis] in _READS
    except MatchError:
        return False  # a running statistic


def _energy(model: nn.Module, members: Sequence[Member]) -> Tensor:
    total: Tensor | float = 0.0
    for member in members:
        tensor = tensor_of(model, member.fqn)
        if isinstance(tensor, nn.Parameter):
            total = total + _per_unit(tensor.detach().double().cpu().square(), member)
    return torch.as_tensor(total, dtype=torch.float64, device="cpu")


def _per_unit(squares: Tensor, member: Member) -> Tensor:
    """Sum over all but the units of `member`."""
    count = int(torch.tensor(member.factors, device="cpu").prod())
    rows = squares.narrow(member.axis, member.start, count).movedim(member.axis, 0)
    sums: Tensor = (
        rows.reshape(count, -1).sum(1).reshape(member.factors).movedim(member.position, 0)
    )
    return sums.reshape(sums.shape[0], -1).sum(1)
