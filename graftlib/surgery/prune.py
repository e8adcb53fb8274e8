"""`prune`: keep some units of axis classes and drop the others. A slim model of the same modules comes out.

The function changes, as less computes it; a trained model keeps much of what it learnt, which makes a good start for
training on. Always true: before it is handed over the edited model has run on the traced shapes (without
values), and its axis classes are the old ones in their new sizes.
Elsewhere: a share for the whole model (`whole_model`), layers fitted to data (`refit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import shown
from ..graph import LayerGraph
from ..graph.axes import AxisClass, axis_classes
from ..progress import part
from .config import config_state, refresh_config
from .edits import Request, editable, model_of, requested, rows_of, whole_numbers
from .fit import fitted
from .importance import Importance, Ranking, ranking
from .lora import ranks, refresh_ranks
from .recording import Batch, as_batches
from .refit import REFITS, reestimate, refitted
from .refusal import SurgeryError
from .tagged import Place
from .whole_model import largest_feasible, outer_classes

__all__ = ["prune", "pruned"]

Keep = int | float | Sequence[int] | Tensor


def prune(
    graph: LayerGraph,
    keep: float | Mapping[Request, Keep],
    *,
    importance: str | Importance = "magnitude",
    data: Iterable[Any] | None = None,
    refit: str | None = "least-squares",
    ridge: float | str = "auto",
    statistics: bool = False,
    model: nn.Module | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Keep units of classes.

    Args:
        graph: from `graftlib.trace`.
        keep: class, its number, or a glob of layers (the classes that they make) -> how many units (int), what share
            of them (float up to 1.0), or which ones (their numbers; they keep their order). A float alone is a share
            of every free class: whole heads and whole groups go, what lies inside them stays; a class that the
            model's code does not let be pruned is left as it is, one whose size the code ties to others gets the
            nearest size that goes with them, with a warning that names it. The ranks of adapters of the `peft`
            library stay.
        importance: which units to keep where a count or a share is given: ``"magnitude"`` (norm of what makes a unit
            times norm of what reads it), ``"uniform"`` (by place), or a function of (graph, model, class) that
            gives a number for each unit, larger is better.
        data: inputs on the model's device, a few batches: each a tensor, a tuple of arguments, a mapping of keywords or
            (args, kwargs). The labels of a loader are no input. Both models run over them once, all batches in step,
            so what a forward pass holds at a time is held for each of them. A part is held out.
        refit: what `data` is used for: ``"least-squares"`` (the layers that read pruned units get the weights and
            biases that best give what they gave before), ``"bias"`` (the biases alone, for few inputs), ``"rescale"``
            (one factor for each such layer, so that the mean square of what it gives stays), or None. Without `data`
            nothing is fitted. A fit of weights or biases stays where the layer's held-out error falls; and fits are
            taken back until what the whole model gives is, on held-out inputs, clearly nearer to what it was than
            without them. A factor is not held to that: it keeps the scale of a layer, and what the model gives may be
            further from what it was.
        ridge: of the least squares, in units of the mean square of a feature; larger stays nearer to the weights
            that were kept. ``"auto"``: for each layer the one with the least held-out error.
        statistics: take the running statistics of batch norms anew from `data`, after the fit; from all of it, and
            without a look at what the model gives then.
        model: None is the traced one, else another of the same structure.
        inplace: edit the model itself; otherwise a copy is made.

    Returns:
        the edited model: the same modules with smaller tensors, and with the attributes that say a size set anew.

    Raises:
        SurgeryError: an argument is not what it should be, a class is frozen or unknown, nothing would be left, the
            model does not take `data`, or the modules do not run with these sizes (their code holds a size that is not
            known here). The model is as it was.

    Warns:
        SurgeryWarning: a class (of a share for the whole model) or a layer (of a fit) was left as it is, a layer had
            few rows for its features, fits were taken back, or the config of a Hugging Face model cannot say the
            new sizes.
    """
    model = model_of(
        graph,
        model,
        inplace,
        importance=(importance, (str, Callable)),
        data=(data, (Iterable, type(None))),
        refit=(refit, str | None),
        ridge=(ridge, float | str),
        statistics=(statistics, bool),
    )
    editable(model, graph, [c for c in axis_classes(graph) if c.free], inplace=True)
    rank = ranking(importance, graph, model)
    batches = None if data is None else as_batches(data)
    if refit is not None and refit not in REFITS:
        raise SurgeryError(
            f"refit is one of {', '.join(map(repr, REFITS))} or None, not {shown(refit)}."
        )
    if ridge != "auto" and (isinstance(ridge, str) or not ridge > 0):
        raise SurgeryError(f"ridge={shown(ridge)} is neither a number above 0 nor 'auto'.")
    attributes = None
    if isinstance(keep, Mapping):
        asked = requested(graph, keep)
        if not asked:
            raise SurgeryError("keep names no class.", fix="prune(graph, {0: 0.5}), or 0.5")
        kept = {each: _units(each, request, rank) for each, request in asked.items()}
    else:
        share, outer = _share(keep), outer_classes(graph)
        fixed = ranks(graph.model, outer)
        counts = {c: max(round(share * c.size), 1) for c in outer if c not in fixed}
        feasible = largest_feasible(model, graph, counts)
        attributes = feasible.attributes
        kept = {each: _units(each, count, rank) for each, count in feasible.sizes.items()}
    return pruned(
        model,
        graph,
        kept,
        attributes,
        batches,
        refit=refit,
        ridge=None if isinstance(ridge, str) else ridge,
        statistics=statistics,
        inplace=inplace,
    )


