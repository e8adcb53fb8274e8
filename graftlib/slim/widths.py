"""How many units each axis class keeps, so that a model meets its budgets and loses the least importance.

In: the costs of a graph, groups of classes whose sizes the code ties, importances of units, budgets. Out: `Widths`.
Always true: the costs are exact polynomials of the sizes, so that what is promised is what the pruned model costs;
sizes are multiples of `multiple_of` along the axes of weights where a class is wide enough for that; every budget is
met, or nothing is returned.
Elsewhere: what a unit is worth (`importance`), which sizes go together (`surgery.fit.ties`).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import ceil, gcd, lcm, prod

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MissingExtraError, nearest, shown
from ..graph import LayerGraph
from ..graph.axes import AxisClass
from ..surgery import SurgeryError
from ..surgery.edits import tensor_of
from .costs import Costs, Polynomial
from .names import BUDGETS

__all__ = [
    "SOLVERS",
    "Group",
    "Widths",
    "groups_of",
    "in_words",
    "limits_of",
    "solve",
]

_MOST_LEVELS = 64
_MILP_LEVELS = 9
_SECONDS = 20.0
_CLOSE = 0.01
_ALIGNED = 8  # elements of half precision in 16 bytes
_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Group:
    """Classes that change in one proportion, mostly one class alone.

    Attributes:
        classes: free ones.
        levels: how many units each class has, for each size that is considered, the smallest first; the last is the
            size of now.
        gains: what the kept units are worth at each level.
    """

    classes: tuple[AxisClass, ...]
    levels: tuple[tuple[int, ...], ...]
    gains: tuple[float, ...]


@dataclass(frozen=True)
class Widths:
    """Sizes that meet the budgets.

    Attributes:
        sizes: class -> how many units it keeps; the classes that were considered.
        costs: each cost at these sizes.
        limits: cost -> the most that was allowed.
        gain: what the kept units are worth, as a share of what all are worth.
    """

    sizes: dict[AxisClass, int]
    costs: dict[str, float]
    limits: dict[str, float]
    gain: float

    @property
    def slack(self) -> float:
        """The share of the tightest budget that is left over, 0.0 to 1.0."""
        return min(1 - self.costs[name] / limit for name, limit in self.limits.items())


def limits_of(budget: Mapping[str, float], costs: Costs) -> dict[str, float]:
    """Budgets as the most of each cost.

    Args:
        budget: ``params``, ``macs``, ``bytes``, ``activations`` or ``latency_ms`` -> a share of what the model costs (a
            float up to 1.0), or a number; ``size_mb`` -> megabytes (1e6 bytes).
        costs: of the model, with the latency where that is asked for.

    Raises:
        SurgeryError: a name is unknown, a number is not above 0, or there is none.
    """
    now = costs.at()
    limits: dict[str, float] = {}
    for name, value in budget.items():
        if name not in BUDGETS:
            raise SurgeryError(
                f"there is no budget {shown(name)}.",
                near=nearest(str(name), BUDGETS),
                fix=f"use some of {', '.join(BUDGETS)}",
            )
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):
            raise SurgeryError(
                f"budget {name}={shown(value)} is no number above 0.",
                fix="give a share up to 1.0, such as 0.5, or an absolute number",
            )
        if name == "size_mb":
            limits["bytes"] = min(limits.get("bytes", float("inf")), value * 1e6)
        else:
            share = isinstance(value, float) and value <= 1
            limit = value * now[name] if share else float(value)
            limits[name] = min(limits.get(name, float("inf")), limit)
    if not limits:
        raise SurgeryError("there is no budget.", fix='give one: budget={"macs": 0.5}')
    return limits


def in_words(cost: float) -> str:
    """A number that is read: whole from a thousand on, as counts are.

    >>> in_words(1234567), in_words(12.3456)
    ('1,234,567', '12.35')
    """
    return f"{cost:,.0f}" if cost >= 1000 or cost == int(cost) else f"{cost:,.2f}"


def groups_of(
    model: nn.Module,
    graph: LayerGraph,
    tied: Sequence[Sequence[AxisClass]],
    importance: Mapping[AxisClass, Tensor],
    *,
    multiple_of: int,
    minimum: float,
    ranking: str,
    coarse: Set[AxisClass] = frozenset(),
) -> list[Group]:
    """The sizes that are considered, and what they are worth.

    Args:
        model: whose weights say which axes are those of products.
        graph: of it.
        tied: groups of classes.
        importance: class -> (size,) doubles, larger is better.
        multiple_of: the length of a weight's axis is a multiple of this where a class has room for two steps.
        minimum: the least share of its units that a class keeps.
        ranking: ``"global"`` compares importances as they are, in the whole model; ``"isomorphic"`` compares a unit's
            rank among those of the classes that lie on the same kinds of axes; ``"uniform"`` gives one share to all.
        coarse: classes whose axes stay multiples of 8 instead: 16 bytes in half precision.
    """
    worth = importance if ranking == "global" else _ranks(graph, importance, ranking)
    groups = []
    for classes in tied:
        most = _MOST_LEVELS if ranking == "global" else 4 * _MOST_LEVELS  # ranks are cheap to solve
        multiple = multiple_of if coarse.isdisjoint(classes) else _ALIGNED
        levels = _levels(model, classes, multiple, minimum, most)
        totals = [worth[each].sort(descending=True).values.cumsum(0) for each in classes]
        gains = tuple(
            sum(float(total[n - 1]) for total, n in zip(totals, level, strict=True))
            for level in levels
        )
        groups.append(Group(tuple(classes), tuple(levels), gains))
    return groups


def _levels(
    model: nn.Module, classes: Sequence[AxisClass], multiple_of: int, minimum: float, most: int
) -> list[tuple[int, ...]]:
    parts = gcd(*(each.size for each in classes))
    steps = [_step(model, each, multiple_of) for each in classes]
    step = lcm(*(s // gcd(s, each.size // parts) for s, each in zip(steps, classes, strict=True)))
    if 2 * step > parts:
        step = 1
    step *= ceil(parts / step / most)
    least = max(ceil(minimum * parts - 1e-9), 1)
    shares = [n for n in range(step, parts, step) if n >= least]
    return [tuple(n * each.size // parts for each in classes) for n in (*shares, parts)]


def _step(model: nn.Module, each: AxisClass, multiple_of: int) -> int:
    """The least number of units that moves the axes of all its weights by a multiple."""
    step = 1
    for member in each.members:
        if tensor_of(model, member.fqn).ndim > 1:
            beside = prod(member.factors) // each.size
            step = lcm(step, multiple_of // gcd(multiple_of, beside))
    return step


def _ranks(
    graph: LayerGraph, importance: Mapping[AxisClass, Tensor], ranking: str
) -> dict[AxisClass, Tensor]:
    """A unit's place among those of its kind, above 0 and up to 1; equals share a place."""
    kinds: dict[object, list[AxisClass]] = {}
    for each in importance:
        kind = _kind(graph, each) if ranking == "isomorphic" else each
        kinds.setdefault(kind, []).append(each)
    ranks: dict[AxisClass, Tensor] = {}
    for alike in kinds.values():
        values = torch.cat([importance[each] for each in alike]).double()
        ordered = values.sort().values
        low = torch.searchsorted(ordered, values) + 1
        high = torch.searchsorted(ordered, values, right=True)
        ranked = (low + high).double() / (2 * len(values))
        parts = torch.split(ranked, [each.size for each in alike])
        ranks |= dict(zip(alike, parts, strict=True))
    return ranks


