"""Numbers on layers that the library knows by itself, for the overlays of a view.

In: what a view was asked for, and the graphs with their trees. Out: title -> place -> number. Always true: nothing is
run; what has no number is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import GraftError, nearest, shown
from ..graph.axes.classes import freedom_by_parameter
from ..graph.report import layer_macs

if TYPE_CHECKING:
    from .tree import Tree
    from .units import Units

__all__ = ["MEASURES", "measured", "statistics", "transferred", "worths"]

Place = tuple[int, int]
Numbers = dict[Place, float]


def _of_layers(tree: Tree, numbers: dict[str, float]) -> dict[int, float]:
    return {tree.leaf_of[name]: n for name, n in numbers.items() if name in tree.leaf_of}


def _macs(graph: Any, tree: Tree) -> dict[int, float]:
    return _of_layers(tree, {name: float(n) for name, n in layer_macs(graph).items() if n})


def _parameters(graph: Any, tree: Tree) -> dict[int, float]:
    return {
        i: float(n.elements) for i, n in enumerate(tree.nodes) if n.form == "layer" and n.elements
    }


def _freedom(graph: Any, tree: Tree) -> dict[int, float]:
    return _means((tree.owner.get(fqn), x) for fqn, x in freedom_by_parameter(graph).items())


MEASURES = {
    "macs": ("MACs", _macs),
    "parameters": ("parameters", _parameters),
    "freedom": ("freedom", _freedom),
}
"""What can be asked for by its name: title, and function of (layer graph, tree) -> node -> number."""


def measured(name: Any, graphs: Sequence[Any], trees: Sequence[Tree]) -> tuple[str, Numbers]:
    """Title and numbers of one of `MEASURES` in every graph that is shown.

    Raises:
        GraftError: there is none of that name, or a model was not traced.
    """
    if name not in MEASURES:
        raise GraftError(
            f"no overlay is called {shown(name)}.",
            near=nearest(str(name), list(MEASURES)),
            fix=f"take some of {', '.join(MEASURES)}, or give numbers: {{'layer1.0.conv1': 0.25}}",
        )
    shown_graphs = graphs[: len(trees)]
    if untraced := [graph.name for graph in shown_graphs if not hasattr(graph, "fx")]:
        raise GraftError(
            f"{name} is counted on what was traced, and {shown(untraced[0])} was not.",
            fix="leave the overlay out, or give numbers of your own",
        )
    title, measure = MEASURES[name]
    return title, {
        (g, i): number
        for g, (graph, tree) in enumerate(zip(shown_graphs, trees, strict=True))
        for i, number in measure(graph, tree).items()
    }


def statistics(trees: Sequence[Tree]) -> dict[str, Numbers]:
    """Of the weights whose histograms are shown: of each layer the parameter of the largest number."""
    found: dict[str, Numbers] = {"standard deviation of weights": {}, "share of zeros": {}}
    for g, tree in enumerate(trees):
        for fqn, each in tree.histograms.items():
            if fqn in tree.owner:
                for numbers, value in zip(found.values(), (each.std, each.zeros), strict=True):
                    place = (g, tree.owner[fqn])
                    numbers[place] = max(value, numbers.get(place, value))
    return {title: numbers for title, numbers in found.items() if any(numbers.values())}


def worths(units: Iterable[Units], trees: Sequence[Tree]) -> Numbers:
    """The mean importance of the units that lie on a layer's parameters."""
    rows: dict[Place, float] = {}
    for g, tree in enumerate(trees):
        lying = []
        for each in units:
            if each.place[0] == g and each.importance is not None:
                mean = sum(each.importance) / len(each.importance)
                for p, _ in tree.classes[each.place[1]].members:
                    lying.append((tree.owner.get(tree.parameters[p].fqn), mean))
        rows |= {(g, i): mean for i, mean in _means(lying).items()}
    return rows


def transferred(graft: Any, trees: Sequence[Tree]) -> dict[str, Numbers]:
    """Of every matrix that a graft wrote: what its last transfer changed, and what the adapter reported of it then."""
    plan, found = graft.plan, dict[str, Numbers]()

    def add(title: str, place: Place, value: float) -> None:
        numbers = found.setdefault(title, {})
        numbers[place] = max(value, numbers.get(place, value))

    for t in plan.targets:
        g = 0 if plan.tensors[t].model is plan.mapping.source.model else len(trees) - 1
        place, name = (g, trees[g].node_of(plan.parameters[t])), plan.matrices[t].name
        last = next((each for each in reversed(graft.history) if name in each.changes), None)
        if last is None:
            continue
        add("size of the last transfer", place, last.changes[name].size)
        for link in plan.links:
            facts = last.facts.get(link.name, []) if link.target == t else []
            names = graft.fact_names
            if len(names) == len(facts):
                for title, value in zip(names, facts, strict=True):
                    add(f"adapter: {title}", place, value)
    return found


def _means(rows: Iterable[tuple[int | None, float]]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for node, value in rows:
        if node is not None:
            found.setdefault(node, []).append(value)
    return {node: sum(values) / len(values) for node, values in found.items()}
