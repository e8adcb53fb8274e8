"""A layer graph as a tree of modules, with repeated blocks folded.

In: a `LayerGraph`. Out: a `Tree`: nodes in a list, children after their parents, layers as leaves, edges between
leaves. Names are cut at their dots; a run of neighbours that are built alike is put under one **fold**.
Always true: every layer of the graph is exactly one leaf; the visible nodes at the start are at most about `READABLE`,
or as few as the tree allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Node", "Tree", "build_tree", "kind_of"]

READABLE = 26  # nodes on the screen at the start, for each graph
FEWEST_REPEATS = 2


@dataclass
class Node:
    """One box of the picture.

    Attributes:
        label: the last piece of the name, or ``"1 .. 5"`` for a fold.
        path: the whole name.
        form: ``"root"``, ``"module"``, ``"fold"`` or ``"layer"``.
        kind: class name of the module, or name of the op; for a fold that of its members.
        colour: the class of the parameters inside, see `kind_of`; ``""`` without parameters.
        parent: index of the parent; -1 for the root.
        children: indices, in order of execution.
        parameters: indices into `Tree.parameters`; of this layer alone.
        elements: elements of all parameters inside, tied ones once.
        repeats: how many members a fold has; 1 for everything else.
        open: whether it is drawn open at the start.
        in_shapes, out_shapes: of a layer; of a module those of its first and last layer.
        calls: how often the layer runs.
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


@dataclass
class Tree:
    """One graph, ready to draw. `edges` are (leaf, leaf, shape of the tensor)."""

    name: str
    rung: str
    nodes: list[Node]
    edges: list[tuple[int, int, tuple[int, ...]]]
    parameters: list[Any]
    leaf_of: dict[str, int]
    owner: dict[str, int]

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
    """A node while the tree grows; dicts keep the order of execution."""

    label: str
    path: str
    inner: dict[str, _Branch] = field(default_factory=dict)
    layer: Any = None
    members: list[_Branch] = field(default_factory=list)  # of a fold
    shape: tuple[Any, ...] = ()  # what it is built of; equal for blocks that are built alike


def build_tree(graph: Any) -> Tree:
    """The tree of a layer graph."""
    root = _Branch(graph.name, "")
    modules = _modules(graph.layers)
    for layer in graph.layers:
        _plant(root, layer, modules)
    known = {parameter.fqn: parameter for parameter in graph.parameters()}
    _shape(root, known)
    _fold(root)
    tree = Tree(graph.name, str(graph.rung), [], [], list(known.values()), {}, {})
    _lay_out(root, -1, tree, graph.model, {fqn: i for i, fqn in enumerate(known)})
    _sum_up(tree)
    _open(tree)
    tree.edges = _edges(graph, tree)
    return tree


def _plant(root: _Branch, layer: Any, modules: set[str]) -> None:
    """Hang a layer under the modules of its FQN: what a module computes itself hangs inside it, named by the op."""
    inside = layer.fqn == "" or layer.fqn in modules
    pieces = layer.fqn.split(".") if layer.fqn else []
    branch = root
    for i, piece in enumerate(pieces if inside else pieces[:-1]):
        path = ".".join(pieces[: i + 1])
        branch = branch.inner.setdefault(piece, _Branch(piece, path))
    again = layer.name.removeprefix(layer.fqn) if layer.name.startswith(layer.fqn) else ""
    label = layer.kind if inside else pieces[-1] + again
    branch.inner["\0" + layer.name] = _Branch(str(label), layer.name, layer=layer)


def _modules(layers: Any) -> set[str]:
    """FQNs that lie above a layer."""
    pieces = [layer.fqn.split(".") for layer in layers]
    return {".".join(names[:i]) for names in pieces for i in range(1, len(names))}


