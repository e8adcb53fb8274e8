"""`slim`: the verb of this package, light to import. The work is in `slimming`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ..graph import LayerGraph
    from ..surgery.importance import Importance
    from .cache import Cache
    from .importance import Losses
    from .slimming import Slim

__all__ = ["slim"]


def slim(
    graph: LayerGraph,
    *,
    budget: Mapping[str, float],
    data: Iterable[Any] | None = None,
    importance: str | Importance | None = None,
    losses: Losses | None = None,
    ranking: str = "uniform",
    solver: str = "greedy",
    multiple_of: int = 8,
    minimum: float = 0.1,
    keep: str | Sequence[str] = (),
    refit: str | None = "least-squares",
    statistics: bool = False,
    depth: bool = False,
    cache: Cache | None = None,
    model: nn.Module | None = None,
) -> Slim:
    """A smaller model of the same modules that meets a budget.

    Widths of axis classes (channels, neurons, heads) are chosen by importance and exact costs, the units that are
    worth least go, and what is left is fitted to `data`. The model itself is not changed.

    Args:
        graph: from `graftlib.trace`, at the inputs (batch size included) that costs are counted for.
        budget: the most that the small model may cost; several hold at once. ``params`` (elements of all parameters),
            ``macs`` (multiply-accumulates of a forward pass), ``bytes`` (of the state dict) or ``activations`` (bytes
            that the ops make) -> a share of the model's own (a float up to 1.0), or a number; ``size_mb`` -> megabytes
            of 1e6 bytes; ``latency_ms`` -> milliseconds of a forward pass on the model's device with torch's threads
            of now (or a share, up to 1.0), by a table of the model's ops that is measured once (`slim.latency_of`).
        data: inputs on the model's device, a few batches: each a tensor, a tuple of arguments, a mapping of keywords
            or (args, kwargs). Used for importances that are measured on data, and to fit what is left (see
            `surgery.prune`); a part is held out, and the report says the fidelity there.
        importance: of units: ``"magnitude"``, ``"uniform"``, a measure on data (``"activation"``, ``"wanda"``,
            ``"fluctuation"``, ``"taylor"``, ``"fisher"``; see `graftlib.slim.importance`), or a function of (graph,
            model, class) that gives a number for each unit, larger is better. None: ``"wanda"`` where there are
            data, ``"magnitude"`` where there are none or nothing that reads a class can be measured.
        losses: for ``"taylor"`` and ``"fisher"``: a function that, given a model, yields a loss for each labelled
            batch. None: how far the outputs on `data` move.
        ranking: what importances are compared with: ``"uniform"`` (the rank in the class: one share for all, so that
            layers alike stay alike, as the config of a Hugging Face model asks), ``"isomorphic"`` (the rank among
            units of the same kind, with one threshold for all, as in Fang et al. 2024), or ``"global"`` (as they are,
            in the whole model, for what they cost: see `solver`).
        solver: of ``"global"``: ``"greedy"`` (step by step the least worth for what it saves, at exact marginal
            costs), or ``"milp"`` (a mixed-integer program, which needs scipy; at most 20 s, never worse than greedy).
        multiple_of: the axes of weights become multiples of this where a class has room for two steps.
        minimum: the least share of its units that each class keeps, 0.0 to 1.0.
        keep: globs of layers; what these make keeps its width.
        refit: what is fitted to `data`, as in `surgery.prune`; None for nothing.
        statistics: take the running statistics of batch norms anew from `data`.
        depth: leave out blocks, too, where that keeps the outputs nearer to the original's than narrower layers alone
            do: up to six depths are tried, each with the widths that meet the budget, and compared on held-out data.
            It takes as many times as long, and needs `data`. Only blocks go that hand on a tensor of the shape that
            they take (`surgery.blocks`), the least important first.
        cache: a file in which importances that were measured on data are kept, so that the same call need not measure
            them again after it was stopped. A function of importance, and `losses`, are measured every time.
        model: another one of the same structure that is slimmed instead of ``graph.model``.

    Returns:
        the small model with its edit and report; ``print`` it.

    Raises:
        SurgeryError: an argument is not what it should be, the budget is below the smallest model that the rules
            allow (``least`` says its costs), or the modules do not run at any of the sizes.
        MissingExtraError: ``solver="milp"`` without scipy.

    Warns:
        SurgeryWarning: as `surgery.prune`; and where classes could not be measured.
    """
    from .slimming import slimmed

    return slimmed(
        graph,
        budget=budget,
        data=data,
        importance=importance,
        losses=losses,
        ranking=ranking,
        solver=solver,
        multiple_of=multiple_of,
        minimum=minimum,
        keep=keep,
        refit=refit,
        statistics=statistics,
        depth=depth,
        cache=cache,
        model=model,
    )
