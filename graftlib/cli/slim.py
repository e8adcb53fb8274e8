"""``graftlib slim``: a small model for a budget, as files that `graftlib.load` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .console import say, say_json, working
from .names import find_model
from .steps import load, load_options, plan

__all__ = ["slim"]


@options.expanded
def slim(
    model: options.ModelArgument,
    budget: Annotated[
        list[str],
        typer.Option(
            "--budget",
            metavar="COST=MOST",
            help="macs=0.5 (a share, with a point) or params=8000000 (a number); also bytes, size_mb, activations, "
            "latency_ms. Repeat it for several at once.",
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
    onnx: Annotated[
        Path | None,
        typer.Option("--onnx", help="An ONNX file to write, too, proven.", show_default=False),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Its weights as 8-bit integers.")] = False,
    page: Annotated[
        Path | None,
        typer.Option(
            "--page",
            metavar="FILE",
            help="Also write a page that shows which units stay, and what each was worth.",
            show_default=False,
        ),
    ] = None,
    *,
    shared: options.ModelOptions,
) -> None:
    """Prune a model to a budget of parameters, MACs, bytes or time, save it, and ship it.

    The safetensors of hf:FOLDER are read and written a block at a time, but for --onnx: they may be larger than memory.

    Example: graftlib slim torchvision:resnet18 --weights r18.safetensors --budget macs=0.5 -o slim/ --onnx slim.onnx
    """
    if shared.device is options.Device.meta:
        raise typer.BadParameter(
            "units are chosen by the values of weights, the meta device holds none",
            param_hint="--device",
        )
    if int8 and onnx is None:
        raise typer.BadParameter(
            "it is the ONNX file that is in int8: add --onnx", param_hint="--int8"
        )
    limits = dict(map(_parsed, budget))
    asked = load_options(shared)
    if shared.dry_run:
        plan(shared, "slim", [model], output)
        return
    chosen: dict[str, Any] = {
        "budget": limits,
        "keep": keep or (),
        "ranking": ranking,
        "multiple_of": multiple_of,
    }
    folder = find_model(model).path
    if (
        onnx is None
        and shared.weights is None
        and folder is not None
        and any(folder.glob("*.safetensors"))
    ):
        with working(f"slimming {model}"):
            from ..slim import slim_folder
            from .models import folder_factory

            factory, kwargs = folder_factory(folder, asked["shapes"], asked["dtype"])
            small = slim_folder(folder, output, factory, (), kwargs, **chosen)
    else:
        loaded = load(model, values=True, **asked)
        with working(f"slimming {model}"):
            from ..graph import trace
            from ..slim import slim as slim_model

            small = slim_model(trace(loaded.model, loaded.args, loaded.kwargs), **chosen)
            small.save(output)
    if page is not None:
        from ..view import view

        view(small.graph, edit=small.edit, importance=small.importances or None).save(page)
    exported = None
    if onnx is not None:
        with working(f"exporting {onnx}"):
            exported = small.export_onnx(onnx, quantize="int8" if int8 else None, seed=shared.seed)
    if shared.as_json:
        ends = {} if exported is None else {"export": exported.to_dict()}
        say_json(small.report.to_dict() | ends)
        return
    say(small)
    if exported is not None:
        say(exported)


def _parsed(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, int(number) if number.isdecimal() else float(number)
    except ValueError:
        raise typer.BadParameter(
            f"{text!a} is not of the form macs=0.5", param_hint="--budget"
        ) from None