def _shape(branch: _Branch, known: dict[str, Any]) -> tuple[Any, ...]:
    """What the branch is built of, without its own name: equal shapes may be folded."""
    layer = branch.layer
    held = [known[fqn] for fqn in layer.parameters if fqn in known] if layer is not None else []
    own = tuple((p.fqn.rpartition(".")[2], tuple(p.shape), p.kind) for p in held)
    # The label of an op without parameters is often a running number; what it is counts, not that.
    inner = tuple(
        (
            "" if child.layer is not None and not child.layer.parameters else child.label,
            _shape(child, known),
        )
        for child in branch.inner.values()
    )
    branch.shape = (layer.kind if layer is not None else "", own, inner)
    return branch.shape


def _fold(branch: _Branch) -> None:
    """Put runs of blocks that are built alike under folds; what lies inside a block is folded first."""
    children = list(branch.inner.values())
    for child in children:
        _fold(child)
    branch.inner = {}
    start = 0
    while start < len(children):
        end = start + 1
        while (
            end < len(children)
            and children[start].inner
            and children[end].shape == children[start].shape
        ):
            end += 1
        run = children[start:end]
        if len(run) >= FEWEST_REPEATS:
            label = f"{run[0].label} \N{HORIZONTAL ELLIPSIS} {run[-1].label}"
            prefix = f"{branch.path}." if branch.path else ""
            path = f"{prefix}[{run[0].label}\N{HORIZONTAL ELLIPSIS}{run[-1].label}]"
            fold = _Branch(label, path, members=run, inner={member.label: member for member in run})
            branch.inner[path] = fold
        else:
            branch.inner.update({child.path + "\0" + child.label: child for child in run})
        start = end


def _lay_out(branch: _Branch, parent: int, tree: Tree, model: Any, places: dict[str, int]) -> int:
    """Append the branch and all below it; the index of the branch."""
    index = len(tree.nodes)
    form = "layer" if branch.layer is not None else "fold" if branch.members else "module"
    node = Node(branch.label, branch.path, "root" if parent < 0 else form, parent=parent)
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
    node.repeats = max(1, len(branch.members))
    inside = branch.members or list(branch.inner.values())
    node.children = [_lay_out(child, index, tree, model, places) for child in inside]
    first, last = (tree.nodes[node.children[i]] if node.children else node for i in (0, -1))
    node.in_shapes, node.out_shapes = first.in_shapes, last.out_shapes
    node.kind = first.kind if branch.members else _class_name(model, branch.path, tree.name)
    return index


def _class_name(model: Any, path: str, name: str) -> str:
    if not path:
        return name
    try:
        return type(model.get_submodule(path)).__name__
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
            held = colours[node.parent]
            held[kind] = held.get(kind, 0) + size
    for node, held in zip(tree.nodes, colours, strict=True):
        weights = {
            kind: size for kind, size in held.items() if kind not in ("bias", "norm")
        } or held
        node.colour = max(sorted(weights), key=lambda kind: weights[kind]) if weights else ""


def _open(tree: Tree) -> None:
    """Open whole levels, from the root down, while the picture stays readable; folds stay closed."""
    tree.nodes[0].open = True
    visible = len(tree.nodes[0].children)
    level = list(tree.nodes[0].children)
    while level:
        closed = [
            tree.nodes[i] for i in level if tree.nodes[i].children and tree.nodes[i].form != "fold"
        ]
        after = visible + sum(
            len(node.children) for node in closed
        )  # an open box stays on the screen
        lone = visible <= 3
        if not closed or (after > READABLE and not lone):
            return
        for node in closed:
            node.open = True
        visible = after
        level = [child for node in closed for child in node.children]


def _edges(graph: Any, tree: Tree) -> list[tuple[int, int, tuple[int, ...]]]:
    found = {
        (tree.leaf_of[u], tree.leaf_of[v], tuple(data.get("shape") or ()))
        for u, v, data in graph.nx.edges(data=True)
        if u in tree.leaf_of and v in tree.leaf_of and u != v
    }
    return sorted(found)


def kind_of(parameter: Any) -> str:
    """The colour class of a parameter: its kind, or ``"attention"`` for an attention's projections."""
    role: str = parameter.role or ""
    return "attention" if role.startswith("attention") else str(parameter.kind)
