"""What it costs to prune half of a model, beside Torch-Pruning.

    pip install torch-pruning==1.6.1        # the peer; without it its column stays empty
    python -m examples.benchmarks.cut_cost --out docs/benchmarks/cut_cost.json

Processor seconds of one process, one thread, models with random weights on the CPU:

- `graftlib`: `trace` and half of every class, from a model that was never traced; a copy comes out. With the parts:
  the trace, the axis classes, the edit.
- `torch-pruning`: `BasePruner` (it builds the dependency graph) and one step at a ratio of 0.5, in place, magnitude
  importance, the last layer left alone. The copy that it works on is made outside of the clock.

A model has a process of its own, in which both run in turn `--rounds` times after a round that is thrown away. Given
are the median and the quartiles, the median of the ratios within a round, the share of the parameters that is left, and
how many processes wanted a core just then.
A model that is in the file already is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..common import command, results
from ..common.intervals import spread
from ..common.models import Built, vision
from ..common.processes import apart
from . import tables
from .trace_cost import MODELS as TRACED
from .trace_cost import PACKAGES, in_turn

Row = dict[str, Any]


MODELS: dict[str, Callable[[], Built]] = {
    "ResNet-50": TRACED["ResNet-50"],
    "MobileNetV2": TRACED["MobileNetV2"],
    "EfficientNet-B0": vision("efficientnet_b0"),
    "ViT-B/16": TRACED["ViT-B/16"],
    "BERT-base": TRACED["BERT-base"],
    "DenseNet-121": vision("densenet121"),
    "Swin-T": vision("swin_t"),
}


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _graftlib(model: nn.Module, args: tuple[Tensor, ...]) -> Row:
    from graftlib import trace
    from graftlib.surgery import prune

    start = time.process_time()
    graph = trace(model, args)
    traced = time.process_time()
    classes = graph.axis_classes
    read = time.process_time()
    slim = prune(graph, 0.5)
    done = time.process_time()
    return {
        "graftlib": done - start,
        "trace": traced - start,
        "classes": read - traced,
        "prune": done - read,
        "free": sum(each.free for each in classes),
        "graftlib_left": _count(slim) / _count(model),
    }


def _torch_pruning(model: nn.Module, args: tuple[Tensor, ...]) -> Row:
    import torch_pruning as peer

    twin = copy.deepcopy(model)
    last = [module for module in twin.modules() if isinstance(module, nn.Linear)][-1]
    start = time.process_time()
    pruner = peer.pruner.BasePruner(
        twin,
        args,
        importance=peer.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[last],
    )
    pruner.step()
    taken = time.process_time() - start
    return {"torch-pruning": taken, "torch-pruning_left": _count(twin) / _count(model)}


def measure(name: str, rounds: int, limit: float) -> Row:
    """Both tools on one model, in turn."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tools = {"graftlib": _graftlib}
    if importlib.util.find_spec("torch_pruning"):
        tools["torch-pruning"] = _torch_pruning
    model, args = MODELS[name]()
    model.eval()
    row: Row = {"model": name, "parameters": _count(model), "n": rounds}
    row["load"] = round(os.getloadavg()[0], 1)
    answers, seen = in_turn(tools, model, args, rounds, limit)
    row |= {tool: {"answer": answer} for tool, answer in answers.items()}
    row["free"] = seen[0].get("free")
    for word in ("graftlib", "trace", "classes", "prune", "torch-pruning"):
        if word in seen[-1]:
            row[word] = spread([one[word] for one in seen[1:]])
    for word in ("graftlib_left", "torch-pruning_left"):
        if word in seen[-1]:
            row[word] = round(seen[-1][word], 3)
    if "torch-pruning" in seen[-1] and "graftlib" in seen[-1]:
        row["times"] = spread([one["torch-pruning"] / one["graftlib"] for one in seen[1:]])
    return row


def main() -> None:
    """Measure, print a line a model, write JSON."""
    parser = command.parser(__doc__)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=120, help="processor seconds of a tool")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.one:
        print(json.dumps(measure(asked.one, asked.rounds, asked.limit)))
        return
    if asked.rounds < 2:
        parser.error("--rounds must be at least 2: one run has no spread")
    found: Row = {"models": []}
    if asked.out and asked.out.exists():
        found = results.load(asked.out)
    rows = found["models"]
    for name in asked.models:
        if name in [row["model"] for row in rows]:
            continue
        flags = ["--rounds", asked.rounds, "--limit", asked.limit]
        rows.append(apart(__spec__.name, *flags, "--one", name))
        print(json.dumps(rows[-1]), flush=True)
        facts = results.machine(*PACKAGES) | {"rounds": asked.rounds, "limit": asked.limit}
        found = {"machine": facts, "models": rows}
        if asked.out:
            results.save(asked.out, found)
    print(tables.cut_cost(found))


if __name__ == "__main__":
    main()
