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

import copy
import math
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlib import Mapping, attach, trace
from graftlib_adapters import MergeNet
from graftlib_adapters.assembly import transplant

from ..common import command, datasets, results
from ..common.intervals import interval
from ..common.training import accuracy, load_or_train, one_cycle
from . import tables

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
        x, y = datasets.read(name, root)
        order = datasets.stratified(y, 0)
        x, y = x[order], y[order]
        return datasets.normalised((x[:8000], y[:8000], x[8000:], y[8000:]))
    x, y, *test = datasets.halves(name, root)
    return datasets.normalised((x[:8000], y[:8000], *test))


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
    trained = fresh if "no knowledge" in arm else source
    mapping = Mapping(trace(trained, example), trace(target, example))
    return transplant(mapping, importance="uniform" if "uniform" in arm else "magnitude").model


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
    one_cycle(model, x, y, steps, RATE, seed, batch=BATCH, follow=graft and graft.follow)
    if graft is not None:
        graft.detach()
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
    steps = SOURCE_EPOCHS[name] * (len(x) // BATCH)
    path = cache / f"source-{name}.safetensors"
    source = load_or_train(
        copy.deepcopy(fresh), path, lambda net: one_cycle(net, x, y, steps, RATE, 1000, batch=BATCH)
    )
    return source, fresh.eval()


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
    parser = command.parser(__doc__, "docs/benchmarks/transplant.json")
    command.add_root(parser)
    parser.add_argument("--cache", type=Path, default=Path("out/transplant"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--data", nargs="+", choices=SOURCE_EPOCHS, default=list(SOURCE_EPOCHS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
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
                    known = results.cached(
                        path,
                        partial(run, arm, TARGETS[target], seed, loaded[name], *sources[name]),
                    )
                    runs = found.setdefault(f"{name}, {target}", {}).setdefault("runs", [])
                    runs.append(known)
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
            "versions": results.versions(),
            "settings": found,
        }
        results.save(args.out, report)
    print(tables.transplanted(report))


if __name__ == "__main__":
    main()
