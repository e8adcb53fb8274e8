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
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from ..disk import write_whole
from .data import embedded_json, scene_data
from .dot import scene_to_dot
from .mermaid import scene_to_mermaid
from .model_explorer import scene_to_model_explorer
from .scene import Scene
from .text import scene_to_text

__all__ = ["View"]

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
