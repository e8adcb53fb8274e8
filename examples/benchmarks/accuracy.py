"""Does a graft help? A slim target with little data, with every control, over many seeds.

One strong source (a ResNet, trained once on far more images) stays frozen; slim targets (a MobileNetV2 family) are
trained from scratch on few images. Every arm shares, seed by seed, its initial weights and its batches with `plain`.

    python -m examples.benchmarks.accuracy --data digits
    python -m examples.benchmarks.accuracy --data fashion-mnist --root DIR --train-size 2000

Accuracy is that of the last epoch on test images nobody chose anything by; `--split validation` holds out part of the
training images instead, to choose settings by. Results are kept one file a run under `--cache`, so a killed benchmark
goes on where it stopped. Prints a table and writes JSON: mean, standard deviation, n, and the paired difference to
`plain` with its 95 % interval.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from joblib import Parallel, delayed
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import MobileNetV2
from torchvision.models.resnet import BasicBlock, ResNet

from graftlib import Mapping, TransferCycle, attach, trace
from graftlib.graft import AdapterOptimizer
from graftlib_adapters import MergeNet, MLPAdapter, ParameterSharing, distillation

from ..common import command, datasets, results
from ..common.intervals import interval
from ..common.training import accuracy, load_or_train
from . import tables

# ----------------------------------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class Data:
    """Images (n, 1, h, w) float32 and labels (n,) int64: much for the source, little for the target."""

    source: tuple[Tensor, Tensor]
    target: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load(args: argparse.Namespace) -> Data:
    if args.data == "digits":
        x, y = datasets.read("digits")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        train, test = order[:1297], order[1297:]
        x = (x - x[train].mean()) / x[train].std()
        everything, held_out = (x[train], y[train]), (x[test], y[test])
    else:
        x, y, test_x, test_y = datasets.halves(args.data, args.root)
        everything, held_out = ((x - 0.286) / 0.353, y), ((test_x - 0.286) / 0.353, test_y)
    if args.split == "validation":
        cut = len(everything[0]) * 4 // 5
        held_out = tuple(t[cut:][:5000] for t in everything)
        everything = tuple(t[:cut] for t in everything)
    few = tuple(t[: args.train_size] for t in everything)
    many = tuple(t[: args.source_size] for t in everything)
    return Data(many, few, held_out)


# --------------------------------------------------------------------------------------------------------- the models


def make_source(side: int) -> nn.Module:
    """A ResNet with a small stem for images of `side` pixels; 4.9 M parameters."""
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    model.conv1 = nn.Conv2d(1, 64, 3, stride=1 if side < 14 else 2, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def make_target() -> nn.Module:
    """A MobileNetV2 of two strided stages."""
    setting = [[1, 16, 1, 1], [4, 24, 2, 2], [4, 32, 2, 2]]
    model = MobileNetV2(10, width_mult=0.5, inverted_residual_setting=setting, dropout=0.0)
    model.features[0][0] = nn.Conv2d(1, 16, 3, stride=1, padding=1, bias=False)
    return model


def shrink(x: Tensor) -> Tensor:
    """28 x 28 images at 14 x 14, so that eight seeds of every arm fit into an hour."""
    return F.avg_pool2d(x, 2) if x.shape[-1] == 28 else x


def trained_source(args: argparse.Namespace, data: Data) -> nn.Module:
    """The one source of a benchmark, from the cache where it was trained before."""
    name = f"source-{args.data}-{args.split}-{args.source_size}-{args.source_epochs}.safetensors"
    torch.manual_seed(1000)
    x, y = data.source

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(
            model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        steps = args.source_epochs * (len(x) // 128)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(args.source_epochs):
            for batch in torch.randperm(len(x))[: len(x) // 128 * 128].split(128):
                optimizer.zero_grad()
                F.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
                schedule.step()

    return load_or_train(make_source(data.test[0].shape[-1]), Path(args.cache) / name, train)


# ----------------------------------------------------------------------------------------------------------- the arms

LINKS = {
    "block": [("layer3.0.conv2", "features.5.conv.2")],
    "residual": [("layer2.0.conv2", "features.3.conv.2"), ("layer3.0.conv2", "features.5.conv.2")],
    "classifier": [("fc", "features.5.conv.2")],
    "expand": [("layer3.0.conv1", "features.5.conv.0.0"), ("layer3.0.conv2", "features.5.conv.2")],
    "head": [("fc", "classifier.1")],
}

LOOSE = {"trust": 0.02}  # four times the default bound on the size of a transfer

ARMS: dict[str, dict] = {
    "plain": {},
    "mergenet": {"adapter": {}},
    "random source": {"adapter": {}, "spoil": "random"},
    "mergenet, trust 0.02": {"adapter": {**LOOSE}},
    "random source, trust 0.02": {"adapter": {**LOOSE}, "spoil": "random"},
    "shuffled source, trust 0.02": {"adapter": {**LOOSE}, "spoil": "shuffled"},
    "source at initialisation, trust 0.02": {"adapter": {**LOOSE}, "spoil": "initial"},
    "equal-norm noise, trust 0.02": {"noise": "mergenet, trust 0.02"},
    "mergenet probe, trust 0.02": {"adapter": {"write": "probe", **LOOSE}},
    "mergenet gradient, trust 0.02": {"adapter": {"signal": "gradient", **LOOSE}},
    "mergenet unbounded": {"adapter": {"trust": None}},
    "mergenet paper form": {"adapter": {"init": "paper", "rank": None}},
    "mlp adapter": {"mlp": True},
    "parameter sharing": {"sharing": True},
    "KD": {"distil": "kd"},
    "RKD": {"distil": "rkd"},
    "DKD": {"distil": "dkd"},
    "NKD": {"distil": "nkd"},
}


def spoiled(
    source: nn.Module, how: str | None, links: list[tuple[str, str]], seed: int, side: int
) -> nn.Module:
    """A copy of the source whose linked weights carry no knowledge: the controls."""
    source = copy.deepcopy(source)
    generator = torch.Generator().manual_seed(seed)
    if how == "initial":
        torch.manual_seed(seed)
        return make_source(side)
    for name, _ in links:
        weight = source.get_submodule(name).weight.data
        if how == "random":
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise * weight.std() + weight.mean())
        elif how == "shuffled":
            weight.copy_(weight[torch.randperm(len(weight), generator=generator)])
    return source


def adapter_of(arm: dict, compress: str):
    if arm.get("mlp"):
        return MLPAdapter()
    return (
        ParameterSharing() if arm.get("sharing") else MergeNet(compress=compress, **arm["adapter"])
    )


def distillation_loss(kind: str, logits: Tensor, teacher: Tensor, y: Tensor, epoch: int) -> Tensor:
    if kind == "kd":
        return 0.5 * F.cross_entropy(logits, y) + 0.5 * distillation.kd(
            logits, teacher, temperature=4.0
        )
    if kind == "rkd":
        return F.cross_entropy(logits, y) + distillation.rkd(logits, teacher)
    if kind == "dkd":
        warm = min(1.0, (epoch + 1) / 20)
        return F.cross_entropy(logits, y) + warm * distillation.dkd(logits, teacher, y)
    return F.cross_entropy(logits, y) + distillation.nkd(logits, teacher, y)


def run(name: str, seed: int, args: argparse.Namespace, data: Data, source: nn.Module) -> dict:
    """Train one target; the same seed gives the same initial weights and batches in every arm."""
    torch.set_num_threads(1)
    arm, links = ARMS[name], LINKS[args.links]
    x, y = data.target
    torch.manual_seed(seed)
    target = make_target()
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        target.parameters(), args.lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    per_epoch = len(x) // args.batch
    total = per_epoch * args.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    start, graft, teacher = time.process_time(), None, None
    if {"adapter", "mlp", "sharing"} & arm.keys():
        spoilt = spoiled(source, arm.get("spoil"), links, seed, x.shape[-1])
        example = (x[:2],)
        mapping = Mapping(trace(spoilt, example), trace(target, example))
        for one, other in links:
            mapping.link(one, other)
        cycle = TransferCycle(args.cycle, start=args.start, stop=args.stop)
        graft = attach(
            adapter_of(arm, args.compress),
            mapping,
            cycle=cycle,
            total_steps=total,
            seed=seed,
            optimizer=AdapterOptimizer(lr=args.adapter_lr),
        )
        graft.follow(optimizer)
    if "distil" in arm:
        with torch.no_grad():
            teacher = torch.cat([source(part) for part in x.split(500)])
    noise = _noise_plan(arm, seed, args) if "noise" in arm else {}
    step = 0
    for epoch in range(args.epochs):
        for batch in torch.randperm(len(x), generator=order)[: per_epoch * args.batch].split(
            args.batch
        ):
            for weight, size in noise.get(step, []):
                _perturb(target.get_parameter(weight), size, seed * 100_003 + step)
            optimizer.zero_grad()
            logits = target(x[batch])
            if teacher is None:
                loss = F.cross_entropy(logits, y[batch])
            else:
                loss = distillation_loss(arm["distil"], logits, teacher[batch], y[batch], epoch)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
    result = {"arm": name, "seed": seed, "loss": float(loss.detach())}
    if graft is not None:
        graft.detach()
        done = [entry for entry in graft.history if not entry.skipped]
        result["transfers"] = len(done)
        result["skipped"] = graft.skipped
        result["sizes"] = [[e.step, {n: c.size for n, c in e.changes.items()}] for e in done]
    result["cpu_seconds"] = time.process_time() - start
    result["accuracy"] = accuracy(target, *data.test)
    return result


def _noise_plan(
    arm: dict, seed: int, args: argparse.Namespace
) -> dict[int, list[tuple[str, float]]]:
    """The steps and relative sizes of the transfers that the like-seeded graft performed."""
    sizes = json.loads(_file(args, arm["noise"], seed).read_text())["sizes"]
    return {step: [(n.removeprefix("target:"), s) for n, s in row.items()] for step, row in sizes}


def _perturb(weight: nn.Parameter, size: float, seed: int) -> None:
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    weight.data.add_(noise * (size * weight.data.norm() / noise.norm()))


# -------------------------------------------------------------------------------------------------------- the harness

IRRELEVANT = {"out", "cache", "root", "jobs", "seeds", "first_seed", "arms"}


def _file(args: argparse.Namespace, name: str, seed: int) -> Path:
    facts = {k: v for k, v in vars(args).items() if k not in IRRELEVANT} | {
        "links": LINKS[args.links]
    }
    key = json.dumps([facts, ARMS[name]], sort_keys=True, default=str)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return Path(args.cache) / f"{args.data}-{name.replace(' ', '_')}-{seed}-{digest}.json"


def summary(results: list[dict]) -> dict[str, dict]:
    by_arm: dict[str, dict[int, dict]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["seed"]] = result
    table = {}
    for name, runs in by_arm.items():
        scores = [r["accuracy"] for r in runs.values()]
        row = {
            "mean": statistics.mean(scores),
            "sd": statistics.stdev(scores) if len(scores) > 1 else math.nan,
        }
        row |= {
            "n": len(scores),
            "cpu_seconds": statistics.mean(r["cpu_seconds"] for r in runs.values()),
        }
        for reference in ("plain", "random source"):
            other = by_arm.get(reference, {})
            if name != reference and runs.keys() <= other.keys():
                row[f"minus {reference}"] = interval(
                    [runs[s]["accuracy"] - other[s]["accuracy"] for s in runs]
                )
        table[name] = row
    return table


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--data", choices=["digits", "fashion-mnist"], default="digits")
    parser.add_argument("--root", help="folder that holds FashionMNIST/raw")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--train-size", type=int, default=200)
    parser.add_argument("--source-size", type=int, default=20_000)
    parser.add_argument("--source-epochs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--links", choices=LINKS, default="residual")
    parser.add_argument("--compress", choices=["longer", "rows"], default="longer")
    parser.add_argument("--cycle", type=int, default=4)
    parser.add_argument("--start", type=float, default=0.0)
    parser.add_argument("--stop", type=float, default=0.8)
    parser.add_argument("--adapter-lr", type=float, default=1e-3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cache", default="out/accuracy")
    args = parser.parse_args()
    torch.set_num_threads(args.jobs)
    data = load(args)
    if args.data == "fashion-mnist":
        data = Data(*((shrink(x), y) for x, y in (data.source, data.target, data.test)))
    start = time.time()
    source = trained_source(args, data)
    strength = accuracy(source, *data.test)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    # The noise control repeats the sizes of the like-seeded graft, so it runs after it.
    first = [(name, seed) for seed in seeds for name in args.arms if "noise" not in ARMS[name]]
    second = [(name, seed) for seed in seeds for name in args.arms if "noise" in ARMS[name]]
    runs = []
    for batch in (first, second):
        jobs = (
            delayed(results.cached)(
                _file(args, name, seed), partial(run, name, seed, args, data, source)
            )
            for name, seed in batch
        )
        runs += Parallel(n_jobs=args.jobs, verbose=5)(jobs)
    order = {name: i for i, name in enumerate(args.arms)}
    arms = summary(sorted(runs, key=lambda r: (order[r["arm"]], r["seed"])))
    report = {
        "settings": {
            k: v for k, v in vars(args).items() if k not in {"root", "cache", "out", "jobs"}
        },
        "links": LINKS[args.links],
        "source_accuracy": strength,
        "arms": arms,
        "versions": results.versions(),
        "wall_seconds": time.time() - start,
    }
    print(tables.accuracy(args.data, f"accuracy_{args.data}", report))
    if args.out:
        results.save(args.out, report)


if __name__ == "__main__":
    main()