def _kind(graph: LayerGraph, each: AxisClass) -> frozenset[tuple[tuple[str, str], int]]:
    """The kinds of the axes that a class lies on, each once or more often: what isomorphic parts have in common.

    So the channels inside of blocks are one kind, and those of the streams that blocks add to another.
    """
    known = {p.fqn: p for p in graph.parameters()}
    places = Counter(
        (known[m.fqn].kind, known[m.fqn].axes[m.axis]) for m in each.members if m.fqn in known
    )
    return frozenset((place, min(count, 2)) for place, count in places.items())


# Solving --------------------------------------------------------------------------------------------------------


class _Problem:
    """Groups, costs and limits as arrays. A choice is the number of a level for each group."""

    def __init__(
        self,
        groups: Sequence[Group],
        costs: Costs,
        limits: Mapping[str, float],
        base: Sequence[int],
    ) -> None:
        self.groups, self.limits = list(groups), dict(limits)
        number = {each: i for i, each in enumerate(costs.classes)}
        self.places = [[number[each] for each in group.classes] for group in groups]
        self.group = {place: g for g, places in enumerate(self.places) for place in places}
        self.base = np.array([*base, 1.0])
        self.polynomials: dict[str, Polynomial] = {name: getattr(costs, name) for name in limits}
        self.compiled = {
            name: _compiled(each, len(base)) for name, each in self.polynomials.items()
        }
        self.top = [len(group.levels) - 1 for group in groups]

    def sizes(self, choice: Sequence[int]) -> _Array:
        sizes = self.base.copy()
        for group, places, level in zip(self.groups, self.places, choice, strict=True):
            sizes[places] = group.levels[level]
        return sizes

    def costs(self, sizes: _Array) -> dict[str, float]:
        return {
            name: float(counts @ sizes[factors].prod(1))
            for name, (counts, factors) in self.compiled.items()
        }

    def excess(self, choice: Sequence[int]) -> float:
        """By how much the limits are passed, as a sum of shares; 0 or less where they are not."""
        costs = self.costs(self.sizes(choice))
        over = [costs[name] / limit - 1 for name, limit in self.limits.items()]
        return sum(part for part in over if part > 1e-12)

    def slack(self, choice: Sequence[int]) -> float:
        """The share of the tightest limit that is left."""
        costs = self.costs(self.sizes(choice))
        return min(1 - costs[name] / limit for name, limit in self.limits.items())

    def gain(self, choice: Sequence[int]) -> float:
        return sum(g.gains[level] for g, level in zip(self.groups, choice, strict=True))

    def moves(self, choice: list[int], by: int) -> Iterator[tuple[int, float, float]]:
        """(group, change of the gain, change of the costs as a share of the limits) of each step."""
        sizes = self.sizes(choice)
        before = self.costs(sizes)
        open_limits = {
            name: limit
            for name, limit in self.limits.items()
            if by > 0 or before[name] > limit * (1 + 1e-12)
        }
        for g, (group, places) in enumerate(zip(self.groups, self.places, strict=True)):
            level = choice[g] + by
            if not 0 <= level <= self.top[g]:
                continue
            held = sizes[places]
            sizes[places] = group.levels[level]
            after = self.costs(sizes)
            sizes[places] = held
            change = sum((after[n] - before[n]) / limit for n, limit in open_limits.items())
            yield g, group.gains[level] - group.gains[choice[g]], change


