"""The steps of an assembly: align a source to the weights as they are by then, choose, merge or refuse.

In: a base in a `Stage`, sources, settings, a score. Out: the plan after each further step. Always true: what a step
does depends on the weights, the source and the settings, not on how many sources were aligned ahead of their turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs
from torch import Tensor, nn

from graftlib.errors import MissingExtraError
from graftlib.graph import LayerGraph

from .alignment import Alignment
from .meeting import Declared, Evaluate, Meeting, Pad, Stage, base_side, meet, runs, scored
from .permutation import AssemblyError
from .plan import Plan, Step, reads_of
from .pool import Pool
from .progress import Progress
from .rule import Verdict, judge
from .settings import Settings
from .zoo import Giver, fingerprint

__all__ = ["BLOCKS", "Made", "Run", "write_step"]

BLOCKS = 4
"""Into how many runs of neighbours a model is cut at most."""


@dataclass(frozen=True)
class Made:
    """What an assembly was made of, to make it again."""

    base: nn.Module
    graph: LayerGraph
    pool: Pool
    mapping: Declared
    example: tuple[Any, Any]


@dataclass(frozen=True)
class _Candidate:
    layers: tuple[str, ...] | None
    factor: float
    score: float | None
    reason: str


@dataclass(frozen=True)
class _Aligned:
    """A source beside the base as it was after `accepted` merges; `refusal` where it cannot be aligned."""

    giver: Giver
    number: int
    accepted: int
    meeting: Meeting | None = None
    alignment: Alignment | None = None
    verdict: Verdict | None = None
    refusal: str = ""


class Run:
    """One assembly under way."""

    def __init__(
        self,
        stage: Stage,
        made: Made,
        settings: Settings,
        evaluate: Evaluate | None,
        jobs: int,
    ) -> None:
        self.stage, self.made, self.settings = stage, made, settings
        self.evaluate, self.jobs = evaluate, jobs
        self.score: float | None = None
        self.best = float("-inf")
        self.merges = 0

    def steps(self, plan: Plan, bar: Progress) -> Iterator[Plan]:
        """The plan after each further step."""
        self.merges = len(plan.accepted)
        known = [step.after for step in plan.accepted if step.after is not None]
        if self.evaluate is not None:
            self.score = known[-1] if known else scored(self.evaluate, self.stage.model)
            first = [plan.accepted[0].before] if known else []
            self.best = max(s for s in (*known, *first, self.score) if s is not None)
        for turn in range(self.settings.rounds):
            done, begin = self._behind(plan, turn)
            for aligned in self._aligned(begin):
                step = self._step(aligned, bar)
                del aligned  # with it the source goes, before the next one is read
                plan = replace(plan, steps=(*plan.steps, step))
                done.append(step)
                bar.advance(str(step))
                yield plan
                why = self._enough(plan)
                if why:
                    yield replace(plan, stopped=why)
                    return
            if not any(step.accepted for step in done):
                yield replace(plan, stopped=f"nothing was merged in round {turn + 1}")
                return
        yield replace(plan, stopped=f"all sources were gone through {self._times()}")

    def _times(self) -> str:
        return "once" if self.settings.rounds == 1 else f"{self.settings.rounds} times"

    def _behind(self, plan: Plan, turn: int) -> tuple[list[Step], int]:
        """The steps of a round that a plan holds already, and the source to go on with."""
        rounds: list[list[Step]] = [[]]
        for step in plan.steps:
            if rounds[-1] and step.number <= rounds[-1][-1].number:
                rounds.append([])
            rounds[-1].append(step)
        mine = rounds[turn] if turn < len(rounds) else []
        return mine, (mine[-1].number + 1 if mine else 0)

    def _enough(self, plan: Plan) -> str:
        patience = self.settings.patience
        if patience is None or len(plan.steps) < patience:
            return ""
        refused = not any(step.accepted for step in plan.steps[-patience:])
        return f"{patience} sources in a row were refused" if refused else ""

    def _aligned(self, number: int) -> Iterator[_Aligned]:
        """Every further source, aligned to the weights of that moment.

        Several are aligned at once for the present weights; those behind a merge are aligned again, so that nothing
        depends on how many there were.
        """
        while True:
            batch: list[Giver] = []
            while len(batch) < max(self.jobs, 1):
                giver = self.made.pool.get(number + len(batch))
                if giver is None:
                    break
                batch.append(giver)
            if not batch:
                return
            ahead = self._align(list(enumerate(batch, number)))
            number += len(batch)
            del batch, giver
            while ahead:
                yield self._fresh(ahead.pop(0))

    def _fresh(self, one: _Aligned) -> _Aligned:
        stale = one.accepted != self.merges
        return self._align([(one.number, one.giver)])[0] if stale else one

    def _align(self, batch: Sequence[tuple[int, Giver]]) -> list[_Aligned]:
        met = [self._met(number, giver) for number, giver in batch]
        free = self.evaluate is None and self.settings.merge_factor is None
        work = [
            (one, self._base(one.meeting), self.settings.align, free, self.settings.seed)
            for one in met
            if one.meeting is not None
        ]
        if self.jobs > 1 and len(work) > 1:
            joblib = _joblib()
            tasks = (joblib.delayed(_solved)(*each) for each in work)
            solved = joblib.Parallel(n_jobs=self.jobs)(tasks)
        else:
            solved = [_solved(*each) for each in work]
        by_number = {one.number: one for one in solved}
        return [by_number.get(one.number, one) for one in met]

    def _met(self, number: int, giver: Giver) -> _Aligned:
        try:
            meeting = meet(self.made.graph, giver, self.made.mapping, self.settings.pairing)
        except AssemblyError as error:
            if self.made.mapping is not None and not hasattr(error, "tensors"):
                raise  # what was declared must hold
            return _Aligned(giver, number, self.merges, refusal=error.what)
        return _Aligned(giver, number, self.merges, meeting)

    def _base(self, meeting: Meeting | None) -> dict[str, Tensor]:
        state = self.stage.state
        return {} if meeting is None else {name: state[name] for name in base_side(meeting.problem)}

    def _step(self, aligned: _Aligned, bar: Progress) -> Step:
        name, number = aligned.giver.name, aligned.number
        meeting, alignment = aligned.meeting, aligned.alignment
        if meeting is None or alignment is None:
            return Step(name, number, "", False, aligned.refusal, before=self.score)
        mark = fingerprint(meeting.source_state)
        chosen, tried = self._chosen(aligned, bar)
        step = Step(
            name,
            number,
            mark,
            chosen.factor > 0,
            chosen.reason,
            chosen.factor,
            chosen.layers,
            self.score,
            chosen.score,
            tried,
            alignment.objective,
        )
        if not step.accepted:
            self.stage.show({})
            return step
        self.stage.commit(write_step(self.stage, alignment, meeting, step, self.settings.pad))
        self.merges += 1
        if chosen.score is not None:
            self.score, self.best = chosen.score, max(self.best, chosen.score)
        return structs.replace(step, reads=reads_of(alignment))

    def _chosen(self, aligned: _Aligned, bar: Progress) -> tuple[_Candidate, int]:
        settings = self.settings
        if settings.merge_factor is not None:
            after = self._tried(aligned, None, settings.merge_factor) if self.evaluate else None
            chosen = _Candidate(None, settings.merge_factor, after, "the factor was given")
            return chosen, int(after is not None)
        if self.evaluate is None:
            verdict = aligned.verdict
            assert verdict is not None
            factor = verdict.factor if verdict.layers else 0.0
            return _Candidate(verdict.layers or None, factor, None, verdict.reason), 0
        return self._searched(aligned, bar)

    def _searched(self, aligned: _Aligned, bar: Progress) -> tuple[_Candidate, int]:
        assert self.score is not None
        assert aligned.meeting is not None
        within, tried, found = self.settings.goal == "within", 0, []
        wholes = list(_wholes(aligned.meeting, self.settings.parts))
        for layers in wholes:
            for factor in self.settings.factors:
                score = self._tried(aligned, layers, factor)
                tried += 1
                bar.tell(
                    f"{aligned.giver.name}: {tried} of {len(wholes) * len(self.settings.factors)}"
                )
                if within and score < self.best - self.settings.tolerance:
                    break  # the threshold lies before this factor, whatever comes later
                found.append(_Candidate(layers, factor, score, ""))
        if within:
            return _largest(found, self.best, self.settings, tried), tried
        return _highest(found, self.score, self.settings, tried), tried

    def _tried(self, aligned: _Aligned, layers: tuple[str, ...] | None, factor: float) -> float:
        assert aligned.meeting is not None
        assert aligned.alignment is not None
        assert self.evaluate is not None
        changed = self.stage.merge(
            aligned.alignment,
            aligned.meeting.source_state,
            factor,
            pad=self.settings.pad,
            layers=layers,
        )
        return scored(self.evaluate, self.stage.show(changed))


def _solved(
    one: _Aligned, base: Mapping[str, Tensor], options: Mapping[str, Any], free: bool, seed: int
) -> _Aligned:
    """Align, and judge where no data will; runs in a worker."""
    assert one.meeting is not None
    alignment = one.meeting.align(base, **options)
    verdict = judge(one.meeting, alignment, base, options, seed=seed) if free else None
    return replace(one, alignment=alignment, verdict=verdict)


def _highest(found: Sequence[_Candidate], now: float, settings: Settings, tried: int) -> _Candidate:
    """The highest score; of equal ones the first, which has more modules and the smaller factor."""
    best = max(found, key=lambda c: float("-inf") if c.score is None else c.score, default=None)
    if best is None or best.score is None or not best.score > now + settings.tolerance:
        score = None if best is None else best.score
        over = f" by more than {settings.tolerance:g}" if settings.tolerance else ""
        seen = "none" if score is None else f"{score:.6g}"
        return _Candidate(
            None,
            0.0,
            score,
            f"the best of {tried} candidates scores {seen}, not above {now:.6g}{over}",
        )
    return replace(best, reason=f"the best of {tried} candidates: {now:.6g} -> {best.score:.6g}")


def _largest(found: Sequence[_Candidate], now: float, settings: Settings, tried: int) -> _Candidate:
    """The largest factor that stays within the tolerance; of equal ones the first, which has more modules."""
    best = max(found, key=lambda c: c.factor, default=None)
    if best is None:
        why = (
            f"no factor of {tried} tried keeps the score within {settings.tolerance:g} of {now:.6g}"
        )
        return _Candidate(None, 0.0, None, why)
    why = (
        f"the largest factor within {settings.tolerance:g} of {now:.6g}: it scores {best.score:.6g}"
    )
    return replace(best, reason=why)


def _wholes(meeting: Meeting, parts: Sequence[str]) -> Iterator[tuple[str, ...] | None]:
    """Sets of base modules to merge together: all, runs of neighbours, single ones; none twice."""
    groups = runs(meeting.problem)
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
    stage: Stage, alignment: Alignment, meeting: Meeting, step: Step, pad: Pad
) -> dict[str, Tensor]:
    """What one accepted step writes; the one place for it, so that a replay has the same bits."""
    return stage.merge(alignment, meeting.source_state, step.factor, pad=pad, layers=step.layers)


def _joblib() -> Any:
    try:
        import joblib
    except ImportError as error:
        raise MissingExtraError(
            "jobs > 1 needs joblib.", why=str(error), fix='pip install "graftlib[assembly]"'
        ) from error
    return joblib
