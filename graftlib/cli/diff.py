"""``graftlib diff``: what became of a model, by structure and by weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import say, say_json, working
from .steps import begin, load_options, see_both

__all__ = ["diff"]


@dataclass(frozen=True, kw_only=True)
class _Options(options.PairOptions):
    device: options.DeviceOption = options.Device.cpu  # weights are compared, too


@options.expanded
def diff(
    source: options.ModelArgument,
    target: Annotated[
        str, typer.Argument(metavar="OTHER", help="The model to compare.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also write a page that shows it.", show_default=False),
    ] = None,
    show: options.Open = False,
    *,
    shared: _Options,
) -> None:
    """Compare two models: shapes by name, weights after the units are put in one order, and the edit that explains it.

    On the meta device, structure alone. Without --weights a library's model has random values, by --seed.

    Example: graftlib diff torchvision:resnet18 torchvision:resnet18 --weights a.pt --other-weights b.pt
    """
    if show and output is None:
        raise typer.BadParameter("there is no page without --output", param_hint="--open")
    asked = begin(shared, "diff", [source, target], output)
    others = load_options(shared.other())
    left, right = see_both(source, target, asked, others)
    with working("comparing"):
        from ..view.compare import diff as compare

        difference = compare(left, right)
        if output is not None:
            from ..view import view

            view(left, right, diff=difference).save(output)
    if output is not None and show:
        options.browse(output)
    if shared.as_json:
        say_json({**asdict(difference), "path": str(output) if output else None})
        return
    say(difference)
    if output is not None:
        say(f"wrote {output}")
