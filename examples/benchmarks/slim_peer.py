"""`graftlib.slim` beside Torch-Pruning: the same trained models, MACs, calibration images and fine-tuning.

    pip install torch-pruning==1.6.1
    python -m examples.paper.on_gpu --make-data .gpu/images.npz --root DIR      once, where the data sets are
    python -m examples.benchmarks.slim_peer --data .gpu/images.npz --out docs/benchmarks/slim_peer.json --minutes 6
    python -m examples.benchmarks.slim_peer --data .gpu/images.npz --out dry.json --device cpu --small --minutes 1

An original is trained for each seed. Every setting of both tools prunes it to a half and to a quarter of its MACs
(counted by `torch.utils.flop_counter`), with the same 2,048 of its training images, and their labels where it reads
labels; the accuracy then is ``one-shot``. All are then trained on, on the same batches at the same rates: ``tuned``.

Torch-Pruning (``peer``) takes a ratio and no budget, so the ratio is searched that comes nearest to it. It is given
what its own examples give: the last layer left alone, for the transformer the heads of each layer (whole heads go, and
its own attribute is set anew) and the parameter that no module holds. Three scopes of its importances: ``local`` (one
ratio for all layers), ``global``, ``isomorphic``. Both tools may choose any width (``multiple_of=1``).
``statistics`` of a peer's row: its one-shot accuracy once batch norms are re-estimated on the calibration images, which
Torch-Pruning does not do.

Parts of the work (a task and a seed) are taken in turn by processes; every result is a line in the log beside `--out`,
from which the same command goes on. Accuracy is that of the last step, on held-out images nobody chose anything by.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graftlib

from ..common import command, datasets, results
from ..common.intervals import interval
from ..common.markdown import signed
from ..common.markdown import table as markdown_table
from ..common.models import macs
from ..common.together import Images, Recipe, train
from ..common.training import accuracy
from ..paper.on_gpu import images as load
from ..paper.on_gpu import note
from .slim_start import ConvNet, Layer

SHARES = (0.5, 0.25)
FIRST_SEED = 300
CALIBRATION, BATCH = 2048, 256

# --------------------------------------------------------------------------------------------------------- the models


class Block(nn.Module):
    """A basic residual block; where it changes the width, a 1x1 convolution goes beside it."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.beside: nn.Module = nn.Identity()
        if width != out:
            self.beside = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.beside(x)).relu()


