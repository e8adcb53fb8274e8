"""A scene as a Mermaid flowchart, which forges and notebooks draw inside Markdown.

In: a `Scene`. Out: the text of a ``flowchart``, at the level that the page opens with: all layers of a large model are
more than Mermaid draws. Always true: names are quoted labels with every character that Mermaid or HTML reads as
markup written as an entity.
"""

from __future__ import annotations

from collections.abc import Iterator

from .scene import Scene
from .tree import Tree

__all__ = ["scene_to_mermaid"]

ARROWS = {"forward": "-.->", "backward": "<-.-", "both": "<-.->"}


def scene_to_mermaid(scene: Scene) -> str:
    """The scene as it is first seen; links that coincide are one, with their number."""
    lines = ["flowchart TB"]
    for place, tree in enumerate(scene.trees):
        lines.append(f"  subgraph g{place}[{_quoted(tree.name)}]")
        lines += _inside(tree, place, 0, "    ")
        lines.append("  end")
    links: dict[tuple[str, str, str], int] = {}
    for link in scene.links:
        ends = [
            _name(place, _shown(scene.trees[place], node))
            for place, node in (link.source, link.target)
        ]
        key = (ends[0], ARROWS.get(link.direction, "-.->"), ends[1])
        links[key] = links.get(key, 0) + 1
    lines += [
        f"  {source} {arrow}{f'|{count}|' if count > 1 else ''} {target}"
        for (source, arrow, target), count in links.items()
    ]
    return "\n".join([*lines, ""])


def _inside(tree: Tree, place: int, index: int, indent: str) -> Iterator[str]:
    for i in tree.nodes[index].children:
        node = tree.nodes[i]
        if node.children and node.open:
            yield f"{indent}subgraph {_name(place, i)}[{_quoted(node.title)}]"
            yield from _inside(tree, place, i, indent + "  ")
            yield f"{indent}end"
        else:
            yield f"{indent}{_name(place, i)}[{_quoted(node.title)}]"
    if index == 0:
        edges = {(_shown(tree, u), _shown(tree, v)) for u, v, _ in tree.edges}
        yield from (
            f"{indent}{_name(place, u)} --> {_name(place, v)}" for u, v in sorted(edges) if u != v
        )


def _name(place: int, index: int) -> str:
    return f"n{place}_{index}"


def _shown(tree: Tree, index: int) -> int:
    """The node, or the outermost closed one that it lies in."""
    shown, up = index, tree.nodes[index].parent
    while up >= 0:
        if not tree.nodes[up].open:
            shown = up
        up = tree.nodes[up].parent
    return shown


def _quoted(text: str) -> str:
    r"""A Mermaid label of exactly this text.

    >>> _quoted('a"<b>')
    '"a#34;#60;b#62;"'
    """
    safe = "".join(
        c if c.isalnum() or c in " ._-×…" else f"#{ord(c)};" for c in text if c.isprintable()
    )
    return f'"{safe}"'
