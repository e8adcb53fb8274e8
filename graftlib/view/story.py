"""What happened to a model's layers, beside the layers: transfers of a graft, merges of an assembly.

In: a `Graft` or an assembly. Out: what `view` draws of it, and `Story` records. Always true: nothing is read but what
they kept; a detached graft tells the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .tree import Tree

__all__ = ["Story", "drawn", "stories_of"]

MOST_POINTS = 200
MOST_LINES = 40


@dataclass(frozen=True)
class Story:
    """Of one layer.

    Attributes:
        place: (index of the graph, index of the node).
        title: what it is of: an address, or ``"origins"``.
        lines: in words.
        curve: (step, value) as it went; empty where there are no numbers.
    """

    place: tuple[int, int]
    title: str
    lines: tuple[str, ...]
    curve: tuple[tuple[float, float], ...] = ()


def drawn(source: Any) -> Any:
    """What of `source` is drawn: the mapping of a graft, the layer graph of an assembly; else itself."""
    if hasattr(source, "history") and hasattr(source, "plan"):
        return source.plan.mapping
    return source.graph if hasattr(source, "record") and hasattr(source, "graph") else source


def stories_of(source: Any, trees: Sequence[Tree]) -> tuple[Story, ...]:
    """The stories of a graft or of an assembly; nothing of anything else."""
    if hasattr(source, "history") and hasattr(source, "plan"):
        return tuple(_transfers(source, trees))
    if hasattr(source, "record") and hasattr(source, "graph"):
        return tuple(_origins(source, trees[0]))
    return ()


def _transfers(graft: Any, trees: Sequence[Tree]) -> Iterator[Story]:
    plan = graft.plan
    for i in plan.targets:
        name, parameter = plan.matrices[i].name, plan.parameters[i]
        mine = [(each, each.changes[name]) for each in graft.history if name in each.changes]
        g = 0 if plan.tensors[i].model is plan.mapping.source.model else len(trees) - 1
        read = [plan.matrices[link.source].name for link in plan.links if link.target == i]
        lines = [f"reads {', '.join(read)}"]
        if mine:
            (first, _), (last, change) = mine[0], mine[-1]
            lines += [
                f"{len(mine)} transfers, before steps {first.step} to {last.step}",
                f"the last changed {change.size:.2%} of its norm, cosine {change.cosine:.4f}",
            ]
        skipped = [each for each in graft.history if each.skipped]
        lines += [f"before step {each.step}: {each.skipped}" for each in skipped[:MOST_LINES]]
        curve = tuple(_thinned([(float(each.step), float(c.size)) for each, c in mine]))
        yield Story((g, trees[g].node_of(parameter)), parameter.address, tuple(lines), curve)


def _origins(assembly: Any, tree: Tree) -> Iterator[Story]:
    members = {str(each.members[0]): each.members for each in tree.class_of}
    modules = {
        node.path: i for i, node in enumerate(tree.nodes) if node.form in ("module", "layer")
    }
    merges: dict[int, list[str]] = {}
    for number, step in enumerate(assembly.record.steps):
        if not step.accepted:
            continue
        nodes: dict[int, list[str]] = {
            modules[path]: [] for path in step.layers or () if path in modules
        }
        for reads in step.reads:
            for member in members.get(reads.base, ()):
                node = tree.owner.get(member.fqn)
                if node is not None and (step.layers is None or _inside(tree, node, nodes)):
                    words = f"units as in {reads.source}"
                    if words not in nodes.setdefault(node, []):
                        nodes[node].append(words)
        for node, reading in nodes.items():
            told = "; ".join([f"step {number}: {step.source} at {step.factor:g}", *reading])
            merges.setdefault(node, []).append(told)
    for node, texts in merges.items():
        yield Story((0, node), "origins", tuple(texts[:MOST_LINES]))


def _inside(tree: Tree, node: int, nodes: Iterable[int]) -> bool:
    while node >= 0:
        if node in nodes:
            return True
        node = tree.nodes[node].parent
    return False


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points, the last among them."""
    step = -(-len(points) // MOST_POINTS) or 1
    return points[::-step][::-1]
