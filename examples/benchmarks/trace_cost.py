"""What it costs to find the axis classes of a model, beside what others need for less.

    pip install torch-pruning        # the peer; without it its column stays empty
    python -m examples.benchmarks.trace_cost --out docs/benchmarks/trace_cost.json

Processor seconds of one process, one thread, models with random weights on the CPU:

- `graftlib`: `trace` and `axis_classes`, together and each.
- `torch-pruning`: `DependencyGraph.build_dependency` and all of `get_all_groups`, as it is; ended after `--limit`
  processor seconds (it then counts as not finished, at every later round too).
- `make_fx` (fake tensors, pre-dispatch) and `torch.export` alone, for what a graph of ops costs by itself.

A model has a process of its own, in which everything is run in turn `--rounds` times after a round that is thrown away.
Given are the median and the quartiles, and the median of the ratios within a round.

Then the curve: the time against the number of ops, for a plain chain of blocks and for one with residual branches (one
class that grows with the depth), with the exponent of the fitted power; three rounds at most. Last a Llama of the size
of 70B on the meta device: seconds and the largest resident set of the process. What is in the file already is not
measured again.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import resource
import signal
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..common import command, results
from ..common.intervals import spread
from ..common.models import Built, Logits, text, vision
from ..common.processes import apart
from . import tables

Row = dict[str, Any]
WORDS = (5, 1000, 1, 64)
PACKAGES = ("torch", "torchvision", "transformers", "torch-pruning")


def _bert() -> Built:
    model, args = text("BertForSequenceClassification", WORDS)()
    return Logits(model), args


def llama(**settings: Any) -> Built:
    """A Llama with grouped queries; by default a small one."""
    config: dict[str, Any] = {
        "vocab_size": 1000,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "use_cache": False,
    }
    model, args = text("LlamaForCausalLM", WORDS, **(config | settings))()
    return Logits(model), args


MODELS: dict[str, Callable[[], Built]] = {
    "MobileNetV2": vision("mobilenet_v2"),
    "ResNet-50": vision("resnet50"),
    "ViT-B/16": vision("vit_b_16"),
    "BERT-base": _bert,
    "Swin-T": vision("swin_t"),
    "MaxViT-T": vision("maxvit_t"),
    "Llama, grouped queries": llama,
}
# Processor seconds: the bars of graftlib's own time.
BARS = {"Swin-T": 5.0, "MaxViT-T": 5.0} | dict.fromkeys(
    ("MobileNetV2", "ResNet-50", "ViT-B/16", "BERT-base"), 1.5
)
LARGE = {
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
LARGE_SECONDS, LARGE_GIB = 60, 4
SIZES = (100, 300, 1000, 3000, 10_000)


class OutOfTime(BaseException):
    """The limit of processor seconds is reached."""


def limited(function: Callable[[], Any], limit: float) -> Any:
    """The result of `function`; OutOfTime after `limit` processor seconds."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        return function()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _graftlib(model: nn.Module, args: tuple[Tensor, ...]) -> Row:
    from graftlib import trace

    start = time.process_time()
    graph = trace(model, args)
    traced = time.process_time()
    found = graph.axis_classes
    done = time.process_time()
    return {
        "graftlib": done - start,
        "trace": traced - start,
        "classes": done - traced,
        "ops": sum(node.op == "call_function" for node in graph.fx.nodes),
        "found": sum(each.free for each in found),
    }


def _torch_pruning(model: nn.Module, args: tuple[Tensor, ...]) -> Row:
    import torch_pruning

    start = time.process_time()
    # Groups are asked for in a model that needs gradients: it walks autograd's graph.
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=args)
    groups = sum(1 for _ in graph.get_all_groups())
    return {"torch-pruning": time.process_time() - start, "groups": groups}


def _make_fx(model: nn.Module, args: tuple[Tensor, ...]) -> Row:
    from torch.fx.experimental.proxy_tensor import make_fx

    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def forward(tensors: dict[str, Tensor], *given: Tensor) -> Any:
        return torch.func.functional_call(model, tensors, given)

    start = time.process_time()
    with torch.no_grad():
        make_fx(forward, tracing_mode="fake", pre_dispatch=True)(state, *args)
    return {"make_fx": time.process_time() - start}


def _export(model: nn.Module, args: tuple[Tensor, ...]) -> Row:
    start = time.process_time()
    torch.export.export(model, args, strict=False)
    return {"torch.export": time.process_time() - start}


Tool = Callable[[nn.Module, tuple[Tensor, ...]], Row]


def in_turn(
    tools: dict[str, Tool], model: nn.Module, args: tuple[Tensor, ...], rounds: int, limit: float
) -> tuple[dict[str, str], list[Row]]:
    """What each tool that fails or takes too long says, and a row for each round; the first warms up."""
    answers: dict[str, str] = {}
    rows: list[Row] = []
    for _ in range(rounds + 1):
        row: Row = {}
        for tool, run in tools.items():
            if tool in answers:
                continue
            gc.collect()
            try:
                row |= limited(lambda run=run: run(model, args), limit)  # type: ignore[misc]
            except OutOfTime:
                answers[tool] = f"did not finish in {limit:.0f} s"
            except Exception as error:
                line = next(iter(str(error).splitlines()), "")
                answers[tool] = f"{type(error).__name__}: {line[:160]}"
        rows.append(row)
    return answers, rows