def resnet(channels: int, blocks: int, width: int = 16) -> nn.Module:
    """For small images, as He et al. 2016 have it: 6 `blocks` + 2 layers in three stages."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    now = width
    for stage in range(3):
        for i in range(blocks):
            out = width * 2**stage
            layers.append(Block(now, out, 2 if stage and not i else 1))
            now = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(now, 10))


class Vision(nn.Module):
    """Two strided convolutions make 64 tokens of 32 x 32 images; layers of attention and MLP; the mean token."""

    def __init__(self, channels: int, side: int, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(nn.Conv2d(channels, width // 2, 3, 2, 1), nn.GELU()),
            nn.Conv2d(width // 2, width, 3, 2, 1),
        )
        self.place = nn.Parameter(torch.randn(1, (side // 4) ** 2, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, width // 16) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.layers(x)).mean(1))


@dataclass(frozen=True)
class Task:
    """A data set, a model and its training.

    Attributes:
        make: (channels, side, small) -> the model.
        train: images to learn from.
        first: how the original is trained.
        then: how all that were pruned are.
        again: another rate for that, for the first seeds.
    """

    dataset: str
    make: Callable[[int, int, bool], nn.Module]
    train: int
    first: Recipe
    then: Recipe
    again: float


def _resnet56(channels: int, side: int, small: bool) -> nn.Module:
    return resnet(channels, 2, 8) if small else resnet(channels, 9)


def _cnn(channels: int, side: int, small: bool) -> nn.Module:
    return ConvNet(channels, side, 8 if small else 64)


def _vision(channels: int, side: int, small: bool) -> nn.Module:
    return Vision(channels, side, 64 if small else 96, 1 if small else 6)


SGD, ADAMW = Recipe("sgd", 0.1, 20), Recipe("adamw", 2e-3, 30)
TASKS = {
    "ResNet-56, CIFAR-10": Task(
        *("cifar10", _resnet56, 8000, replace(SGD, epochs=16)),
        *(replace(SGD, rate=0.02, epochs=4), 0.1),
    ),
    "vision transformer, CIFAR-10": Task(
        *("cifar10", _vision, 8000, ADAMW),
        *(replace(ADAMW, rate=5e-4, epochs=5), 2e-3),
    ),
    "residual CNN, CIFAR-10": Task(
        *("cifar10", _cnn, 8000, SGD),
        *(replace(SGD, rate=0.02, epochs=5), 0.1),
    ),
    "residual CNN, Fashion-MNIST": Task(
        *("fashion-mnist", _cnn, 50_000, replace(SGD, epochs=4, batch=256)),
        *(replace(SGD, rate=0.02, epochs=1, batch=256), 0.1),
    ),
    "residual CNN, digits": Task(
        *("digits", lambda channels, side, small: ConvNet(channels, side, 16), 1400),
        *(replace(SGD, epochs=10, batch=64), replace(SGD, rate=0.02, epochs=2, batch=64), 0.1),
    ),
    "vision transformer, digits": Task(
        *("digits", lambda channels, side, small: Vision(channels, side, 64, 2), 1400),
        *(replace(ADAMW, epochs=12, batch=64), replace(ADAMW, rate=5e-4, epochs=2, batch=64), 2e-3),
    ),
}

# ------------------------------------------------------------------------------------------------------- the settings


@dataclass(frozen=True)
class Ours:
    """What `graftlib.slim` is told.

    Attributes:
        labels: it is given the losses of the calibration images.
        tuned: it is run for every seed and trained on; else one-shot only, for the first seeds.
    """

    importance: str = "magnitude"
    ranking: str = "uniform"
    refit: str | None = "least-squares"
    statistics: bool = True
    labels: bool = False
    tuned: bool = True


@dataclass(frozen=True)
class Peer:
    """An importance of Torch-Pruning and what it is compared across."""

    importance: str
    scope: str


SETTINGS: dict[str, Ours | Peer] = {
    **{
        f"peer {importance}, {scope}": Peer(importance, scope)
        for importance in ("group-L2", "Taylor")
        for scope in ("local", "global", "isomorphic")
    },
    "magnitude, not fitted": Ours(refit=None, statistics=False),
    "magnitude, old statistics": Ours(statistics=False, tuned=False),
    "magnitude": Ours(),
    "magnitude, isomorphic": Ours(ranking="isomorphic", tuned=False),
    "wanda, not fitted": Ours("wanda", refit=None, statistics=False),
    "wanda": Ours("wanda"),
    "wanda, isomorphic": Ours("wanda", "isomorphic"),
    "fluctuation": Ours("fluctuation"),
    "fluctuation, isomorphic": Ours("fluctuation", "isomorphic", tuned=False),
    "Taylor": Ours("taylor", labels=True, tuned=False),
    "Taylor, isomorphic": Ours("taylor", "isomorphic", labels=True),
    "Fisher, isomorphic": Ours("fisher", "isomorphic", labels=True, tuned=False),
}


@dataclass
class Original:
    """A trained model with what it is pruned by.

    Attributes:
        graph: of a model of this class.
        ratios: (setting, share) -> the ratio that came nearest, from one model of a task to the next.
    """

    model: nn.Module
    graph: graftlib.LayerGraph
    x: Tensor
    y: Tensor
    ratios: dict[tuple[Peer, float], float]

    def losses(self, model: nn.Module) -> Iterator[Tensor]:
        for x, y in zip(self.x.split(BATCH), self.y.split(BATCH), strict=True):
            yield F.cross_entropy(model(x), y)

    def macs(self, model: nn.Module) -> int:
        """Of one image."""
        return macs(model, self.x[:1])


def pruned(setting: Ours | Peer, original: Original, share: float) -> nn.Module:
    """What a tool makes of the original; on its device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (_ours if isinstance(setting, Ours) else _peer)(setting, original, share)  # type: ignore[operator]


def _ours(setting: Ours, original: Original, share: float) -> nn.Module:
    return graftlib.slim(
        original.graph,
        budget={"macs": share},
        data=list(original.x.split(BATCH)),
        importance=setting.importance,
        losses=original.losses if setting.labels else None,
        ranking=setting.ranking,
        refit=setting.refit,
        statistics=setting.statistics,
        multiple_of=1,
        model=original.model,
    ).model


