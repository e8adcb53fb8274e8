"""Merge layers of many trained models into one, source by source, without training.

Every source is aligned to the base as it is by then; every step, accepted or refused, is logged with its reason. The
same arguments give the same bits, also after a kill (`resume`), in several processes (`jobs`) and by `replay`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct
from torch import nn

from graftlib import progress
from graftlib.arguments import Seed, Share, check
from graftlib.disk import make_folder
from graftlib.documents import convert
from graftlib.errors import shown
from graftlib.graph import LayerGraph, trace, unwrap

from .errors import AssemblyError
from .options import Pad, Pairing, Search, Settings, Solver
from .paired_source import Declared, pair_source
from .plan import Plan, alignment_of
from .scratch_model import Evaluate, ScratchModel
from .sources import Sources
from .steps import Inputs, Run, write_step
from .zoo import Args, fingerprint, state_of, with_values

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
    _inputs: Inputs

    @property
    def plan(self) -> dict[str, Any]:
        """The plan in plain values, for `json.dump`, `replay` and a model card."""
        return self.record.to_json()

    @property
    def graph(self) -> LayerGraph:
        """The layer graph of the base, whose layers the assembly has; ``view(assembly)`` shows where they come from."""
        return self._inputs.graph

    @property
    def log(self) -> list[dict[str, Any]]:
        """One entry a step, accepted or refused, without the permutations."""
        return [{k: v for k, v in s.to_json().items() if k != "reads"} for s in self.record.steps]

    def undo(self, steps: int = 1, *, sources: Any = None) -> Assembly:
        """The assembly without its last `steps` accepted steps, made anew from the base.

        Args:
            steps: how many; 0 to all.
            sources: the sources, where they came from a generator that is used up.

        Raises:
            AssemblyError: `steps` is no such number, or a source is not to be had any more or has changed.
        """
        inputs = self._inputs
        if sources is not None:
            inputs = replace(inputs, sources=Sources(sources, *inputs.example))
        plan = self.record.without(steps)
        return _finished(_redone(plan, inputs), plan, inputs)

    def save(self, folder: str | Path) -> Path:
        """Write weights, config, model card, plan and report into `folder`, which is made where it is missing.

        Raises:
            AssemblyError: the folder cannot be written.
        """
        from .card import write

        return write(folder, self.model, self.record)

    def __str__(self) -> str:
        return str(self.record)

    def _repr_html_(self) -> str:
        from graftlib.view import view

        return view(self)._repr_html_()


def assemble(
    base: nn.Module,
    sources: Any,
    *,
    args: Args = (),
    kwargs: Mapping[str, Any] | None = None,
    mapping: Declared = None,
    merge_factor: float | None = None,
    evaluate: Evaluate | None = None,
    search: Search | None = None,
    solver: Solver | None = None,
    pad: Pad = "zero",
    pairing: Pairing = "blocks",
    seed: int = 0,
    jobs: int = 1,
    log: str | Path | None = None,
    resume: bool = False,
    show: bool | None = None,
) -> Assembly:
    """Merge what helps of each source into a copy of `base`.

    For each source in turn: pair its tensors with the base's, align it to the weights as they are by then, choose
    modules and factor, merge or refuse. Three ways to choose: `merge_factor` merges everything that is paired at that
    factor, always; else `evaluate` measures every candidate of `search`; else `permutation_test`, which needs no data.
    The architecture stays the base's: to give it the room of a wider source, `surgery.widen` it first.

    Args:
        base: receives; not changed. Wrappers of DataParallel, DDP and `torch.compile` are looked through, here and in
            the sources.
        sources: a model, ``(model, args, kwargs)``, a `ZooEntry`, or an iterable of these; a generator is asked for
            the next one only when it is needed.
        args: positional example inputs of the base, and of sources that bring none.
        kwargs: the same by keyword.
        mapping: which layers are paired: links as pairs of patterns (source, base), a `graftlib.Mapping` (of one
            source), or a function (source graph, base graph) -> mapping; None: by order and kind.
        merge_factor: 0 to 1, applied unconditionally; `evaluate` is then only logged.
        evaluate: model -> metric, larger is better, on data that no figure is reported on; called in eval mode; must
            not change the model.
        search: which merges of a source are tried with `evaluate`, and how often the sources are gone through.
        solver: how units are aligned.
        pad: what entries of the base do that read nothing: ``zero``: shrink; ``keep``: stay.
        pairing: ``blocks``: the layers of a block (a module that is repeated) read those of one block of the source;
            ``layers``: each for itself, as it was before; a log of then is resumed with it.
        seed: of the solver and of the test without data.
        jobs: processes that align sources at the same time (joblib, under whatever backend is active). The result
            does not depend on it.
        log: folder that the plan is kept in after every step.
        resume: go on from the plan in `log` where there is one.
        show: a progress bar on stderr; None: where stderr is a terminal.

    Returns:
        the assembly.

    Raises:
        AssemblyError: an argument is out of range; a log is there and `resume` is not set, or is of other arguments; a
            mapping is of other graphs. A source of which no tensor fits is no error: its step is refused.
    """
    search = Search() if search is None else search
    solver = Solver() if solver is None else solver
    check(
        AssemblyError,
        base=(base, (nn.Module,)),
        merge_factor=(merge_factor, Share | None),
        evaluate=(evaluate, (Callable, type(None))),
        search=(search, (Search,)),
        solver=(solver, (Solver,)),
        pad=(pad, Pad),
        pairing=(pairing, Pairing),
        seed=(seed, Seed),
        jobs=(jobs, Annotated[int, Meta(ge=1, le=4096)]),
        resume=(resume, bool),
        show=(show, bool | None),
    )
    if solver.method not in ("coordinate", "frank-wolfe"):
        raise AssemblyError(
            f"method='{solver.method}' is a control of lmc.",
            fix="use Solver(method='coordinate') or 'frank-wolfe'",
        )
    base = with_values(unwrap(base, AssemblyError))
    each = Sources(sources, args, kwargs)
    if search.rounds > 1 and not each.again:
        raise AssemblyError(
            "a generator can be gone through once.", fix="use rounds=1, or pass a list of sources"
        )
    how = "given factor" if merge_factor is not None else "evaluate" if evaluate else "no data"
    factor = None if merge_factor is None else float(merge_factor)
    settings = Settings(factor, search, solver, pad, pairing, int(seed), how)
    inputs = Inputs(base, trace(base, args, kwargs), each, mapping, (args, kwargs))
    new = Plan(type(base).__name__, fingerprint(state_of(base)), settings.to_json())
    folder = None if log is None else make_folder(log, error=AssemblyError)
    plan = _begin(folder, new, resume)
    scratch = _redone(plan, inputs)
    if not plan.stopped:
        run = Run(scratch, inputs, settings, evaluate, jobs)
        with progress.bar("merging", show):
            for longer in run.steps(plan):
                plan = longer
                if folder is not None:
                    plan.save(folder / PLAN)
    return _finished(scratch, plan, inputs)


def replay(
    plan: Plan | Mapping[str, Any] | str | Path,
    base: nn.Module,
    sources: Any,
    *,
    args: Args = (),
    kwargs: Mapping[str, Any] | None = None,
    mapping: Declared = None,
) -> Assembly:
    """Do the accepted steps of a plan again: the same bits, without aligning or measuring.

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
    base = with_values(unwrap(base, AssemblyError))
    if isinstance(plan, (str, os.PathLike)):
        plan = Plan.load(plan)
    record = plan if isinstance(plan, Plan) else Plan.from_json(dict(plan))
    example = (args, kwargs)
    inputs = Inputs(base, trace(base, *example), Sources(sources, *example), mapping, example)
    return _finished(_redone(record, inputs), record, inputs)


