"""`narrow`: keep some units of axis classes and drop the others. A slim model of the same modules comes out.

The function changes, as less computes it; a trained model keeps much of what it learnt, which makes a good start for
training on. Always true: before it is handed over the edited model has run on the traced shapes (without
values), and its axis classes are the old ones in their new sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..graph import LayerGraph
from ..graph.axes import AxisClass
from .edits import Request, editable, requested, tensor_of
from .fit import fitted
from .refusal import SurgeryError
from .scores import SCORES, Score

__all__ = ["narrow"]

Keep = int | float | Sequence[int] | Tensor


def narrow(
    model: nn.Module,
    graph: LayerGraph,
    keep: Mapping[Request, Keep],
    *,
    score: str | Score = "magnitude",
    inplace: bool = False,
) -> nn.Module:
    """Keep units of classes.

    Args:
        model: the traced one, or another of the same structure.
        graph: from `graftlib.trace`.
        keep: class (or its number) -> how many units (int), what share of them (float up to 1.0), or which ones
            (their numbers; they keep their order).
        score: which units to keep where a count or a share is given: ``"magnitude"`` (norm of what makes a unit
            times norm of what reads it), ``"uniform"`` (by place), or a function of (graph, model, class) that
            gives a number for each unit, larger is better.
        inplace: edit `model` itself; otherwise a copy is made.

    Returns:
        the edited model: the same modules with smaller tensors, and with the attributes that say a size set anew.

    Raises:
        SurgeryError: a class is frozen or unknown, nothing would be left, or the modules do not run with these
            sizes (their code holds a size that is not known here). The model is as it was.
    """
    rank = SCORES[score] if isinstance(score, str) else score
    kept = {
        each: _units(graph, model, each, wish, rank)
        for each, wish in requested(graph, keep).items()
    }
    sizes = {each: len(units) for each, units in kept.items()}
    editable(model, graph, kept, inplace=True)  # is it the model of the graph?
    return fitted(model, graph, _rows(model, kept), sizes, inplace=inplace)


def _units(graph: LayerGraph, model: nn.Module, each: AxisClass, wish: Keep, rank: Score) -> Tensor:
    if isinstance(wish, (int, float)):
        count = round(wish * each.size) if isinstance(wish, float) else wish
        if not 1 <= count <= each.size:
            raise SurgeryError(
                f"{wish} of {each.size} units cannot be kept.",
                where={"class": ", ".join(map(str, each.members[:3]))},
                fix=f"keep 1 to {each.size} units, or a share up to 1.0",
            )
        scores = rank(graph, model, each)
        best: Tensor = scores.topk(count).indices.sort().values
        return best
    given = torch.as_tensor(wish, dtype=torch.int64, device="cpu")
    units: Tensor = torch.unique(given)
    if not len(units) or int(units[0]) < 0 or int(units[-1]) >= each.size:
        raise SurgeryError(
            f"units to keep lie between 0 and {each.size - 1}.",
            where={"given": str(wish)[:60]},
        )
    return units


def _rows(model: nn.Module, kept: Mapping[AxisClass, Tensor]) -> dict[tuple[str, int], Tensor]:
    """(FQN, axis) -> the places that stay: where two classes meet in one axis, those that both keep."""
    masks: dict[tuple[str, int], Tensor] = {}
    for each, units in kept.items():
        for member in each.members:
            size = tensor_of(model, member.fqn).shape[member.axis]
            mask = masks.setdefault((member.fqn, member.axis), torch.ones(size, dtype=torch.bool))
            mine = torch.zeros(each.size, dtype=torch.bool)
            mine[units] = True
            shape = [each.size if i == member.position else 1 for i in range(len(member.factors))]
            block = mine.view(shape).expand(member.factors).flatten()
            mask[member.start : member.start + prod(member.factors)] &= block
    return {key: mask.nonzero().flatten() for key, mask in masks.items()}