def _peer(setting: Peer, original: Original, share: float) -> nn.Module:
    key, whole = (setting, share), original.macs(original.model)
    model, original.ratios[key] = nearest(
        lambda ratio: _at_ratio(setting, original, ratio),
        lambda model: original.macs(model) / whole,
        share,
        original.ratios.get(key, 1 - share**0.5),
    )
    return model


def nearest(
    make: Callable[[float], nn.Module],
    costs: Callable[[nn.Module], float],
    share: float,
    ratio: float,
) -> tuple[nn.Module, float]:
    """(the model that comes nearest to a share of the costs, its ratio), within a hundredth or by seven trials.

    By the secant of the root of the costs, which is nearly a line, inside of what brackets the ratio.

    Args:
        make: a model for a ratio of what goes.
        costs: of a model, as a share.
        share: that is asked for.
        ratio: to begin with.
    """
    found, low, high = [], 0.0, 1.0
    for _ in range(7):
        model = make(ratio)
        cost = costs(model)
        found.append((abs(cost / share - 1), model, ratio))
        if found[-1][0] < 0.01:
            break
        low, high = (ratio, high) if cost > share else (low, ratio)
        ratio += cost**0.5 - share**0.5
        if not low < ratio < high:
            ratio = (low + high) / 2
    _, model, ratio = min(found, key=lambda each: each[0])
    return model, ratio


def _at_ratio(setting: Peer, original: Original, ratio: float) -> nn.Module:
    import torch_pruning as peer

    model = copy.deepcopy(original.model)
    importance = peer.importance.GroupMagnitudeImportance(p=2)
    if setting.importance == "Taylor":
        importance = peer.importance.GroupTaylorImportance()
        for loss in original.losses(model):
            loss.backward()
    attention = [m for m in model.modules() if isinstance(m, Layer)]
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    pruner = peer.pruner.BasePruner(
        model,
        original.x[:1],
        importance=importance,
        global_pruning=setting.scope != "local",
        isomorphic=setting.scope == "isomorphic",
        pruning_ratio=ratio,
        ignored_layers=[last],
        num_heads={layer.qkv: layer.heads for layer in attention},
        prune_num_heads=bool(attention),
        prune_head_dims=not attention,
        head_pruning_ratio=ratio if attention else 0.0,
        in_channel_groups={},
        out_channel_groups={},
        unwrapped_parameters=[(model.place, 2)] if isinstance(model, Vision) else None,
    )
    pruner.step()
    for layer in attention:
        layer.heads = pruner.num_heads[layer.qkv]
    model.zero_grad()
    return model


