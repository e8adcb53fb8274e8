"""Train a slim model plainly and grafted on real images, ship it as ONNX, show what happened.

In: the command line. Out: five files in ``out/`` and one table. The work is elsewhere: `recipe` says what is linked,
`training` grafts, `experiment` compares, `shipping` exports, `report` prints. Nothing heavy is imported to show help.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlib.cli.console import say, say_json
from graftlib.cli.options import Debug, Device, DryRun, Json, Seed
from graftlib.errors import GraftError, MissingExtraError

from .folder import FILES, workshop

if TYPE_CHECKING:
    import torch

    from .recipe import Budget

__all__ = ["register"]

LIBRARIES = ("torchvision", "sklearn", "matplotlib", "onnx", "onnxscript", "onnxruntime")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("demo")(demo)


def demo(
    data: Annotated[
        str, typer.Option("--data", help="digits, fashion-mnist, mnist or cifar10-npz.")
    ] = "digits",
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", help="The folder that holds the data; digits need none.", show_default=False
        ),
    ] = None,
    train_size: Annotated[
        int | None,
        typer.Option(
            "--train-size", help="Training images of the targets. [default: few, by data set]"
        ),
    ] = None,
    source_size: Annotated[
        int | None,
        typer.Option(
            "--source-size", help="Training images of the source. [default: many, by data set]"
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option("--seeds", min=1, help="Repeat with so many seeds; print mean and deviation."),
    ] = 1,
    output: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")] = Path("out"),
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, hidden=True)] = None,
    source_epochs: Annotated[
        int | None, typer.Option("--source-epochs", min=1, hidden=True)
    ] = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", hidden=True)] = True,
    device: Annotated[
        Device, typer.Option("--device", help="auto takes the GPU where there is one.")
    ] = Device.auto,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a slim model plainly and grafted on real images, ship it as ONNX, show what happened.

    A ResNet learns from much data, a slim MobileNetV2 from little. The slim one is trained three times with the same
    seed and the same batches: plainly, with the source's knowledge grafted onto it, and grafted from noise.

    Example: graftlib demo --data digits --train-size 200 -o out
    """
    if device is Device.meta:
        raise typer.BadParameter(
            "training needs values, the meta device holds none", param_hint="--device"
        )
    sizes = {
        "train_size": train_size,
        "source_size": source_size,
        "epochs": epochs,
        "source_epochs": source_epochs,
    }
    budget = _budget(data, root, sizes)
    arguments = {
        "data": data,
        "root": str(root) if root else None,
        "seed": seed,
        "seeds": seeds,
        **sizes,
    }
    if dry_run:
        _say_plan(arguments, budget, output, as_json)
        return
    figures = _perform(
        data, root, budget, range(seed, seed + seeds), output, device, measure, arguments
    )
    if as_json:
        say_json(figures)
        return
    from .report import print_table

    print_table(figures)


def _perform(
    name: str,
    root: Path | None,
    budget: Budget,
    seeds: range,
    output: Path,
    device: Device,
    measure: bool,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    """Train, ship, draw, and put everything into `output`; the figures."""
    began = time.perf_counter()
    from . import experiment, recipe, report
    from .data import load
    from .plots import draw_curves
    from .shipping import ship

    where = _device(device)
    with (
        workshop(output) as folder,
        _progress(experiment.steps_of(budget) * len(seeds)) as (tell, tick),
    ):
        images = load(name, root)
        budget.check(images)
        with _threads(budget.threads):
            runs = [
                experiment.run(images, budget, seed, where, tell=tell, tick=tick) for seed in seeds
            ]
        tell("exporting and proving")
        shipped = ship(runs[0], images, folder, measure=measure)
        tell("drawing")
        draw_curves(
            folder / "curves.png",
            {role: runs[0].curves[role] for role in experiment.ROLES[1:]},
            source_accuracy=runs[0].curves["source"].accuracy[-1],
            pairings=getattr(recipe.adapter(), "pairings", ()),
            title=f"{name}: {budget.train_size:,} images for the targets, {budget.source_size:,} for the source; "
            f"seed {seeds[0]}",
        )
        figures = report.build(
            runs,
            images,
            budget,
            shipped,
            arguments=arguments,
            device=str(where),
            out=output,
            seconds=time.perf_counter() - began,
        )
        (folder / "report.json").write_text(report.as_json(figures), encoding="utf-8")
    return figures


def _budget(name: str, root: Path | None, sizes: dict[str, int | None]) -> Budget:
    """What the training costs, once everything that it needs was found; nothing is read or written."""
    missing = [library for library in LIBRARIES if find_spec(library) is None]
    if missing:
        raise MissingExtraError(
            f"the demo needs {' and '.join(missing)}.",
            why="not installed here",
            fix='pip install "graftlib[demo]"',
            missing=tuple(missing),
        )
    from .data import find
    from .recipe import BUDGETS

    find(name, root)
    return replace(BUDGETS[name], **{key: size for key, size in sizes.items() if size is not None})


def _device(device: Device) -> torch.device:
    import torch

    there = torch.cuda.is_available()
    if device is Device.cuda and not there:
        raise GraftError("there is no CUDA device here.", fix="graftlib demo --device cpu")
    return torch.device("cuda" if device is not Device.cpu and there else "cpu")


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _say_plan(arguments: dict[str, Any], budget: Budget, output: Path, as_json: bool) -> None:
    from .experiment import ROLES, steps_of
    from .recipe import LINKS

    writes = {str(output / name): about for name, about in FILES.items()}
    steps = steps_of(budget) * arguments["seeds"]
    if as_json:
        plan = {"dry_run": True, "arguments": arguments, "budget": asdict(budget), "steps": steps}
        say_json({**plan, "links": LINKS, "writes": list(writes)})
        return
    say(f"would train {', '.join(ROLES)} on {arguments['data']}: {steps:,} optimizer steps in all")
    say(
        f"would show the source {budget.source_size:,} images and the targets {budget.train_size:,} of them"
    )
    for source, target in LINKS:
        say(f"would graft {source} -> {target}")
    for path, about in writes.items():
        say(f"would {'overwrite' if Path(path).exists() else 'write'} {path}: {about}")


@contextmanager
def _progress(steps: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A bar on stderr over all optimizer steps; what libraries print meanwhile goes there too."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not sys.stderr.isatty(),
    )
    with redirect_stdout(sys.stderr), bar:
        task = bar.add_task("starting", total=steps)
        yield lambda what: bar.update(task, description=what), lambda: bar.advance(task)
