"""What the experiments on the laws of assembly share: pairs of a zoo, walks with controls, one file a pair, intervals.

In: a zoo of `zoo.py`. Out: for an ordered pair of base and source, losses and accuracies along the merging factor, on
validation and on test images. Always true: what is chosen is chosen on validation images; a pair that is done is not
done again; a pair in which nothing meets is kept as such and counted.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from graftlib_adapters.assembly import AssemblyError, Curve, ZooEntry, controls

from ..common.training import loss_and_accuracy
from . import zoo

MATCHED = ("matched, zero", "matched, keep")
ARMS = (*MATCHED, "random, zero", "random, keep", "shrink, zero", "shrink, keep")
TOLERANCE = 1.0  # points of accuracy, for the threshold
NATS = 0.1  # of cross-entropy, for the other threshold
HOPELESS = 10.0  # points below the base from which on a control is not walked further
SIZES = {"smoke": (200, 200), "small": (200, 500), "paper": (2000, 10_000)}
POINTS = {"smoke": 5, "small": 9, "paper": 21}


Row = tuple[float, float, float, float]


@dataclass
class Scorer:
    """Accuracy on validation images; keeps all four figures of every model that it is shown.

    Attributes:
        data: the images.
        sizes: how many of validation and of test.
        points: of one walk.
        matched: the number of walks that are followed to their ends. Of the others only thresholds are read: where both
            accuracies have fallen by `HOPELESS`, what follows is not measured, and is not a number.
        rows: losses and accuracies on validation and on test images, model by model.
        seen: the same, by what the model holds: the base begins every walk, and often a padding changes nothing.
    """

    data: zoo.Images
    sizes: tuple[int, int]
    points: int = 1
    matched: int = 1
    rows: list[Row] = field(default_factory=list)
    seen: dict[bytes, Row] = field(default_factory=dict)

    def __call__(self, model: nn.Module) -> float:
        walk, at = divmod(len(self.rows), self.points)
        if walk >= self.matched and at and self._lost(self.rows[-1]):
            row = (math.nan,) * 4
        else:
            key = _digest(model)
            row = self.seen[key] if key in self.seen else self._measured(model)
            self.seen[key] = row
        self.rows.append(row)
        return row[1]

    def _measured(self, model: nn.Module) -> Row:
        halves = zip((self.data.val, self.data.test), self.sizes, strict=True)
        val, test = (loss_and_accuracy(model, *(t[:size] for t in part)) for part, size in halves)
        return (*val, *test)

    def _lost(self, row: Row) -> bool:
        return not any(row[i] > self.rows[0][i] - HOPELESS for i in (1, 3))


def _digest(model: nn.Module) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for tensor in model.state_dict().values():
        found.update(tensor.numpy().tobytes())
    return found.digest()


def grid(scale: str) -> list[float]:
    """Merging factors: closer to the base, where thresholds lie, they are finer."""
    points = POINTS[scale]
    return [(i / (points - 1)) ** 1.5 for i in range(points)]


def entry(member: zoo.Member, shape: tuple[int, ...]) -> ZooEntry:
    """A member as a source that is read lazily."""
    make = partial(member.architecture.build, shape)
    return ZooEntry(make, member.path, (torch.zeros(2, *shape),), name=member.name)


def walked(
    base: zoo.Member,
    source: zoo.Member,
    data: dict[str, zoo.Images],
    scale: str,
    *,
    arms: Sequence[str] = ARMS,
    layers: Sequence[str] | None = None,
    factors: Sequence[float] | None = None,
) -> dict:
    """All arms of one pair: factors, and four figures for each; or the reason why nothing meets.

    With the scale's own factors controls are walked as far as their thresholds need. Matched arms must come first.
    """
    images = data[base.data]
    points = list(factors or grid(scale))
    followed = sum(arm.startswith("matched") for arm in arms) if factors is None else len(arms)
    scorer = Scorer(images, SIZES[scale], len(points), followed)
    torch.manual_seed(0)
    try:
        names = list(
            controls(
                base.model(images.shape).to(memory_format=torch.channels_last),
                entry(source, data[source.data].shape),
                evaluate=scorer,
                args=(torch.zeros(2, *images.shape),),
                factors=points,
                which=arms,
                layers=layers,
            )
        )
    except AssemblyError as error:
        return {"refused": error.what}
    step = len(points)
    rows = {name: scorer.rows[i * step : (i + 1) * step] for i, name in enumerate(names)}
    keys = ("val_loss", "val_accuracy", "test_loss", "test_accuracy")
    figures = {
        name: dict(zip(keys, map(list, zip(*row, strict=True)), strict=True))
        for name, row in rows.items()
    }
    return {"factors": points, "arms": figures}


def curve(result: dict, arm: str, figure: str) -> Curve:
    """One figure of one arm; losses with their sign turned, as a score is larger where it is better."""
    values = result["arms"][arm][figure]
    sign = -1 if figure.endswith("loss") else 1
    return Curve(tuple(result["factors"]), tuple(sign * v for v in values), arm)


@dataclass(frozen=True)
class Setting:
    """What a script was asked for, with its data and its zoo."""

    args: argparse.Namespace
    data: dict[str, zoo.Images]
    members: dict[str, list[zoo.Member]]

    @property
    def scale(self) -> str:
        return self.args.scale

    def cached(self, kind: str, *names: str) -> Path:
        return self.args.cache / self.scale / kind / ("--".join(names) + ".json")


def setting(description: str | None, options: Iterable[tuple[str, dict]] = ()) -> Setting:
    """Parse the command line, load the data, and train what is missing (or leave it out with ``--only-trained``)."""
    torch.set_num_threads(1)
    parser = zoo.parser(description)
    parser.add_argument("--out", type=Path, default=Path("out/laws"))
    parser.add_argument("--only-trained", action="store_true", help="train no further members")
    for name, option in options:
        parser.add_argument(name, **option)
    args = parser.parse_args()
    data = {name: zoo.load(name, args.root, args.scale) for name in zoo.data_of(args)}
    folder = args.cache / args.scale
    members: dict[str, list[zoo.Member]] = {}
    for name, images in data.items():
        all_of = zoo.architectures(args.scale)
        if args.only_trained:
            found = [zoo.member(each, name, folder) for each in all_of]
            members[name] = [m for m in found if m.path.with_suffix(".json").exists()]
        else:
            members[name] = [zoo.ensure(each, images, args.scale, folder) for each in all_of]
    return Setting(args, data, members)


def clustered(
    values: dict[tuple[str, str], float], draws: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Mean and median with 95 % intervals; bases and sources are drawn, since pairs that share one are alike."""
    bases = sorted({base for base, _ in values})
    sources = sorted({source for _, source in values})
    cells = np.full((len(bases), len(sources)), np.nan)
    for (base, source), value in values.items():
        cells[bases.index(base), sources.index(source)] = value
    random = np.random.default_rng(seed)
    means, medians = [], []
    for _ in range(draws):
        some, others = (random.integers(size, size=size) for size in cells.shape)
        drawn = cells[np.ix_(some, others)]
        drawn = drawn[~np.isnan(drawn)]
        if len(drawn):
            means.append(float(drawn.mean()))
            medians.append(float(np.median(drawn)))
    found = {"n": len(values), "bases": len(bases), "sources": len(sources)}
    for name, middle, all_of in (
        ("mean", statistics.fmean, means),
        ("median", statistics.median, medians),
    ):
        low, high = np.quantile(all_of, (0.025, 0.975), method="lower")
        found |= {
            name: middle(values.values()),
            f"{name}_low": float(low),
            f"{name}_high": float(high),
        }
    return found


def text(found: dict[str, float], which: str = "mean") -> str:
    """``+0.12 [+0.08, +0.16] over 30 pairs``."""
    low, high = found[f"{which}_low"], found[f"{which}_high"]
    return f"{found[which]:+.3f} [{low:+.3f}, {high:+.3f}] over {found['n']} pairs"
