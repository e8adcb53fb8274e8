"""``graftlib lmc``: walk from one model to another in merging factors, with every control, and say what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlib.cli.console import say, say_json, say_preview, working
from graftlib.cli.names import find_model
from graftlib.cli.options import Debug, Device, DryRun, Inputs, Json, ModelOptions, Seed, one_of
from graftlib.cli.steps import load_options

from ..assembly.options import METHODS, PADS

if TYPE_CHECKING:
    from ..assembly.curve import Curve

__all__ = ["register"]

HELP = (
    "torchvision:NAME, timm:NAME, hf:FOLDER, or FILE.py:FACTORY, which is executed: name only files "
    "that you trust."
)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("lmc")(lmc)


def lmc(
    base: Annotated[str, typer.Argument(help="The base, which receives: " + HELP)],
    source: Annotated[str, typer.Argument(help="The source, named like the base.")],
    evaluate: Annotated[
        str,
        typer.Option(
            "--evaluate",
            metavar="FILE.py:FUNCTION",
            help="model -> metric on held-out data, larger is better. The file is executed.",
        ),
    ],
    base_weights: Annotated[
        Path | None,
        typer.Option("--base-weights", metavar="FILE", exists=True, help="A state_dict to load."),
    ] = None,
    source_weights: Annotated[
        Path | None,
        typer.Option("--source-weights", metavar="FILE", exists=True, help="The same for SOURCE."),
    ] = None,
    inputs: Inputs = None,
    points: Annotated[int, typer.Option("--points", min=2, help="Merging factors, 0 to 1.")] = 21,
    pad: Annotated[
        str,
        typer.Option(
            "--pad",
            callback=one_of(PADS),
            help="zero shrinks what reads nothing, keep leaves it.",
        ),
    ] = "zero",
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Of the threshold, in the metric's unit.")
    ] = 0.01,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also walk with no, random and empty alignment.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.png", help="Draw the curves; JSON beside it."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            callback=one_of(METHODS),
            help="How units are aligned: coordinate or frank-wolfe; or a control: identity, random, shrink.",
        ),
    ] = "coordinate",
    restarts: Annotated[
        int, typer.Option("--restarts", min=0, help="Random starts of the solver.")
    ] = 0,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Walk from one model to another in merging factors, and say what it costs.

    Example: graftlib lmc nets.py:small nets.py:large --base-weights a.safetensors --source-weights b.safetensors
    --evaluate metric.py:accuracy --controls -o curves.png
    """
    from ..assembly.recipe import find_function

    find_function(evaluate)
    for name in (base, source):
        find_model(name)
    asked = [
        load_options(ModelOptions(inputs=inputs, weights=weights, device=Device.cpu, seed=seed))
        for weights in (base_weights, source_weights)
    ]
    if dry_run:
        found = [find_model(name) for name in (base, source, evaluate)]
        facts = {
            "dry_run": True,
            "models": [base, source],
            "executes": list(dict.fromkeys(str(f.path) for f in found if f.library == "file")),
            "writes": [str(output), str(output.with_suffix(".json"))] if output else [],
        }
        say_preview(f"would walk from {base} to {source}", facts, as_json=as_json)
        return
    with working(f"walking from {base} to {source}"):
        curves = _walked(
            list(zip((base, source), asked, strict=True)),
            evaluate,
            {"points": points, "pad": pad, "seed": seed, "controls": controls},
            {"method": method, "restarts": restarts},
        )
    figures = {
        name: {**curve.to_json(), "threshold": curve.threshold(tolerance)}
        for name, curve in curves.items()
    }
    record = {"base": base, "source": source, "tolerance": tolerance, "curves": figures}
    if output is not None:
        _draw(output, curves, record)
    if as_json:
        say_json(record)
        return
    say(_table(curves, tolerance))
    if output is not None:
        say(f"wrote {output}")


def _walked(
    models: list[tuple[str, dict[str, Any]]],
    evaluate: str,
    options: dict[str, Any],
    solver: dict[str, Any],
) -> dict[str, Curve]:
    from graftlib.cli.models import load_model

    from ..assembly.connectivity import controls, lmc
    from ..assembly.curve import grid
    from ..assembly.options import Solver
    from ..assembly.recipe import function

    metric = function(evaluate)
    one, other = (load_model(name, values=True, **asked) for name, asked in models)
    shared: dict[str, Any] = {
        "evaluate": metric,
        "args": one.args,
        "kwargs": one.kwargs,
        "factors": grid(options["points"]),
        "solver": Solver(**solver),
        "seed": options["seed"],
    }
    given = (other.model, other.args, other.kwargs)
    if options["controls"]:
        curves = controls(one.model, given, **shared)
        return {name: curve for name, curve in curves.items() if curve.pad == options["pad"]}
    return {"matched": lmc(one.model, given, pad=options["pad"], **shared)}


def _draw(path: Path, curves: dict[str, Curve], record: dict[str, Any]) -> None:
    from graftlib.disk import write_whole

    from ..assembly.pictures import curves_png

    title = f"{record['base']} <- {record['source']}"
    picture = curves_png(curves, title)
    write_whole(path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write_whole(path, picture)


def _table(curves: dict[str, Curve], tolerance: float) -> str:
    width = max(len(name) for name in curves)
    head = f"{'':<{width}}  {'at 0':>10}  {'at 1':>10}  {'barrier':>10}  {'excess':>10}  threshold({tolerance:g})"
    rows = [
        f"{name:<{width}}  {c.scores[0]:>10.4g}  {c.scores[-1]:>10.4g}  {c.barrier:>10.4g}  {c.excess:>10.4g}"
        f"  {c.threshold(tolerance):.3f}"
        for name, c in curves.items()
    ]
    return "\n".join([head, *rows])
