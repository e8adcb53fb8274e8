"""A scene as the page's script reads it: JSON that says nothing twice.

In: a `Scene`. Out: plain data, and JSON that cannot leave the element it stands in. Records are written as columns
(name -> one value a record); a column whose name ends in ``$`` holds numbers of `words`, where every text stands once.
Left out is what the script can work out: children (`parent` says them), a path that is its module's and the label,
shapes of containers.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ViewError
from .scene import Scene
from .tree import Node, Tree
from .units import Units

if TYPE_CHECKING:
    from .weights import Histogram

__all__ = ["embedded_json", "scene_data"]


def embedded_json(data: Any) -> str:
    r"""JSON that cannot end the script element it stands in, nor start a comment or a line in it.

    >>> print(embedded_json("</script>"))
    "\u003c/script\u003e"
    """
    text = json.dumps(
        data, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False
    )
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Lone surrogates are legal in Python and in JSON, and in no file.
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def scene_data(scene: Scene) -> dict[str, Any]:
    """The scene as JSON-able data."""
    words = _Words()
    return {
        "title": scene.title,
        "notes": list(scene.notes),
        "graphs": [_graph(tree, words) for tree in scene.trees],
        "stories": {
            "place": [list(each.place) for each in scene.stories],
            "title$": [words(each.title) for each in scene.stories],
            "lines$": [[words(line) for line in each.lines] for each in scene.stories],
            "curve": [
                [float(f"{n:.4g}") for point in each.curve for n in point] for each in scene.stories
            ],
        },
        "units": [_units(each) for each in scene.units],
        "links": _links(scene, words),
        "overlays": [
            {"name": overlay.name, "values": [[list(end), value] for end, value in overlay.values]}
            for overlay in scene.overlays
        ],
        "words": words.texts,
    }


class _Words:
    """Texts by number; 0 is the empty one."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": 0}

    def __call__(self, text: Any) -> int:
        return self._numbers.setdefault(str(text or ""), len(self._numbers))

    @property
    def texts(self) -> list[str]:
        return list(self._numbers)


def _graph(tree: Tree, words: _Words) -> dict[str, Any]:
    layers = [node if node.form == "layer" else None for node in tree.nodes]
    return {
        "name": tree.name,
        "tracer": tree.tracer,
        "stopped": tree.stopped,
        "nodes": {
            "label$": [words(node.label) for node in tree.nodes],
            "path$": [words(path) for path in _unsaid(tree.nodes)],
            "form$": [words(node.form) for node in tree.nodes],
            "kind$": [words(node.kind) for node in tree.nodes],
            "colour$": [words(node.colour) for node in tree.nodes],
            "parent": [node.parent for node in tree.nodes],
            "parameters": [node.parameters or 0 for node in tree.nodes],
            "elements": [node.elements for node in tree.nodes],
            "repeats": [node.repeats if node.form == "fold" else 0 for node in tree.nodes],
            "open": [int(node.open) for node in tree.nodes],
            "in_shapes$": [_shapes(node.in_shapes, words) if node else 0 for node in layers],
            "out_shapes$": [_shapes(node.out_shapes, words) if node else 0 for node in layers],
            "calls": [node.calls for node in tree.nodes],
            "depth": [None if node.depth is None else round(node.depth, 4) for node in tree.nodes],
        },
        "edges": [
            number for u, v, shape in tree.edges for number in (u, v, words(shape_text(shape)))
        ],
        "parameters": {
            **_parameters(tree.parameters, words),
            "lie": [_lie(tree.histograms.get(each.fqn)) for each in tree.parameters],
        },
        "classes": {
            "size": [each.size for each in tree.classes],
            "frozen_by$": [words(each.frozen_by) for each in tree.classes],
            "ties$": [[words(tie) for tie in each.ties[:12]] for each in tree.classes],
            "members": [[[place, axis] for place, axis in each.members] for each in tree.classes],
            "tied_by$": [[words(tie) for tie in each.tied_by] for each in tree.classes],
        },
    }


