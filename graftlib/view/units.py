"""What is known of the units of axis classes: which ones an edit keeps, and what each is worth.

In: an edit and importances as they come, and the graphs with their trees. Out: `Units` records, and how much of each
layer's weights goes, as an overlay. Always true: nothing is computed from weights here; numbers are those that came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import GraftError, shown

if TYPE_CHECKING:
    from ..graph.axes import AxisClass
    from .tree import Tree

__all__ = ["Units", "dropped_shares", "units_of"]


@dataclass(frozen=True)
class Units:
    """The units of one class.

    Attributes:
        place: (index of the graph, index of the class in its tree).
        kept: for each unit whether it stays; None where no edit says so.
        importance: for each unit what it is worth, larger is better; None where nobody said.
    """

    place: tuple[int, int]
    kept: tuple[bool, ...] | None
    importance: tuple[float, ...] | None


def units_of(edit: Any, importance: Any, trees: Sequence[Tree]) -> tuple[Units, ...]:
    """Put what is known beside the classes.

    Args:
        edit: see `view`.
        importance: see `view`.
        trees: of the graphs that are shown.

    Raises:
        GraftError: a class is of none of the graphs, units are no numbers of it, or importances are of another length.
    """
    kept = {each: _flags(each, units) for each, units in _classes(edit, "edit").items()}
    if callable(importance) and not isinstance(importance, Mapping):
        importance = _asked(importance, kept or trees[0].class_of)
    worth = {
        each: _finite(each, numbers) for each, numbers in _classes(importance, "importance").items()
    }
    found = []
    for each in dict.fromkeys([*kept, *worth]):
        places = [(g, tree.class_of[each]) for g, tree in enumerate(trees) if each in tree.class_of]
        if not places:
            raise GraftError(
                f"the class of {each.members[0]} is of none of the models to look at.",
                where={"units": each.size, "models": ", ".join(tree.name for tree in trees)},
                fix="view(graph, edit=…), with the graph of the model before the edit",
            )
        found += [Units(place, kept.get(each), worth.get(each)) for place in places]
    return tuple(sorted(found, key=lambda each: each.place))


def dropped_shares(units: Iterable[Units], trees: Sequence[Tree]) -> dict[tuple[int, int], float]:
    """(graph, node) -> the share of its weights that the edit drops: of a layer the parameter that loses most."""
    shares: dict[tuple[int, int], float] = {}
    kept = {each.place: sum(each.kept) / len(each.kept) for each in units if each.kept}
    for g, tree in enumerate(trees):
        left: dict[str, float] = {}
        mine = {each: kept[g, i] for each, i in tree.class_of.items() if (g, i) in kept}
        shapes = {each.fqn: tuple(each.shape) for each in tree.parameters}
        for (fqn, axis), blocks in _blocks(mine).items():
            if fqn in shapes:
                gone = sum(length * (1 - share) for length, share in blocks.values())
                left[fqn] = left.get(fqn, 1.0) * (1 - gone / shapes[fqn][axis])
        for fqn, share in left.items():
            place = (g, tree.owner.get(fqn, 0))
            shares[place] = max(1 - share, shares.get(place, 0.0))
    return shares


def _blocks(
    kept: Mapping[AxisClass, float],
) -> dict[tuple[str, int], dict[int, tuple[int, float]]]:
    """(parameter, axis) -> start of a run of units -> (its length, the share that stays of it)."""
    blocks: dict[tuple[str, int], dict[int, tuple[int, float]]] = {}
    for each, share in kept.items():
        for member in each.members:
            runs = blocks.setdefault((member.fqn, member.axis), {})
            before = runs.get(member.start, (0, 1.0))[1]
            runs[member.start] = (math.prod(member.factors), before * share)
    return blocks


def _classes(given: Any, name: str) -> Mapping[AxisClass, Any]:
    given = getattr(given, "kept", given)
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(hasattr(each, "members") for each in given):
        raise GraftError(
            f"{name} says something of axis classes, and this is {shown(given, 60)}.",
            fix="view(graph, edit=slim.edit, importance=slim.importances), or {graph.axis_class('conv1'): [0, 2, 3]}",
        )
    return given


def _asked(ranking: Callable[[Any], Any], classes: Iterable[AxisClass]) -> dict[AxisClass, Any]:
    return {each: ranking(each) for each in classes if each.free}


def _flags(each: AxisClass, units: Any) -> tuple[bool, ...]:
    numbers = {int(unit) for unit in _listed(units)}
    if not all(0 <= unit < each.size for unit in numbers):
        raise GraftError(
            f"units to keep of {each.members[0]} lie between 0 and {each.size - 1}.",
            where={"given": shown(sorted(numbers), 60)},
        )
    return tuple(unit in numbers for unit in range(each.size))


def _finite(each: AxisClass, numbers: Any) -> tuple[float, ...]:
    values = tuple(map(float, _listed(numbers)))
    if len(values) != each.size or not all(map(math.isfinite, values)):
        raise GraftError(
            f"the importance of {each.members[0]} is one finite number for each of its {each.size} units.",
            where={"given": f"{len(values)} numbers"},
        )
    return values


def _listed(numbers: Any) -> Iterator[Any]:
    return iter(numbers.tolist() if hasattr(numbers, "tolist") else numbers)
