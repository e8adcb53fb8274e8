"""``graftlib slim``: a small model for a budget, as files that `graftlib.load` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import say, say_json, working
from .steps import load, load_options, plan

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("slim")(slim)


def slim(
    model: options.ModelArgument,
    budget: Annotated[
        list[str],
        typer.Option(
            "--budget",
            metavar="COST=MOST",
            help="macs=0.5 (a share, with a point) or params=8000000 (a number); also bytes, size_mb, activations. "
            "Repeat it for several at once.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The folder to write.", show_default=False)
    ],
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep", metavar="GLOB", help="Layers that stay as wide.", show_default=False
        ),
    ] = None,
    ranking: Annotated[
        str, typer.Option("--ranking", help="uniform, isomorphic or global.")
    ] = "uniform",
    multiple_of: Annotated[
        int, typer.Option("--multiple-of", min=1, help="Widths become multiples of this.")
    ] = 8,
    page: Annotated[
        Path | None,
        typer.Option(
            "--page",
            metavar="FILE",
            help="Also write a page that shows which units stay, and what each was worth.",
            show_default=False,
        ),
    ] = None,
    inputs: options.Inputs = None,
    input_dtype: options.InputDtype = None,
    weights: options.Weights = None,
    device: options.DeviceOption = options.Device.auto,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Prune a model to a budget of parameters, MACs or bytes, and save it.

    Example: graftlib slim torchvision:resnet18 --weights r18.safetensors --budget macs=0.5 -o slim/
    """
    if device is options.Device.meta:
        raise typer.BadParameter(
            "units are chosen by the values of weights, the meta device holds none",
            param_hint="--device",
        )
    limits = dict(map(_parsed, budget))
    asked = load_options(inputs, input_dtype, weights, device, seed)
    if dry_run:
        plan(as_json, "slim", [model], output, device)
        return
    loaded = load(model, values=True, **asked)
    with working(f"slimming {model}"):
        from ..graph import trace
        from ..slim import slim as slim_model

        graph = trace(loaded.model, loaded.args, loaded.kwargs)
        small = slim_model(
            graph, budget=limits, keep=keep or (), ranking=ranking, multiple_of=multiple_of
        )
        small.save(output)
        if page is not None:
            from ..view import view

            view(graph, edit=small.edit, importance=small.importances).save(page)
    if as_json:
        say_json(small.report.to_dict())
    else:
        say(small)


def _parsed(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, int(number) if number.isdecimal() else float(number)
    except ValueError:
        raise typer.BadParameter(
            f"{text!a} is not of the form macs=0.5", param_hint="--budget"
        ) from None
