"""A scene for a terminal: both trees, folded, and the links; control characters in names are shown as escapes."""

from __future__ import annotations

from ..errors import printable
from .scene import Scene
from .tree import Node, Tree

__all__ = ["scene_to_text"]

ARROWS = {"forward": "->", "backward": "<-", "both": "<->"}


def scene_to_text(scene: Scene) -> str:
    """Trees first, at the level that the page opens with, then one line a link."""
    blocks = [_tree_text(tree) for tree in scene.trees]
    if scene.links:
        lines = [f"{len(scene.links)} links"]
        lines += [
            f"  {printable(link.source_address)} {link.source_shape} {ARROWS.get(link.direction, '->')} "
            f"{printable(link.target_address)} {link.target_shape}  {link.kind}"
            for link in scene.links
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _tree_text(tree: Tree) -> str:
    root = tree.nodes[0]
    layers = sum(node.form == "layer" for node in tree.nodes)
    lines = [f"{printable(tree.name)}: {layers} layers, {root.elements:,} parameters"]
    _descend(tree, root, 1, lines)
    return "\n".join(lines)


def _descend(tree: Tree, node: Node, level: int, lines: list[str]) -> None:
    for index in node.children:
        child = tree.nodes[index]
        repeats = f" ×{child.repeats}" if child.form == "fold" else ""
        size = f"  {child.elements:,}" if child.elements else ""
        shape = f"  {child.out_shapes[0]}" if child.out_shapes else ""
        lines.append(
            f"{'  ' * level}{printable(child.label)}{repeats}  {printable(child.kind)}{size}{shape}"
        )
        if child.open:
            _descend(tree, child, level + 1, lines)
