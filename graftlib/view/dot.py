"""A scene in Graphviz's language: one cluster a module, links dashed across; names are quoted, never HTML labels."""

from __future__ import annotations

from collections.abc import Iterator

from .scene import Scene
from .tree import Tree

__all__ = ["scene_to_dot"]

DIRECTIONS = {"forward": "forward", "backward": "back", "both": "both"}


def scene_to_dot(scene: Scene) -> str:
    """The whole scene, nothing collapsed."""
    lines = [
        "digraph graftlib {",
        "  compound=true; rankdir=TB;",
        '  node [shape=box, fontname="sans-serif"];',
    ]
    for place, tree in enumerate(scene.trees):
        lines += _cluster(tree, place, 0, "  ")
        lines += [f"  {_name(place, u)} -> {_name(place, v)};" for u, v, _ in tree.edges]
    for link in scene.links:
        (i, source), (j, target) = link.source, link.target
        ends = f"{_leaf(scene.trees[i], i, source)} -> {_leaf(scene.trees[j], j, target)}"
        label = quoted(f"{link.source_address} to {link.target_address}")
        lines.append(
            f"  {ends} [style=dashed, constraint=false, dir={DIRECTIONS.get(link.direction, 'forward')}, "
            f"tooltip={label}];"
        )
    return "\n".join([*lines, "}", ""])


def quoted(text: str) -> str:
    r"""A DOT string of exactly this text.

    >>> quoted('a"b\\N')
    '"a\\"b\\\\N"'
    """
    shown = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else " " for c in shown) + '"'


def _cluster(tree: Tree, place: int, index: int, indent: str) -> Iterator[str]:
    node = tree.nodes[index]
    if node.form == "layer":
        yield f"{indent}{_name(place, index)} [label={quoted(node.title)}];"
        return
    yield f"{indent}subgraph cluster_{place}_{index} {{"
    yield f"{indent}  label={quoted(node.title)};"
    if not node.children:  # a cluster without a node is not drawn, and links need an end
        yield f'{indent}  {_name(place, index)} [label=""];'
    for child in node.children:
        yield from _cluster(tree, place, child, indent + "  ")
    yield f"{indent}}}"


def _name(place: int, index: int) -> str:
    return f"n{place}_{index}"


def _leaf(tree: Tree, place: int, index: int) -> str:
    """An end that is drawn as a node: a module stands for its first leaf."""
    while tree.nodes[index].form != "layer" and tree.nodes[index].children:
        index = tree.nodes[index].children[0]
    return _name(place, index)
