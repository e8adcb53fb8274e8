"""Linear mode connectivity of a base and a source that need not look alike: what merging costs, factor by factor.

In: two models, a score on held-out data. Out: a `Curve`, or one for each control. Always true: neither model is
changed; every curve begins at the base to the bit; what is judged is a merged model that really ran. Elsewhere: the
figures of a curve (`curve`), pictures of many (`heatmap`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from graftlib.graph import LayerGraph, trace

from .curve import Curve, grid
from .matching import Alignment
from .meeting import METHODS, Declared, Evaluate, Meeting, Method, Pad, Stage, between, meet, scored
from .merging import PADS
from .permutation import AssemblyError
from .zoo import Args, Giver, givers, state_of

__all__ = ["CONTROLS", "controls", "lmc", "walk"]

Frame = Literal["base", "union"]


def lmc(
    base: nn.Module,
    source: Any,
    *,
    evaluate: Evaluate,
    args: Args = (),
    kwargs: Mapping[str, Any] | None = None,
    factors: Sequence[float] | None = None,
    method: Method = "coordinate",
    score: Literal["l2", "inner"] | None = None,
    frame: Frame = "base",
    pad: Pad = "zero",
    layers: Sequence[str] | None = None,
    mapping: Declared = None,
    restarts: int = 0,
    seed: int = 0,
) -> Curve:
    """Merge a source into a base at rising factors and score each merged model.

    Args:
        base: receives; not changed.
        source: gives: a model, ``(model, args, kwargs)`` or a `ZooEntry`.
        evaluate: model -> score, larger is better, on held-out data; called in eval mode; must not change the model.
        args: positional example inputs of the base, and of a source that brings none.
        kwargs: the same by keyword.
        factors: merging factors, rising from 0; by default 21 from 0 to 1.
        method: how units are matched: ``coordinate``, ``frank-wolfe``, or the controls ``identity`` (unit i reads unit
            i), ``random``, and ``shrink``, which merges a source that holds nothing: W = (1 - l) W_B.
        score: what the solver maximises, see `matching.match`; None: ``l2``, in the union frame ``inner``.
        frame: ``base``: the base's architecture stays. ``union``: both models are widened to the larger sizes first,
            so that both ends of the walk are the originals.
        pad: what entries of the base do that read nothing: ``zero``: shrink; ``keep``: stay.
        layers: merge only tensors of these modules of the base; None: all that meet.
        mapping: which layers meet: links as pairs of patterns (source, base), a `graftlib.Mapping`, or a function
            (source graph, base graph) -> mapping; None: found by order and kind.
        restarts: random restarts of the solver.
        seed: of the solver.

    Raises:
        AssemblyError: nothing meets, or the union frame is not to be had (its message says why).
    """
    _known(method)
    giver = next(givers(source, args, kwargs))
    wanted = score or ("inner" if frame == "union" else "l2")
    options: dict[str, Any] = {
        "method": method,
        "score": wanted,
        "restarts": restarts,
        "seed": seed,
    }
    if frame == "union":
        if layers is not None or method == "shrink":
            raise AssemblyError(
                "the union frame walks from one whole model to the other.",
                fix="leave layers out and use a method that matches, or frame='base'",
            )
        return _between(trace(base, args, kwargs), giver, mapping, evaluate, factors, options)
    stage = Stage(base)
    meeting = meet(trace(base, args, kwargs), giver, mapping)
    alignment = meeting.align(stage.state, **options)
    return walk(
        stage, meeting, alignment, evaluate, factors=factors, method=method, pad=pad, layers=layers
    )


CONTROLS = tuple(
    f"{name}, {pad}" for name in ("matched", "identity", "random", "shrink") for pad in PADS
)


def controls(
    base: nn.Module,
    source: Any,
    *,
    evaluate: Evaluate,
    args: Args = (),
    kwargs: Mapping[str, Any] | None = None,
    factors: Sequence[float] | None = None,
    which: Sequence[str] = CONTROLS,
    method: Method = "coordinate",
    score: Literal["l2", "inner"] = "l2",
    layers: Sequence[str] | None = None,
    mapping: Declared = None,
    restarts: int = 0,
    seed: int = 0,
) -> dict[str, Curve]:
    """The walk and everything that it must beat, in one call; arguments as for `lmc`.

    Without shrink and random one cannot tell a transfer from a base that bears small factors of anything.

    Args:
        base: as for `lmc`, and so are those not named here.
        source: as for `lmc`.
        evaluate: as for `lmc`.
        args: as for `lmc`.
        kwargs: as for `lmc`.
        factors: as for `lmc`.
        which: of `CONTROLS`: ``matched``, ``identity``, ``random`` and ``shrink``, each with ``zero`` and ``keep``.
        method: the solver of ``matched``.
        score: as for `lmc`.
        layers: as for `lmc`.
        mapping: as for `lmc`.
        restarts: as for `lmc`.
        seed: as for `lmc`.

    Returns:
        name -> curve, in the order of `which`.

    Raises:
        AssemblyError: nothing meets, or a name is none of `CONTROLS`.
    """
    for name in which:
        if name not in CONTROLS:
            raise AssemblyError(f"{name!r} is no control.", fix="use some of " + str(CONTROLS))
    stage = Stage(base)
    meeting = meet(trace(base, args, kwargs), next(givers(source, args, kwargs)), mapping)
    options: dict[str, Any] = {"score": score, "restarts": restarts, "seed": seed}
    alignments: dict[str, Alignment] = {}
    found: dict[str, Curve] = {}
    for name in which:
        how, pad = name.split(", ")
        used: Any = method if how == "matched" else how
        if how not in alignments:
            # A source that holds nothing is best where the source itself would stand.
            same = alignments.get("matched") if how == "shrink" else None
            alignments[how] = same or meeting.align(stage.state, method=used, **options)
        found[name] = walk(
            stage,
            meeting,
            alignments[how],
            evaluate,
            factors=factors,
            method=used,
            pad="keep" if pad == "keep" else "zero",
            layers=layers,
        )
    return found


def walk(
    stage: Stage,
    meeting: Meeting,
    alignment: Alignment,
    evaluate: Evaluate,
    *,
    factors: Sequence[float] | None = None,
    method: Method = "coordinate",
    pad: Pad = "zero",
    layers: Sequence[str] | None = None,
) -> Curve:
    """The curve of one alignment that is there already; arguments as for `lmc`. The stage is left at its base."""
    points = grid() if factors is None else tuple(factors)
    given = meeting.given(method)
    scores = []
    for factor in points:
        changed = stage.merge(alignment, given, factor, pad=pad, layers=layers) if factor else {}
        scores.append(scored(evaluate, stage.show(changed)))
    stage.show({})
    return Curve(points, tuple(scores), method, "base", pad)


def _between(
    base: LayerGraph,
    giver: Giver,
    mapping: Declared,
    evaluate: Evaluate,
    factors: Sequence[float] | None,
    options: Mapping[str, Any],
) -> Curve:
    """Both models in the architecture that holds both; the ends compute what the originals do."""
    source = giver.valued()
    meeting = between(base, source, giver.state, mapping, giver.name)
    alignment = meeting.align(state_of(base.model), **options)
    from .frames import union

    both = union(base, source, alignment)
    model = copy.deepcopy(both.base).eval()
    points, scores = grid() if factors is None else tuple(factors), []
    for factor in points:
        model.load_state_dict(both.merged(factor))
        scores.append(scored(evaluate, model))
    return Curve(points, tuple(scores), options["method"], "union", "")


def _known(method: str) -> None:
    if method not in METHODS:
        raise AssemblyError(
            f"method={method!r} is none.", fix="use one of " + ", ".join(map(repr, METHODS))
        )
