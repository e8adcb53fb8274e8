"""Linear mode connectivity of a base and a source that need not look alike: what merging costs, factor by factor.

Every curve begins at the base to the bit; what is measured is a merged model that really ran. The figures of a curve
are in `curve`, pictures of many in `heatmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

from torch import Tensor, nn

from graftlib.arguments import Seed, check
from graftlib.errors import shown
from graftlib.graph import LayerGraph, duplicate, own, shell, trace
from graftlib.progress import track

from .activations import costs
from .alignment import Alignment
from .alignment_problem import Problem
from .curve import Curve, grid
from .errors import AssemblyError
from .matching import align
from .options import PADS, Method, Pad, Solver
from .paired_source import Declared, PairedSource, pair_graphs, pair_source
from .pairing import problem
from .recording import Batches
from .repair import repair as repaired
from .scratch_model import Evaluate, ScratchModel, measured
from .zoo import Args, Source, sources_of, state_of

__all__ = ["CONTROLS", "controls", "lmc"]

Frame = Literal["base", "union"]
MatchOn = Literal["weights", "activations"]
Repair = Callable[
    [nn.Module, float], nn.Module
]  # (merged model, its factor) -> the model that is measured


def lmc(
    base: nn.Module,
    source: Any,
    *,
    evaluate: Evaluate,
    args: Args = (),
    kwargs: Mapping[str, Any] | None = None,
    factors: Sequence[float] | None = None,
    solver: Solver | None = None,
    frame: Frame = "base",
    pad: Pad = "zero",
    layers: Sequence[str] | None = None,
    mapping: Declared = None,
    seed: int = 0,
    batches: Batches | None = None,
    match_on: MatchOn = "weights",
    repair: bool = False,
) -> Curve:
    """Merge a source into a base at rising factors and measure each merged model.

    Args:
        base: receives; not changed.
        source: gives: a model, ``(model, args, kwargs)`` or a `ZooEntry`.
        evaluate: model -> metric, larger is better, on held-out data; called in eval mode; must not change the model.
        args: positional example inputs of the base, and of a source that brings none.
        kwargs: the same by keyword.
        factors: merging factors, rising from 0; by default 21 from 0 to 1.
        solver: how units are aligned, the controls among its methods.
        frame: ``base``: the base's architecture stays. ``union``: both models are widened to the larger sizes first,
            so that both ends of the walk are the originals.
        pad: what entries of the base do that read nothing: ``zero``: shrink; ``keep``: stay.
        layers: merge only tensors of these modules of the base; None: all that are paired.
        mapping: which layers are paired: links as pairs of patterns (source, base), a `graftlib.Mapping`, or a
            function (source graph, base graph) -> mapping; None: by order and kind.
        seed: of the solver.
        batches: data for the two options below, a list or a loader; none are needed otherwise. Each is a tensor, a
            tuple of arguments or a mapping of keywords that both models take, on their devices; not `evaluate`'s.
        match_on: ``weights``, or ``activations``: units are aligned by the correlation of what they put out on
            `batches`, where a layer makes a whole class; weights decide the others.
        repair: give every merged model the statistics that lie between those of base and source on `batches`
            (`repair.repair`); a ``shrink`` walk, whose source holds nothing, gets those of the base.

    Raises:
        AssemblyError: no tensor is paired, the union frame is not to be had (its message says why), or `batches` and
            what they are for do not go together.
    """
    solver = Solver() if solver is None else solver
    check(
        AssemblyError,
        solver=(solver, (Solver,)),
        frame=(frame, Literal["base", "union"]),
        pad=(pad, Pad),
    )
    data = _Data(batches, match_on, repair)
    walk = _Walk(base, source, evaluate, args, kwargs, factors, layers, mapping, seed, data)
    if frame == "union":
        if layers is not None or solver.method == "shrink":
            raise AssemblyError(
                "the union frame walks from one whole model to the other.",
                fix="leave layers out and use a method that aligns, or frame='base'",
            )
        return walk.union(replace(solver, objective=solver.objective or "inner"))
    return walk.curve(solver, walk.align(solver), pad)


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
    solver: Solver | None = None,
    layers: Sequence[str] | None = None,
    mapping: Declared = None,
    seed: int = 0,
    batches: Batches | None = None,
    match_on: MatchOn = "weights",
    repair: bool = False,
) -> dict[str, Curve]:
    """The walk and everything that it must beat, in one call; arguments as for `lmc`.

    Without shrink and random one cannot tell a transfer from a base that tolerates small factors of anything.

    Of ``matched`` alone is `solver`, of ``matched`` and ``shrink`` `match_on`, and `repair` of all. `which` are some of
    `CONTROLS`: ``matched``, ``identity``, ``random`` and ``shrink``, each with ``zero`` and ``keep``.

    Returns:
        name -> curve, in the order of `which`.

    Raises:
        AssemblyError: no tensor is paired, or a name is none of `CONTROLS`.
    """
    solver = Solver() if solver is None else solver
    check(AssemblyError, solver=(solver, (Solver,)), which=(which, list[str]))
    for name in which:
        if name not in CONTROLS:
            raise AssemblyError(f"{shown(name)} is no control.", fix=f"use some of {CONTROLS}")
    data = _Data(batches, match_on, repair)
    walk = _Walk(base, source, evaluate, args, kwargs, factors, layers, mapping, seed, data)
    alignments: dict[str, Alignment] = {}
    curves: dict[str, Curve] = {}
    for name in track(which):
        control, pad = name.split(", ")
        how = solver if control == "matched" else replace(solver, method=cast(Method, control))
        if control not in alignments:
            # A source that holds nothing is best where the source itself would stand.
            same = alignments.get("matched") if control == "shrink" else None
            alignments[control] = same or walk.align(how)
        curves[name] = walk.curve(how, alignments[control], cast(Pad, pad))
    return curves


@dataclass
class _Walk:
    """A base and a source between which one walks; arguments as for `lmc`."""

    base: nn.Module
    given: Any
    evaluate: Evaluate
    args: Args
    kwargs: Mapping[str, Any] | None
    given_factors: Sequence[float] | None
    layers: Sequence[str] | None
    mapping: Declared
    seed: int
    data: _Data

    def __post_init__(self) -> None:
        check(
            AssemblyError,
            base=(self.base, (nn.Module,)),
            evaluate=(self.evaluate, (Callable,)),
            factors=(self.given_factors, list[float] | None),
            layers=(self.layers, list[str] | None),
            seed=(self.seed, Seed),
        )
        given = self.given_factors
        self.factors = grid() if given is None else tuple(map(float, given))
        Curve(self.factors, self.factors)  # refuses what no curve has
        self.seed = int(self.seed)
        self.source = _one(self.given, self.args, self.kwargs)
        self.graph = trace(self.base, self.args, self.kwargs)

    # --- in the base frame ----------------------------------------------------------------------------------------

    @cached_property
    def scratch(self) -> ScratchModel:
        return ScratchModel(self.graph)

    @cached_property
    def paired(self) -> PairedSource:
        source = self.source
        if self.source_model is None:
            return pair_source(self.graph, source, self.mapping)
        return pair_graphs(self.graph, self.source_graph, source.state, self.mapping, source.name)

    @cached_property
    def source_graph(self) -> LayerGraph:
        return self.source.graph_with_values()

    @property
    def source_model(self) -> nn.Module | None:
        """The source with its values, where it will have to run."""
        return self.source_graph.model if self.data.uses else None

    @cached_property
    def costs(self) -> dict[int, Tensor] | None:
        return self.data.costs(self.paired.problem, self.graph.model, self.source_model)

    def align(self, solver: Solver) -> Alignment:
        """The source to the base."""
        return self.paired.align(self.scratch.state, solver, seed=self.seed, costs=self.costs)

    def curve(self, solver: Solver, alignment: Alignment, pad: Pad) -> Curve:
        """The walk at all factors."""
        repair = self.data.repair_by(
            self.graph.model, self.source_model, alignment, solver, self.layers
        )
        state, scratch = self.paired.merged_state(solver), self.scratch
        metrics = []
        for factor in track(self.factors):
            changed = (
                scratch.merge(alignment, state, factor, pad=pad, layers=self.layers)
                if factor
                else {}
            )
            metrics.append(self._measured(scratch.show(changed), factor, repair))
        scratch.show({})
        return Curve(self.factors, tuple(metrics), solver.method, "base", pad, self.data.uses)

    # --- in the union frame ---------------------------------------------------------------------------------------

    def union(self, solver: Solver) -> Curve:
        """Both models in the architecture that holds both; the ends compute what the originals do."""
        from .union_frame import union

        base, source = self.graph, self.source_graph
        paired = pair_graphs(base, source, self.source.state, self.mapping, self.source.name)
        by_data = self.data.costs(paired.problem, base.model, source.model)
        state = state_of(base.model)
        both = union(base, source, paired.align(state, solver, seed=self.seed, costs=by_data))
        repair = None
        if self.data.repair:
            wide = trace(both.base, *base.example)
            state = state_of(both.base)
            beside = align(problem(wide, wide), state, state, method="identity")
            repair = self.data.repair_by(both.base, both.source, beside, solver, None)
        model = duplicate(both.base, own)
        metrics = []
        for factor in track(self.factors):
            both.write(model, factor)
            metrics.append(self._measured(model, factor, repair))
        return Curve(self.factors, tuple(metrics), solver.method, "union", "", self.data.uses)

    def _measured(self, model: nn.Module, factor: float, repair: Repair | None) -> float:
        return measured(self.evaluate, repair(model, factor) if factor and repair else model)


@dataclass(frozen=True)
class _Data:
    """What of a walk looks at data, checked when it is made."""

    batches: Batches | None
    match_on: str
    repair: bool

    def __post_init__(self) -> None:
        check(AssemblyError, repair=(self.repair, bool))
        check(
            AssemblyError,
            fix="use 'weights' or 'activations'",
            match_on=(self.match_on, MatchOn),
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
        """What data are used for."""
        used = {"activations": self.match_on == "activations", "repair": self.repair}
        return tuple(name for name, each in used.items() if each)

    def costs(
        self, task: Problem, base: nn.Module, source: nn.Module | None
    ) -> dict[int, Tensor] | None:
        """Similarities of units by what they put out; None where weights decide."""
        if self.match_on == "weights" or self.batches is None or source is None:
            return None
        return costs(task, base, source, self.batches)

    def repair_by(
        self,
        base: nn.Module,
        source: nn.Module | None,
        alignment: Alignment,
        solver: Solver,
        layers: Sequence[str] | None,
    ) -> Repair | None:
        """REPAIR on a copy, as a scratch model knows only what a merge wrote."""
        if not self.repair or self.batches is None or source is None:
            return None
        batches = self.batches

        def repair(model: nn.Module, factor: float) -> nn.Module:
            copy = duplicate(model, own)
            goal = 0.0 if solver.method == "shrink" else factor
            repaired(shell(copy), base, source, alignment, batches, goal, layers=layers)
            return copy

        return repair


def _one(source: Any, args: Args, kwargs: Mapping[str, Any] | None) -> Source:
    one = next(sources_of(source, args, kwargs), None)
    if one is None:
        raise AssemblyError(
            f"source={shown(source)} holds no model.",
            fix="give a model, (model, args, kwargs) or a ZooEntry",
        )
    return one
