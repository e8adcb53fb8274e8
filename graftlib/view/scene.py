"""What there is to see: both graphs and their links as plain data, the same for HTML, text and DOT.

In: layer graphs, and a mapping or a joined graph. Out: a `Scene` of frozen records that hold numbers and names only.
Always true: nothing is read but shapes and names, so a model on the meta device shows as any other; the same input
gives the same scene. Where modules and folds come from: `tree`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import GraftError, nearest, shown
from .numbers import measured, statistics, transferred, worths
from .story import Story, drawn, stories_of
from .tree import Tree, build_tree, kind_of
from .units import Units, dropped_shares, units_of

__all__ = ["Overlay", "Scene", "SceneLink", "build_scene"]

MIXED = "mixed"


@dataclass(frozen=True)
class SceneLink:
    """One pair of parameters. An end is (index of the graph, index of the layer's node in its tree).

    Attributes:
        source, target: the ends; the source's graph never stands right of the target's.
        source_address, target_address: the parameters.
        source_shape, target_shape: of the whole parameters.
        direction: ``"forward"``, ``"backward"`` or ``"both"``.
        kind: what both parameters are (`kind_of`), or ``"mixed"``.
        rule: what made the pair.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    source_address: str
    target_address: str
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    direction: str
    kind: str
    rule: str


@dataclass(frozen=True)
class Overlay:
    """Numbers that are shown as colours: ((index of the graph, index of the node), value), at most one a node."""

    name: str
    values: tuple[tuple[tuple[int, int], float], ...]


@dataclass(frozen=True)
class Scene:
    """One or two trees, source first, the links between their layers, and what is known besides.

    Attributes:
        trees, links: what is drawn.
        overlays: numbers as colours.
        name: of the page; None for the models' names.
        notes: lines to read.
        units: of axis classes, what an edit keeps and what they are worth.
        stories: of layers, what a graft or an assembly did to them.
    """

    trees: tuple[Tree, ...]
    links: tuple[SceneLink, ...]
    overlays: tuple[Overlay, ...] = ()
    name: str | None = None
    notes: tuple[str, ...] = ()
    units: tuple[Units, ...] = ()
    stories: tuple[Story, ...] = ()

    @property
    def title(self) -> str:
        """The name that was given, else both models' names."""
        return self.name or " to ".join(tree.name for tree in self.trees)


def build_scene(
    source: Any,
    target: Any = None,
    mapping: Any = None,
    *,
    overlay: Mapping[str, Any] | str | Iterable[str] | None = None,
    edit: Any = None,
    importance: Any = None,
    weights: bool = False,
    depth: int | None = None,
    title: str | None = None,
    notes: tuple[str, ...] = (),
) -> Scene:
    """Gather the scene.

    Args:
        source: a layer graph; or what brings its own: a mapping, a graft or its joined graph, an assembly.
        target: the second layer graph; None for the mapping's target, or for one graph alone.
        mapping: the pairs; None for none.
        overlay: see `view`.
        edit: see `view`.
        importance: see `view`.
        weights: see `view`.
        depth: see `view`.
        title: of the page; None for the models' names.
        notes: lines for the page's overview.

    Raises:
        GraftError: an argument is no layer graph, the mapping is of other graphs, or an overlay names no layer.
    """
    whole, source = source, drawn(source)
    if mapping is None and hasattr(source, "source") and hasattr(source, "target"):
        source, target, mapping = source.source, source.target, source
    if mapping is not None and not (hasattr(mapping, "source") and hasattr(mapping, "target")):
        raise GraftError(
            f"view takes a mapping, and mapping is a {type(mapping).__name__}.",
            fix="view(source, target, Mapping(source, target).auto())",
        )
    if target is None and mapping is not None:
        target = mapping.target
    for name, graph in (("source", source), ("target", target)):
        if (graph is not None or name == "source") and not (
            hasattr(graph, "layers") and hasattr(graph, "nx")
        ):
            raise GraftError(
                f"view takes layer graphs, and {name} is a {type(graph).__name__}.",
                fix="trace it first: view(trace(source, args), trace(target, args), mapping)",
            )
    _require_same_models(source, target, mapping)
    alone = target is None or target.model is source.model
    trees = tuple(build_tree(graph, depth) for graph in ((source,) if alone else (source, target)))
    if weights:
        for tree, graph in zip(trees, (source, target), strict=False):
            tree.histograms = _histograms(graph)
    links = () if mapping is None else tuple(_links(mapping, source, trees))
    units = units_of(edit, importance, trees)
    numbers = {"share of weights dropped": dropped_shares(units, trees)}
    numbers["importance"] = worths(units, trees)
    if hasattr(whole, "history") and hasattr(whole, "plan"):
        numbers |= transferred(whole, trees)
    numbers |= statistics(trees)
    overlays = [*_overlays(overlay or {}, (source, target), trees)]
    overlays += [_overlay(title, each) for title, each in numbers.items() if each]
    return Scene(trees, links, tuple(overlays), title, notes, units, stories_of(whole, trees))


def _histograms(graph: Any) -> dict[str, Any]:
    from .weights import histogram

    own = dict(graph.model.named_parameters())
    found = {fqn: histogram(tensor) for fqn, tensor in own.items()}
    return {fqn: each for fqn, each in found.items() if each is not None}


def _overlay(title: str, numbers: Mapping[tuple[int, int], float]) -> Overlay:
    finite = {place: number for place, number in numbers.items() if math.isfinite(number)}
    return Overlay(title, tuple(sorted(finite.items())))


def _overlays(overlay: Any, graphs: tuple[Any, ...], trees: tuple[Tree, ...]) -> Iterable[Overlay]:
    """One overlay from name -> number, several from title -> (name -> number), or from the names of measures."""
    if isinstance(overlay, str):
        overlay = [overlay]
    if isinstance(overlay, list | tuple) and all(isinstance(name, str) for name in overlay):
        yield from (_overlay(*measured(name, graphs, trees)) for name in overlay)
        return
    if not isinstance(overlay, Mapping):
        raise GraftError(
            f"an overlay is name -> number, and this is a {type(overlay).__name__}.",
            fix="view(graph, overlay={'layer1.0.conv1': 0.25})",
        )
    several = bool(overlay) and all(isinstance(values, Mapping) for values in overlay.values())
    ends = [_ends(tree) for tree in trees]
    for name, values in overlay.items() if several else ([("overlay", overlay)] if overlay else []):
        numbers: dict[tuple[int, int], float] = {}
        for fqn, value in values.items():
            number = _number(fqn, value)
            side, colon, rest = str(fqn).partition(":")
            only = {"source": 0, "target": len(trees) - 1}.get(side) if colon else None
            places = [
                ((g, nodes[key]))
                for g, nodes in enumerate(ends)
                for key in ([rest] if only == g else [str(fqn)])
                if key in nodes
            ]
            if not places:
                raise GraftError(
                    f"the overlay names {shown(fqn)}, which is no layer, module or parameter.",
                    near=nearest(str(fqn), [key for nodes in ends for key in nodes]),
                    fix="name them as in model.named_modules() or model.named_parameters()",
                )
            numbers.update((place, number) for place in places)
        yield Overlay(str(name), tuple(sorted(numbers.items())))


def _ends(tree: Tree) -> dict[str, int]:
    """Every name that an overlay may use -> the node that it colours."""
    modules = {
        node.path: i for i, node in enumerate(tree.nodes) if node.form in ("module", "layer")
    }
    return {**tree.owner, **modules}


def _number(fqn: Any, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise GraftError(
            f"the overlay's value of {shown(fqn)} is {shown(value)}, which is no finite number.",
            fix="leave it out, or give a number",
        )
    return number


def _require_same_models(source: Any, target: Any, mapping: Any) -> None:
    if mapping is None:
        return
    for side, graph, mapped in (
        ("source", source, mapping.source),
        ("target", target, mapping.target),
    ):
        if graph is not mapped and graph.model is not mapped.model:
            raise GraftError(
                f"the mapping's {side} is another model than the {side} to look at.",
                where={"mapping": mapped.name, "view": graph.name},
                fix="view(mapping.source, mapping.target, mapping)",
            )


def _links(mapping: Any, source: Any, trees: tuple[Tree, ...]) -> Iterable[SceneLink]:
    last = len(trees) - 1
    if hasattr(mapping, "pairs"):
        for pair in mapping.pairs:
            yield _link(trees, (0, pair.source), (last, pair.target), pair.direction, pair.rule)
        return
    sides = {"source": (0, mapping.source), "target": (last, mapping.target)}
    for node in mapping.adapters:
        (_, written, target), *_ = mapping.nx.out_edges(node, data="parameter")
        for read, _, address in mapping.nx.in_edges(node, data="parameter"):
            if (read, address) == (written, target):
                continue
            ends = []
            for layer, parameter in ((read, address), (written, target)):
                place, graph = sides[layer.split(":", 1)[0]]
                ends.append((place, graph.parameter(parameter)))
            yield _link(trees, ends[0], ends[1], "forward", mapping.nx.nodes[node]["link"])


def _link(
    trees: tuple[Tree, ...],
    source: tuple[int, Any],
    target: tuple[int, Any],
    direction: str,
    rule: str,
) -> SceneLink:
    if source[0] > target[0]:  # the first end is the one on the left; the direction says who writes
        flipped = {"forward": "backward", "backward": "forward"}.get(direction, direction)
        return _link(trees, target, source, flipped, rule)
    (i, left), (j, right) = source, target
    kinds = {kind_of(left), kind_of(right)}
    return SceneLink(
        source=(i, trees[i].node_of(left)),
        target=(j, trees[j].node_of(right)),
        source_address=left.address,
        target_address=right.address,
        source_shape=tuple(left.shape),
        target_shape=tuple(right.shape),
        direction=direction,
        kind=kinds.pop() if len(kinds) == 1 else MIXED,
        rule=rule,
    )