def _unsaid(nodes: Sequence[Node]) -> Iterable[str]:
    """The path of each node where it is not that of the module around it and the label, else nothing."""
    around = [""] * len(nodes)  # the path of the nearest module that the node is, or lies in
    for i, node in enumerate(nodes):
        base = around[node.parent] if i else ""
        around[i] = node.path if node.form == "module" else base
        expected = f"{base}.{node.label}" if base else node.label
        yield "" if not i or node.path == expected else node.path


def _parameters(parameters: Sequence[Any], words: _Words) -> dict[str, Any]:
    return {
        "address$": [words(each.address) for each in parameters],
        "shape$": [words(shape_text(each.shape)) for each in parameters],
        "dtype$": [words(str(each.dtype).removeprefix("torch.")) for each in parameters],
        "kind$": [words(each.kind) for each in parameters],
        "role$": [words(each.role) for each in parameters],
        "axes$": [[words(axis) for axis in each.axes] for each in parameters],
        "depth": [None if each.depth is None else round(each.depth, 4) for each in parameters],
        "tied$": [words(each.tied_to) for each in parameters],
        "alone$": [words(_why_alone(each)) for each in parameters],
        "groups": [each.groups for each in parameters],
        "parts$": [
            [
                number
                for name, part in each.parts.items()
                for number in (words(name), words(part.role))
            ]
            or 0
            for each in parameters
        ],
        "heads": [[part.heads or 0 for part in each.parts.values()] or 0 for each in parameters],
    }


def _lie(histogram: Histogram | None) -> list[Any] | int:
    """[bytes of the bins, least, largest, mean, standard deviation, share of zeros, how many not finite], or 0."""
    if histogram is None:
        return 0
    most = max(histogram.counts)
    bars = bytes(-(-255 * count // most) for count in histogram.counts)
    numbers = (histogram.low, histogram.high, histogram.mean, histogram.std, histogram.zeros)
    return [_base64(bars), *(float(f"{number:.4g}") for number in numbers), histogram.odd]


def _why_alone(parameter: Any) -> str:
    """Why no link may name the parameter; ``""`` where one may: what `Mapping.link` says."""
    from ..match.views import matrix_shape

    if parameter.tied_to is not None:
        return f"it is the same tensor as {parameter.tied_to}: link that"
    if 0 in parameter.shape:
        return "it has no elements"
    try:
        matrix_shape(parameter)
    except ViewError as error:
        return error.why or error.what
    return ""


def _units(each: Units) -> list[Any]:
    """[graph, class, a bit for each unit that stays, a byte for each importance between the least and the largest]."""
    kept, worth = "", ["", 0, 0]
    if each.kept is not None:
        bits = "".join("01"[flag] for flag in each.kept).ljust(-len(each.kept) // 8 * -8, "0")
        kept = _base64(int(bits, 2).to_bytes(len(bits) // 8, "big"))
    if each.importance is not None:
        low, high = min(each.importance), max(each.importance)
        step = (high - low) / 255 or 1.0
        levels = bytes(round((value - low) / step) for value in each.importance)
        worth = [_base64(levels), float(f"{low:.4g}"), float(f"{high:.4g}")]
    return [*each.place, kept, *worth]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _links(scene: Scene, words: _Words) -> dict[str, Any]:
    links = scene.links
    return {
        "source": [list(link.source) for link in links],
        "target": [list(link.target) for link in links],
        "source_address$": [words(link.source_address) for link in links],
        "target_address$": [words(link.target_address) for link in links],
        "source_shape$": [words(shape_text(link.source_shape)) for link in links],
        "target_shape$": [words(shape_text(link.target_shape)) for link in links],
        "direction$": [words(link.direction) for link in links],
        "kind$": [words(link.kind) for link in links],
        "rule$": [words(link.rule) for link in links],
    }


def _shapes(shapes: Sequence[Any], words: _Words) -> list[int] | int:
    return [words(shape_text(shape)) for shape in shapes] or 0


def shape_text(shape: Sequence[int]) -> str:
    """``64 × 3``, or ``scalar``."""
    return " × ".join(map(str, shape)) if len(shape) else "scalar"
