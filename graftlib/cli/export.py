"""``graftlib export``: a model as an ONNX file that was proven to answer as the model does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import say, say_json, working
from .names import find_model
from .steps import begin, load

__all__ = ["export"]


@options.expanded
def export(
    model: options.ModelArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")] = Path(
        "model.onnx"
    ),
    static_batch: Annotated[
        bool, typer.Option("--static-batch", help="Keep the batch size of the example input.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="MODEL",
            help="A larger model to time beside this one; it is not written.",
            show_default=False,
        ),
    ] = None,
    *,
    shared: options.ModelOptions,
) -> None:
    """Ship a model as ONNX, proven against PyTorch first.

    Example: graftlib export torchvision:mobilenet_v2 --weights slim.safetensors -o slim.onnx
    """
    if shared.device is options.Device.meta:
        raise typer.BadParameter(
            "an export needs values, the meta device holds none", param_hint="--device"
        )
    asked = begin(shared, "export", [model, *([source] if source else [])], output)
    if source is not None:
        find_model(source)
    loaded = load(model, values=True, **asked)
    large = load(source, values=True, **{**asked, "weights": None}) if source else None
    with working(f"exporting {model}"):
        from ..export import export_onnx

        report = export_onnx(
            loaded.model,
            output,
            loaded.args,
            loaded.kwargs,
            dynamic_batch=not static_batch,
            source=large.model if large else None,
            source_args=large.args if large else None,
            source_kwargs=large.kwargs if large else None,
            seed=shared.seed,
        )
    if shared.as_json:
        say_json(report.to_dict())
    else:
        say(report)
