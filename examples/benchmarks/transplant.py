"""Is a transplant a good start? Slim targets of other widths, depths and families, against what else one may do.

A residual network is trained once (the source). Targets have half of its width, and also half of its depth (`shallow`)
or no way around their convolutions (`plain convolutions`, another family). Every arm but the first trains for half of
the steps of `random, all steps`, with the same seed, batches and schedule shape:

    random                    fresh weights, half of the steps
    transplant                `graftlib_adapters.assembly.transplant`: units chosen by class, by magnitude
    transplant, uniform       the same with evenly spaced units
    per tensor                every tensor takes evenly spaced slices of its own (weight selection, Xu et al. 2023)
    transplant, no knowledge  from the source before it was trained
    graft                     fresh weights, with a MergeNet graft from the source while training
    transplant + graft        both

    python -m examples.benchmarks.transplant --root DIR --cache out/transplant --seeds 8

The bar: `transplant` in half of the steps minus `random, all steps` has its 95 % interval above zero, and so has
`transplant` minus `per tensor`. Test images chose nothing. Results are kept one file a run under `--cache`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import FashionMNIST

from graftlib import Mapping, attach, trace
from graftlib_adapters import MergeNet
from graftlib_adapters.assembly import transplant

from ..common import results
from ..common.intervals import interval

WIDTH, DEPTH, BATCH = 24, 2, 64
SOURCE_EPOCHS = {"cifar10": 8, "fashion-mnist": 5}
EPOCHS = 3  # of `random, all steps`
RATE = 1e-2


class Block(nn.Module):
    """Two convolutions, with or without the way around them."""

    def __init__(self, now: int, to: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(now, to, 3, stride, 1, bias=False), nn.BatchNorm2d(to)
        self.conv2, self.bn2 = nn.Conv2d(to, to, 3, 1, 1, bias=False), nn.BatchNorm2d(to)
        self.residual = residual
        if residual and now != to:
            self.around = nn.Sequential(
                nn.Conv2d(now, to, 1, stride, bias=False), nn.BatchNorm2d(to)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.residual:
            y = y + (self.around(x) if hasattr(self, "around") else x)
        return F.relu(y)


class Net(nn.Module):
    """A strided stem, two stages of blocks, the mean over positions into the head."""

    def __init__(self, channels: int, width: int, depth: int, residual: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks, now = [], width
        for to in (width, 2 * width):
            for _ in range(depth):
                blocks.append(Block(now, to, 2 if now != to else 1, residual))
                now = to
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(now, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


TARGETS = {
    "shallow": {"width": WIDTH // 2, "depth": DEPTH // 2},
    "plain convolutions": {"width": WIDTH // 2, "depth": DEPTH // 2, "residual": False},
}
ARMS = (
    "random, all steps",
    "random",
    "transplant",
    "per tensor",
    "transplant, uniform",
    "transplant, no knowledge",
    "graft",
    "transplant + graft",
)


# The other family repeats the bar alone.
FEW = {"plain convolutions": ARMS[:4]}


def load(name: str, root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """8,000 training images and the test images, normalised by the former."""
    if name == "cifar10":
        with np.load(root / "cifar10" / "cifar10_10k.npz") as file:
            x = torch.from_numpy(file["x"]).permute(0, 3, 1, 2).float().div(255)
            y = torch.from_numpy(file["y"])
        order = stratified(y)
        x, y = x[order], y[order]
        parts = x[:8000], y[:8000], x[8000:], y[8000:]
    else:
        train, test = (FashionMNIST(root, train=half) for half in (True, False))
        x, y = train.data[:, None].float() / 255, train.targets
        parts = x[:8000], y[:8000], test.data[:, None].float() / 255, test.targets
    mean, std = parts[0].mean((0, 2, 3), keepdim=True), parts[0].std((0, 2, 3), keepdim=True)
    return (parts[0] - mean) / std, parts[1], (parts[2] - mean) / std, parts[3]


def stratified(labels: Tensor) -> Tensor:
    """An order in which every prefix holds the classes in nearly equal shares; seed 0."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.empty(len(labels), dtype=torch.float64)
    for label in range(10):
        own = (labels == label).nonzero().flatten()
        turn[own] = (torch.randperm(len(own), generator=generator) + 0.5).double() / len(own)
    return turn.argsort(stable=True)


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, seed: int, graft=None) -> None:
    """AdamW under a one-cycle schedule over `steps`; the same seed gives the same batches."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    if graft is not None:
        graft.follow(optimizer)
    random = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(x), generator=random)
        batch, order = order[:BATCH], order[BATCH:]
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    if graft is not None:
        graft.detach()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    hits = sum(
        float((model(a).argmax(1) == b).sum())
        for a, b in zip(x.split(500), y.split(500), strict=True)
    )
    return 100 * hits / len(y)


def per_tensor(source: nn.Module, target: nn.Module) -> nn.Module:
    """Every tensor takes evenly spaced slices of the one that `transplant` pairs it with, axis by axis, on its own."""
    mapping = Mapping(*(trace(m, (torch.zeros(2, *shape_of(m)),)) for m in (source, target)))
    made, given = copy.deepcopy(target), source.state_dict()
    held = made.state_dict()
    for each in transplant(mapping).written:
        values, wanted = given[each.sources[0]], held[each.target]
        for axis, size in enumerate(wanted.shape):
            places = torch.linspace(0, values.shape[axis] - 1, size).round().long()
            values = values.index_select(axis, places)
        wanted.copy_(values)
    return made


def shape_of(model: nn.Module) -> tuple[int, int, int]:
    channels = model.stem[0].in_channels
    return (channels, 32, 32) if channels == 3 else (channels, 28, 28)


def started(arm: str, source: nn.Module, fresh: nn.Module, target: nn.Module) -> nn.Module:
    """The target as an arm begins with it."""
    example = (torch.zeros(2, *shape_of(target)),)
    if arm.startswith("per tensor"):
        return per_tensor(source, target)
    if not arm.startswith("transplant"):
        return target
    giver = fresh if "no knowledge" in arm else source
    mapping = Mapping(trace(giver, example), trace(target, example))
    return transplant(mapping, score="uniform" if "uniform" in arm else "magnitude").model


def grafted(source: nn.Module, target: nn.Module, steps: int, seed: int):
    """A MergeNet graft from the source's last block onto the target's."""
    example = (torch.zeros(2, *shape_of(target)),)
    mapping = Mapping(trace(source, example), trace(target, example))
    last = len(target.blocks) - 1
    mapping.link(f"blocks.{len(source.blocks) - 1}.conv2", f"blocks.{last}.conv2")
    return attach(MergeNet(), mapping, total_steps=steps, seed=seed)


def run(arm: str, options: dict, seed: int, data, source: nn.Module, fresh: nn.Module) -> dict:
    x, y, test_x, test_y = data
    torch.manual_seed(seed)
    target = Net(x.shape[1], **options)
    began = time.process_time()
    model = started(arm, source, fresh, target)
    before = accuracy(model, test_x, test_y)
    whole = EPOCHS * (len(x) // BATCH)
    steps = whole if arm == "random, all steps" else whole // 2
    graft = grafted(source, model, steps, seed) if "graft" in arm else None
    train(model, x, y, steps, seed, graft)
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "accuracy_at_start": before,
        "accuracy": accuracy(model, test_x, test_y),
        "cpu_seconds": time.process_time() - began,
    }


def trained_source(name: str, data, cache: Path) -> tuple[nn.Module, nn.Module]:
    """The source trained, and as it was before; from the cache where it is there."""
    x, y, _, _ = data
    torch.manual_seed(1000)
    fresh = Net(x.shape[1], WIDTH, DEPTH)
    source, path = copy.deepcopy(fresh), cache / f"source-{name}.safetensors"
    if path.exists():
        source.load_state_dict(load_file(path))
        return source.eval(), fresh.eval()
    train(source, x, y, SOURCE_EPOCHS[name] * (len(x) // BATCH), 1000)
    cache.mkdir(parents=True, exist_ok=True)
    save_file(source.state_dict(), path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
    return source.eval(), fresh.eval()


def summary(runs: list[dict]) -> dict:
    by_arm: dict[str, dict[int, dict]] = {}
    for each in runs:
        by_arm.setdefault(each["arm"], {})[each["seed"]] = each

    def minus(arm: str, other: str) -> dict:
        seeds = sorted(by_arm[arm].keys() & by_arm[other].keys())
        gaps = [by_arm[arm][s]["accuracy"] - by_arm[other][s]["accuracy"] for s in seeds]
        return dict(zip(("mean", "low", "high"), interval(gaps), strict=True)) | {"n": len(gaps)}

    table = {}
    for arm, seeds in by_arm.items():
        values = [each["accuracy"] for each in seeds.values()]
        table[arm] = {
            "accuracy": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else math.nan,
            "n": len(values),
            "steps": next(iter(seeds.values()))["steps"],
            "at_start": statistics.mean(each["accuracy_at_start"] for each in seeds.values()),
        }
        for other in ("random, all steps", "random", "per tensor"):
            if other in by_arm and other != arm:
                table[arm][f"minus {other}"] = minus(arm, other)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("out/transplant"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--data", nargs="+", choices=SOURCE_EPOCHS, default=list(SOURCE_EPOCHS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/transplant.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict] = {}
    loaded = {name: load(name, args.root) for name in args.data}
    sources = {name: trained_source(name, loaded[name], args.cache) for name in args.data}
    facts = {n: accuracy(s, *loaded[n][2:]) for n, (s, _) in sources.items()}
    # Seed by seed, so that a benchmark that is cut short has a few seeds of everything.
    for seed in range(args.seeds):
        for target in args.targets:
            for name in args.data:
                for arm in [a for a in args.arms if a in FEW.get(target, ARMS)]:
                    path = args.cache / f"{name}-{target}-{arm}-{seed}.json".replace(" ", "_")
                    if not path.exists():
                        result = run(arm, TARGETS[target], seed, loaded[name], *sources[name])
                        path.with_suffix(".tmp").write_text(json.dumps(result))
                        path.with_suffix(".tmp").replace(path)
                    runs = found.setdefault(f"{name}, {target}", {}).setdefault("runs", [])
                    runs.append(json.loads(path.read_text()))
                    print(name, target, arm, seed, f"{runs[-1]['accuracy']:.2f}", flush=True)
        for each in found.values():
            each["arms"] = summary(each["runs"])
        report = {
            "what": "accuracy in percent on test images; differences are paired by seed, with 95 % intervals",
            "sources": facts,
            "source": {"width": WIDTH, "depth": DEPTH, "epochs": SOURCE_EPOCHS},
            "targets": TARGETS,
            "epochs_of_all_steps": EPOCHS,
            "train_images": 8000,
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "settings": found,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        results.save(args.out, report)
    for title, each in found.items():
        print(f"\n{title}")
        for arm, row in each["arms"].items():
            against = row.get("minus random, all steps", {"mean": 0, "low": 0, "high": 0})
            print(
                f"  {arm:26s} {row['steps']:5d} steps {row['accuracy']:6.2f} ± {row['std']:.2f}"
                f"   minus all steps {against['mean']:+.2f} [{against['low']:+.2f}, {against['high']:+.2f}]"
            )


if __name__ == "__main__":
    main()
