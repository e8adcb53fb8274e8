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
import os
import re
import tempfile
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..arguments import Positive, check
from ..disk import write_whole
from ..errors import GraftError
from .data import embedded_json, scene_data
from .dot import scene_to_dot
from .mermaid import scene_to_mermaid
from .model_explorer import scene_to_model_explorer
from .scene import Scene, build_scene
from .text import scene_to_text

if TYPE_CHECKING:
    from .compare import Diff

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
    """A picture of one or two layer graphs. In a notebook it shows itself.

    Attributes:
        scene: what there is to see.
        height: of the frame in a notebook, in pixels.
        theme: ``"auto"`` (as the reader's system), ``"light"`` or ``"dark"``.
    """

    scene: Scene
    height: int = 640
    theme: str = "auto"

    @cached_property
    def html(self) -> str:
        """The page: scripts, styles and data in one text."""
        return _page(self.scene, self.theme)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to `path`; the file appears whole or not at all.

        Raises:
            GraftError: the file cannot be written.
        """
        write_whole(path, self.html)
        return Path(path)

    def show(self) -> Path:
        """Write the page to a new temporary file, open it in the system's browser, and return its path.

        The file stays; where there is no browser, open it by hand.
        """
        path = self.save(Path(tempfile.mkdtemp(prefix="graftlib-")) / "view.html")
        webbrowser.open(path.as_uri())
        return path

    def to_text(self) -> str:
        """Both trees and the links, for a terminal."""
        return scene_to_text(self.scene)

    def to_dot(self) -> str:
        """Both graphs and the links in Graphviz's language, one cluster a module."""
        return scene_to_dot(self.scene)

    def to_mermaid(self) -> str:
        """Both graphs and the links as a Mermaid flowchart, at the level that the page opens with."""
        return scene_to_mermaid(self.scene)

    def to_model_explorer(self) -> str:
        """Both graphs as JSON for Google's Model Explorer: ``model-explorer FILE.json``; links are attributes."""
        return scene_to_model_explorer(self.scene)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<View {self.scene.title}: {len(self.scene.links)} links>"

    def _repr_html_(self) -> str:
        # The frame has an origin of its own, so that the page's script cannot reach the notebook.
        return (
            f'<iframe srcdoc="{html.escape(self.html, quote=True)}" sandbox="allow-scripts allow-downloads" '
            'allow="clipboard-write" '
            f'title="{html.escape(self.scene.title, quote=True)}" width="100%" height="{self.height}" '
            'style="border:1px solid #8884"></iframe>'
        )


def view(
    source: Any,
    target: Any = None,
    mapping: Any = None,
    *,
    overlay: Mapping[str, Any] | None = None,
    edit: Any = None,
    importance: Any = None,
    weights: bool = False,
    diff: bool | Diff = False,
    depth: int | None = None,
    title: str | None = None,
    theme: Literal["auto", "light", "dark"] = "auto",
    height: int = 640,
) -> View:
    """Look at one or two layer graphs and at what links them.

    Args:
        source: a `LayerGraph`, drawn on the left; or alone, with what it brings: a mapping; a graft, with its
            history; an assembly, with the origins of its layers; a `graftlib.graph.Outline`, where tracing failed.
        target: a second `LayerGraph`, drawn on the right; None for the mapping's own, or for none.
        mapping: a `Mapping` whose pairs are drawn as links; None for none.
        overlay: numbers to show as colours with a legend: name of a layer, a module or a parameter -> a finite number
            of any unit; in both models where both have the name, in one behind ``source:`` or ``target:``. Or several
            of these by their titles, among which the reader chooses. A closed module without a number of its own shows
            the largest inside.
        edit: which units of axis classes stay, shown as a strip for each class and as an overlay of what goes: a
            `graftlib.slim.Edit` (``slim.edit``), or class -> the numbers of its units that stay.
        importance: what each unit is worth, shown in the strips: class -> (size,) numbers, as ``slim.importances``, or
            a function of a class that gives them, such as ``surgery.ranking("magnitude", graph, graph.model)``, asked
            for the classes of `edit`, or for all free ones of the source.
        weights: True reads all weights, so that the page can show a histogram of each parameter.
        diff: True compares the two models, a `Diff` is shown as it is: what differs stands in the overview, and an
            overlay shows how far the weights of each layer moved, by the norm of the first's.
        depth: how many levels of modules are open at first; None for as many as stay readable.
        title: of the page; None for the models' names.
        theme: of the page; ``"auto"`` follows the reader's system.
        height: of the frame in a notebook, in pixels.

    Raises:
        GraftError: an argument is no layer graph, the mapping is of other models, an overlay names nothing, an edit
            or importances are of other classes, or there is one model alone to compare.
    """
    themes = Literal["auto", "light", "dark"]
    check(
        GraftError,
        weights=(weights, bool),
        depth=(depth, int | None),
        title=(title, str | None),
        theme=(theme, themes),
        height=(height, Positive),
    )
    notes: tuple[str, ...] = getattr(source, "lines", ())
    if diff:
        compared = _compared(source, target, mapping) if diff is True else diff
        notes, overlay = compared.lines, overlay or compared.overlay
    scene = build_scene(
        source,
        target,
        mapping,
        overlay=overlay,
        edit=edit,
        importance=importance,
        weights=weights,
        depth=depth,
        title=title,
        notes=notes,
    )
    return View(scene, height, theme)


def _compared(source: Any, target: Any, mapping: Any) -> Diff:
    from .compare import diff as compare

    build_scene(source, target, mapping)  # refuses what cannot be shown
    if mapping is None and hasattr(source, "source") and hasattr(source, "target"):
        source, target = source.source, source.target
    other = mapping.target if target is None and mapping is not None else target
    if other is None:
        raise GraftError(
            "diff=True compares two models, and there is one.", fix="view(a, b, diff=True)"
        )
    return compare(source, other)


def _page(scene: Scene, theme: str) -> str:
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
        theme=theme,
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