def _compiled(
    polynomial: Polynomial, one: int
) -> tuple[_Array, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """(counts, numbers of the factors), where short products are filled up with the place of a 1."""
    terms = list(polynomial.terms.items())
    longest = max((len(numbers) for numbers, _ in terms), default=0)
    rows = [[*numbers, *[one] * (longest - len(numbers))] for numbers, _ in terms]
    return (
        np.array([count for _, count in terms], dtype=np.float64),
        np.array(rows, dtype=np.int64).reshape(len(terms), longest),
    )


def _greedy(problem: _Problem) -> list[int]:
    """Step by step the one that loses the least worth for what it saves; then back up where there is room."""
    choice = list(problem.top)
    while problem.excess(choice) > 0:
        steps = [
            (-gain / -change, g) for g, gain, change in problem.moves(choice, -1) if change < 0
        ]
        if not steps:
            break
        choice[min(steps)[1]] -= 1
    return _filled(problem, choice)


def _filled(
    problem: _Problem, choice: list[int], sets: Sequence[Sequence[int]] | None = None
) -> list[int]:
    """Back up where there is room, the most worth for what it costs first.

    With `sets` of groups, those of a set go up together, and no set by a second step before all went up that can,
    nor once the budget is used but for `_CLOSE`.
    """
    before = list(choice)
    left = list(sets) if sets is not None else [[g] for g in range(len(choice))]
    while problem.excess(choice) <= 0:
        moves = {g: (gain, change) for g, gain, change in problem.moves(choice, 1)}
        steps = []
        for i, groups in enumerate(left):
            if all(g in moves for g in groups):
                gain, change = (sum(part) for part in zip(*(moves[g] for g in groups), strict=True))
                steps.append((gain / max(change, 1e-12), i))
        for _, i in sorted(steps, reverse=True):
            up = [level + (g in left[i]) for g, level in enumerate(choice)]
            if problem.excess(up) <= 0:
                choice = up
                if sets is not None:
                    left.pop(i)
                break
        else:
            break
    if sets is not None and choice != before and problem.slack(choice) > _CLOSE:
        return _filled(problem, choice, sets)
    return choice


def _threshold(problem: _Problem, *, alike: bool) -> list[int]:
    """All steps that are worth less than a common number go; then back up where there is room.

    With ranks for worths it is one share for each kind of class (Fang et al. 2024, Isomorphic Pruning), or for all.
    With `alike` groups of the same sizes keep the same sizes, which a config can say.
    """
    worths = [
        [
            (after - before) / (sum(upper) - sum(lower))
            for before, after, lower, upper in zip(
                group.gains, group.gains[1:], group.levels, group.levels[1:], strict=False
            )
        ]
        for group in problem.groups
    ]

    def at(threshold: float) -> list[int]:
        return [sum(worth >= threshold for worth in steps) for steps in worths]

    every = [*sorted({worth for steps in worths for worth in steps}), float("inf")]
    low, high = -1, len(every) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if problem.excess(at(every[middle])) <= 0 else (middle, high)
    sets: dict[object, list[int]] = {}
    for g, group in enumerate(problem.groups):
        sets.setdefault(group.levels, []).append(g)
    return _filled(problem, at(every[high]), list(sets.values()) if alike else None)


def _milp(problem: _Problem) -> list[int]:
    """The most worth within the limits, as a mixed-integer linear program over some levels of each group.

    One binary for each level of a group, and for each product of two groups in a cost the joint choice, which is
    linear (the local polytope). Products of more groups take the others' sizes from the greedy choice, which is also
    the answer where the program finds none that is better.
    """
    try:
        from scipy import sparse
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError:
        raise MissingExtraError(
            "solver='milp' needs scipy.", fix='pip install "graftlib[assembly]", or solver="greedy"'
        ) from None
    greedy = _greedy(problem)
    picked = [_some(top, at) for top, at in zip(problem.top, greedy, strict=True)]
    starts = np.cumsum([0, *map(len, picked)])
    singles, pairs = _split(problem, greedy)
    joint = {pair: 0 for each in pairs.values() for pair in each}
    columns = int(starts[-1])
    for a, b in joint:
        joint[a, b] = columns
        columns += len(picked[a]) * len(picked[b])

    def values(g: int, exponents: Mapping[int, int]) -> _Array:
        """Of the product of the group's own sizes, at each picked level."""
        group, places = problem.groups[g], problem.places[g]
        return np.array(
            [
                prod(float(group.levels[i][places.index(p)]) ** n for p, n in exponents.items())
                for i in picked[g]
            ]
        )

    rows: list[_Array] = []
    upper: list[float] = []
    for name, limit in problem.limits.items():
        row, constant = np.zeros(columns), 0.0
        for g, exponents, count in singles[name]:
            if g < 0:
                constant += count
            else:
                row[starts[g] : starts[g + 1]] += count * values(g, exponents)
        for (a, b), terms in pairs[name].items():
            block = sum(
                count * np.outer(values(a, left), values(b, right)) for left, right, count in terms
            )
            at = joint[a, b]
            row[at : at + len(picked[a]) * len(picked[b])] += np.ravel(block)
        rows.append(row / limit)
        upper.append(1 - constant / limit)
    entries: list[tuple[int, int, float]] = []
    count = 0
    for g in range(len(picked)):
        entries += [(count, int(starts[g]) + i, 1.0) for i in range(len(picked[g]))]
        count += 1
    ones = count
    for (a, b), at in joint.items():
        shape = (len(picked[a]), len(picked[b]))
        numbers = at + np.arange(prod(shape)).reshape(shape)
        for g, along in ((a, numbers), (b, numbers.T)):
            for i, line in enumerate(along):
                entries += [(count, int(n), 1.0) for n in line]
                entries.append((count, int(starts[g]) + i, -1.0))
                count += 1
    lines, places, numbers_ = zip(*entries, strict=True)
    equal = sparse.csr_matrix((numbers_, (lines, places)), shape=(count, columns))
    due = np.zeros(count)
    due[:ones] = 1
    worth = np.zeros(columns)
    for g, levels in enumerate(picked):
        worth[starts[g] : starts[g + 1]] = [problem.groups[g].gains[i] for i in levels]
    scale = max(float(worth.max()), 1e-300)
    integrality = np.zeros(columns)
    integrality[: starts[-1]] = 1
    result = milp(
        -worth / scale,
        constraints=[
            LinearConstraint(equal, due, due),
            LinearConstraint(np.array(rows), -np.inf, np.array(upper)),
        ],
        bounds=Bounds(0, 1),
        integrality=integrality,
        options={"time_limit": _SECONDS, "mip_rel_gap": 1e-4},
    )
    if result.x is None:
        return greedy
    choice = [
        levels[int(np.argmax(result.x[starts[g] : starts[g + 1]]))]
        for g, levels in enumerate(picked)
    ]
    if problem.excess(choice) > 0:
        return greedy
    choice = _filled(problem, choice)
    return choice if problem.gain(choice) > problem.gain(greedy) else greedy


def _some(top: int, at: int) -> list[int]:
    """Levels of a group: its ends, those around the greedy one, and some between."""
    spread = {round(i * top / (_MILP_LEVELS - 4)) for i in range(_MILP_LEVELS - 3)}
    return sorted({*spread, *(i for i in (at - 1, at, at + 1) if 0 <= i <= top)})


_Singles = dict[str, list[tuple[int, dict[int, int], float]]]
_Pairs = dict[str, dict[tuple[int, int], list[tuple[dict[int, int], dict[int, int], float]]]]


def _split(problem: _Problem, greedy: Sequence[int]) -> tuple[_Singles, _Pairs]:
    """The terms of each cost by the groups in them: none (-1) or one, and two."""
    sizes = problem.sizes(greedy)
    singles: _Singles = {}
    pairs: _Pairs = {}
    for name, polynomial in problem.polynomials.items():
        singles[name], pairs[name] = [], {}
        for numbers, times in polynomial.terms.items():
            count, inside = float(times), dict[int, dict[int, int]]()
            for number in numbers:
                g = problem.group.get(number)
                if g is None or (g not in inside and len(inside) == 2):
                    count *= sizes[number]
                else:
                    inside.setdefault(g, {}).setdefault(number, 0)
                    inside[g][number] += 1
            if len(inside) == 2:
                a, b = sorted(inside)
                pairs[name].setdefault((a, b), []).append((inside[a], inside[b], count))
            else:
                g, exponents = next(iter(inside.items()), (-1, {}))
                singles[name].append((g, exponents, count))
    return singles, pairs


SOLVERS: dict[str, Callable[[_Problem], list[int]]] = {"greedy": _greedy, "milp": _milp}


def solve(
    groups: Sequence[Group], costs: Costs, limits: Mapping[str, float], *, ranking: str, solver: str
) -> Widths:
    """Sizes of the groups that meet all limits.

    Args:
        groups: what may change; all other classes keep their size.
        costs: of the model.
        limits: cost -> the most of it.
        ranking: ``"global"`` asks the solver; ranks have one threshold for all.
        solver: ``"greedy"`` or ``"milp"``.

    Raises:
        SurgeryError: the limits are not met by the smallest sizes of all groups.
        MissingExtraError: ``"milp"`` without scipy.
    """
    base = [each.size for each in costs.classes]
    problem = _Problem(groups, costs, limits, base)
    smallest = [0] * len(problem.groups)
    if problem.excess(smallest) > 0:
        least, now = problem.costs(problem.sizes(smallest)), costs.at()
        raise SurgeryError(
            "the budget is below the smallest model that these rules allow.",
            where={
                name: f"{in_words(limit)} asked, {in_words(least[name])} at least (of {in_words(now[name])})"
                for name, limit in limits.items()
                if least[name] > limit
            },
            why=f"{len(groups)} groups of classes may change; the rest is frozen, kept or held by the code",
            fix="give a larger budget, a smaller minimum=, or keep fewer layers",
            least={n: v if n == "latency_ms" else round(v) for n, v in least.items()},
        )
    by_rank = functools.partial(_threshold, alike=ranking == "uniform")
    choice = (SOLVERS[solver] if ranking == "global" else by_rank)(problem)
    sizes = {
        each: n
        for group, level in zip(problem.groups, choice, strict=True)
        for each, n in zip(group.classes, group.levels[level], strict=True)
    }
    total = problem.gain(problem.top)
    return Widths(
        sizes,
        costs.at(sizes),
        dict(limits),
        problem.gain(choice) / total if total > 0 else 1.0,
    )
