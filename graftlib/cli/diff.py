"""``graftlib diff``: what became of a model, by structure and by weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import say, say_json, working
from .steps import load_options, plan, see_both

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("diff")(diff)


def diff(
    source: options.ModelArgument,
    target: Annotated[
        str, typer.Argument(metavar="OTHER", help="The model to compare.", show_default=False)
    ],
    weights: options.Weights = None,
    other_weights: options.OtherWeights = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also write a page that shows it.", show_default=False),
    ] = None,
    inputs: options.Inputs = None,
    other_inputs: options.OtherInputs = None,
    input_dtype: options.InputDtype = None,
    device: options.DeviceOption = options.Device.cpu,
    seed: options.Seed = 0,
    show: options.Open = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare two models: shapes by name, weights after the units are put in one order, and the edit that explains it.

    On the meta device, structure alone. Without --weights a library's model has random values, by --seed.

    Example: graftlib diff torchvision:resnet18 torchvision:resnet18 --weights a.pt --other-weights b.pt
    """
    if show and output is None:
        raise typer.BadParameter("there is no page without --output", param_hint="--open")
    asked = load_options(inputs, input_dtype, weights, device, seed)
    others = load_options(other_inputs or inputs, input_dtype, other_weights, device, seed)
    if dry_run:
        plan(as_json, "diff", [source, target], output, device)
        return
    left, right = see_both(source, target, asked, others)
    with working("comparing"):
        from ..view.compare import diff as compare

        difference = compare(left, right)
        if output is not None:
            from ..view import view

            view(left, right, diff=difference).save(output)
    if output is not None and show:
        options.browse(output)
    if as_json:
        say_json({**asdict(difference), "path": str(output) if output else None})
        return
    say(difference)
    if output is not None:
        say(f"wrote {output}")
