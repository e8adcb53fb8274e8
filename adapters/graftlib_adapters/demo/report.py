"""Every figure of the demo as plain data, and the one table that shows them.

In: finished runs and what was shipped. Out: a dict for ``report.json``; text for the terminal, made from that dict and
nothing else. Accuracy is that of the last epoch on held-out images, never the best over epochs.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import recipe
from .data import Images
from .experiment import ROLES, Run
from .folder import FILES
from .models import parameter_count
from .recipe import Budget
from .shipping import Shipped

__all__ = ["as_json", "build", "print_table"]

MEASURED = "docs/benchmarks/"


def build(
    runs: Sequence[Run],
    images: Images,
    budget: Budget,
    shipped: Shipped,
    *,
    arguments: dict[str, Any],
    device: str,
    out: Path,
    seconds: float,
) -> dict[str, Any]:
    """Everything that is known, ready for `json.dumps`.

    Args:
        runs: one a seed; the first is the one that was shipped.
        images: what they were trained and measured on.
        budget: how much they were trained.
        shipped: the export's proof.
        arguments: of the command line.
        device: the trainings took place on.
        out: where the files will be.
        seconds: of the whole demo, wall clock.
    """
    first = runs[0]
    n = len(images.test_y)
    export = shipped.export.to_dict() | {"path": str(out / "slim.onnx")}
    sizes = {"source": shipped.export.source, "grafted": shipped.export.target}
    return {
        "format": "graftlib-demo/1",
        "arguments": arguments,
        "seeds": [run.seed for run in runs],
        "device": device,
        "versions": _versions(),
        "data": {
            "name": images.name,
            "about": images.about,
            "classes": images.classes,
            "held_out": n,
        },
        "budget": asdict(budget),
        "graft": {
            "links": [f"{p.source.address} -> {p.target.address}" for p in first.mapping.pairs],
            "adapter": repr(recipe.adapter()),
            "cycle": asdict(recipe.CYCLE),
            "transfers": len(first.curves["grafted"].history),
        },
        "models": {
            role: {
                "name": type(first.source if role == "source" else first.target).__name__,
                "trained_on": budget.source_size if role == "source" else budget.train_size,
                "parameters": parameter_count(first.source if role == "source" else first.target),
                "onnx_bytes": size.size_bytes if (size := sizes.get(role)) else None,
                "accuracy": _summary([run.curves[role].accuracy[-1] for run in runs], n),
                "seconds": statistics.fmean(run.seconds[role] for run in runs),
            }
            for role in ROLES
        },
        "differences": {
            f"grafted - {other}": _summary(
                [
                    run.curves["grafted"].accuracy[-1] - run.curves[other].accuracy[-1]
                    for run in runs
                ]
            )
            for other in ("plain", "random source")
        },
        "onnx": {
            "accuracy": shipped.accuracy,
            "max_abs_difference": shipped.export.max_abs_difference,
            "max_rel_difference": shipped.export.max_rel_difference,
            "top1_agreement": shipped.export.top1_agreement,
            "rows": shipped.export.comparison.rows,
            "report": export,
        },
        "runs": [
            {
                "seed": run.seed,
                "seconds": run.seconds,
                "curves": {role: asdict(curve) for role, curve in run.curves.items()},
            }
            for run in runs
        ],
        "files": {name: str(out / name) for name in FILES},
        "seconds": seconds,
    }


def as_json(report: dict[str, Any]) -> str:
    """The text of ``report.json``; numbers that JSON does not know (a transfer that was not finite) become null."""
    return json.dumps(_finite(report), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(report: dict[str, Any]) -> None:
    """The table and what to make of it, on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    spread = "95 %" if len(report["seeds"]) == 1 else "sd"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("images", "accuracy %", spread, "parameters", "ONNX", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for role, facts in report["models"].items():
        table.add_row(*_row(role, facts), style="bold" if role == "grafted" else "")
    notes = Table.grid(padding=(0, 2))
    for label, text in _notes(report).items():
        notes.add_row(Text(label), Text(text))
    console.print(table, notes, "")
    for path in report["files"].values():
        console.print(Text(f"wrote {path}"), soft_wrap=True)


def _row(role: str, facts: dict[str, Any]) -> tuple[str, ...]:
    size, accuracy = facts["onnx_bytes"], facts["accuracy"]
    low, high = (f"{100 * edge:.1f}" for edge in accuracy["interval"])
    return (
        role,
        f"{facts['trained_on']:,}",
        f"{100 * accuracy['mean']:.2f}",
        f"{low}-{high}" if accuracy["sd"] is None else f"{100 * accuracy['sd']:.2f}",
        f"{facts['parameters']:,}",
        "" if size is None else f"{size / 1000:,.0f} kB",
        f"{facts['seconds']:.1f}",
    )


def _notes(report: dict[str, Any]) -> dict[str, str]:
    budget, onnx, graft, models = (report[key] for key in ("budget", "onnx", "graft", "models"))
    plain, control = (
        report["differences"][f"grafted - {other}"] for other in ("plain", "random source")
    )
    agreement = (
        ""
        if onnx["top1_agreement"] is None
        else f", top-1 agreement {100 * onnx['top1_agreement']:.2f} %"
    )
    return {
        "data": report["data"]["about"],
        "models": f"source {models['source']['name']}, targets {models['grafted']['name']}, torchvision's, small",
        "regime": f"the source trains on {budget['source_size']:,} images, the targets on {budget['train_size']:,}; "
        "the targets start alike and see the same batches",
        "graft": f"{graft['transfers']} transfers; {'; '.join(graft['links'])}",
        "random source": "the control: the same graft, the source's linked weights replaced by noise of their moments",
        "accuracy": f"after the last epoch (never the best one), on {report['data']['held_out']:,} held-out images",
        "grafted": f"minus plain {_points(plain)}, minus random source {_points(control)}",
        "meaning": _meaning(len(report["seeds"])),
        "slim.onnx": f"{100 * onnx['accuracy']:.2f} % in onnxruntime; largest relative difference from PyTorch "
        f"{onnx['max_rel_difference']:.1e}{agreement}",
        "took": f"{report['seconds']:.0f} s in all, on {report['device']}",
    }


def _meaning(seeds: int) -> str:
    if seeds == 1:
        return (
            "one seed proves nothing: differences of this size come and go with it. --seeds 8 repeats; "
            f"the measured answer, with its controls: {MEASURED}"
        )
    return (
        f"{seeds} seeds on one small data set; the measured answer, with its controls: {MEASURED}"
    )


def _points(summary: dict[str, Any]) -> str:
    spread = "" if summary["sd"] is None else f" (sd {100 * summary['sd']:.2f})"
    return f"{100 * summary['mean']:+.2f} points{spread}"


def _summary(values: list[float], n: int | None = None) -> dict[str, Any]:
    """Mean and standard deviation over seeds; for one seed None, and Wilson's 95 % interval over `n` images."""
    mean = statistics.fmean(values)
    sd = statistics.stdev(values) if len(values) > 1 else None
    summary: dict[str, Any] = {"mean": mean, "sd": sd, "values": values}
    return summary if n is None else summary | {"interval": _wilson(mean, n)}


def _wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """What accuracies are compatible with `share` of `n` images: the sampling of the images alone.

    >>> [round(edge, 3) for edge in _wilson(0.5, 100)]
    [0.404, 0.596]
    """
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    libraries = (
        "graftlib",
        "torch",
        "torchvision",
        "onnx",
        "onnxruntime",
        "scikit-learn",
        "matplotlib",
    )
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}
