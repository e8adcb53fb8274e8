"""Find the permutations of all class pairs at once, from the weights.

In: a `Problem` and two state dicts. Out: `Alignment`. Always true: every permutation has min(m, p) matches; the
objective never falls from one sweep to the next; equal arguments give equal results. Where the rest is: the objective
and its gains in `objective`, Frank-Wolfe in `relaxed`, what an alignment is good for in `alignment` and `merging`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from .alignment import Alignment
from .ledger import Ledger
from .objective import Objective, State
from .permutation import AssemblyError, Permutation
from .records import Problem
from .relaxed import frank_wolfe
from .solvers import Score, assign, least

__all__ = ["METHODS", "Alignment", "Method", "match"]

Method = Literal["coordinate", "frank-wolfe", "identity", "random"]
METHODS: tuple[Method, ...] = ("coordinate", "frank-wolfe", "identity", "random")
_Found = dict[int, Permutation]
_BOUNDS = 4096  # assignments that are solved to bound one class


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
    begun = {**(start or {}), **decided}
    # Starts have random numbers of their own: the first way is the same however many follow, so more are never worse.
    starts = torch.Generator().manual_seed(seed + 1)
    drawn = [
        {i: Permutation.random(m, p, starts) for i, (m, p) in enumerate(goal.sizes)}
        for _ in range(restarts)
    ]
    for first in (None, *drawn):
        ledger = Ledger(goal)
        begin = _grown(goal, ledger, begun) if first is None else {**first, **begun}
        if method == "frank-wolfe":
            begin = frank_wolfe(goal, begin, keep=set(decided))
        tried = _descend(goal, ledger, begin, set(decided), sweeps, random)
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


def _grown(goal: Objective, ledger: Ledger, given: Mapping[int, Permutation]) -> _Found:
    """Class by class, each from what is known by then: fixed orders first, then the classes solved before."""
    found = dict(given)
    left = set(range(len(goal.sizes))) - set(found)
    while left:
        known = set(found)
        pair = max(left, key=lambda i: (goal.evidence(i, known), -i))
        if goal.evidence(pair, known):
            found[pair] = ledger.solve(pair, ledger.cost(pair, _reads(found), known))
        else:
            pair, found[pair] = _outer(goal, found, left)
        left.discard(pair)
    return found


def _outer(goal: Objective, found: _Found, left: set[int]) -> tuple[int, Permutation]:
    """Where none is told by what is known: the smallest class that one other keeps from it, each pair at its best."""
    known = set(found)
    held = [i for i in left if goal.inside(i, known) and math.prod(goal.sizes[i]) <= _BOUNDS]
    if not held:
        return min(left), Permutation.identity(*goal.sizes[min(left)])
    pair = min(held, key=lambda i: (math.prod(goal.sizes[i]), i))
    return pair, least(goal.bound(pair, _reads(found), known=known).neg_())


def _descend(
    goal: Objective,
    ledger: Ledger,
    begin: _Found,
    keep: set[int],
    sweeps: int,
    random: torch.Generator,
) -> tuple[_Found, tuple[float, ...]]:
    """Coordinate descent; a class is solved again only when one that it depends on has changed."""
    found = dict(begin)
    # Where the ledger follows, the history is what the steps rose by, and the objective is computed once, at the end.
    history = [0.0 if ledger.follows else goal.value(_reads(found))]
    pairs = [i for i in range(len(goal.sizes)) if i not in keep]
    due = set(pairs)
    for _ in range(sweeps):
        before, risen = dict(found), 0.0
        for k in torch.randperm(len(pairs), generator=random, device="cpu").tolist():
            pair = pairs[k]
            if pair not in due:
                continue
            due.discard(pair)
            better, rise = _step(goal, ledger, pair, found)
            if better is not None:
                found[pair] = better
                risen += rise
                due |= goal.neighbours(pair) - keep
        value = history[-1] + risen if ledger.follows else goal.value(_reads(found))
        if value < history[-1]:  # rounding alone: what was there is as good
            found = before
            break
        history.append(value)
        if not due:
            break
    if ledger.follows:
        value = ledger.ended(_reads(found))
        history = [value - (history[-1] - each) for each in history]
    return found, tuple(history)


def _step(
    goal: Objective, ledger: Ledger, pair: int, found: _Found
) -> tuple[Permutation | None, float]:
    """A permutation of this class that makes the objective rise, and by how much; None where this finds none."""
    moves = _reads(found)
    cost = ledger.cost(pair, moves)
    new = ledger.solve(pair, cost)
    if goal.linear(pair):
        old_cost, scale = _sum(cost, found[pair])
        new_cost, _ = _sum(cost, new)
        rise = old_cost - new_cost
        return (new, rise) if rise > goal.epsilon * scale else (None, 0.0)
    # A class on two axes of one tensor: the gain is only a linearisation.
    before = goal.value(moves, of=pair)
    margin = goal.epsilon * abs(before)
    after = goal.value({**moves, pair: new.reads}, of=pair)
    if not after > before + margin:
        new = frank_wolfe(goal, found, keep=set(range(len(goal.sizes))) - {pair})[pair]
        after = goal.value({**moves, pair: new.reads}, of=pair)
    return (new, after - before) if after > before + margin else (None, 0.0)


def _sum(cost: Tensor, permutation: Permutation) -> tuple[float, float]:
    """What a permutation costs, and the sum of the absolute costs."""
    matched = (permutation.reads >= 0).nonzero().flatten()
    paid = cost[matched, permutation.reads[matched]].double()
    return float(paid.sum()), float(paid.abs().sum())


def _reads(found: Mapping[int, Permutation]) -> dict[int, Tensor]:
    return {i: each.reads for i, each in found.items()}
