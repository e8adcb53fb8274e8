"""``graftlib check``: are the inferred axis classes right, and what fixes the others?"""

from __future__ import annotations

import typer

from . import options
from .console import say, say_json, working
from .steps import begin, see

__all__ = ["check"]


@options.expanded
def check(
    model: options.ModelArgument,
    *,
    shared: options.ModelOptions,
) -> None:
    """Run the permutation check: shuffle every axis class, compare the outputs.

    Then says what fixes the order of the axes that are not free. The exit code is 1 where the check does not pass.

    Example: graftlib check torchvision:resnet18
    """
    asked = begin(shared, "check", [model])
    graph = see(model, **asked)
    with working(f"checking {model}"):
        from ..graph.axes import frozen_shares

        result, frozen = graph.check(seed=shared.seed), frozen_shares(graph)
    if shared.as_json:
        say_json({"model": graph.name, "check": result, "frozen_by": frozen})
    else:
        say(result)
        for why, share in list(frozen.items())[:10]:
            say(f"  {share:6.1%} of the weights' axes fixed by {why}")
    if not result.passed:
        raise typer.Exit(1)
