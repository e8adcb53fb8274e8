"""A layer graph as a tree of modules, with repeated blocks folded.

In: a `LayerGraph`. Out: a `Tree`: nodes in a list, children after their parents, layers as leaves, edges between
leaves. Names are cut at their dots. A container whose children alternate with another's (``zip(convs, bns)``) is cut
where they do, so that siblings stand in execution order. What is built alike is put under one **fold**, neighbours or
repeats with a period; what is still too long is cut into **ranges**. Alike is what has the same names and shapes
inside, also in a model that could not be traced. Which modules an edit may leave out, `graftlib.surgery.blocks` says.
Always true: every layer of the graph is exactly one leaf; no node has more than `WIDEST` children; the visible nodes
at the start are at most `WIDEST`, or as few as the tree allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .weights import Histogram

__all__ = ["Node", "Tree", "build_tree", "kind_of"]

READABLE = 26  # nodes on the screen at the start, for each graph, where it can be had
WIDEST = 40  # children of one node
LONGEST_PERIOD = 40
FEWEST_REPEATS = 2


@dataclass
class Node:
    """One box of the picture.

    Attributes:
        label: the last piece of the name, or ``"1 … 5"`` for a fold, a group or a range.
        path: the whole name.
        form: ``"root"``, ``"module"``, ``"layer"``; ``"fold"``: members that are built alike; ``"group"``: a member of
            a fold with a period; ``"range"``: neighbours, where there are too many for one picture.
        kind: class name of the module, or name of the op; for a fold that of its members.
        colour: the class of the parameters inside, see `kind_of`; ``""`` without parameters.
        parent: index of the parent; -1 for the root.
        children: indices, in order of execution.
        parameters: indices into `Tree.parameters`; of this layer alone.
        elements: elements of all parameters inside, tied ones once.
        repeats: how many members a fold has; 1 for everything else.
        open: whether it is drawn open at the start.
        in_shapes, out_shapes: of a layer; of a module those of its first and last layer.
        calls: how often the layer runs; 0 where a forward pass ended before it.
        depth: relative depth from 0.0 to 1.0, or None.
    """

    label: str
    path: str
    form: str
    kind: str = ""
    colour: str = ""
    parent: int = -1
    children: list[int] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)
    elements: int = 0
    repeats: int = 1
    open: bool = False
    in_shapes: tuple[Any, ...] = ()
    out_shapes: tuple[Any, ...] = ()
    calls: int = 0
    depth: float | None = None

    @property
    def title(self) -> str:
        """The label, with how many members a fold has, and the kind."""
        label = self.label if self.form != "fold" else f"{self.label} ×{self.repeats}"
        return f"{label} {self.kind}" if self.kind and self.kind != self.label else label


@dataclass(frozen=True)
class TreeClass:
    """An axis class (see `graftlib.graph.AxisClass`): axes of parameters that move together.

    Attributes:
        size: how many units.
        frozen_by: what fixes their order, in words; None where they are free.
        ties: the ops that tied the members.
        members: (index into `Tree.parameters`, axis), once each; buffers are left out.
        tied_by: for each member, the op that first tied it; ``""`` where none is named.
    """

    size: int
    frozen_by: str | None
    ties: tuple[str, ...]
    members: tuple[tuple[int, int], ...]
    tied_by: tuple[str, ...]


@dataclass
class Tree:
    """One graph, ready to draw.

    Attributes:
        edges: (leaf, leaf, shape of the tensor).
        class_of: axis class -> its index in `classes`.
        histograms: parameter -> how its values lie; empty where nobody asked.
        stopped: path of the module in which a forward pass ended; None where none did.
    """

    name: str
    tracer: str
    nodes: list[Node]
    edges: list[tuple[int, int, tuple[int, ...]]]
    parameters: list[Any]
    leaf_of: dict[str, int]
    owner: dict[str, int]
    classes: list[TreeClass] = field(default_factory=list)
    class_of: dict[Any, int] = field(default_factory=dict)
    stopped: str | None = None
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def node_of(self, parameter: Any) -> int:
        """The leaf that reads `parameter`; the module that owns it where no layer does; else the root."""
        for fqn in (parameter.fqn, parameter.tied_to):
            if fqn is not None and fqn in self.owner:
                return self.owner[fqn]
        paths = {node.path: i for i, node in enumerate(self.nodes) if node.form == "module"}
        layer: str = parameter.layer
        while layer and layer not in paths:
            layer = layer.rpartition(".")[0]
        return paths.get(layer, 0)


@dataclass
class _Branch:
    """A node while the tree grows; children stand in the order of execution."""

    label: str
    path: str
    form: str = "module"
    children: list[_Branch] = field(default_factory=list)
    layer: Any = None
    leaves: list[int] = field(default_factory=list)  # numbers of the layers inside
    repeats: int = 1
    ends: tuple[str, str] = ("", "")  # labels of the first and the last that are bundled
    shape: int = 0  # the number of what it is built of; equal for blocks that are built alike


def build_tree(graph: Any, depth: int | None = None) -> Tree:
    """The tree of a layer graph.

    Args:
        graph: a `LayerGraph`.
        depth: levels that are open at the start; None for as many as stay readable.
    """
    root = _planted(graph)
    numbers = {layer.name: i for i, layer in enumerate(graph.layers)}
    _untangle(
        root,
        {(numbers[u], numbers[v]) for u, v in graph.nx.edges() if u in numbers and v in numbers},
    )
    known = {parameter.fqn: parameter for parameter in graph.parameters()}
    _shape(root, known, {})
    _fold(root)
    tree = Tree(graph.name, str(graph.tracer), [], [], list(known.values()), {}, {})
    tree.stopped = getattr(graph, "stopped", None)
    _lay_out(root, -1, tree, graph.model, {fqn: i for i, fqn in enumerate(known)})
    _sum_up(tree)
    _open(tree, depth)
    tree.edges = _edges(graph, tree)
    _add_classes(tree, graph, {fqn: i for i, fqn in enumerate(known)})
    return tree


def _planted(graph: Any) -> _Branch:
    """Every layer under the modules of its FQN: what a module computes itself hangs inside it, named by the op."""
    root = _Branch(graph.name, "", "root")
    modules = _modules(graph.layers)
    inner: dict[int, dict[str, _Branch]] = {}
    for number, layer in enumerate(graph.layers):
        inside = layer.fqn == "" or layer.fqn in modules
        pieces = layer.fqn.split(".") if layer.fqn else []
        branch = root
        branch.leaves.append(number)
        for i, piece in enumerate(pieces if inside else pieces[:-1]):
            modules_inside = inner.setdefault(id(branch), {})
            if piece not in modules_inside:
                modules_inside[piece] = _Branch(piece, ".".join(pieces[: i + 1]))
                branch.children.append(modules_inside[piece])
            branch = modules_inside[piece]
            branch.leaves.append(number)
        again = layer.name.removeprefix(layer.fqn) if layer.name.startswith(layer.fqn) else ""
        label = layer.kind if inside else pieces[-1] + again
        leaf = _Branch(str(label), layer.name, "layer", layer=layer, leaves=[number])
        branch.children.append(leaf)
    return root


def _modules(layers: Any) -> set[str]:
    """FQNs that lie above a layer."""
    pieces = [layer.fqn.split(".") for layer in layers]
    return {".".join(names[:i]) for names in pieces for i in range(1, len(names))}


def _untangle(branch: _Branch, edges: set[tuple[int, int]]) -> None:
    """Cut children that feed each other to and fro where they alternate; then the same inside each."""
    import networkx as nx

    home = {leaf: i for i, child in enumerate(branch.children) for leaf in child.leaves}
    between: nx.DiGraph[int] = nx.DiGraph(
        (home[u], home[v]) for u, v in edges if home[u] != home[v]
    )
    knots = [knot for knot in nx.strongly_connected_components(between) if len(knot) > 1]
    tangled = set().union(*knots)
    children = [child for i, child in enumerate(branch.children) if i not in tangled]
    for knot in knots:
        leaves = sorted(leaf for i in knot for leaf in branch.children[i].leaves)
        for i, run in groupby(leaves, key=home.__getitem__):
            children.append(_piece(branch.children[i], set(run)))
    branch.children = sorted(children, key=lambda child: child.leaves[0])
    home = {leaf: i for i, child in enumerate(branch.children) for leaf in child.leaves}
    inside: list[set[tuple[int, int]]] = [set() for _ in branch.children]
    for u, v in edges:
        if home[u] == home[v]:
            inside[home[u]].add((u, v))
    for child, edges_inside in zip(branch.children, inside, strict=True):
        if child.children and edges_inside:
            _untangle(child, edges_inside)


def _piece(branch: _Branch, leaves: set[int]) -> _Branch:
    """What of `branch` holds these leaves; a container of which one child is left is that child."""
    if leaves.issuperset(branch.leaves):
        return branch
    children = [
        _piece(child, leaves) for child in branch.children if not leaves.isdisjoint(child.leaves)
    ]
    if len(children) == 1:
        return replace(children[0], label=f"{branch.label}.{children[0].label}")
    inside = [leaf for leaf in branch.leaves if leaf in leaves]
    return _Branch(branch.label, branch.path, branch.form, children, leaves=inside)


def _shape(branch: _Branch, known: dict[str, Any], numbers: dict[Any, int]) -> int:
    """The number of what the branch is built of, without its own name: equal numbers may be folded."""
    layer = branch.layer
    fqns = layer.parameters if layer is not None else ()
    own = tuple(
        (fqn.rpartition(".")[2], tuple(known[fqn].shape), known[fqn].kind)
        for fqn in fqns
        if fqn in known
    )
    # The label of an op without parameters is often a running number; what it is counts, not that.
    inner = tuple(
        (
            "" if child.layer is not None and not child.layer.parameters else child.label,
            _shape(child, known, numbers),
        )
        for child in branch.children
    )
    built_of = (layer.kind if layer is not None else "", own, inner)
    branch.shape = numbers.setdefault(built_of, len(numbers))
    return branch.shape


def _fold(branch: _Branch) -> None:
    """Put what is built alike under folds, and what is still too much under ranges; from the inside out."""
    for child in branch.children:
        _fold(child)
    prefix = f"{branch.path}." if branch.path else ""
    branch.children = _ranged(_repeated(branch.children, prefix), prefix)


def _repeated(children: list[_Branch], prefix: str) -> list[_Branch]:
    """Runs of blocks under folds; of single layers, and with a period, only where there are too many to read."""
    crowded = len(children) > READABLE
    folded, start = [], 0
    while start < len(children):
        period, repeats = _period(children, start, crowded)
        run = children[start : start + period * repeats]
        start += len(run)
        if repeats < FEWEST_REPEATS:
            folded += run
            continue
        groups = [run[i : i + period] for i in range(0, len(run), period)]
        members = run if period == 1 else [_bundle("group", group, prefix) for group in groups]
        fold = _bundle("fold", run, prefix)
        folded.append(replace(fold, children=_ranged(members, prefix), repeats=repeats))
    return folded


def _period(children: Sequence[_Branch], start: int, crowded: bool) -> tuple[int, int]:
    """(period, repeats) of the repetition from `start` that covers most; (1, 1) where nothing repeats."""
    best = (1, 1)
    for period in range(1, LONGEST_PERIOD + 1 if crowded else 2):
        end = start + period
        while end < len(children) and children[end].shape == children[end - period].shape:
            end += 1
        repeats = (end - start) // period
        blocks = period == 1 and bool(children[start].children)
        if not blocks and not (crowded and repeats * period > 3):
            continue
        if repeats >= FEWEST_REPEATS and repeats * period > math.prod(best):
            best = (period, repeats)
    return best


def _ranged(children: list[_Branch], prefix: str) -> list[_Branch]:
    """The children, or, where they are more than `WIDEST`, ranges of them, of ranges if need be."""
    if len(children) <= WIDEST:
        return children
    levels = math.ceil(math.log(len(children), WIDEST))
    count = math.ceil(len(children) ** (1 / levels))
    size = math.ceil(len(children) / min(count, WIDEST))
    runs = [children[i : i + size] for i in range(0, len(children), size)]
    return [
        replace(_bundle("range", run, prefix), children=_ranged(run, prefix))
        if len(run) > 1
        else run[0]
        for run in runs
    ]


def _bundle(form: str, run: Sequence[_Branch], prefix: str) -> _Branch:
    ends = (run[0].ends[0] or run[0].label, run[-1].ends[1] or run[-1].label)
    label = f"{ends[0]} \N{HORIZONTAL ELLIPSIS} {ends[1]}"
    leaves = [leaf for each in run for leaf in each.leaves]
    return _Branch(label, f"{prefix}[{label}]", form, list(run), leaves=leaves, ends=ends)


def _lay_out(branch: _Branch, parent: int, tree: Tree, model: Any, places: dict[str, int]) -> int:
    """Append the branch and all below it; the index of the branch."""
    index = len(tree.nodes)
    node = Node(branch.label, branch.path, branch.form, parent=parent, repeats=branch.repeats)
    tree.nodes.append(node)
    if branch.layer is not None:
        layer = branch.layer
        node.kind, node.calls, node.depth = str(layer.kind), int(layer.calls), layer.depth
        node.in_shapes, node.out_shapes = tuple(layer.in_shapes), tuple(layer.out_shapes)
        node.parameters = [places[fqn] for fqn in layer.parameters if fqn in places]
        tree.leaf_of[layer.name] = index
        for fqn in layer.parameters:
            tree.owner.setdefault(fqn, index)
        return index
    node.children = [_lay_out(child, index, tree, model, places) for child in branch.children]
    inside = [tree.nodes[i] for i in node.children] or [node]
    node.in_shapes, node.out_shapes = inside[0].in_shapes, inside[-1].out_shapes
    kinds = dict.fromkeys(child.kind for child in inside if child.kind)
    node.kind = {
        "fold": inside[0].kind,
        "group": ", ".join(kinds),
        "range": inside[0].kind if len(kinds) == 1 else "",
    }.get(branch.form) or _class_name(model, branch, tree.name)
    return index


def _class_name(model: Any, branch: _Branch, name: str) -> str:
    if branch.form != "module":
        return name if branch.form == "root" else ""
    try:
        return type(model.get_submodule(branch.path)).__name__
    except (AttributeError, KeyError, ValueError):
        return ""


def _sum_up(tree: Tree) -> None:
    """Elements, colours and depths of modules from their layers; children come after parents in the list."""
    seen: set[str] = set()
    colours: list[dict[str, int]] = [{} for _ in tree.nodes]
    for i, node in enumerate(tree.nodes):
        for place in node.parameters:
            parameter = tree.parameters[place]
            size = math.prod(parameter.shape)
            kind = kind_of(parameter)
            colours[i][kind] = colours[i].get(kind, 0) + size
            if (parameter.tied_to or parameter.fqn) not in seen:
                seen.add(parameter.tied_to or parameter.fqn)
                node.elements += size
    for i in range(len(tree.nodes) - 1, 0, -1):
        node = tree.nodes[i]
        tree.nodes[node.parent].elements += node.elements
        for kind, size in colours[i].items():
            above = colours[node.parent]
            above[kind] = above.get(kind, 0) + size
    for node, sizes in zip(tree.nodes, colours, strict=True):
        weights = {
            kind: size for kind, size in sizes.items() if kind not in ("bias", "norm")
        } or sizes
        node.colour = max(sorted(weights), key=lambda kind: weights[kind]) if weights else ""


def _open(tree: Tree, depth: int | None) -> None:
    """Open whole levels, from the root down, while the picture stays readable; folds stay closed beside others."""
    tree.nodes[0].open = True
    if depth is not None:
        levels = [0] * len(tree.nodes)
        for i, node in enumerate(tree.nodes[1:], 1):
            levels[i] = levels[node.parent] + 1
            node.open = bool(node.children) and levels[i] < depth
        return
    visible = len(tree.nodes[0].children)
    level = list(tree.nodes[0].children)
    while level:
        nodes = [tree.nodes[i] for i in level]
        lone = visible <= 3
        folds = ("fold", "range") if visible == 1 else ()
        closed = [node for node in nodes if node.children and node.form in ("module", *folds)]
        after = visible + sum(
            len(node.children) for node in closed
        )  # an open box stays on the screen
        if not closed or after > (WIDEST if lone else READABLE):
            return
        for node in closed:
            node.open = True
        visible = after
        level = [child for node in closed for child in node.children]


def _edges(graph: Any, tree: Tree) -> list[tuple[int, int, tuple[int, ...]]]:
    edges = {
        (tree.leaf_of[u], tree.leaf_of[v], tuple(data.get("shape") or ()))
        for u, v, data in graph.nx.edges(data=True)
        if u in tree.leaf_of and v in tree.leaf_of and u != v
    }
    return sorted(edges)


def _add_classes(tree: Tree, graph: Any, places: dict[str, int]) -> None:
    for each in getattr(graph, "axis_classes", ()):
        tied_by: dict[tuple[int, int], str] = {}
        for member in each.members:
            if member.fqn in places:
                tied_by.setdefault((places[member.fqn], member.axis), member.tied_by or "")
        if tied_by:
            tree.class_of[each] = len(tree.classes)
            tree.classes.append(
                TreeClass(
                    each.size,
                    each.frozen_by,
                    tuple(each.ties),
                    tuple(tied_by),
                    tuple(tied_by.values()),
                )
            )


def kind_of(parameter: Any) -> str:
    """The colour class of a parameter: its kind, or ``"attention"`` for an attention's projections."""
    role: str = parameter.role or ""
    return "attention" if role.startswith("attention") else str(parameter.kind)
