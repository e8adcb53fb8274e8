"""How many models are seen, how many axis classes hold, and how much of the weights they free.

Every model of a family is traced, its axis classes are found and the permutation check is run on it:

    python examples/benchmarks/coverage.py --family torchvision --subset nightly
    python examples/benchmarks/coverage.py --family hf --out docs/benchmarks

Random weights, nothing is downloaded. One process works through the models; one that takes longer than `--limit`
seconds is ended, noted, and the next process goes on after it. A run that was interrupted goes on where it stopped.
Writes ``coverage_<family>.json`` and ``coverage_<family>.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import threading
import time
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def measure(family: str, name: str) -> Row:
    """Look at one model."""
    from coverage_zoo import build

    from graftlib import trace

    row: Row = {"name": name}
    try:
        model, args, kwargs = build(family, name)
    except Exception as error:
        return row | {"unbuilt": _words(error)}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    start = time.perf_counter()
    try:
        graph = trace(model, args, kwargs)
    except Exception as error:
        return row | {"traced": False, "error": _words(error)}
    row |= {
        "traced": True,
        "rung": graph.rung,
        "trace_seconds": round(time.perf_counter() - start, 2),
    }
    return row | _checked(graph, (args, kwargs))


def _checked(graph: Any, example: Any) -> Row:
    from graftlib.graph.axes import axis_classes, check, freedom, frozen_ops

    start = time.perf_counter()
    classes = axis_classes(graph)
    row: Row = {
        "class_seconds": round(time.perf_counter() - start, 2),
        "classes": sum(each.free for each in classes),
        "freedom": round(freedom(graph), 4),
        "frozen_ops": frozen_ops(graph),
    }
    try:
        result = check(graph, example=example)
    except Exception as error:
        return row | {"passed": None, "error": _words(error)}
    return row | {
        "passed": result.passed,
        "max_rel_error": result.max_rel_error,
        "control": result.control,
        "check_seconds": round(result.seconds, 1),
        "warning": result.warning,
    }


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def work(family: str, names: list[str]) -> None:
    """The worker: one line of JSON a model."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in names:
        print(json.dumps(measure(family, name)), flush=True)


def run(family: str, names: list[str], done: dict[str, Row], limit: float, save: Any) -> None:
    """Work through `names`, a new worker whenever one is ended."""
    left = [name for name in names if name not in done]
    while left:
        for row in _rows(family, left, limit):
            done[row["name"]] = row
            left.remove(row["name"])
            save(done)
            print(_line(row), flush=True)


def _rows(family: str, names: list[str], limit: float) -> Any:
    command = [sys.executable, __file__, "--family", family, "--worker", *names]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    ) as worker:
        assert worker.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()

        def listen(stream: Any = worker.stdout) -> None:
            with contextlib.suppress(
                ValueError
            ):  # the stream is closed under it when the worker is ended
                for line in stream:
                    lines.put(line)
            lines.put(None)

        threading.Thread(target=listen, daemon=True).start()
        for name in names:
            try:
                line = lines.get(timeout=limit)
            except queue.Empty:
                worker.kill()
                yield {"name": name, "error": f"took more than {limit:.0f} s"}
                return
            if line is None:
                yield {"name": name, "error": f"the process ended with {worker.wait()}"}
                return
            yield json.loads(line)


def _line(row: Row) -> str:
    return "  ".join(f"{cell}" for cell in _cells(row))


COLUMNS = (
    "model",
    "rung",
    "traced",
    "check",
    "max rel error",
    "freedom",
    "free classes",
    "trace s",
    "classes s",
    "check s",
    "frozen ops, remarks",
)


def _cells(row: Row) -> list[str]:
    passed = {True: "passed", False: "**failed**", None: "–"}[row.get("passed")]
    if row.get("passed") is False and row.get("warning"):
        passed = "inconclusive"
    ops = ", ".join(f"{op} ×{n}" for op, n in row.get("frozen_ops", {}).items())
    remarks = "; ".join(
        filter(None, [ops, row.get("warning"), row.get("error"), row.get("unbuilt")])
    )
    error = row.get("max_rel_error")
    return [
        row["name"],
        row.get("rung", "–"),
        "yes" if row.get("traced") else "no",
        passed,
        "–" if error is None else f"{error:.0e}",
        f"{row['freedom']:.3f}" if "freedom" in row else "–",
        str(row.get("classes", "–")),
        str(row.get("trace_seconds", "–")),
        str(row.get("class_seconds", "–")),
        str(row.get("check_seconds", "–")),
        remarks,
    ]


def summary(rows: list[Row]) -> Row:
    """Counts and medians over the models that could be built."""
    built = [row for row in rows if "unbuilt" not in row]
    traced = [row for row in built if row.get("traced")]
    free = [row["freedom"] for row in traced if "freedom" in row]
    return {
        "models": len(built),
        "not built": len(rows) - len(built),
        "traced": len(traced),
        "check passed": sum(row.get("passed") is True for row in built),
        "check failed": sum(
            row.get("passed") is False and row.get("warning") is None for row in built
        ),
        "check says little": sum(
            row.get("passed") is False and row.get("warning") is not None for row in built
        ),
        "not checked": sum(row.get("passed") is None for row in built),
        "median freedom": round(statistics.median(free), 4) if free else None,
        "below 0.5": sum(f < 0.5 for f in free),
        "largest error of a passed check": max(
            (r["max_rel_error"] for r in built if r.get("passed")), default=None
        ),
    }


def write(folder: Path, family: str, done: dict[str, Row]) -> None:
    """JSON and a table, each under a temporary name first."""
    rows = list(done.values())
    facts = {"python": platform.python_version(), "machine": platform.machine(), **_versions()}
    document = {"family": family, "facts": facts, "summary": summary(rows), "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"coverage_{family}.json", json.dumps(document, indent=1) + "\n")
    lines = [f"# Axis classes: {family}", ""]
    lines += [f"- {key}: {value}" for key, value in summary(rows).items()]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |" for row in rows
    ]
    _replace(folder / f"coverage_{family}.md", "\n".join(lines) + "\n")


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {
        name: metadata.version(name) for name in ("torch", "torchvision", "transformers", "timm")
    }


def _replace(path: Path, text: str) -> None:
    draft = path.with_suffix(path.suffix + ".part")
    draft.write_text(text)
    draft.replace(path)


def _asked(name: str, only: list[str], skip: list[str]) -> bool:
    return any(fnmatch(name, word) for word in only) and not any(
        fnmatch(name, word) for word in skip
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=("torchvision", "hf", "timm"), required=True)
    parser.add_argument("--subset", choices=("nightly", "all"), default="all")
    parser.add_argument("--only", nargs="+", default=["*"], help="shell patterns of names")
    parser.add_argument("--skip", nargs="+", default=[], help="shell patterns of names")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one model")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run found")
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.family, options.worker)
        return
    from coverage_zoo import FAMILIES, NIGHTLY

    names = (
        NIGHTLY[options.family] if options.subset == "nightly" else FAMILIES[options.family][0]()
    )
    names = [name for name in names if _asked(name, options.only, options.skip)]
    found = options.out / f"coverage_{options.family}.json"
    done: dict[str, Row] = {}
    if found.exists() and not options.fresh:
        done = {row["name"]: row for row in json.loads(found.read_text())["rows"]}
    run(
        options.family,
        names,
        done,
        options.limit,
        lambda rows: write(options.out, options.family, rows),
    )
    write(options.out, options.family, done)
    print(json.dumps(summary(list(done.values())), indent=1))


if __name__ == "__main__":
    main()
