"""Merge layers of many trained models into one, source by source, without training.

In: a base, sources (models, checkpoints, a generator), and a score on held-out data where there is one. Out: an
`Assembly`: a plain model of the base's class, and the plan that made it. Always true: the base is not changed; every
source is aligned to the base as it is by then; every step, taken or refused, is logged with its reason; the same
arguments give the same bits, also after a kill (`resume`), in several processes (`jobs`) and by `replay`. Elsewhere:
the steps (`steps`), what a plan holds (`plan`), the rule without data (`rule`), files (`card`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta
from torch import nn

from graftlib.arguments import check
from graftlib.disk import make_folder
from graftlib.errors import shown
from graftlib.graph import trace
from graftlib.graph.structure import unwrap

from .meeting import Declared, Evaluate, Pad, Stage, meet
from .pairing import Pairing
from .permutation import AssemblyError
from .plan import Plan, alignment_of
from .pool import Pool
from .progress import progress
from .settings import FACTORS, checked
from .steps import Made, Run, write_step
from .zoo import Args, fingerprint, state_of

__all__ = ["Assembly", "assemble", "replay"]

PLAN = "plan.json"


@dataclass(frozen=True)
class Assembly:
    """A model made of several.

    Attributes:
        model: plain, of the base's class, with the base's training flag.
        record: the plan as a record; `plan` is the same as JSON.
    """

    model: nn.Module
    record: Plan
    _made: Made

    @property
    def plan(self) -> dict[str, Any]:
        """The plan in plain values, for `json.dump`, `replay` and a model card."""
        return self.record.to_json()

    @property
    def log(self) -> list[dict[str, Any]]:
        """One entry a step, taken or refused, without the permutations."""
        return [{k: v for k, v in s.to_json().items() if k != "reads"} for s in self.record.steps]

    def undo(self, steps: int = 1, *, sources: Any = None) -> Assembly:
        """The assembly without its last `steps` accepted steps, made anew from the base.

        Args:
            steps: how many; 0 to all.
            sources: the sources, where they came from a generator that is used up.

        Raises:
            AssemblyError: `steps` is no such number, or a source is not to be had any more or has changed.
        """
        made = (
            self._made
            if sources is None
            else replace(self._made, pool=Pool(sources, *self._made.example))
        )
        return _replayed(self.record.without(steps), made)

    def save(self, folder: str | Path) -> Path:
        """Write weights, config, model card, plan and report into `folder`, which is made where it is missing.

        Raises:
            AssemblyError: the folder cannot be written.
        """
        from .card import write

        return write(folder, self.model, self.record)

    def __str__(self) -> str:
        return str(self.record)


def assemble(
    base: nn.Module,
    sources: Any,
    *,
    args: Args = (),
    kwargs: Mapping[str, Any] | None = None,
    mapping: Declared = None,
    merge_factor: float | None = None,
    evaluate: Evaluate | None = None,
    goal: Literal["better", "within"] = "better",
    tolerance: float = 0.0,
    factors: Sequence[float] = FACTORS,
    parts: Sequence[str] = ("all", "blocks"),
    pad: Pad = "zero",
    frame: Literal["base"] = "base",
    method: Literal["coordinate", "frank-wolfe"] = "coordinate",
    score: Literal["l2", "inner"] = "l2",
    restarts: int = 0,
    rounds: int = 1,
    patience: int | None = None,
    seed: int = 0,
    pairing: Pairing = "blocks",
    jobs: int = 1,
    log: str | Path | None = None,
    resume: bool = False,
    show: bool | None = None,
) -> Assembly:
    """Merge what helps of each source into a copy of `base`.

    For each source in turn: find what meets, align it to the weights as they are by then, choose modules and factor,
    merge or refuse. Three ways to choose: `merge_factor` merges everything that meets at that factor, always; else
    `evaluate` scores every candidate (see `goal`); else the rule of `rule`, which needs no data.

    Args:
        base: receives; not changed. Wrappers of DataParallel, DDP and `torch.compile` are looked through, here and in
            the sources.
        sources: a model, ``(model, args, kwargs)``, a `ZooEntry`, or an iterable of these; a generator is asked for
            the next one only when it is needed.
        args: positional example inputs of the base, and of sources that bring none.
        kwargs: the same by keyword.
        mapping: which layers meet: links as pairs of patterns (source, base), a `graftlib.Mapping` (of one source),
            or a function (source graph, base graph) -> mapping; None: found by order and kind.
        merge_factor: 0 to 1, applied unconditionally; `evaluate` is then only logged.
        evaluate: model -> score, larger is better, on data that no figure is reported on; called in eval mode; must
            not change the model.
        goal: ``better``: the candidate of the highest score, where it is more than `tolerance` above the score by
            then. ``within``: the largest factor up to which all smaller ones, too, stay within `tolerance` of the best
            score by then (the paper's merging-factor threshold).
        tolerance: in the unit of the score, at least 0.
        factors: that are tried, rising, above 0.
        parts: which modules are tried together: ``all``, ``blocks`` (up to four runs of neighbours), ``layers`` (one
            at a time).
        pad: what entries of the base do that read nothing: ``zero``: shrink; ``keep``: stay.
        frame: only ``base``: the architecture stays. To give a base the room of a wider source, `surgery.widen` it
            first.
        method: of the solver, see `matching.match`.
        score: what it maximises.
        restarts: further random starts of it.
        rounds: how often the sources are gone through; a whole round without a merge ends it sooner. More than one
            needs sources that can be had again.
        patience: stop after so many refusals in a row, for zoos without an end; None: go through all.
        seed: of the solver and of the rule without data.
        pairing: ``blocks``: the layers of a block (a module that is repeated) meet those of one block of the source;
            ``layers``: each for itself, as it was before; a log of then is resumed with it.
        jobs: processes that align sources at the same time (joblib, under whatever backend is active). The result
            does not depend on it.
        log: folder that the plan is kept in after every step.
        resume: go on from the plan in `log` where there is one.
        show: a progress bar on stderr; None: where stderr is a terminal.

    Returns:
        the assembly.

    Raises:
        AssemblyError: an argument is out of range; a log is there and `resume` is not set, or is of other arguments; a
            mapping is of other graphs. A source that nothing meets is no error: its step is refused.
    """
    settings = checked(
        merge_factor, evaluate, goal, tolerance, factors, parts, pad, frame, method, score, restarts,
        rounds, patience, seed, pairing,
    )  # fmt: skip
    check(
        AssemblyError,
        base=(base, (nn.Module,)),
        jobs=(jobs, Annotated[int, Meta(ge=1, le=4096)]),
        resume=(resume, bool),
        show=(show, bool | None),
    )
    base = unwrap(base, AssemblyError)
    pool = Pool(sources, args, kwargs)
    if rounds > 1 and not pool.again:
        raise AssemblyError(
            "a generator can be gone through once.", fix="use rounds=1, or pass a list of sources"
        )
    graph = trace(base, args, kwargs)
    made = Made(base, graph, pool, mapping, (args, kwargs))
    fresh = Plan(type(base).__name__, fingerprint(state_of(base)), settings.to_json())
    book = None if log is None else make_folder(log, error=AssemblyError)
    plan = _begin(book, fresh, resume)
    stage = _restaged(plan, made)
    if not plan.stopped:
        run = Run(stage, made, settings, evaluate, jobs)
        with progress(len(pool) and len(pool) * rounds, show) as bar:
            for longer in run.steps(plan, bar):
                plan = longer
                if book is not None:
                    plan.save(book / PLAN)
    return _finished(stage, plan, made)


def replay(
    plan: Plan | Mapping[str, Any] | str | Path,
    base: nn.Module,
    sources: Any,
    *,
    args: Args = (),
    kwargs: Mapping[str, Any] | None = None,
    mapping: Declared = None,
) -> Assembly:
    """Do the accepted steps of a plan again: the same bits, without aligning or scoring.

    Args:
        plan: `Assembly.plan`, or a file that holds it.
        base: that the plan was made with.
        sources: in the order that they had; those that were refused may be anything.
        args: as for `assemble`.
        kwargs: as for `assemble`.
        mapping: as for `assemble`.

    Raises:
        AssemblyError: the plan is damaged, or the base or a source is not the one it was made with.
    """
    check(AssemblyError, base=(base, (nn.Module,)), plan=(plan, (Plan, Mapping, str, os.PathLike)))
    base = unwrap(base, AssemblyError)
    if isinstance(plan, (str, os.PathLike)):
        plan = Plan.load(plan)
    record = plan if isinstance(plan, Plan) else Plan.from_json(dict(plan))
    graph = trace(base, args, kwargs)
    return _replayed(
        record, Made(base, graph, Pool(sources, args, kwargs), mapping, (args, kwargs))
    )


def _begin(book: Path | None, fresh: Plan, resume: bool) -> Plan:
    """The plan to go on with."""
    if book is None:
        if resume:
            raise AssemblyError("there is nothing to resume from.", fix="pass log=FOLDER, too")
        return fresh
    if not (book / PLAN).exists():
        return fresh
    if not resume:
        raise AssemblyError(
            f"{str(book)!r} holds the log of an assembly.",
            fix="pass resume=True to go on with it, or another folder",
        )
    held = Plan.load(book / PLAN)
    differ = {
        name: f"{shown(held.settings.get(name))} in the log, {value!r} here"
        for name, value in fresh.settings.items()
        if held.settings.get(name) != value
    }
    if held.fingerprint != fresh.fingerprint:
        differ["base"] = "other weights"
    if differ:
        raise AssemblyError(
            f"the log in {str(book)!r} is of another assembly.",
            where=differ,
            fix="resume with the same base and arguments, or use another folder",
        )
    return held


def _restaged(plan: Plan, made: Made) -> Stage:
    """A copy of the base after the accepted steps of a plan."""
    if plan.fingerprint != fingerprint(state_of(made.base)):
        raise AssemblyError(
            f"the plan was made for other weights of {shown(plan.base)}.",
            fix="replay it on the very base that it was made with",
        )
    pad = plan.settings.get("pad")
    if pad not in ("zero", "keep"):
        raise AssemblyError("the plan is damaged.", where={"settings": f"pad is {shown(pad)}"})
    # Plans of before blocks were kept together do not say how layers were paired.
    pairing = plan.settings.get("pairing", "layers")
    if pairing not in ("blocks", "layers"):
        raise AssemblyError(
            "the plan is damaged.", where={"settings": f"pairing is {shown(pairing)}"}
        )
    stage = Stage(made.graph)
    for step in plan.accepted:
        giver = made.pool.get(step.number)
        if giver is None:
            raise AssemblyError(f"the plan merges source {step.number}, and there is none.")
        meeting = meet(made.graph, giver, made.mapping, pairing)
        if fingerprint(meeting.source_state) != step.fingerprint:
            raise AssemblyError(
                f"source {step.number}, {shown(step.source)}, has other weights than the plan was made with.",
                where={"given": shown(giver.name)},
                fix="pass the sources in the order and state that they had",
            )
        stage.commit(write_step(stage, alignment_of(meeting.problem, step), meeting, step, pad))
    return stage


def _replayed(plan: Plan, made: Made) -> Assembly:
    return _finished(_restaged(plan, made), plan, made)


def _finished(stage: Stage, plan: Plan, made: Made) -> Assembly:
    stage.show({})
    model = stage.model
    for mine, theirs in zip(model.modules(), made.base.modules(), strict=True):
        mine.training = theirs.training
    return Assembly(model, plan, made)
