"""Options that several commands share, with one wording each, and the records of those that come together."""

from __future__ import annotations

import functools
import inspect
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..errors import nearest

__all__ = [
    "DEBUG",
    "DTYPES",
    "Debug",
    "Device",
    "DryRun",
    "Inputs",
    "Json",
    "ModelArgument",
    "ModelOptions",
    "Open",
    "PairOptions",
    "Seed",
    "browse",
    "expanded",
    "known",
    "one_of",
]

DEBUG = "graftlib.debug"
"""Key of the context's `meta` under which `--debug` is remembered for the error door."""


DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool")


class Device(StrEnum):
    """Where a model's tensors live."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    meta = "meta"


def known(name: str, names: Sequence[str], option: str | None = None) -> str:
    """`name`.

    Raises:
        typer.BadParameter: it is none of `names`; the nearest come first.
    """
    if name in names:
        return name
    near = nearest(name, names)
    meant = f" (nearest: {', '.join(near)})" if near else ""
    raise typer.BadParameter(f"{name!a} is none of {', '.join(names)}{meant}", param_hint=option)


def one_of(names: Sequence[str]) -> Callable[[str | None], str | None]:
    """The callback of an option that takes one of `names`, or nothing."""
    return lambda name: name if name is None else known(name, names)


def _remember(ctx: typer.Context, wanted: bool) -> bool:
    if wanted:
        ctx.meta[DEBUG] = True
    return wanted


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, timm:NAME, hf:FOLDER, or FILE.py:FACTORY. The last one executes FILE.py: "
        "name only files that you trust.",
        show_default=False,
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_remember, help="Show the traceback of an error.")
]
DeviceOption = Annotated[
    Device,
    typer.Option(
        "--device",
        help="auto takes meta (shapes without values) where no values are needed, else the CPU.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done; run and write nothing.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SHAPE",
        help="Shape of an example input, such as 2x3x32x32; repeat it for several inputs. Known models have "
        "one of their own.",
        show_default=False,
    ),
]
InputDtype = Annotated[
    str | None,
    typer.Option(
        "--input-dtype",
        metavar="DTYPE",
        help=f"Element type of --input: {', '.join(DTYPES)}.",
        show_default="float32, or int64 for tokens",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the system's browser.")]
OtherInputs = Annotated[
    list[str] | None,
    typer.Option(
        "--other-input",
        metavar="SHAPE",
        help="The same for the second model; without it, --input serves both.",
        show_default=False,
    ),
]
OtherWeights = Annotated[
    Path | None,
    typer.Option(
        "--other-weights",
        metavar="FILE",
        exists=True,
        help="A state_dict for the second model.",
        show_default=False,
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of random weights and inputs.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        exists=True,
        help="A state_dict to load: .safetensors, or a .pt that holds tensors alone.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What every command on a model is told: of the model, and of the run."""

    inputs: Inputs = None
    input_dtype: InputDtype = None
    weights: Weights = None
    device: DeviceOption = Device.auto
    seed: Seed = 0
    dry_run: DryRun = False
    as_json: Json = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class PairOptions(ModelOptions):
    """The same of a command on two models."""

    other_inputs: OtherInputs = None
    other_weights: OtherWeights = None

    def other(self) -> ModelOptions:
        """What the second model is told."""
        return replace(self, inputs=self.other_inputs or self.inputs, weights=self.other_weights)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, whose last parameter is one of the records above, with its fields as parameters: for typer."""
    signature = inspect.signature(command, eval_str=True)
    *own, given = signature.parameters.values()
    record = given.annotation
    hints = get_type_hints(record, include_extras=True)
    options = [
        inspect.Parameter(each.name, given.kind, default=each.default, annotation=hints[each.name])
        for each in fields(record)
    ]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        shared = record(**{each.name: values.pop(each.name) for each in options})
        command(**values, **{given.name: shared})

    called.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return called


def browse(page: Path) -> None:
    """Open a page that was written in the system's browser."""
    webbrowser.open(page.resolve().as_uri())
