"""Linear mode connectivity of a base and a source that need not look alike: what merging costs, factor by factor.

In: two models, a score on held-out data. Out: a `Curve`, or one for each control. Always true: neither model is
changed; every curve begins at the base to the bit; what is judged is a merged model that really ran. Elsewhere: the
figures of a curve (`curve`), pictures of many (`heatmap`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from graftlib.arguments import Seed, Some, check
from graftlib.errors import shown
from graftlib.graph import LayerGraph, trace
from graftlib.graph.structure import duplicate, own, shell

from .activations import costs
from .curve import Curve, grid
from .matching import Alignment, align
from .meeting import METHODS, Declared, Evaluate, Meeting, Method, Pad, Stage, between, meet, scored
from .merging import PADS
from .pairing import Problem, problem
from .permutation import AssemblyError
from .recording import Batches
from .repair import repair as repaired
from .zoo import Args, Giver, givers, state_of

__all__ = ["CONTROLS", "controls", "lmc", "walk"]

Frame = Literal["base", "union"]
MatchOn = Literal["weights", "activations"]
Mend = Callable[[nn.Module, float], nn.Module]


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
    batches: Batches | None = None,
    match_on: MatchOn = "weights",
    repair: bool = False,
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
        batches: data for the two options below, a list or a loader; none are needed otherwise. Each is a tensor, a
            tuple of arguments or a mapping of keywords that both models take, on their devices; not `evaluate`'s.
        match_on: ``weights``, or ``activations``: units meet by the correlation of what they put out on `batches`,
            where a layer makes a whole class; weights decide the others.
        repair: give every merged model the statistics that lie between those of base and source on `batches`
            (`repair.repair`); a ``shrink`` walk, whose source holds nothing, gets those of the base.

    Raises:
        AssemblyError: nothing meets, the union frame is not to be had (its message says why), or `batches` and what
            they are for do not go together.
    """
    check(
        AssemblyError,
        base=(base, (nn.Module,)),
        evaluate=(evaluate, (Callable,)),
        factors=(factors, list[float] | None),
        score=(score, Literal["l2", "inner"] | None),
        frame=(frame, Literal["base", "union"]),
        pad=(pad, Literal["zero", "keep"]),
        layers=(layers, list[str] | None),
        restarts=(restarts, Some),
        seed=(seed, Seed),
        repair=(repair, bool),
    )
    _known(method)
    _points(factors)
    data = _Data(batches, match_on, repair)
    giver = _one(source, args, kwargs)
    wanted = score or ("inner" if frame == "union" else "l2")
    options: dict[str, Any] = {
        "method": method,
        "score": wanted,
        "restarts": int(restarts),
        "seed": int(seed),
    }
    if frame == "union":
        if layers is not None or method == "shrink":
            raise AssemblyError(
                "the union frame walks from one whole model to the other.",
                fix="leave layers out and use a method that matches, or frame='base'",
            )
        return _between(trace(base, args, kwargs), giver, mapping, evaluate, factors, options, data)
    graph = trace(base, args, kwargs)
    base, stage = graph.model, Stage(graph)
    meeting, model = data.meet(graph, giver, mapping)
    alignment = meeting.align(
        stage.state, costs=data.costs(meeting.problem, base, model), **options
    )
    return walk(
        stage,
        meeting,
        alignment,
        evaluate,
        factors=factors,
        method=method,
        pad=pad,
        layers=layers,
        mend=data.mend(base, model, alignment, method, layers),
        data=data.uses,
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
    batches: Batches | None = None,
    match_on: MatchOn = "weights",
    repair: bool = False,
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
        batches: as for `lmc`.
        match_on: as for `lmc`, of ``matched`` and ``shrink``.
        repair: as for `lmc`, of all.

    Returns:
        name -> curve, in the order of `which`.

    Raises:
        AssemblyError: nothing meets, or a name is none of `CONTROLS`.
    """
    check(
        AssemblyError,
        base=(base, (nn.Module,)),
        evaluate=(evaluate, (Callable,)),
        factors=(factors, list[float] | None),
        which=(which, list[str]),
        score=(score, Literal["l2", "inner"]),
        layers=(layers, list[str] | None),
        restarts=(restarts, Some),
        seed=(seed, Seed),
        repair=(repair, bool),
    )
    for name in which:
        if name not in CONTROLS:
            raise AssemblyError(f"{shown(name)} is no control.", fix=f"use some of {CONTROLS}")
    _known(method)
    _points(factors)
    data = _Data(batches, match_on, repair)
    graph = trace(base, args, kwargs)
    base, stage = graph.model, Stage(graph)
    giver = _one(source, args, kwargs)
    meeting, model = data.meet(graph, giver, mapping)
    heard = data.costs(meeting.problem, base, model)
    options: dict[str, Any] = {"score": score, "restarts": int(restarts), "seed": int(seed)}
    alignments: dict[str, Alignment] = {}
    found: dict[str, Curve] = {}
    for name in which:
        how, pad = name.split(", ")
        used: Any = method if how == "matched" else how
        if how not in alignments:
            # A source that holds nothing is best where the source itself would stand.
            same = alignments.get("matched") if how == "shrink" else None
            alignments[how] = same or meeting.align(
                stage.state, method=used, costs=heard, **options
            )
        found[name] = walk(
            stage,
            meeting,
            alignments[how],
            evaluate,
            factors=factors,
            method=used,
            pad="keep" if pad == "keep" else "zero",
            layers=layers,
            mend=data.mend(base, model, alignments[how], used, layers),
            data=data.uses,
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
    mend: Mend | None = None,
    data: tuple[str, ...] = (),
) -> Curve:
    """The curve of one alignment that is there already; arguments as for `lmc`. The stage is left at its base.

    `mend` makes of a merged model and its factor, above 0, the model that is judged; `data` is noted in the curve.
    """
    points = _points(factors)
    given = meeting.given(method)
    scores = []
    for factor in points:
        changed = stage.merge(alignment, given, factor, pad=pad, layers=layers) if factor else {}
        model = stage.show(changed)
        scores.append(scored(evaluate, mend(model, factor) if factor and mend else model))
    stage.show({})
    return Curve(points, tuple(scores), method, "base", pad, data)


def _between(
    base: LayerGraph,
    giver: Giver,
    mapping: Declared,
    evaluate: Evaluate,
    factors: Sequence[float] | None,
    options: Mapping[str, Any],
    data: _Data,
) -> Curve:
    """Both models in the architecture that holds both; the ends compute what the originals do."""
    source = giver.valued()
    meeting = between(base, source, giver.state, mapping, giver.name)
    heard = data.costs(meeting.problem, base.model, source.model)
    alignment = meeting.align(state_of(base.model), costs=heard, **options)
    from .frames import union

    both = union(base, source, alignment)
    mend = None
    if data.repair:
        wide = trace(both.base, *base.example)
        same = problem(wide, wide)
        state = state_of(both.base)
        beside = align(same, state, state, method="identity")
        mend = data.mend(both.base, both.source, beside, options["method"], None)
    model = duplicate(both.base, own)
    points, scores = _points(factors), []
    for factor in points:
        both.write(model, factor)
        scores.append(scored(evaluate, mend(model, factor) if factor and mend else model))
    return Curve(points, tuple(scores), options["method"], "union", "", data.uses)


@dataclass(frozen=True)
class _Data:
    """What of a walk looks at data, checked when it is made."""

    batches: Batches | None
    match_on: str
    repair: bool

    def __post_init__(self) -> None:
        if not isinstance(self.match_on, str) or self.match_on not in ("weights", "activations"):
            raise AssemblyError(
                f"match_on={shown(self.match_on)} is none.", fix="use 'weights' or 'activations'"
            )
        if self.uses and (self.batches is None or iter(self.batches) is self.batches):
            raise AssemblyError(
                f"{' and '.join(self.uses)} go through data, several times.",
                fix="pass batches=[...], a list of inputs or a loader, no generator",
            )
        if self.batches is not None and not self.uses:
            raise AssemblyError(
                "batches are given and nothing uses them.",
                fix="pass match_on='activations' or repair=True, or leave batches out",
            )

    @property
    def uses(self) -> tuple[str, ...]:
        heard = ("activations",) if self.match_on == "activations" else ()
        return (*heard, "repair") if self.repair else heard

    def meet(
        self, base: LayerGraph, giver: Giver, mapping: Declared
    ) -> tuple[Meeting, nn.Module | None]:
        """What meets, and the source's model with its values where it will have to run."""
        if not self.uses:
            return meet(base, giver, mapping), None
        source = giver.valued()
        return between(base, source, giver.state, mapping, giver.name), source.model

    def costs(
        self, found: Problem, base: nn.Module, source: nn.Module | None
    ) -> dict[int, Tensor] | None:
        if self.match_on == "weights" or self.batches is None or source is None:
            return None
        return costs(found, base, source, self.batches)

    def mend(
        self,
        base: nn.Module,
        source: nn.Module | None,
        alignment: Alignment,
        method: str,
        layers: Sequence[str] | None,
    ) -> Mend | None:
        """REPAIR on a copy, as a stage knows only what a merge wrote."""
        if not self.repair or self.batches is None or source is None:
            return None
        batches = self.batches

        def mended(model: nn.Module, factor: float) -> nn.Module:
            made = duplicate(model, own)
            goal = 0.0 if method == "shrink" else factor
            repaired(shell(made), base, source, alignment, batches, goal, layers=layers)
            return made

        return mended


def _one(source: Any, args: Args, kwargs: Mapping[str, Any] | None) -> Giver:
    giver = next(givers(source, args, kwargs), None)
    if giver is None:
        raise AssemblyError(
            f"source={shown(source)} holds no model.",
            fix="give a model, (model, args, kwargs) or a ZooEntry",
        )
    return giver


def _points(factors: Sequence[float] | None) -> tuple[float, ...]:
    points = grid() if factors is None else tuple(map(float, factors))
    Curve(points, points)  # refuses what no curve has
    return points


def _known(method: str) -> None:
    if not isinstance(method, str) or method not in METHODS:
        raise AssemblyError(
            f"method={shown(method)} is none.", fix="use one of " + ", ".join(map(repr, METHODS))
        )
