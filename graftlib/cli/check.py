"""``graftlib check``: are the inferred axis classes right, and what fixes the others?"""

from __future__ import annotations

import typer

from . import options
from .console import say, say_json, working
from .steps import load_options, plan, see

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("check")(check)


def check(
    model: options.ModelArgument,
    inputs: options.Inputs = None,
    input_dtype: options.InputDtype = None,
    weights: options.Weights = None,
    device: options.DeviceOption = options.Device.auto,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run the permutation check: shuffle every axis class, compare the outputs.

    Then says what fixes the order of the axes that are not free. The exit code is 1 where the check does not pass.

    Example: graftlib check torchvision:resnet18
    """
    asked = load_options(inputs, input_dtype, weights, device, seed)
    if dry_run:
        plan(as_json, "check", [model], None, device)
        return
    graph = see(model, **asked)
    with working(f"checking {model}"):
        from ..graph.axes import frozen_shares

        result, frozen = graph.check(seed=seed), frozen_shares(graph)
    if as_json:
        say_json({"model": graph.name, "check": result, "frozen_by": frozen})
    else:
        say(result)
        for why, share in list(frozen.items())[:10]:
            say(f"  {share:6.1%} of the weights' axes fixed by {why}")
    if not result.passed:
        raise typer.Exit(1)