def _begin(folder: Path | None, new: Plan, resume: bool) -> Plan:
    """The plan to go on with."""
    if folder is None:
        if resume:
            raise AssemblyError("there is nothing to resume from.", fix="pass log=FOLDER, too")
        return new
    if not (folder / PLAN).exists():
        return new
    if not resume:
        raise AssemblyError(
            f"{str(folder)!r} holds the log of an assembly.",
            fix="pass resume=True to go on with it, or another folder",
        )
    old = Plan.load(folder / PLAN)
    differ = {
        name: f"{shown(old.settings.get(name))} in the log, {value!r} here"
        for name, value in new.settings.items()
        if old.settings.get(name) != value
    }
    if old.fingerprint != new.fingerprint:
        differ["base"] = "other weights"
    if differ:
        raise AssemblyError(
            f"the log in {str(folder)!r} is of another assembly.",
            where=differ,
            fix="resume with the same base and arguments, or use another folder",
        )
    return old


class _Writing(Struct):
    """Those settings of a plan that say what its steps wrote."""

    pad: Pad
    pairing: Pairing


def _redone(plan: Plan, inputs: Inputs) -> ScratchModel:
    """A copy of the base after the accepted steps of a plan."""
    if plan.fingerprint != fingerprint(state_of(inputs.base)):
        raise AssemblyError(
            f"the plan was made for other weights of {shown(plan.base)}.",
            fix="replay it on the very base that it was made with",
        )
    # Plans of before blocks were kept together do not say how layers were paired.
    how = {"pairing": "layers", **plan.settings}
    what = "the plan is damaged: what its 'settings' say"
    writing = convert(
        how, _Writing, what=what, error=AssemblyError, fix="use the plan as it was saved"
    )
    scratch = ScratchModel(inputs.graph)
    for step in plan.accepted:
        source = inputs.sources.get(step.number)
        if source is None:
            raise AssemblyError(
                f"the plan merges source {step.number}, and there is none.",
                fix="pass the sources that the plan names, in their order",
            )
        paired = pair_source(inputs.graph, source, inputs.mapping, writing.pairing)
        if fingerprint(paired.state) != step.fingerprint:
            raise AssemblyError(
                f"source {step.number}, {shown(step.source)}, has other weights than the plan was made with.",
                where={"given": shown(source.name)},
                fix="pass the sources in the order and state that they had",
            )
        alignment = alignment_of(paired.problem, step)
        scratch.commit(write_step(scratch, alignment, paired, step, writing.pad))
    return scratch


def _finished(scratch: ScratchModel, plan: Plan, inputs: Inputs) -> Assembly:
    scratch.show({})
    model = scratch.model
    for module, original in zip(model.modules(), inputs.base.modules(), strict=True):
        module.training = original.training
    return Assembly(model, plan, inputs)
