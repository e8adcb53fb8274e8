"""Is a pruned copy of a trained network a good start? Half the width, little data, against every simpler start.

A source is trained; a target of half its width then starts from some of the source's units, and is trained on few
images. Every start shares, seed by seed, the target's batches with random weights.

    python -m examples.benchmarks.slim_start --root DIR --out docs/benchmarks/slim_start.json

Starts: ``random weights``; ``per tensor``: every tensor takes evenly spaced elements along each axis, whatever belongs
together (weight selection, Xu et al. 2023); and units by axis class: ``random units``, ``uniform units``,
``magnitude units`` and ``magnitude units, refitted`` (on 512 training images of the target).
Data, at half resolution: CIFAR-10's test half, 8,000 / 2,000 images, stratified, seed 0 (source and target train on the
same 8,000); Fashion-MNIST (the source trains on 20,000 images, the target on the first 2,000 or 10,000 of them; 5,000
test images). Models: a residual CNN with batch norm, 32 to 16 channels; a transformer on patches, width 64 to 32,
4 heads to 2. Learning rates are those that random weights do best with.

Accuracy is that of the last step, on test images nobody chose anything by; `--validation` takes held-out training
images instead, to choose settings by. On the way the first 1,000 test images are watched. Runs are kept one file each
under `--cache`: a killed benchmark goes on where it stopped, and two with other `--first-seed` share the work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlib import surgery, trace

from ..common import command, datasets, results
from ..common.intervals import interval
from ..common.training import accuracy, load_or_train
from . import tables as docs

Set = tuple[Tensor, Tensor]

# ----------------------------------------------------------------------------------------------------------- the data

# data -> (images for the source, epochs of the source, images for the target, epochs of the target)
SIZES = {
    "cifar10_8000": (8000, 10, 8000, 4),
    "fashion_2000": (20000, 4, 2000, 12),
    "fashion_10000": (20000, 4, 10000, 3),
}


def load(name: str, root: str, validation: bool) -> tuple[Set, Set]:
    """((images (n, channels, side, side), labels (n,)) to train on, and to test on), at half resolution."""
    if name.startswith("cifar10"):
        x, y = datasets.read("cifar10", root)
        x = (x - 0.47) / 0.25
        random = torch.Generator().manual_seed(0)
        mixed = [(y == c).nonzero().flatten() for c in range(10)]
        mixed = [rows[torch.randperm(len(rows), generator=random)] for rows in mixed]
        train, test = (
            torch.cat([rows[:800] for rows in mixed]),
            torch.cat([r[800:] for r in mixed]),
        )
        train = train[torch.randperm(len(train), generator=random)]
        test = test[torch.randperm(len(test), generator=random)]
        few, held = (x[train], y[train]), (x[test], y[test])
    else:
        x, y, test_x, test_y = datasets.halves("fashion-mnist", root)
        few = (x[:22000] - 0.286) / 0.353, y[:22000]
        held = (test_x[:5000] - 0.286) / 0.353, test_y[:5000]
    if validation:
        held, few = (few[0][-2000:], few[1][-2000:]), (few[0][:-2000], few[1][:-2000])
    return (F.avg_pool2d(few[0], 2), few[1]), (F.avg_pool2d(held[0], 2), held[1])


# --------------------------------------------------------------------------------------------------------- the models


class Block(nn.Module):
    """Two convolutions with batch norms beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(width, width), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = _conv(width, width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class ConvNet(nn.Sequential):
    """A strided stem and two stages of one residual block each."""

    def __init__(self, channels: int, side: int, width: int) -> None:
        super().__init__(
            *(nn.Conv2d(channels, width, 5, 2, padding=2, bias=False), nn.BatchNorm2d(width)),
            *(nn.ReLU(), Block(width)),
            *(_conv(width, 2 * width, 2), nn.BatchNorm2d(2 * width), nn.ReLU(), Block(2 * width)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
        )


class Layer(nn.Module):
    """Attention and MLP, each behind its norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """25 overlapping patches, learnt places, two layers, the mean token."""

    def __init__(self, channels: int, side: int, width: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, width, 4, 3, padding=1)
        places = ((side + 2 - 4) // 3 + 1) ** 2
        self.place = nn.Parameter(torch.randn(1, places, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, width // 16) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.layers(x)).mean(1))


# model -> (class, width of the source, learning rate: the best for random weights on validation images)
MODELS: dict[str, tuple[Callable[..., nn.Module], int, float]] = {
    "cnn": (ConvNet, 32, 0.1),
    "transformer": (Transformer, 64, 4e-3),
}


def made(model: str, x: Tensor, share: float = 1.0) -> nn.Module:
    kind, width, _ = MODELS[model]
    return kind(x.shape[1], x.shape[2], round(width * share))


# -------------------------------------------------------------------------------------------------------- the training


def train(
    model: nn.Module,
    name: str,
    data: Set,
    epochs: int,
    seed: int,
    probe: Callable[[int], None] | None = None,
) -> int:
    """One cycle of a cosine after a short warm-up; gives the number of steps. `probe` is called 10 times on the way."""
    (x, y), rate, batch = data, MODELS[name][2], 64
    order = torch.Generator().manual_seed(seed)
    optimizer: torch.optim.Optimizer
    if name == "cnn":
        optimizer = torch.optim.SGD(
            model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    per_epoch = len(x) // batch
    steps, warm = epochs * per_epoch, epochs * per_epoch // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / (warm + 1), 0.5 + 0.5 * math.cos(math.pi * i / steps))
    )
    marks, step = {round(steps * i / 10) for i in range(10)}, 0
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order)[: per_epoch * batch].split(batch):
            if probe is not None and step in marks:
                probe(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
            step += 1
    return steps


def source_of(data: str, model: str, number: int, few: Set, args: argparse.Namespace) -> nn.Module:
    """A trained source; from the cache where it was trained before."""
    images, epochs, *_ = SIZES[data]
    facts = [data.partition("_")[0], model, images, epochs, MODELS[model][2], args.validation]
    path = Path(args.cache) / f"source-{number}-{_digest(facts)}.safetensors"
    some, seed = (few[0][:images], few[1][:images]), 1000 + number
    torch.manual_seed(seed)
    return load_or_train(
        made(model, few[0]), path, lambda net: train(net, model, some, epochs, seed)
    )


# --------------------------------------------------------------------------------------------------------- the starts


def per_tensor(source: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """Weight selection: evenly spaced elements along each axis of each tensor."""
    state = {}
    for (name, tensor), like in zip(
        source.state_dict().items(), target.state_dict().values(), strict=True
    ):
        for axis, size in enumerate(like.shape):
            places = (torch.arange(size) * (tensor.shape[axis] / size)).long()
            tensor = tensor.index_select(axis, places)
        state[name] = tensor
    return state


def drawn(seed: int) -> Callable[..., Tensor]:
    """An importance that means nothing."""
    random = torch.Generator().manual_seed(seed)
    return lambda graph, model, each: torch.rand(each.size, generator=random)


# start -> how `prune` is called, given (seed, calibration images); None: not by class
STARTS: dict[str, Callable[[int, list[Tensor]], dict] | None] = {
    "random weights": None,
    "per tensor": None,
    "random units": lambda seed, data: {"importance": drawn(seed)},
    "uniform units": lambda seed, data: {"importance": "uniform"},
    "magnitude units": lambda seed, data: {},
    "magnitude units, refitted": lambda seed, data: {"data": data, "statistics": True},
}


def started(start: str, source: nn.Module, model: str, few: Set, seed: int) -> nn.Module:
    """The target, before its training."""
    torch.manual_seed(seed)
    target = made(model, few[0], 0.5)
    call = STARTS[start]
    if start == "per tensor":
        target.load_state_dict(per_tensor(source, target))
    elif call is not None:
        graph = trace(source, few[0][:2])
        slim = surgery.prune(graph, 0.5, **call(seed, list(few[0][:512].split(128))))
        target.load_state_dict(slim.state_dict())
    return target


def run(
    data: str, model: str, start: str, seed: int, few: Set, test: Set, args: argparse.Namespace
) -> dict:
    """Train one target and watch it; the same seed gives the same batches from every start."""
    source = source_of(data, model, seed % args.sources, few, args)
    *_, images, epochs = SIZES[data]
    few = few[0][:images], few[1][:images]
    begin = time.process_time()
    target = started(start, source, model, few, seed)
    spent = time.process_time() - begin
    few_tests = (test[0][:1000], test[1][:1000])
    curve: list[list[float]] = []

    def watch(step: int) -> None:
        curve.append([step, accuracy(target, *few_tests)])

    begin = time.process_time()
    watch(train(target, model, few, epochs, seed, watch))
    return {
        "accuracy": accuracy(target, *test),
        "curve": curve,
        "start_seconds": spent,
        "train_seconds": time.process_time() - begin,
    }


# -------------------------------------------------------------------------------------------------------- the harness


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def cached(
    data: str, model: str, start: str, seed: int, sets: tuple[Set, Set], args: argparse.Namespace
) -> dict:
    facts = [SIZES[data], MODELS[model][1:], args.sources, args.validation]
    path = (
        Path(args.cache) / f"{data}-{model}-{start.replace(' ', '_')}-{seed}-{_digest(facts)}.json"
    )
    found = results.cached(path, lambda: run(data, model, start, seed, *sets, args))
    print(f"{data} {model} {start} {seed}: {found['accuracy']:.2f}", flush=True)
    return found


def reached(curve: list[list[float]], level: float) -> float | None:
    """The share of the steps after which the watched accuracy first was `level`; None where it never was."""
    return next((step / curve[-1][0] for step, value in curve if value >= level), None)


def summary(runs: dict[str, dict[int, dict]]) -> dict[str, dict]:
    table = {}
    for start, each in runs.items():
        scores = [found["accuracy"] for found in each.values()]
        first = [found["curve"][0][1] for found in each.values()]
        row: dict = {
            "mean": statistics.mean(scores),
            "sd": statistics.stdev(scores) if len(scores) > 1 else math.nan,
            "n": len(scores),
            "untrained": statistics.mean(first),
            "start_seconds": statistics.mean(found["start_seconds"] for found in each.values()),
            "train_seconds": statistics.mean(found["train_seconds"] for found in each.values()),
        }
        for other in ("random weights", "uniform units"):
            if other != start and each.keys() <= runs.get(other, {}).keys():
                gaps = [each[s]["accuracy"] - runs[other][s]["accuracy"] for s in each]
                row[f"minus {other}"] = interval(gaps)
        if each.keys() <= runs.get("random weights", {}).keys():
            levels = {s: runs["random weights"][s]["curve"][-1][1] for s in each}
            shares = [reached(found["curve"], levels[s]) for s, found in each.items()]
            done = [share for share in shares if share is not None]
            row["reaches random's accuracy"] = {
                "median share of steps": statistics.median(done) if done else None,
                "seeds": len(done),
            }
        table[start] = row
    return table


def main() -> None:
    parser = command.parser(__doc__)
    command.add_root(parser)
    parser.add_argument("--data", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--starts", nargs="*", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sources", type=int, default=2, help="seed s uses source s modulo this")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--cache", default="out/slim_start")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = {data: load(data, args.root, args.validation) for data in args.data}
    runs: dict[str, dict[str, dict[int, dict]]] = {}
    # Seed by seed, so that a benchmark that was stopped has something to say.
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for data in args.data:
            for model in args.models:
                for start in args.starts:
                    found = cached(data, model, start, seed, sets[data], args)
                    runs.setdefault(f"{data}, {model}", {}).setdefault(start, {})[seed] = found
    tables = {name: summary(found) for name, found in runs.items()}
    sources = {}
    for data in args.data:
        for model in args.models:
            few, test = sets[data]
            nets = [source_of(data, model, i, few, args) for i in range(args.sources)]
            sources[f"{data}, {model}"] = [accuracy(net, *test) for net in nets]
    facts = {k: v for k, v in vars(args).items() if k not in {"root", "cache", "out"}}
    sizes = {
        name: dict(
            zip(("source images", "source epochs", "images", "epochs"), SIZES[name], strict=True)
        )
        for name in args.data
    }
    report = {
        "settings": facts,
        "sizes": sizes,
        "sources": sources,
        "tables": tables,
        "versions": results.versions(),
    }
    print(docs.slim_start(report))
    if args.out:
        results.save(args.out, report)


if __name__ == "__main__":
    main()
