"""Weight matching: the permutations of all class pairs at once, from the weights.

Coordinate descent is algorithm 1 of Git Re-Basin (Ainsworth et al. 2022), for classes of unequal sizes: every
permutation has min(m, p) matches, and the objective never falls from one sweep to the next. `gain_cache` and
`sparse_assignment` only save time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from .alignment import Alignment
from .alignment_problem import Problem
from .assignment import assign
from .errors import AssemblyError
from .frank_wolfe import frank_wolfe
from .gain_cache import GainCache
from .objective import Objective, State
from .options import ObjectiveName
from .permutation import Permutation
from .start import outward

__all__ = ["METHODS", "Alignment", "Method", "align"]

Method = Literal["coordinate", "frank-wolfe", "identity", "random"]
METHODS: tuple[Method, ...] = ("coordinate", "frank-wolfe", "identity", "random")
Permutations = dict[int, Permutation]  # by the number of the class pair in `Problem.classes`


def align(
    problem: Problem,
    base_state: State,
    source_state: State,
    *,
    method: Method = "coordinate",
    objective: ObjectiveName = "l2",
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
        problem: which tensors and classes are paired.
        base_state: FQN -> tensor, any dtype and device; not changed.
        source_state: the same of the source.
        method: one of `METHODS`; ``identity`` and ``random`` are controls that do not look at the weights.
        objective: ``l2`` (distance, right where source units are dropped) or ``inner`` (inner product).
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
            f"method='{method}' is no way to align.", fix="use one of " + ", ".join(METHODS)
        )
    _check_shapes(problem, start or {}, costs or {})
    goal = Objective(problem, base_state, source_state, objective)
    random = torch.Generator().manual_seed(seed)
    if method == "identity":
        return _control(goal, problem, Permutation.identity)
    if method == "random":
        return _control(goal, problem, lambda m, p: Permutation.random(m, p, random))

    by_cost = {c: assign(cost) for c, cost in (costs or {}).items()}
    fixed = {**(start or {}), **by_cost}
    # Starts have random numbers of their own: the first is the same however many follow, so more are never worse.
    starts = torch.Generator().manual_seed(seed + 1)
    random_starts = [
        {c: Permutation.random(m, p, starts) for c, (m, p) in enumerate(goal.sizes)}
        for _ in range(restarts)
    ]
    best: tuple[Permutations, tuple[float, ...]] | None = None
    for first in (None, *random_starts):
        gains = GainCache(goal)
        begin = outward(goal, gains, fixed) if first is None else {**first, **fixed}
        if method == "frank-wolfe":
            begin = frank_wolfe(goal, begin, keep=set(by_cost))
        improved = descend(goal, gains, begin, set(by_cost), sweeps, random)
        if best is None or improved[1][-1] > best[1][-1]:
            best = improved
    assert best is not None
    return Alignment(problem, best[0], best[1][-1], best[1])


def descend(
    objective: Objective,
    gains: GainCache,
    begin: Permutations,
    fixed: set[int],
    sweeps: int,
    random: torch.Generator,
) -> tuple[Permutations, tuple[float, ...]]:
    """Ainsworth et al. 2022, algorithm 1: sweeps over the classes in random order, until no permutation improves.

    A class is solved again only when one that it depends on has changed.

    Returns:
        the permutations, and the objective before and after each sweep; it never falls.
    """
    permutations = dict(begin)
    # Where gains are cached the history is what the steps gained, and the objective is computed once, at the end.
    history = [0.0 if gains.caches else objective.value(_reads(permutations))]
    classes = [c for c in range(len(objective.sizes)) if c not in fixed]
    due = set(classes)
    for _ in range(sweeps):
        before, gained = dict(permutations), 0.0
        for k in torch.randperm(len(classes), generator=random, device="cpu").tolist():
            c = classes[k]
            if c not in due:
                continue
            due.discard(c)
            better, rise = improve(objective, gains, c, permutations)
            if better is not None:
                permutations[c] = better
                gained += rise
                due |= objective.neighbours(c) - fixed
        value = history[-1] + gained if gains.caches else objective.value(_reads(permutations))
        if value < history[-1]:  # rounding alone: the permutations before are as good
            permutations = before
            break
        history.append(value)
        if not due:
            break
    if gains.caches:
        value = gains.close(_reads(permutations))
        history = [value - (history[-1] - each) for each in history]
    return permutations, tuple(history)


def improve(
    objective: Objective, gains: GainCache, c: int, permutations: Permutations
) -> tuple[Permutation | None, float]:
    """A better permutation of class pair `c` while the others stay, and how far the objective rises, or None."""
    reads = _reads(permutations)
    cost = gains.cost(c, reads)
    new = gains.assign(c, cost)
    if objective.linear(c):
        old_cost, scale = _cost(cost, permutations[c])
        new_cost, _ = _cost(cost, new)
        rise = old_cost - new_cost
        return (new, rise) if rise > objective.epsilon * scale else (None, 0.0)
    # A class on two axes of one tensor: the gain is only a linearisation.
    before = objective.value(reads, of=c)
    margin = objective.epsilon * abs(before)
    after = objective.value({**reads, c: new.reads}, of=c)
    if not after > before + margin:
        others = set(range(len(objective.sizes))) - {c}
        new = frank_wolfe(objective, permutations, keep=others)[c]
        after = objective.value({**reads, c: new.reads}, of=c)
    return (new, after - before) if after > before + margin else (None, 0.0)


def _control(
    objective: Objective, problem: Problem, permutation: Callable[[int, int], Permutation]
) -> Alignment:
    """An alignment that does not look at the weights."""
    permutations = {c: permutation(m, p) for c, (m, p) in enumerate(objective.sizes)}
    value = objective.value(_reads(permutations))
    return Alignment(problem, permutations, value, (value,))


def _check_shapes(
    problem: Problem, start: Mapping[int, Permutation], costs: Mapping[int, Tensor]
) -> None:
    shapes = {i: (pair.bases, pair.sources) for i, pair in enumerate(problem.classes)}
    starts = {i: (each.bases, each.sources) for i, each in start.items()}
    for word, shape in (
        ("start", starts),
        ("costs", {i: tuple(c.shape) for i, c in costs.items()}),
    ):
        for i, has in shape.items():
            if shapes.get(i) != has:
                raise AssemblyError(
                    f"{word}[{i}] is {has} and class pair {i} is {shapes.get(i, 'unknown')}.",
                    fix="number the class pairs as in problem.classes",
                )


def _cost(cost: Tensor, permutation: Permutation) -> tuple[float, float]:
    """What a permutation costs, and the sum of the absolute costs."""
    matched = (permutation.reads >= 0).nonzero().flatten()
    paid = cost[matched, permutation.reads[matched]].double()
    return float(paid.sum()), float(paid.abs().sum())


def _reads(permutations: Mapping[int, Permutation]) -> dict[int, Tensor]:
    return {c: each.reads for c, each in permutations.items()}