@torch.no_grad()
def reestimated(model: nn.Module, original: Original) -> nn.Module:
    """A copy with the running statistics of its batch norms taken anew."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    for x in original.x.split(BATCH):
        model(x)
    return model.eval()


# ----------------------------------------------------------------------------------------------------------- the work


def part(
    name: str,
    seed: int,
    args: argparse.Namespace,
    known: dict[str, Any],
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """One seed of a task: train, prune by every setting, train on."""
    task, device = TASKS[name], args.device
    images = known.setdefault(f"images {task.dataset}", None) or prepared(task, args)
    known[f"images {task.dataset}"] = images
    first, then = task.first, task.then
    if args.small:
        first, then = replace(first, epochs=0.5, batch=32), replace(then, epochs=0.2, batch=32)
    channels, side = images.x.shape[1:3]
    began = time.time()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = task.make(channels, side, args.small).to(device)
    train([model], images, first, seed)
    key = f"graph {name}"
    if key not in known:
        known[key] = graftlib.trace(copy.deepcopy(model), images.x[:2])
    count = min(CALIBRATION, len(images.y) // 3)
    chosen = known.setdefault(f"ratios {name}", {})
    original = Original(model, known[key], images.x[:count], images.y[:count], chosen)
    whole, facts = original.macs(model), {"task": name, "seed": seed}
    top = accuracy(model, images.test_x, images.test_y)
    tell(facts | {"kind": "original", "macs": whole, "tuned": top, "seconds": time.time() - began})
    rows, models = [], []
    early = seed < args.first_seed + args.again
    for share in args.shares:
        for label in args.settings:
            setting = SETTINGS[label]
            if not early and isinstance(setting, Ours) and not setting.tuned:
                continue
            row: dict[str, Any] = facts | {"kind": "run", "setting": label, "share": share}
            began = time.time()
            try:
                small = pruned(setting, original, share)
                row |= {"macs": original.macs(small) / whole, "seconds": time.time() - began}
                row["one-shot"] = accuracy(small, images.test_x, images.test_y)
                if isinstance(setting, Peer):
                    again = reestimated(small, original)
                    row["statistics"] = accuracy(again, images.test_x, images.test_y)
            except Exception:
                tell(row | {"kind": "error", "error": traceback.format_exc()[-1500:]})
                continue
            tell(row | {"kind": "one-shot"})
            if isinstance(setting, Peer) or setting.tuned:
                rows.append(row)
                models.append(small)
    rates = [then.rate, task.again] if early else [then.rate]
    for rate in rates:
        began = time.time()
        tuned = copy.deepcopy(models)
        train(tuned, images, replace(then, rate=rate), seed + 1)
        spent = (time.time() - began) / max(len(models), 1)
        for row, small in zip(rows, tuned, strict=True):
            top = accuracy(small, images.test_x, images.test_y)
            tell(row | {"kind": "tuned", "rate": rate, "tuned": top, "tuning": spent})
    tell(facts | {"kind": "end"})


def prepared(task: Task, args: argparse.Namespace) -> Images:
    """Normalised, on the device; digits twice as large."""
    if task.dataset == "digits":
        _, parts = datasets.split("digits")
        return Images(
            *(p.repeat_interleave(2, 2).repeat_interleave(2, 3) if p.ndim > 1 else p for p in parts)
        )
    held_out = 2000 if task.dataset == "cifar10" else 10_000
    x, y, test_x, test_y = load(
        args.data, task.dataset, 300 if args.small else task.train, 200 if args.small else held_out
    )
    x, test_x = (part.to(args.device).float() / 255 for part in (x, test_x))
    mean, sd = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    x, test_x = (x - mean) / sd, (test_x - mean) / sd
    if args.small:
        x, test_x = x[..., ::2, ::2].contiguous(), test_x[..., ::2, ::2].contiguous()
    return Images(x, y.to(args.device), test_x, test_y.to(args.device))


def work(args: argparse.Namespace) -> None:
    """One process: takes parts until none is left or the time is up."""
    torch.set_num_threads(1 if args.device == "cpu" else 2)
    log, known = log_of(args), {}
    ends = {(r["task"], r["seed"]) for r in lines(log) if r["kind"] == "end"}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.tasks:
            if (name, seed) in ends or time.time() > args.until or not _claimed(args, name, seed):
                continue
            try:
                part(name, seed, args, known, lambda record: note(log, record))
            except Exception:
                error = traceback.format_exc()[-2000:]
                note(log, {"kind": "error", "task": name, "seed": seed, "error": error})


def _claimed(args: argparse.Namespace, name: str, seed: int) -> bool:
    with suppress(FileExistsError):
        (args.folder / f"{list(TASKS).index(name)}-{seed}").touch(exist_ok=False)
        return True
    return False


def log_of(args: argparse.Namespace) -> Path:
    return args.out.with_suffix(".jsonl")


def lines(log: Path) -> list[dict[str, Any]]:
    """What the log holds; a line that was cut off is left out."""
    found = []
    for line in log.read_text("utf-8").splitlines() if log.exists() else ():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


# --------------------------------------------------------------------------------------------------------- the report


def report(args: argparse.Namespace) -> dict[str, Any]:
    """All that the log says: means, and for each setting of ours the paired difference to the peer's best."""
    records = lines(log_of(args))
    tables: dict[str, Any] = {}
    for name in dict.fromkeys(r["task"] for r in records if r["kind"] == "original"):
        own = [r for r in records if r.get("task") == name]
        tops = [r["tuned"] for r in own if r["kind"] == "original"]
        for share in SHARES:
            runs = [r for r in own if r.get("share") == share]
            once = [r for r in runs if r["kind"] == "one-shot"]
            tables[f"{name}, {share:g}"] = {
                "original": statistics.mean(tops),
                "one-shot": table(once, "one-shot"),
                "one-shot, statistics": table(
                    [r | {"one-shot": r.get("statistics", r["one-shot"])} for r in once], "one-shot"
                ),
                **{
                    f"tuned at {rate:g}": table(
                        [r for r in runs if r["kind"] == "tuned" and r["rate"] == rate], "tuned"
                    )
                    for rate in (TASKS[name].then.rate, TASKS[name].again)
                },
            }
    cuda = args.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "torch": torch.__version__,
        "small": args.small,
        "calibration": CALIBRATION,
        "tasks": {
            name: {"first": vars(task.first), "then": vars(task.then), "train": task.train}
            for name, task in TASKS.items()
        },
        "settings": {name: vars(setting) for name, setting in SETTINGS.items()},
        "tables": tables,
        "errors": [r for r in records if r["kind"] == "error"],
    }


