"""``graftlib trace``: a model's layer graph, as text, JSON or GraphML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..disk import write_whole
from . import options
from .console import say, say_json
from .steps import begin, see

__all__ = ["trace"]


@options.expanded
def trace(
    model: options.ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Write the graph here: .json or .graphml.", show_default=False
        ),
    ] = None,
    *,
    shared: options.ModelOptions,
) -> None:
    """See a model as a graph of layers: kinds, parameters, shapes.

    Example: graftlib trace torchvision:resnet18 -o resnet18.graphml
    """
    if output is not None and output.suffix not in (".json", ".graphml"):
        raise typer.BadParameter("write to a .json or a .graphml file", param_hint="--output")
    asked = begin(shared, "trace", [model], output)
    graph = see(model, **asked)
    if output is not None:
        if output.suffix == ".json":
            write_whole(output, graph.to_json())
        else:
            graph.to_graphml(output)
    if shared.as_json:
        say_json(graph.to_json())
    elif output is None:
        say(graph)
    else:
        say(f"{graph.name}: {len(graph.layers)} layers -> {output}")
