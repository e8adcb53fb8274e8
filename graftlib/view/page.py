"""view: two layer graphs and their links as one HTML file that needs no network.

In: layer graphs and a mapping. Out: a `View`: `.html`, `.save(path)`, `.to_text()`, `.to_dot()`, and itself in a
notebook. Always true: the models are not run and not changed; the same input gives the same bytes; every name is
data for the page's script, which shows it as text and never as markup; the page may not reach the network.
What is on the page: `scene`. How it behaves: ``assets/viewer.js``. What it is built with: ``vendor/``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..disk import write_whole
from .dot import scene_to_dot
from .scene import Scene, build_scene
from .text import scene_to_text

__all__ = ["View", "view"]

# In the order in which they lean on each other.
LIBRARIES = (
    "d3-dispatch",
    "d3-selection",
    "d3-timer",
    "d3-ease",
    "d3-color",
    "d3-interpolate",
    "d3-transition",
    "d3-drag",
    "d3-zoom",
    "dagre",
)


@dataclass(frozen=True)
class View:
    """A picture of one or two layer graphs. In a notebook it shows itself."""

    scene: Scene

    @cached_property
    def html(self) -> str:
        """The page: scripts, styles and data in one text."""
        return _page(self.scene)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to `path`; the file appears whole or not at all.

        Raises:
            GraftError: the file cannot be written.
        """
        write_whole(path, self.html)
        return Path(path)

    def to_text(self) -> str:
        """Both trees and the links, for a terminal."""
        return scene_to_text(self.scene)

    def to_dot(self) -> str:
        """Both graphs and the links in Graphviz's language, one cluster a module."""
        return scene_to_dot(self.scene)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<View {self.scene.title}: {len(self.scene.links)} links>"

    def _repr_html_(self) -> str:
        # The frame has an origin of its own, so that the page's script cannot reach the notebook.
        return (
            f'<iframe srcdoc="{html.escape(self.html, quote=True)}" sandbox="allow-scripts" '
            'width="100%" height="640" style="border:1px solid #8884"></iframe>'
        )


def view(source: Any, target: Any = None, mapping: Any = None) -> View:
    """Look at one or two layer graphs and at what links them.

    Args:
        source: a `LayerGraph`, drawn on the left; or a mapping, or a graft's `graph`, alone.
        target: a second `LayerGraph`, drawn on the right; None for the mapping's own, or for none.
        mapping: a `Mapping` whose pairs are drawn as links; None for none.

    Raises:
        GraftError: an argument is no layer graph, or the mapping is of other models.
    """
    return View(build_scene(source, target, mapping))


def _page(scene: Scene) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _asset(f"assets/{name}")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    scripts = [_library(name) for name in LIBRARIES] + ["\n" + _asset("assets/viewer.js")]
    style = "\n" + _asset("assets/viewer.css")
    return environment.get_template("page.html.j2").render(
        title=scene.title,
        policy=_policy(scripts, style),
        style=Markup(style),
        data=Markup(embedded_json(scene_data(scene))),
        scripts=[Markup(script) for script in scripts],
    )


def _policy(scripts: list[str], style: str) -> str:
    """Only the scripts and the style of this very page; no network at all."""
    allowed = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _library(name: str) -> str:
    """A vendored script under its licence, without the pointer to a source map that is not there."""
    code = re.sub(r"(?m)^//# sourceMappingURL=.*$", "", _asset(f"vendor/{name}.min.js"))
    return f"\n/*\n{name}\n{_asset(f'vendor/{name}.LICENSE').strip()}\n*/\n{code.strip()}\n"


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
    """The scene as JSON-able data, with short keys and without empty values."""
    return {
        "title": scene.title,
        "graphs": [
            {
                "name": tree.name,
                "rung": tree.rung,
                "nodes": [_slim(asdict(node)) for node in tree.nodes],
                "edges": [[u, v, _shape(shape)] for u, v, shape in tree.edges],
                "parameters": [_parameter(parameter) for parameter in tree.parameters],
            }
            for tree in scene.trees
        ],
        "links": [asdict(link) for link in scene.links],
    }


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    record["in_shapes"] = [_shape(shape) for shape in record["in_shapes"]]
    record["out_shapes"] = [_shape(shape) for shape in record["out_shapes"]]
    if record["depth"] is not None:
        record["depth"] = round(record["depth"], 4)
    if record["form"] != "fold":
        del record["repeats"]
    if not record["children"]:
        del record["open"]
    return {
        key: value
        for key, value in record.items()
        if value not in (None, "", [], 0) or key == "depth"
    }


def _shape(shape: Any) -> str:
    if isinstance(shape, str):
        return shape
    return " × ".join(map(str, shape)) if len(shape) else "scalar"


def _parameter(parameter: Any) -> dict[str, Any]:
    record = {
        "address": parameter.address,
        "shape": _shape(parameter.shape),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "kind": parameter.kind,
        "role": parameter.role,
        "axes": " ".join(parameter.axes),
        "depth": None if parameter.depth is None else round(parameter.depth, 4),
        "tied": parameter.tied_to,
        "parts": ", ".join(parameter.parts),
    }
    return {key: value for key, value in record.items() if value not in (None, "")}
