"""The steps of an assembly: align a source to the weights as they are by then, choose, merge or refuse.

What a step does depends on the weights, the source and the settings, not on how many sources were aligned ahead of
their turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs
from torch import Tensor, nn

from graftlib import progress
from graftlib.errors import optional
from graftlib.graph import LayerGraph

from .alignment import Alignment
from .errors import AssemblyError
from .options import Pad, Search, Settings, Solver
from .paired_source import Declared, PairedSource, pair_source
from .permutation_test import Significance, permutation_test
from .plan import Plan, Step, reads_of
from .scratch_model import Evaluate, ScratchModel, measured
from .sources import Sources
from .zoo import Source, fingerprint

__all__ = ["BLOCKS", "Inputs", "Run", "write_step"]

BLOCKS = 4
"""Into how many groups of neighbours a model is cut at most: stretches of it, whatever is repeated in them."""


@dataclass(frozen=True)
class Inputs:
    """What an assembly is made of, to make it again."""

    base: nn.Module
    graph: LayerGraph
    sources: Sources
    mapping: Declared
    example: tuple[Any, Any]


@dataclass(frozen=True)
class _Candidate:
    """A merge that may be done; a factor of 0 refuses the source."""

    layers: tuple[str, ...] | None
    factor: float
    metric: float | None
    reason: str


@dataclass(frozen=True)
class _Aligned:
    """A source beside the base as it was after `accepted` merges; `refusal` where it cannot be aligned."""

    source: Source
    number: int
    accepted: int
    paired: PairedSource | None = None
    alignment: Alignment | None = None
    significance: Significance | None = None
    refusal: str = ""


class Run:
    """One assembly under way."""

    def __init__(
        self,
        scratch: ScratchModel,
        inputs: Inputs,
        settings: Settings,
        evaluate: Evaluate | None,
        jobs: int,
    ) -> None:
        self.scratch, self.inputs, self.settings = scratch, inputs, settings
        self.evaluate, self.jobs = evaluate, jobs
        self.metric: float | None = None
        self.best = float("-inf")
        self.merges = 0

    def steps(self, plan: Plan) -> Iterator[Plan]:
        """The plan after each further step."""
        self.merges = len(plan.accepted)
        known = [step.after for step in plan.accepted if step.after is not None]
        if self.evaluate is not None:
            self.metric = known[-1] if known else measured(self.evaluate, self.scratch.model)
            first = [plan.accepted[0].before] if known else []
            self.best = max(s for s in (*known, *first, self.metric) if s is not None)
        for turn in progress.track(range(self.settings.search.rounds)):
            done, begin = _done(plan, turn)
            for aligned in self._aligned(begin):
                with self._part(aligned.number):
                    step = self._step(aligned)
                del aligned  # with it the source goes, before the next one is read
                plan = replace(plan, steps=(*plan.steps, step))
                done.append(step)
                progress.note(str(step))
                yield plan
                why = self._enough(plan)
                if why:
                    yield replace(plan, stopped=why)
                    return
            if not any(step.accepted for step in done):
                yield replace(plan, stopped=f"nothing was merged in round {turn + 1}")
                return
        rounds = self.settings.search.rounds
        times = "once" if rounds == 1 else f"{rounds} times"
        yield replace(plan, stopped=f"all sources were gone through {times}")

    def _part(self, number: int) -> AbstractContextManager[None]:
        """The share of a round that a source is, where it is known of how many."""
        count = len(self.inputs.sources)
        return progress.part(number / count, (number + 1) / count) if count else nullcontext()

    def _enough(self, plan: Plan) -> str:
        most = self.settings.search.max_refusals
        if most is None or len(plan.steps) < most:
            return ""
        refused = not any(step.accepted for step in plan.steps[-most:])
        return f"{most} sources in a row were refused" if refused else ""

    # --- aligning -------------------------------------------------------------------------------------------------

    def _aligned(self, number: int) -> Iterator[_Aligned]:
        """Every further source, aligned to the weights of that moment.

        Several are aligned at once for the present weights; those behind a merge are aligned again, so that nothing
        depends on how many there were.
        """
        while True:
            batch: list[Source] = []
            while len(batch) < max(self.jobs, 1):
                source = self.inputs.sources.get(number + len(batch))
                if source is None:
                    break
                batch.append(source)
            if not batch:
                return
            ahead = self._align(list(enumerate(batch, number)))
            number += len(batch)
            del batch, source
            while ahead:
                yield self._current(ahead.pop(0))

    def _current(self, one: _Aligned) -> _Aligned:
        stale = one.accepted != self.merges
        return self._align([(one.number, one.source)])[0] if stale else one

    def _align(self, batch: Sequence[tuple[int, Source]]) -> list[_Aligned]:
        paired = [self._paired(number, source) for number, source in batch]
        no_data = self.evaluate is None and self.settings.merge_factor is None
        state = self.scratch.state
        how = (self.settings.solver, self.settings.seed, no_data)
        work = [
            (one, {name: state[name] for name in one.paired.problem.by_base()}, *how)
            for one in paired
            if one.paired is not None
        ]
        if self.jobs > 1 and len(work) > 1:
            joblib = optional("joblib", "jobs > 1 needs joblib.", "assembly")
            tasks = (joblib.delayed(_solved)(*each) for each in work)
            solved = joblib.Parallel(n_jobs=self.jobs)(tasks)
        else:
            solved = [_solved(*each) for each in work]
        by_number = {one.number: one for one in solved}
        return [by_number.get(one.number, one) for one in paired]

    def _paired(self, number: int, source: Source) -> _Aligned:
        inputs = self.inputs
        try:
            paired = pair_source(inputs.graph, source, inputs.mapping, self.settings.pairing)
        except AssemblyError as error:
            if inputs.mapping is not None and not hasattr(error, "tensors"):
                raise  # what was declared must hold
            return _Aligned(source, number, self.merges, refusal=error.what)
        return _Aligned(source, number, self.merges, paired)

    # --- choosing -------------------------------------------------------------------------------------------------

    def _step(self, aligned: _Aligned) -> Step:
        name, number = aligned.source.name, aligned.number
        paired, alignment = aligned.paired, aligned.alignment
        if paired is None or alignment is None:
            return Step(name, number, "", False, aligned.refusal, before=self.metric)
        chosen, tried = self._chosen(aligned, paired, alignment)
        step = Step(
            name,
            number,
            fingerprint(paired.state),
            chosen.factor > 0,
            chosen.reason,
            chosen.factor,
            chosen.layers,
            self.metric,
            chosen.metric,
            tried,
            alignment.objective,
        )
        if not step.accepted:
            self.scratch.show({})
            return step
        self.scratch.commit(write_step(self.scratch, alignment, paired, step, self.settings.pad))
        self.merges += 1
        if chosen.metric is not None:
            self.metric, self.best = chosen.metric, max(self.best, chosen.metric)
        return structs.replace(step, reads=reads_of(alignment))

    def _chosen(
        self, aligned: _Aligned, paired: PairedSource, alignment: Alignment
    ) -> tuple[_Candidate, int]:
        """What to merge, and how many merged models were measured for it."""
        factor, evaluate = self.settings.merge_factor, self.evaluate
        if evaluate is None:
            if factor is not None:
                return _Candidate(None, factor, None, "the factor was given"), 0
            result = aligned.significance
            assert result is not None
            return _Candidate(result.layers or None, result.factor, None, result.reason), 0

        def metric(layers: tuple[str, ...] | None, factor: float) -> float:
            pad = self.settings.pad
            changed = self.scratch.merge(alignment, paired.state, factor, pad=pad, layers=layers)
            return measured(evaluate, self.scratch.show(changed))

        if factor is not None:
            return _Candidate(None, factor, metric(None, factor), "the factor was given"), 1
        assert self.metric is not None
        search, tried, candidates = self.settings.search, 0, []
        module_sets = list(_module_sets(paired, search.parts))
        for layers in progress.track(module_sets):
            for each in progress.track(search.factors):
                value = metric(layers, each)
                tried += 1
                total = len(module_sets) * len(search.factors)
                progress.note(f"{aligned.source.name}: {tried} of {total}")
                if search.goal == "within" and value < self.best - search.tolerance:
                    break  # the threshold lies before this factor, whatever comes later
                candidates.append(_Candidate(layers, each, value, ""))
        if search.goal == "within":
            return _largest(candidates, self.best, search, tried), tried
        return _highest(candidates, self.metric, search, tried), tried


def _done(plan: Plan, turn: int) -> tuple[list[Step], int]:
    """The steps of a round that a plan holds already, and the source to go on with."""
    rounds: list[list[Step]] = [[]]
    for step in plan.steps:
        if rounds[-1] and step.number <= rounds[-1][-1].number:
            rounds.append([])
        rounds[-1].append(step)
    steps = rounds[turn] if turn < len(rounds) else []
    return steps, (steps[-1].number + 1 if steps else 0)


def _solved(
    one: _Aligned, base: Mapping[str, Tensor], solver: Solver, seed: int, no_data: bool
) -> _Aligned:
    """Align, and test where no data will; runs in a worker."""
    assert one.paired is not None
    alignment = one.paired.align(base, solver, seed=seed)
    aligned = replace(one, alignment=alignment)
    if not no_data:
        return aligned
    result = permutation_test(one.paired, alignment, base, solver, seed=seed)
    return replace(aligned, significance=result)


def _highest(
    candidates: Sequence[_Candidate], now: float, search: Search, tried: int
) -> _Candidate:
    """The highest metric; of equal ones the first, which has more modules and the smaller factor."""
    best = max(candidates, key=lambda c: c.metric or 0.0)
    assert best.metric is not None  # as of all candidates here
    if not best.metric > now + search.tolerance:
        over = f" by more than {search.tolerance:g}" if search.tolerance else ""
        why = f"the best of {tried} candidates scores {best.metric:.6g}, not above {now:.6g}{over}"
        return _Candidate(None, 0.0, best.metric, why)
    return replace(best, reason=f"the best of {tried} candidates: {now:.6g} -> {best.metric:.6g}")


def _largest(
    candidates: Sequence[_Candidate], now: float, search: Search, tried: int
) -> _Candidate:
    """The largest factor that stays within the tolerance; of equal ones the first, which has more modules."""
    best = max(candidates, key=lambda c: c.factor, default=None)
    if best is None:
        why = f"no factor of {tried} tried keeps the score within {search.tolerance:g} of {now:.6g}"
        return _Candidate(None, 0.0, None, why)
    kept = f"the largest factor within {search.tolerance:g} of {now:.6g}"
    return replace(best, reason=f"{kept}: it scores {best.metric:.6g}")


def _module_sets(paired: PairedSource, parts: Sequence[str]) -> Iterator[tuple[str, ...] | None]:
    """Sets of base modules to merge together: all, groups of neighbours, single ones; none twice."""
    groups = paired.module_groups
    cuts: list[int] = []
    if "blocks" in parts:
        cuts.append(min(BLOCKS, len(groups)))
    if "layers" in parts:
        cuts.append(len(groups))
    if "all" in parts:
        yield None
    seen = {tuple(groups[0])} if len(groups) == 1 and "all" in parts else set()
    for cut in cuts:
        for i in range(cut):
            block = groups[i * len(groups) // cut : (i + 1) * len(groups) // cut]
            layers = tuple(name for group in block for name in group)
            if layers not in seen:
                seen.add(layers)
                yield layers


def write_step(
    scratch: ScratchModel, alignment: Alignment, paired: PairedSource, step: Step, pad: Pad
) -> dict[str, Tensor]:
    """What one accepted step writes; the one place for it, so that a replay has the same bits."""
    return scratch.merge(alignment, paired.state, step.factor, pad=pad, layers=step.layers)
