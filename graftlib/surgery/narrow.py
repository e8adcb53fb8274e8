"""`narrow`: keep some units of axis classes and drop the others. A slim model of the same modules comes out.

The function changes, as less computes it; a trained model keeps much of what it learnt, which makes a good start for
training on. Always true: before it is handed over the edited model has run on the traced shapes (without
values), and its axis classes are the old ones in their new sizes.
Elsewhere: a share for the whole model (`everywhere`), layers fitted to data (`refit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import LayerGraph
from ..graph.axes import AxisClass
from .edits import Request, editable, requested, tensor_of
from .everywhere import outer_classes, where_possible
from .fit import fitted
from .listen import as_batches
from .refit import REFITS, reestimate, refitted
from .refusal import SurgeryError
from .scores import SCORES, Score

__all__ = ["narrow"]

Keep = int | float | Sequence[int] | Tensor


def narrow(
    model: nn.Module,
    graph: LayerGraph,
    keep: float | Mapping[Request, Keep],
    *,
    score: str | Score = "magnitude",
    data: Iterable[Any] | None = None,
    refit: str | None = "least-squares",
    ridge: float = 1e-6,
    statistics: bool = False,
    inplace: bool = False,
) -> nn.Module:
    """Keep units of classes.

    Args:
        model: the traced one, or another of the same structure.
        graph: from `graftlib.trace`.
        keep: class (or its number) -> how many units (int), what share of them (float up to 1.0), or which ones
            (their numbers; they keep their order). A float alone is a share of every free class: whole heads and
            whole groups go, what lies inside them stays; a class that the model's code does not let be narrowed is
            left as it is, one whose size the code ties to others gets the nearest size that goes with them, with a
            warning that names it.
        score: which units to keep where a count or a share is given: ``"magnitude"`` (norm of what makes a unit
            times norm of what reads it), ``"uniform"`` (by place), or a function of (graph, model, class) that
            gives a number for each unit, larger is better.
        data: inputs on the model's device, a few batches: each a tensor, a tuple of arguments, a mapping of keywords or
            (args, kwargs). The labels of a loader are no input. They are run twice for every layer that is fitted.
        refit: what `data` is used for: ``"least-squares"`` (the layers that read narrowed units get the weights and
            biases that best give what they gave before), ``"rescale"`` (one factor for each such layer, so that the
            mean square of what it gives stays), or None. Without `data` nothing is fitted.
        ridge: of the least squares, in units of the mean square of a feature; larger stays nearer to the weights
            that were kept.
        statistics: take the running statistics of batch norms anew from `data`, after the fit.
        inplace: edit `model` itself; otherwise a copy is made.

    Returns:
        the edited model: the same modules with smaller tensors, and with the attributes that say a size set anew.

    Raises:
        SurgeryError: a class is frozen or unknown, nothing would be left, or the modules do not run with these
            sizes (their code holds a size that is not known here). The model is as it was.
        ValueError: `refit` is no known name, or `ridge` is not above 0.

    Warns:
        SurgeryWarning: a class (of a share for the whole model) or a layer (of a fit) was left as it is.
    """
    rank = SCORES[score] if isinstance(score, str) else score
    batches = None if data is None else as_batches(data)
    if refit is not None and refit not in REFITS:
        raise ValueError(f"refit is one of {', '.join(map(repr, REFITS))} or None, not {refit!r}")
    if not ridge > 0:
        raise ValueError(f"ridge is above 0, not {ridge}")

    attributes = None
    if isinstance(keep, Mapping):
        asked = requested(graph, keep)
        kept = {each: _units(graph, model, each, wish, rank) for each, wish in asked.items()}
        editable(model, graph, kept, inplace=True)  # is it the model of the graph?
    else:
        counts = {each: max(round(_share(keep) * each.size), 1) for each in outer_classes(graph)}
        editable(model, graph, counts, inplace=True)
        feasible = where_possible(model, graph, counts)
        attributes = feasible.attributes
        kept = {each: _units(graph, model, each, n, rank) for each, n in feasible.sizes.items()}
    sizes = {each: len(units) for each, units in kept.items()}
    rows = _rows(model, kept)

    def cut(inplace: bool) -> nn.Module:
        return fitted(model, graph, rows, sizes, inplace=inplace, attributes=attributes)

    if batches is None:
        return cut(inplace)
    slim = cut(inplace=False)
    if refit is not None:
        refitted(model, slim, graph, list(kept), rows, batches, how=refit, ridge=ridge)
    if statistics:
        reestimate(slim, batches)
    if not inplace:
        return slim
    cut(inplace=True).load_state_dict(slim.state_dict())
    return model


def _share(keep: object) -> float:
    if not isinstance(keep, float) or not 0 < keep <= 1:
        raise SurgeryError(
            f"{keep!r} is no share for a whole model.",
            fix="give a float above 0 and up to 1.0, or a mapping of classes to how many units each keeps",
        )
    return keep


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
            mask = masks.setdefault(
                (member.fqn, member.axis), torch.ones(size, dtype=torch.bool, device="cpu")
            )
            mine = torch.zeros(each.size, dtype=torch.bool, device="cpu")
            mine[units] = True
            shape = [each.size if i == member.position else 1 for i in range(len(member.factors))]
            block = mine.view(shape).expand(member.factors).flatten()
            mask[member.start : member.start + prod(member.factors)] &= block
    return {key: mask.nonzero().flatten() for key, mask in masks.items()}
