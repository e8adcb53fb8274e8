"""``graftlib slim``: a small model for a budget, as files that `graftlib.load` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..slim.names import BUDGETS, FROM_DATA, IMPORTANCES, RANKINGS
from . import options
from .console import complain, say, say_json, working
from .names import find_model
from .steps import begin, load

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
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="PATH",
            exists=True,
            help="What units are chosen by, what is left is fitted to, and fidelity is measured on: a folder of images "
            "(prepared as the model's library does it), arrays as .npz, .safetensors or .pt (samples first; "
            "named as the inputs), or a .txt with a text on each line (for hf:FOLDER with a tokenizer). No labels.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=2, help="So many of --data at most, evenly over it.")
    ] = 256,
    depth: Annotated[
        bool, typer.Option("--depth", help="Leave out blocks, too, where --data says it is better.")
    ] = False,
    importance: Annotated[
        str | None,
        typer.Option(
            "--importance",
            callback=options.one_of(IMPORTANCES),
            help="magnitude or uniform; on --data activation, wanda, fluctuation, taylor or fisher.",
            show_default="wanda with --data, else magnitude",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep", metavar="GLOB", help="Layers that stay as wide.", show_default=False
        ),
    ] = None,
    ranking: Annotated[
        str,
        typer.Option(
            "--ranking", callback=options.one_of(RANKINGS), help="uniform, isomorphic or global."
        ),
    ] = "uniform",
    multiple_of: Annotated[
        int, typer.Option("--multiple-of", min=1, help="Widths become multiples of this.")
    ] = 8,
    onnx: Annotated[
        Path | None,
        typer.Option("--onnx", help="An ONNX file to write, too, proven.", show_default=False),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Its weights as 8-bit integers.")] = False,
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help="With --int8, convolutions and activations, too, by their ranges on --data.",
        ),
    ] = False,
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

    The safetensors of hf:FOLDER are read and written a block at a time, but for --data and --onnx: they may be larger
    than memory. A run with --data that was stopped goes on behind its importances, which lie in OUTPUT.calibration
    until all is written, and behind the times of ops, which stay in the user's cache.

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
    measured = importance in FROM_DATA
    for flag, option, needs in (
        (measured, "--importance", data),
        (depth, "--depth", data),
        (static, "--static", int8 and data),
    ):
        if flag and not needs:
            raise typer.BadParameter(
                "it is measured on data: add --data" + (" and --int8" if static else ""),
                param_hint=option,
            )
    limits = dict(map(_parsed, budget))
    asked = begin(shared, "slim", [model], output)
    chosen: dict[str, Any] = {
        "budget": limits,
        "keep": keep or (),
        "ranking": ranking,
        "multiple_of": multiple_of,
    }
    found = find_model(model)
    batches: Any = None
    if (
        onnx is None
        and shared.weights is None
        and data is None
        and importance in (None, "magnitude")
        and found.path is not None
        and any(found.path.glob("*.safetensors"))
    ):
        with working(f"slimming {model}"):
            from ..slim import slim_folder
            from .models import folder_factory

            factory, kwargs = folder_factory(found.path, asked["shapes"], asked["dtype"])
            small = slim_folder(found.path, output, factory, (), kwargs, **chosen)
    else:
        loaded = load(model, values=True, **asked)
        with working(f"slimming {model}"):
            from ..disk import destination
            from ..graph import trace
            from ..slim import Cache
            from ..slim import slim as slim_model
            from .slim_data import batches_of

            # What is wrong with the output shall not be said after an hour's work.
            home = output.resolve()
            cache = Cache(destination(home.with_name(f"{home.name}.calibration")))
            if data is not None:
                batches = batches_of(data, found, loaded, samples)
            small = slim_model(
                trace(loaded.model, loaded.args, loaded.kwargs),
                data=batches,
                importance=importance,
                depth=depth,
                cache=cache,
                **chosen,
            )
            small.save(output)
            cache.path.unlink(missing_ok=True)
        if cache.used:
            complain(f"importances: those of an earlier run, from {cache.path.name}")
    if page is not None:
        from ..view import view

        view(small.graph, edit=small.edit, importance=small.importances or None).save(page)
    exported = None
    if onnx is not None:
        with working(f"exporting {onnx}"):
            kind = "int8-static" if static else "int8" if int8 else None
            exported = small.export_onnx(onnx, quantize=kind, data=batches, seed=shared.seed)
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
        most = int(number) if number.isdecimal() else float(number)
    except ValueError:
        raise typer.BadParameter(
            f"{text!a} is not of the form macs=0.5", param_hint="--budget"
        ) from None
    if not 0 < most < float("inf"):
        raise typer.BadParameter(f"{text!a} is no number above 0", param_hint="--budget")
    return options.known(name, BUDGETS, "--budget"), most