def table(records: list[dict[str, Any]], what: str) -> dict[str, Any]:
    """Rows by setting; differences over the seeds that the setting and all of the peer's have."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for r in records:
        runs.setdefault(r["setting"], {})[r["seed"]] = r
    peers = {name: each for name, each in runs.items() if isinstance(SETTINGS[name], Peer)}
    shared = set.intersection(*(set(each) for each in peers.values())) if peers else set()
    means = {
        name: statistics.mean(each[seed][what] for seed in shared) if shared else -math.inf
        for name, each in peers.items()
    }
    best = max(means, key=lambda name: means[name], default=None)
    rows = {}
    for name, each in runs.items():
        row: dict[str, Any] = {"n": len(each)}
        row |= {"mean": statistics.mean(r[what] for r in each.values())}
        pairs = sorted(set(each) & shared)
        if best is not None and pairs and name not in peers:
            gaps = [each[seed][what] - runs[best][seed][what] for seed in pairs]
            row["minus best"] = interval(gaps)
        row |= {k: statistics.mean(r[k] for r in each.values()) for k in ("macs", "seconds")}
        rows[name] = row
    return {"best": best, "rows": rows}


def markdown(found: dict[str, Any]) -> str:
    """To read after a run."""
    text = [f"{found['device']}, torch {found['torch']}"]
    for name, each in found["tables"].items():
        kinds = [kind for kind in each if kind != "original"]
        text.append(f"\n{name} of the MACs; original {each['original']:.2f}\n")
        rows = []
        for setting in each["one-shot"]["rows"]:
            cells = [setting]
            for kind in kinds:
                row = each[kind]["rows"].get(setting)
                gap = signed(row.get("minus best")) if row else ""
                cells.append(f"{row['mean']:.2f} {gap} ({row['n']})" if row else "")
            row = each["one-shot"]["rows"][setting]
            rows.append([*cells, f"{row['macs']:.3f}", f"{row['seconds']:.1f}"])
        text.append(markdown_table(["setting", *kinds, "MACs", "s"], rows))
    errors = (
        f"- ERROR {e.get('task')} {e.get('setting')}: {e['error'][-400:]}" for e in found["errors"]
    )
    return "\n".join([*text, *errors])


# -------------------------------------------------------------------------------------------------------- the command


def main() -> None:
    args = arguments()
    if args.folder:
        work(args)
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("needs a CUDA device; --device cpu --small is a dry run")
    log, until = log_of(args), time.time() + 60 * args.minutes
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        words = [*sys.argv[1:], "--until", str(until), "--folder", folder]
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name, *words],
                env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2"},
                start_new_session=True,
            )
            for _ in range(args.processes)
        ]
        while any(p.poll() is None for p in workers) and time.time() < until:
            time.sleep(0.3)
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    found = report(args)
    results.save(args.out, found)
    print(markdown(found))


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__, "docs/benchmarks/slim_peer.json")
    parser.add_argument("--data", type=Path, default=Path(".gpu/images.npz"))
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny models and few images")
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument(
        "--again", type=int, default=3, help="seeds that have both rates and all settings"
    )
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    larger = [name for name, task in TASKS.items() if task.dataset != "digits"]
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=larger)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    inner = parser.add_argument_group("used by the command itself")
    inner.add_argument("--until", type=float, help=argparse.SUPPRESS)
    inner.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
