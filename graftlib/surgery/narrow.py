"""`narrow`: keep some units of axis classes and drop the others. A slim model of the same modules comes out.

The function changes, as less computes it; a trained model keeps much of what it learnt, which makes a good start for
training on. Always true: before it is handed over the edited model has run on the traced shapes (without
values), and its axis classes are the old ones in their new sizes.
Elsewhere: a share for the whole model (`everywhere`), layers fitted to data (`refit`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check
from ..errors import shown
from ..graph import LayerGraph
from ..graph.axes import AxisClass, axis_classes
from ..graph.structure import unwrap
from .config import config_state, refresh_config
from .edits import Request, editable, requested, tensor_of, whole_numbers
from .everywhere import outer_classes, where_possible
from .fit import fitted
from .listen import as_batches
from .lora import ranks, refresh_ranks
from .refit import REFITS, reestimate, refitted
from .refusal import SurgeryError
from .scores import Ranking, Score, ranking

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
    ridge: float | str = "auto",
    statistics: bool = False,
    inplace: bool = False,
) -> nn.Module:
    """Keep units of classes.

    Args:
        model: the traced one, or another of the same structure.
        graph: from `graftlib.trace`.
        keep: class, its number, or a glob of layers (the classes that they make) -> how many units (int), what share
            of them (float up to 1.0), or which ones (their numbers; they keep their order). A float alone is a share
            of every free class: whole heads and whole groups go, what lies inside them stays; a class that the
            model's code does not let be narrowed is left as it is, one whose size the code ties to others gets the
            nearest size that goes with them, with a warning that names it. The ranks of adapters of the `peft`
            library stay.
        score: which units to keep where a count or a share is given: ``"magnitude"`` (norm of what makes a unit
            times norm of what reads it), ``"uniform"`` (by place), or a function of (graph, model, class) that
            gives a number for each unit, larger is better.
        data: inputs on the model's device, a few batches: each a tensor, a tuple of arguments, a mapping of keywords or
            (args, kwargs). The labels of a loader are no input. Both models run over them once, all batches in step,
            so what a forward pass holds at a time is held for each of them. A part is held out.
        refit: what `data` is used for: ``"least-squares"`` (the layers that read narrowed units get the weights and
            biases that best give what they gave before), ``"bias"`` (the biases alone, for few inputs), ``"rescale"``
            (one factor for each such layer, so that the mean square of what it gives stays), or None. Without `data`
            nothing is fitted. A fit of weights or biases stays where the layer's held-out error falls; and fits are
            taken back until what the whole model gives is, on held-out inputs, clearly nearer to what it was than
            without them.
        ridge: of the least squares, in units of the mean square of a feature; larger stays nearer to the weights
            that were kept. ``"auto"``: for each layer the one with the least held-out error.
        statistics: take the running statistics of batch norms anew from `data`, after the fit.
        inplace: edit `model` itself; otherwise a copy is made.

    Returns:
        the edited model: the same modules with smaller tensors, and with the attributes that say a size set anew.

    Raises:
        SurgeryError: an argument is not what it should be, a class is frozen or unknown, nothing would be left, or
            the modules do not run with these sizes (their code holds a size that is not known here). The model is as
            it was.

    Warns:
        SurgeryWarning: a class (of a share for the whole model) or a layer (of a fit) was left as it is, a layer had
            few rows for its features, fits were taken back, or the config of a Hugging Face model cannot say the
            new sizes.
    """
    check(
        SurgeryError,
        model=(model, (nn.Module,)),
        graph=(graph, (LayerGraph,)),
        score=(score, (str, Callable)),
        data=(data, (Iterable, type(None))),
        refit=(refit, str | None),
        ridge=(ridge, float | str),
        statistics=(statistics, bool),
        inplace=(inplace, bool),
    )
    model = unwrap(model, SurgeryError)
    rank = ranking(score, graph, model)
    with _on_data():
        batches = None if data is None else as_batches(data)
    if refit is not None and refit not in REFITS:
        raise SurgeryError(
            f"refit is one of {', '.join(map(repr, REFITS))} or None, not {shown(refit)}."
        )
    if ridge != "auto" and (isinstance(ridge, str) or not ridge > 0):
        raise SurgeryError(f"ridge={shown(ridge)} is neither a number above 0 nor 'auto'.")
    strength = None if isinstance(ridge, str) else ridge

    editable(model, graph, [c for c in axis_classes(graph) if c.free], inplace=True)
    before = config_state(model, graph)
    attributes = None
    if isinstance(keep, Mapping):
        asked = requested(graph, keep)
        if not asked:
            raise SurgeryError("keep names no class.", fix="narrow(model, graph, {0: 0.5}), or 0.5")
        kept = {each: _units(each, wish, rank) for each, wish in asked.items()}
    else:
        share, outer = _share(keep), outer_classes(graph)
        fixed = ranks(graph.model, outer)
        counts = {c: max(round(share * c.size), 1) for c in outer if c not in fixed}
        feasible = where_possible(model, graph, counts)
        attributes = feasible.attributes
        kept = {each: _units(each, count, rank) for each, count in feasible.sizes.items()}
    sizes = {each: len(units) for each, units in kept.items()}
    rows = _rows(model, kept)

    def cut(inplace: bool) -> nn.Module:
        return fitted(model, graph, rows, sizes, inplace=inplace, attributes=attributes)

    slim = cut(inplace and batches is None)
    with _on_data():
        if batches is not None and refit is not None:
            refitted(model, slim, graph, list(kept), rows, batches, how=refit, ridge=strength)
        if batches is not None and statistics:
            reestimate(slim, batches)
    if inplace and batches is not None:
        cut(inplace=True).load_state_dict(slim.state_dict())
        slim = model
    refresh_ranks(slim)
    refresh_config(slim, before, sizes)
    return slim


@contextlib.contextmanager
def _on_data() -> Iterator[None]:
    """Name `data` where the model does not take it."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        raise SurgeryError(
            "the model does not run on data.",
            why=f"{type(error).__name__}: {str(error)[:300]}",
            fix="pass batches that the model takes: [x], [(x, y)] or [{'name': x}]",
        ) from error


def _share(keep: object) -> float:
    if not isinstance(keep, float) or not 0 < keep <= 1:
        raise SurgeryError(
            f"{shown(keep)} is no share for a whole model.",
            fix="give a float above 0 and up to 1.0, or a mapping of classes to how many units each keeps",
        )
    return keep


def _units(each: AxisClass, wish: Keep, rank: Ranking) -> Tensor:
    if isinstance(wish, (int, float)):
        share = isinstance(wish, float) and 0 < wish <= 1
        wish = 0 if isinstance(wish, bool) else wish
        count = round(wish * each.size) if share else wish
        if not 1 <= count <= each.size or isinstance(count, float):
            raise SurgeryError(
                f"{shown(wish)} of {each.size} units cannot be kept.",
                where={"class": ", ".join(map(str, each.members[:3]))},
                fix=f"keep 1 to {each.size} units, or a share up to 1.0",
            )
        scores = rank(each)
        best: Tensor = scores.topk(count).indices.sort().values
        return best
    units: Tensor = torch.unique(whole_numbers(wish))
    if not len(units) or int(units[0]) < 0 or int(units[-1]) >= each.size:
        raise SurgeryError(
            f"units to keep lie between 0 and {each.size - 1}.",
            where={"given": shown(wish, 60)},
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