def pruned(
    model: nn.Module,
    graph: LayerGraph,
    kept: Mapping[AxisClass, Tensor],
    attributes: Mapping[Place, int] | None,
    batches: Sequence[Batch] | None,
    *,
    refit: str | None,
    ridge: float | None = None,
    statistics: bool,
    inplace: bool = False,
) -> nn.Module:
    """`prune`, of units that were chosen; `attributes` of a `Plan` for these sizes, without which it is made here."""
    before = config_state(model, graph)
    sizes = {each: len(units) for each, units in kept.items()}
    rows = rows_of(graph, kept)

    def cut(inplace: bool) -> nn.Module:
        return fitted(model, graph, rows, sizes, inplace=inplace, attributes=attributes)

    slim = cut(inplace and batches is None)
    if batches is not None and refit is not None:
        with part(0.1, 0.9):
            refitted(model, slim, graph, list(kept), rows, batches, how=refit, ridge=ridge)
    if batches is not None and statistics:
        reestimate(slim, batches)
    if inplace and batches is not None:
        cut(inplace=True).load_state_dict(slim.state_dict())
        slim = model
    refresh_ranks(slim)
    refresh_config(slim, before, sizes)
    return slim


def _share(keep: object) -> float:
    if not isinstance(keep, float) or not 0 < keep <= 1:
        raise SurgeryError(
            f"{shown(keep)} is no share for a whole model.",
            fix="give a float above 0 and up to 1.0, or a mapping of classes to how many units each keeps",
        )
    return keep


def _units(each: AxisClass, request: Keep, rank: Ranking) -> Tensor:
    if isinstance(request, (int, float)):
        share = isinstance(request, float) and 0 < request <= 1
        request = 0 if isinstance(request, bool) else request
        count = round(request * each.size) if share else request
        if not 1 <= count <= each.size or isinstance(count, float):
            raise SurgeryError(
                f"{shown(request)} of {each.size} units cannot be kept.",
                where={"class": ", ".join(map(str, each.members[:3]))},
                fix=f"keep 1 to {each.size} units, or a share up to 1.0",
            )
        importances = rank(each)
        best: Tensor = importances.topk(count).indices.sort().values
        return best
    units: Tensor = torch.unique(whole_numbers(request))
    if not len(units) or int(units[0]) < 0 or int(units[-1]) >= each.size:
        raise SurgeryError(
            f"units to keep lie between 0 and {each.size - 1}.",
            where={"given": shown(request, 60)},
        )
    return units
