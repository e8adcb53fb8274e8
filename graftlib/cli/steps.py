"""The steps that several commands take: read the shared options, load, see, or only say what would be done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .console import say, say_json, say_preview, working
from .names import find_model, parse_shape
from .options import DTYPES, Device, ModelOptions, known

if TYPE_CHECKING:
    from ..graph import LayerGraph
    from .models import Loaded

__all__ = ["begin", "load", "load_options", "see", "see_both"]


def load_options(shared: ModelOptions) -> dict[str, Any]:
    """What the shared options say of the model, as keywords of `models.load_model`.

    Raises:
        typer.BadParameter: a shape or an element type that cannot be read, values asked of the meta device.
    """
    dtype = shared.input_dtype
    try:
        sizes = [parse_shape(text) for text in shared.inputs or ()]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--input") from None
    if dtype is not None:
        known(dtype, DTYPES, "--input-dtype")
    if dtype is not None and not sizes:
        raise typer.BadParameter(
            "it says the element type of --input, which is missing", param_hint="--input-dtype"
        )
    if shared.weights is not None and shared.device is Device.meta:
        raise typer.BadParameter("the meta device holds no values", param_hint="--weights")
    return {
        "shapes": sizes,
        "dtype": dtype,
        "weights": shared.weights,
        "device": shared.device.value,
        "seed": shared.seed,
    }


def load(name: str, **asked: Any) -> Loaded:
    """`models.load_model` behind a spinner; a name that nothing has is refused before torch is imported."""
    find_model(name)
    with working(f"loading {name}"):
        from .models import load_model

        return load_model(name, **asked)


def see_both(
    source: str, target: str, asked: dict[str, Any], others: dict[str, Any]
) -> tuple[LayerGraph, LayerGraph]:
    """The layer graphs of two models; both names are looked up before either is loaded."""
    find_model(target)
    return see(source, **asked), see(target, **others)


def see(name: str, **asked: Any) -> LayerGraph:
    """The layer graph of the model `name`; with ``device="auto"``, on the CPU where the meta device will not do."""
    from ..errors import TraceError

    loaded = load(name, **asked)
    with working(f"tracing {name}"):
        from ..graph import trace as trace_model

        try:
            return trace_model(loaded.model, loaded.args, loaded.kwargs)
        except TraceError:
            if asked["device"] != "auto" or loaded.device != "meta":
                raise
    loaded = load(name, **{**asked, "device": "cpu"})
    with working(f"tracing {name} with values"):
        return trace_model(loaded.model, loaded.args, loaded.kwargs)


def begin(
    shared: ModelOptions, verb: str, names: list[str], output: Path | None = None
) -> dict[str, Any]:
    """See `load_options`. A dry run checks that the names exist, says what would be done, and ends here.

    Raises:
        typer.Exit: it was a dry run; nothing is built, run or written.
    """
    asked = load_options(shared)
    if not shared.dry_run:
        return asked
    found = [find_model(name) for name in names]
    would: dict[str, Any] = {
        "dry_run": True,
        "command": verb,
        "models": [str(name) for name in found],
        "executes": list(dict.fromkeys(str(n.path) for n in found if n.library == "file")),
        "device": shared.device.value,
        "writes": str(output) if output else None,
        "overwrites": output is not None and output.exists(),
    }
    headline = f"would {verb} {' and '.join(map(str, found))} (device: {shared.device.value})"
    if shared.as_json:
        say_json(would)
    else:
        say_preview(headline, {"executes": would["executes"]}, as_json=False)
        if output is not None:
            say(f"would {'overwrite' if output.exists() else 'write'} {output}")
    raise typer.Exit
