"""What it takes to align two networks of one architecture, next to `rebasin` in the same run.

    python -m examples.benchmarks.alignment --limit 120 -o alignment.json

Two networks of torchvision with random weights (seeds 0 and 1), one thread. Each row is a process of its own: processor
seconds of the matching alone (tracing beside it), the peak of resident memory during it above what was resident right
before (both sets of weights, the libraries; the allocator gives back what is free first), the share of time in matrix
products and the assignment solver (from a second run that times each of them), the objective |B|^2 - |B - T'|^2, and
the largest relative change of the aligned source's outputs, which should be none. Two further rows do without the gain
cache and without sparse assignment: what these two buy. A row is stopped after `--limit` processor seconds. Rows that
are in the file already are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..common import command, memory, results
from ..common.processes import ProcessError, apart

NETS = ("resnet18", "vgg11", "resnet50")


def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    import torchvision

    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = getattr(torchvision.models, name)().eval()
        # Fresh statistics are ones and zeros, in which a wrong order could not be seen.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        made.append(model)
    # Flatten needs more than one position, or its order could not be wrong.
    return (
        made[0],
        made[1],
        torch.randn(
            2, 3, 224 if name.startswith("vgg") else 64, 224 if name.startswith("vgg") else 64
        ),
    )


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.double()(x.double())


def judged(name: str, permuted: dict[str, Tensor]) -> dict[str, float]:
    """Objective and function error of a permuted source's state."""
    from graftlib import trace
    from graftlib_adapters.assembly import align, problem

    base, source, x = pair(name)
    graph = trace(base, (x,))
    aligned = align(problem(graph, graph), base.state_dict(), permuted, method="identity")
    moved = copy.deepcopy(source)
    moved.load_state_dict(permuted)
    before, after = outputs(source, x), outputs(moved, x)
    error = float((before - after).abs().max() / before.abs().max())
    return {"objective": round(aligned.objective, 3), "function_error": float(f"{error:.1e}")}


def warm_up() -> None:
    """Load what is loaded at the first use of anything: code and the workspace of the matrix products, no weights."""
    from graftlib import trace
    from graftlib_adapters.assembly import align, problem
    from graftlib_adapters.assembly.sparse_assignment import priced

    small = nn.Sequential(nn.Conv2d(3, 600, 3), nn.BatchNorm2d(600), nn.Conv2d(600, 4, 1)).eval()
    seen = trace(small, (torch.zeros(1, 3, 4, 4),))
    align(problem(seen, seen), small.state_dict(), small.state_dict())
    priced(torch.rand(64, 64))
    torch.rand(2048, 128) @ torch.rand(128, 2048)


def ours(name: str) -> dict[str, Any]:
    from graftlib import trace
    from graftlib_adapters.assembly import align, problem

    warm_up()
    base, source, x = pair(name)
    start = time.process_time()
    task = problem(trace(base, (x,)), trace(source, (x,)))
    traced = time.process_time() - start
    base_state, source_state = base.state_dict(), source.state_dict()
    weights = sum(t.numel() * t.element_size() for t in base_state.values()) / 2**20
    before, start, wall = memory.reset(), time.process_time(), time.perf_counter()
    aligned = align(task, base_state, source_state)
    seconds, waited = time.process_time() - start, time.perf_counter() - wall
    extra = (memory.peak() - before) / 2**20
    state = {**source_state, **aligned.transported(source_state)}
    return {
        "cpu_s": round(seconds, 2),
        "wall_s": round(waited, 2),
        "trace_and_pair_cpu_s": round(traced, 2),
        "sweeps": len(aligned.history) - 1,
        "weights_mb": round(weights, 1),
        "extra_mb": round(extra, 1),
        "peak_by_weights": round((2 * weights + extra) / (2 * weights), 3),
        **judged(name, state),
    }


def without_cache(name: str) -> dict[str, Any]:
    """Every gain is computed anew."""
    from graftlib_adapters.assembly import gain_cache

    gain_cache.MANY = 2**62
    return ours(name)


def without_sparse(name: str) -> dict[str, Any]:
    """Every assignment is solved over the whole matrix."""
    from graftlib_adapters.assembly import sparse_assignment

    sparse_assignment.LARGE = 2**62
    return ours(name)


def share(name: str) -> dict[str, Any]:
    """The share of matrix products and assignments in the matching's time: every one of them is timed."""
    from graftlib import trace
    from graftlib_adapters.assembly import align, gain_cache, objective, problem

    spent = dict.fromkeys(("products", "assignments"), 0.0)

    def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.process_time()
            made = function(*args)
            spent[what] += time.process_time() - start
            return made

        return call

    warm_up()
    objective._add_product = timed("products", objective._add_product)
    gain_cache.cheapest = timed("assignments", gain_cache.cheapest)
    base, source, x = pair(name)
    task = problem(trace(base, (x,)), trace(source, (x,)))
    states = base.state_dict(), source.state_dict()
    start = time.process_time()
    align(task, *states)
    whole = time.process_time() - start
    return {key: round(seconds / whole, 3) for key, seconds in spent.items()}


def peer(name: str) -> dict[str, Any]:
    from rebasin import PermutationCoordinateDescent

    base, source, x = pair(name)
    start = time.process_time()
    PermutationCoordinateDescent(base, source, input_data_b=x).rebasin()
    seconds = time.process_time() - start
    return {"cpu_s": round(seconds, 2), **judged(name, source.state_dict())}


ROWS = {
    "graftlib": ours,
    "without the gain cache": without_cache,
    "without sparse assignment": without_sparse,
    "share": share,
    "rebasin": peer,
}


def child(row: str, name: str, limit: int) -> dict[str, Any]:
    """One row in a process of its own, stopped after `limit` processor seconds."""
    try:
        found: dict[str, Any] = apart(__spec__.name, "--row", row, "--net", name, limit=limit)
    except ProcessError as error:
        return {"stopped_after_cpu_s": limit} if error.stopped else {"failed": str(error)}
    return found


def main() -> None:
    parser = command.parser(__doc__, "alignment.json")
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--limit", type=int, default=120, help="processor seconds for a row")
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    parser.add_argument("--net", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.row:
        print(json.dumps(ROWS[given.row](given.net)))
        return
    report = results.load(given.out) if given.out.exists() else {"rows": {}}
    report.update(threads=1, versions=results.versions())
    for name in given.nets:
        rows = report["rows"].setdefault(name, {})
        for row in ROWS:
            if row in rows or (row == "rebasin" and importlib.util.find_spec("rebasin") is None):
                continue
            rows[row] = child(row, name, given.limit)
            print(name, row, rows[row], flush=True)
            results.save(given.out, report)
        if rows.get("rebasin", {}).get("cpu_s") and rows["graftlib"].get("cpu_s"):
            rows["times_faster"] = round(rows["rebasin"]["cpu_s"] / rows["graftlib"]["cpu_s"], 1)
        results.save(given.out, report)


if __name__ == "__main__":
    main()
