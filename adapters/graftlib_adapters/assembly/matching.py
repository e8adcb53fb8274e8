"""Find the permutations of all class pairs at once, from the weights.

In: a `Problem` and two state dicts. Out: `Alignment`. Always true: every permutation has min(m, p) matches; the
objective never falls from one sweep to the next; equal arguments give equal results. Where the rest is: the objective
and its gains in `objective`, Frank-Wolfe in `relaxed`, what an alignment is good for in `alignment` and `merging`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .alignment import Alignment
from .objective import Objective, State
from .permutation import AssemblyError, Permutation
from .records import Problem
from .relaxed import frank_wolfe
from .solvers import Score, assign, least

__all__ = ["METHODS", "Alignment", "Method", "match"]

Method = Literal["coordinate", "frank-wolfe", "identity", "random"]
METHODS: tuple[Method, ...] = ("coordinate", "frank-wolfe", "identity", "random")
_Found = dict[int, Permutation]


def match(
    problem: Problem,
    base_state: State,
    source_state: State,
    *,
    method: Method = "coordinate",
    score: Score = "l2",
    restarts: int = 0,
    seed: int = 0,
    start: Mapping[int, Permutation] | None = None,
    sweeps: int = 100,
    costs: Mapping[int, Tensor] | None = None,
) -> Alignment:
    """Align a source with a base by their weights.

    ``coordinate`` (Git Re-Basin, Ainsworth et al. 2022, algorithm 1, with rectangular assignments) solves one class at
    a time while the others stay. It begins where orders are fixed: at the inputs and outputs, and goes on to the
    classes of which most is then known, so that no unsolved class misleads it. ``frank-wolfe`` (C2M3, Crisostomi et
    al. 2024) moves all classes at once through relaxed permutations and ends with coordinate descent.

    Args:
        problem: which tensors and classes meet.
        base_state: FQN -> tensor, any dtype and device; not changed.
        source_state: the same of the source.
        method: one of `METHODS`; ``identity`` and ``random`` are controls that do not look at the weights.
        score: ``l2`` (distance, right where source units are dropped) or ``inner`` (inner product).
        restarts: further random starts; the best objective is kept.
        seed: of the order of classes and of random starts.
        start: class pair -> permutation to begin with; pairs that are absent begin as described above.
        sweeps: at most so many over all classes.
        costs: class pair -> (m, p) similarity, larger is better, that decides this class in place of the weights.

    Returns:
        the alignment of largest objective.

    Raises:
        AssemblyError: the method is unknown, a state does not fit, a start or cost has another shape.
    """
    if method not in METHODS:
        raise AssemblyError(
            f"method='{method}' is no way to match.", fix="use one of " + ", ".join(METHODS)
        )
    _check(problem, start or {}, costs or {})
    goal = Objective(problem, base_state, source_state, score)
    random = torch.Generator().manual_seed(seed)
    if method in ("identity", "random"):
        found = {
            i: Permutation.identity(m, p)
            if method == "identity"
            else Permutation.random(m, p, random)
            for i, (m, p) in enumerate(goal.sizes)
        }
        value = goal.value(_reads(found))
        return Alignment(problem, found, value, (value,), score)
    decided = {i: assign(cost) for i, cost in (costs or {}).items()}
    best: tuple[_Found, tuple[float, ...]] | None = None
    for begin in _starts(goal, {**(start or {}), **decided}, restarts, random):
        if method == "frank-wolfe":
            begin = frank_wolfe(goal, begin, keep=set(decided))
        tried = _descend(goal, begin, set(decided), sweeps, random)
        if best is None or tried[1][-1] > best[1][-1]:
            best = tried
    assert best is not None
    return Alignment(problem, best[0], best[1][-1], best[1], score)


def _check(problem: Problem, start: Mapping[int, Permutation], costs: Mapping[int, Tensor]) -> None:
    shapes = {i: (pair.bases, pair.sources) for i, pair in enumerate(problem.classes)}
    given = {i: (each.bases, each.sources) for i, each in start.items()}
    for word, shape in (("start", given), ("costs", {i: tuple(c.shape) for i, c in costs.items()})):
        for i, has in shape.items():
            if shapes.get(i) != has:
                raise AssemblyError(
                    f"{word}[{i}] is {has} and class pair {i} is {shapes.get(i, 'unknown')}.",
                    fix="number the class pairs as in problem.classes",
                )


def _starts(
    goal: Objective, given: Mapping[int, Permutation], restarts: int, random: torch.Generator
) -> Sequence[_Found]:
    drawn = [
        {i: Permutation.random(m, p, random) for i, (m, p) in enumerate(goal.sizes)}
        for _ in range(restarts)
    ]
    return [_grown(goal, given), *({**each, **given} for each in drawn)]


def _grown(goal: Objective, given: Mapping[int, Permutation]) -> _Found:
    """Class by class, each from what is known by then: fixed orders first, then the classes solved before."""
    found = dict(given)
    left = set(range(len(goal.sizes))) - set(found)
    while left:
        known = set(found)
        pair = max(left, key=lambda i: (goal.evidence(i, known), -i))
        found[pair] = least(goal.gain(pair, _reads(found), known=known).neg_())
        left.discard(pair)
    return found


def _descend(
    goal: Objective, begin: _Found, keep: set[int], sweeps: int, random: torch.Generator
) -> tuple[_Found, tuple[float, ...]]:
    """Coordinate descent; a class is solved again only when one that it depends on has changed."""
    found = dict(begin)
    history = [goal.value(_reads(found))]
    pairs = [i for i in range(len(goal.sizes)) if i not in keep]
    due = set(pairs)
    for _ in range(sweeps):
        before = dict(found)
        for k in torch.randperm(len(pairs), generator=random, device="cpu").tolist():
            pair = pairs[k]
            if pair not in due:
                continue
            due.discard(pair)
            better = _step(goal, pair, found)
            if better is not None:
                found[pair] = better
                due |= goal.neighbours(pair) - keep
        value = goal.value(_reads(found))
        if value < history[-1]:  # rounding alone: what was there is as good
            found = before
            break
        history.append(value)
        if not due:
            break
    return found, tuple(history)


def _step(goal: Objective, pair: int, found: _Found) -> Permutation | None:
    """A permutation of this class that makes the objective rise; None where this finds none."""
    moves = _reads(found)
    cost = goal.gain(pair, moves).neg_()
    new = least(cost)
    if goal.linear(pair):
        old_cost, scale = _sum(cost, found[pair])
        new_cost, _ = _sum(cost, new)
        return new if old_cost - new_cost > goal.epsilon * scale else None
    # A class on two axes of one tensor: the gain is only a linearisation.
    before = goal.value(moves, of=pair)
    margin = goal.epsilon * abs(before)
    if goal.value({**moves, pair: new.reads}, of=pair) > before + margin:
        return new
    others = set(range(len(goal.sizes))) - {pair}
    new = frank_wolfe(goal, found, keep=others)[pair]
    if goal.value({**moves, pair: new.reads}, of=pair) > before + margin:
        return new
    return None


def _sum(cost: Tensor, permutation: Permutation) -> tuple[float, float]:
    """What a permutation costs, and the sum of the absolute costs."""
    matched = (permutation.reads >= 0).nonzero().flatten()
    paid = cost[matched, permutation.reads[matched]]
    return float(paid.sum()), float(paid.abs().sum())


def _reads(found: Mapping[int, Permutation]) -> dict[int, Tensor]:
    return {i: each.reads for i, each in found.items()}
