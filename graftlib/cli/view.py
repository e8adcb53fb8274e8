"""``graftlib view``: one offline HTML page with one model, or two models and what links them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import TraceError
from . import options
from .console import complain, say, say_json, working
from .steps import begin, load, load_options, see, see_both

__all__ = ["view"]


@options.expanded
def view(
    source: options.ModelArgument,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]", help="A second model, shown on the right.", show_default=False
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path(
        "mapping.html"
    ),
    mapping: Annotated[
        Path | None,
        typer.Option(
            "--mapping",
            exists=True,
            help="A saved mapping (YAML) between the two.",
            show_default=False,
        ),
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Propose a mapping and show it.")] = False,
    show: options.Open = False,
    *,
    shared: options.PairOptions,
) -> None:
    """Draw a model, or two side by side, as one HTML page.

    The page works offline. Of a model that cannot be traced it shows the modules, and how far a forward pass came.

    Example: graftlib view torchvision:resnet50 torchvision:mobilenet_v2 --auto -o mapping.html
    """
    if mapping is not None and auto:
        raise typer.BadParameter("give --mapping or --auto, not both", param_hint="--auto")
    if target is None and (mapping is not None or auto):
        raise typer.BadParameter("a mapping needs a second model", param_hint="TARGET")
    asked = begin(shared, "view", [source, *([target] if target else [])], output)
    others = load_options(shared.other())
    try:
        if target is None:
            left, right = see(source, **asked), None
        else:
            left, right = see_both(source, target, asked, others)
    except TraceError:
        if target is None:
            _draw_outline(source, asked, output, show)
        raise
    with working("drawing"):
        from ..match import Mapping
        from ..view import view as view_graphs

        links = None
        if right is not None and mapping is not None:
            links = Mapping.load(mapping, left, right)
        elif right is not None and auto:
            links = Mapping(left, right)
            links.auto()
        view_graphs(left, right, links).save(output)
    if show:
        options.browse(output)
    if shared.as_json:
        say_json(
            {
                "source": left.name,
                "target": right.name if right else None,
                "pairs": len(links.pairs) if links else 0,
                "path": str(output),
                "size_bytes": output.stat().st_size,
            }
        )
        return
    if links is not None:
        say(links)
    say(f"wrote {output}")


def _draw_outline(name: str, asked: dict[str, Any], output: Path, show: bool) -> None:
    """A page of what there is to see of a model that no tracer could follow."""
    if asked["device"] == "auto":
        asked = {**asked, "device": "cpu"}
    loaded = load(name, **asked)
    with working("running as far as it goes"):
        from ..graph import outline
        from ..view import view as view_graphs

        view_graphs(outline(loaded.model, loaded.args, loaded.kwargs)).save(output)
    if show:
        options.browse(output)
    complain(f"wrote {output}: the modules, and how far a forward pass came")