def measure(name: str, rounds: int, limit: float) -> Row:
    """All tools on one model, in turn."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tools = {"graftlib": _graftlib, "make_fx": _make_fx, "torch.export": _export}
    if importlib.util.find_spec("torch_pruning"):
        tools["torch-pruning"] = _torch_pruning
    model, args = MODELS[name]()
    model.eval()
    answers, seen = in_turn(tools, model, args, rounds, limit)
    found: Row = {"model": name, "ops": seen[0]["ops"], "classes_found": seen[0]["found"]}
    found["groups_found"] = seen[0].get("groups")
    for word in ("graftlib", "trace", "classes", "torch-pruning", "make_fx", "torch.export"):
        if word in answers:
            found[word] = {"answer": answers[word]}
        elif word in seen[-1]:
            taken = [row[word] for row in seen[1:]]
            found[word] = spread(taken) | {
                "times_graftlib": spread([row[word] / row["graftlib"] for row in seen[1:]])
            }
    if name in BARS:
        found |= {"bar": BARS[name], "holds": found["graftlib"]["median"] <= BARS[name]}
    return found


class Chain(nn.Module):
    """`ops` ops in a row; with `residual`, each block is added to what came before."""

    def __init__(self, ops: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        count = (ops - 2) // (3 if residual else 2)
        # What comes in and goes out is frozen: the stream between them is not.
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            y = layer(x).relu()
            x = x + y if self.residual else y
        result: Tensor = self.head(x)
        return result


def curve(kind: str, rounds: int) -> Row:
    """The time of the classes for growing chains, and the exponent of the power that fits it."""
    torch.set_num_threads(1)
    points = []
    for size in SIZES:
        with torch.device("meta"):
            model, args = Chain(size, kind == "residual"), (torch.empty(2, 8),)
        rows = [_graftlib(model, args) for _ in range(rounds + 1)][1:]
        point: Row = {"ops": rows[0]["ops"], "classes_found": rows[0]["found"]}
        for word in ("trace", "classes"):
            point[word] = spread([row[word] for row in rows])
        points.append(point)
    return {
        "kind": kind,
        "points": points,
        **{f"{word}_exponent": exponent(points, word) for word in ("trace", "classes")},
    }


def exponent(points: list[Row], word: str) -> float:
    """The slope of log seconds over log ops, by least squares: 1 is linear."""
    x = [math.log(point["ops"]) for point in points]
    y = [math.log(point[word]["median"]) for point in points]
    return round(statistics.linear_regression(x, y).slope, 3)


def large() -> Row:
    """A Llama of the size of 70B on the meta device, in a process that did nothing else."""
    torch.set_num_threads(1)
    with torch.device("meta"):
        model, args = llama(**LARGE)
    built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = _graftlib(model.eval(), args)
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "ops": row["ops"],
        "classes_found": row["found"],
        "trace_seconds": round(row["trace"], 2),
        "classes_seconds": round(row["classes"], 2),
        "process_seconds": round(time.process_time(), 2),
        "peak_gib": round(gib, 2),
        "peak_gib_before": round(built / 2**20, 2),
        "bars": {"seconds": LARGE_SECONDS, "gib": LARGE_GIB},
        "holds": row["graftlib"] <= LARGE_SECONDS and gib <= LARGE_GIB,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = command.parser(__doc__)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60, help="processor seconds of a tool")
    for hidden in ("--one", "--curve", "--large"):
        parser.add_argument(hidden, nargs="?", const="yes", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.one or asked.curve or asked.large:
        row = (
            measure(asked.one, asked.rounds, asked.limit)
            if asked.one
            else curve(asked.curve, min(asked.rounds, 3))
            if asked.curve
            else large()
        )
        print(json.dumps(row))
        return
    if asked.rounds < 2:
        parser.error("--rounds must be at least 2: one run has no spread")
    found: Row = {"models": [], "curves": [], "large": None}
    if asked.out and asked.out.exists():
        found = results.load(asked.out)
    found |= {"rounds": asked.rounds, "limit": asked.limit, "machine": results.machine(*PACKAGES)}

    def measured(*words: str) -> Row:
        row: Row = apart(__spec__.name, "--rounds", asked.rounds, "--limit", asked.limit, *words)
        return row

    def keep() -> None:
        if asked.out:
            results.save(asked.out, found)

    for name in asked.models:
        if name not in [row["model"] for row in found["models"]]:
            found["models"].append(measured("--one", name))
            print(json.dumps(found["models"][-1]), flush=True)
            keep()
    for kind in ("chain", "residual"):
        if kind not in [row["kind"] for row in found["curves"]]:
            found["curves"].append(measured("--curve", kind))
            keep()
    if not found["large"]:
        found["large"] = measured("--large")
        keep()
    print(tables.trace_cost(found))


if __name__ == "__main__":
    main()
