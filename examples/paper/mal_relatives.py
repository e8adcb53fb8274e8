"""Relatives: descendants of one network, cut to unequal widths, tuned on shares of their own, merged into one of them.

    python -m examples.paper.mal_relatives --scale small --root DIR --cache out/zoo --seeds 8 --out mal_relatives.json

An ancestor is trained on real images. Descendants of other widths (and depths) are cut from it by magnitude
(`transplant`) and each is tuned on few images that nobody else sees. One is the base, the others are sources. What is
merged and how much of it is chosen on validation images, by loss; accuracy is read on test images, and nothing was
chosen there. Controls that go through the same choice:

    identity          the sources, unit i reads unit i
    random            the sources, random permutations
    nothing           sources of zeros (shrinking)
    scrambled         sources whose tensors' entries are in a drawn order
    initialisation    sources of the same shapes before any training
    equal compute     the base, tuned on its own share for as many further steps as all sources took; its length chosen

Beside them stand references: relatives that were cut and not tuned (what of the gain is the ancestor's), the base
tuned on its share and on the validation images as well, the ancestor, the base tuned on all shares, and the mean of all
networks' outputs. Seeds draw the ancestor, the shares and the batches. Differences are paired, with 95 % t intervals.

`--map` looks where merging helps and where not: one ancestor or several, widths, depths, families, images for each
share, one step or many, with statistics repaired. It is read on validation images that chose nothing.
"""

from __future__ import annotations

import copy
import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlib import Mapping, trace
from graftlib_adapters.assembly import Search, align, assemble, merged, problem, transplant
from graftlib_adapters.assembly.repair import repair

from ..common import results
from ..common.intervals import interval
from ..common.training import load_or_train, loss_and_accuracy, one_cycle
from . import zoo
from .mal_lambda import emptied, scrambled

CONTROLS = ("identity", "random", "nothing", "scrambled", "initialisation", "equal compute")
REFERENCES = ("untuned", "with validation", "ancestor", "all shares", "ensemble")
FACTORS = (0.1, 0.2, 0.3, 0.4, 0.5)
ROUNDS = 2
BATCH = 32
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Setting:
    """One family tree.

    Attributes:
        data: of all of them.
        family: of `zoo.FAMILIES`.
        ancestor: its (width, depth).
        base: of the base.
        sources: in the order that they are merged in.
        first: images, steps and rate of the ancestor's training.
        share: images that each descendant is tuned on; no two see the same.
        steps: of a descendant's tuning, of `BATCH` images.
        rate: of it.
        kin: whether the sources come from the base's ancestor; else from one trained alike from other initial weights.
        domain: of `DOMAINS`: what is done to the images of all but the ancestor.
    """

    data: str
    family: str
    ancestor: tuple[int, int]
    base: tuple[int, int]
    sources: tuple[tuple[int, int], ...]
    first: tuple[int, int, float]
    share: int
    steps: int
    rate: float
    kin: bool = True
    domain: str = "as they are"

    @property
    def digest(self) -> str:
        """What a result depends on, as a name."""
        held = {k: v for k, v in asdict(self).items() if (k, v) != ("domain", "as they are")}
        return hashlib.sha256(json.dumps(held).encode()).hexdigest()[:12]


def noisy(x: Tensor) -> Tensor:
    """With noise of 0.8 standard deviations, the same at every call."""
    return x + 0.8 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))


DOMAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda x: x,
    "mirrored": lambda x: x.flip(-1),
    "noisy": noisy,
}


MLP = Setting(
    "fashion-mnist", "mlp", (256, 2), (128, 2), ((192, 2), (96, 2), (160, 2), (64, 2)),
    (2000, 300, 3e-3), 100, 100, 1e-3,
)  # fmt: skip
MIRRORED = replace(
    MLP, domain="mirrored", share=200,
    sources=((192, 2), (96, 2), (160, 2), (112, 2), (224, 2), (144, 2)),
)  # fmt: skip
CNN = Setting(
    "fashion-mnist", "cnn", (32, 3), (16, 3), ((24, 3), (12, 3), (20, 3), (32, 3)),
    (2000, 300, 3e-3), 300, 150, 1e-3,
)  # fmt: skip
RESNET = Setting(
    "cifar10", "resnet", (24, 2), (12, 2), ((18, 2), (9, 2), (15, 2)),
    (2000, 300, 3e-3), 300, 150, 1e-3,
)  # fmt: skip
VIT = Setting(
    "fashion-mnist", "vit", (64, 2), (32, 2), ((48, 2), (40, 2), (64, 2)),
    (2000, 300, 3e-3), 300, 150, 1e-3,
)  # fmt: skip
SETTINGS = {
    "smoke": {
        "mlp": replace(
            MLP, data="digits", ancestor=(32, 1), base=(16, 1), sources=((24, 1), (12, 1)),
            first=(400, 60, 3e-3), share=60, steps=30,
        )
    },
    "small": {"mlp": MLP, "mlp, mirrored": MIRRORED, "cnn": CNN, "resnet": RESNET},
    "paper": {
        name: replace(
            each,
            ancestor=(4 * each.ancestor[0], each.ancestor[1]),
            base=(4 * each.base[0], each.base[1]),
            sources=tuple((4 * w, d) for w, d in each.sources),
            first=(4000, 3000, 1e-3),
        )
        for name, each in (("mlp", MLP), ("cnn", CNN), ("resnet", RESNET), ("vit", VIT))
    },
}  # fmt: skip


def cells(scale: str) -> dict[str, Setting]:
    """What the map looks at: each setting, and what one change makes of it."""
    if scale == "smoke":
        one = SETTINGS["smoke"]["mlp"]
        return {"mlp": one, "mlp: strangers": replace(one, kin=False)}
    found = {}
    every = {"mlp": MLP, "mlp, mirrored": MIRRORED, "cnn": CNN, "resnet": RESNET, "vit": VIT}
    for name, each in every.items():
        found[name] = each
        found[f"{name}: strangers"] = replace(each, kin=False)
        found[f"{name}: equal widths"] = replace(each, sources=(each.base,) * len(each.sources))
    for name, each in (("mlp", MLP), ("cnn", CNN)):
        wide = tuple(s for s in each.sources if s > each.base)
        slim = tuple(s for s in each.sources if s < each.base)
        found[f"{name}: wider sources"] = replace(each, sources=wide)
        found[f"{name}: narrower sources"] = replace(each, sources=slim)
        found[f"{name}: a third of the images"] = replace(each, share=each.share // 3)
        found[f"{name}: thrice the images"] = replace(each, share=3 * each.share)
        found[f"{name}: a third of the rate"] = replace(each, rate=each.rate / 3)
    found["mlp: noisy images"] = replace(MIRRORED, domain="noisy")
    found["mlp: weak ancestor"] = replace(MLP, first=(300, 60, 1e-3), share=500)
    found["resnet: other depths"] = replace(RESNET, sources=((12, 1), (18, 1), (9, 2)))
    return found


# ---------------------------------------------------------------------------------------------------------- one family


class Family:
    """An ancestor and its descendants, with their images.

    Attributes:
        chosen: validation images that modules and factors are chosen on.
        read: images that figures are read on: those of test, or of the rest of validation.
        base, sources: tuned; `plain` are the sources as they were cut.
    """

    def __init__(
        self, setting: Setting, images: zoo.Images, seed: int, cache: Path, read: Pair, chosen: Pair
    ) -> None:
        self.setting, self.shape, self.seed = setting, images.shape, seed
        self.shift = DOMAINS[setting.domain]
        self.read, self.chosen = ((self.shift(x), y) for x, y in (read, chosen))
        random = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(images.train[1]), generator=random)
        self.pool = tuple(t[order] for t in images.train)
        self.example = (torch.zeros(2, *self.shape),)
        self.ancestor = self._ancestor(cache, seed)
        other = self.ancestor if setting.kin else self._ancestor(cache, seed + 500)
        self.start = self.cut(self.ancestor, setting.base)
        self.plain = [self.cut(other, shape) for shape in setting.sources]
        self.base = self.taught(self.start, 0)
        self.sources = [self.taught(each, 1 + i) for i, each in enumerate(self.plain)]

    def fresh(self, shape: tuple[int, int], seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return zoo.FAMILIES[self.setting.family].build(self.shape, *shape).eval()

    def part(self, first: int, count: int) -> Pair:
        """Images behind those of the ancestor."""
        begin = self.setting.first[0] + first
        x, y = self.pool
        if begin + count > len(y):
            raise ValueError(f"{self.setting.data} has {len(y)} images, not {begin + count}")
        return self.shift(x[begin : begin + count]), y[begin : begin + count]

    def share(self, number: int) -> Pair:
        return self.part(number * self.setting.share, self.setting.share)

    def cut(self, ancestor: nn.Module, shape: tuple[int, int]) -> nn.Module:
        graphs = (trace(each, self.example) for each in (ancestor, self.fresh(shape, 0)))
        return transplant(Mapping(*graphs)).model.eval()

    def taught(self, model: nn.Module, number: int) -> nn.Module:
        given = self.setting
        seed = 10 * self.seed + number
        return one_cycle(
            copy.deepcopy(model), *self.share(number), given.steps, given.rate, seed, batch=BATCH
        )

    def _ancestor(self, cache: Path, seed: int) -> nn.Module:
        """Trained once for all settings that begin alike."""
        given = self.setting
        images, steps, rate = given.first
        name = "-".join(
            map(str, (given.data, given.family, *given.ancestor, *given.first, self.seed, seed))
        )
        x, y = (each[:images] for each in self.pool)
        return load_or_train(
            self.fresh(given.ancestor, 1000 + seed),
            cache / f"{name}.safetensors",
            lambda model: one_cycle(model, x, y, steps, rate, seed, batch=BATCH),
        )

    def score(self, model: nn.Module) -> float:
        """Minus the validation loss: larger is better."""
        return -loss_and_accuracy(model, *self.chosen)[0]

    def spoiled(self, how: Callable[[nn.Module], None]) -> list[nn.Module]:
        made = [copy.deepcopy(each) for each in self.sources]
        for each in made:
            how(each)
        return made


# ------------------------------------------------------------------------------------------------------------ the arms


def assembled(family: Family, sources: Sequence[nn.Module], rounds: int = ROUNDS):
    return assemble(
        family.base,
        list(sources),
        args=family.example,
        evaluate=family.score,
        search=Search(factors=FACTORS, parts=("all",), rounds=rounds),
        pad="keep",
    )


@torch.no_grad()
def greedy(
    family: Family, sources: Sequence[nn.Module], method: str, rounds: int = ROUNDS
) -> nn.Module:
    """The same choice as `assemble` makes it, for alignments that it does not offer: identity and random."""
    model = copy.deepcopy(family.base)
    graph = trace(model, family.example)
    tasks = [problem(graph, trace(each, family.example)) for each in sources]
    best = family.score(model)
    for turn in range(rounds):
        for i, (task, source) in enumerate(zip(tasks, sources, strict=True)):
            held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            given = source.state_dict()
            seed = 0 if method == "coordinate" else 100 * turn + i
            found = align(task, held, given, method=method, seed=seed)
            tried = {0.0: best}
            for factor in FACTORS:
                state = merged(held, found, given, factor, pad="keep")
                model.load_state_dict(state, strict=False)
                tried[factor] = family.score(model)
            chosen = max(tried, key=tried.get)  # of equal ones the first, which merges least
            best = tried[chosen]
            model.load_state_dict(held | merged(held, found, given, chosen, pad="keep"))
    return model


def longer(family: Family) -> nn.Module:
    """The base after further steps on its own share, as many as all sources took; four lengths, chosen as all else."""
    most = family.setting.steps * len(family.sources)
    tried = [family.base]
    for quarter in (1, 2, 3, 4):
        steps, seed = most * quarter // 4, 10 * family.seed
        model = copy.deepcopy(family.base)
        tried.append(
            one_cycle(
                model, *family.share(0), max(steps, 1), family.setting.rate, seed, batch=BATCH
            )
        )
    return max(tried, key=family.score)


def repaired(family: Family, source: nn.Module) -> nn.Module:
    """One source merged in one step, statistics repaired on the base's own share; a factor of 0 repairs the base."""
    graphs = [trace(each, family.example) for each in (family.base, source)]
    states = family.base.state_dict(), source.state_dict()
    found = align(problem(*graphs), *states)
    tried = [family.base]
    for factor in (0.0, *FACTORS):
        model = copy.deepcopy(family.base)
        model.load_state_dict(merged(states[0], found, states[1], factor, pad="keep"), strict=False)
        repair(model, family.base, source, found, [family.share(0)[0]], factor)
        tried.append(model)
    return max(tried, key=family.score)


def figures(family: Family, model: nn.Module) -> dict[str, float]:
    loss, accuracy = loss_and_accuracy(model, *family.read)
    return {"loss": loss, "accuracy": accuracy}


@torch.no_grad()
def ensemble(family: Family) -> dict[str, float]:
    x, y = family.read
    outputs = torch.stack(
        [
            torch.cat([m(part) for part in x.split(500)]).softmax(1)
            for m in (family.base, *family.sources)
        ]
    ).mean(0)
    hits = float((outputs.argmax(1) == y).float().mean())
    return {"loss": float(F.nll_loss(outputs.log(), y)), "accuracy": 100 * hits}


def reference(family: Family, part: Pair) -> nn.Module:
    """The base's start, tuned on other images for as many steps as all descendants took."""
    given = family.setting
    steps = given.steps * (1 + len(family.sources))
    return one_cycle(
        copy.deepcopy(family.start), *part, steps, given.rate, 10 * family.seed, batch=BATCH
    )


def judged(family: Family) -> dict:
    """Every arm of one seed."""
    made = assembled(family, family.sources)
    count = 1 + len(family.sources)
    mixed = tuple(torch.cat(both) for both in zip(family.share(0), family.chosen, strict=True))
    fresh = [family.fresh(s, 2000 + i) for i, s in enumerate(family.setting.sources)]
    models = {
        "base": family.base,
        "assembled": made.model,
        "identity": greedy(family, family.sources, "identity"),
        "random": greedy(family, family.sources, "random"),
        "nothing": assembled(family, family.spoiled(emptied)).model,
        "scrambled": assembled(family, family.spoiled(scrambled)).model,
        "initialisation": assembled(family, fresh).model,
        "equal compute": longer(family),
        "untuned": assembled(family, family.plain).model,
        "with validation": reference(family, mixed),
        "ancestor": family.ancestor,
        "all shares": reference(family, family.part(0, count * family.setting.share)),
    }
    return {
        "arms": {name: figures(family, model) for name, model in models.items()}
        | {"ensemble": ensemble(family)},
        "sources": [figures(family, each) for each in family.sources],
        "cut": figures(family, family.start),
        "log": [
            {key: step[key] for key in ("accepted", "factor", "before", "after")}
            for step in made.log
        ],
    }


def mapped(family: Family) -> dict:
    """The few arms of one cell of the map."""
    first = family.sources[0]
    models = {
        "base": family.base,
        "assembled": assembled(family, family.sources).model,
        "untuned": assembled(family, family.plain).model,
        "one step": assembled(family, [first], rounds=1).model,
        "one step, repaired": repaired(family, first),
        "random": greedy(family, family.sources, "random"),
        "nothing": assembled(family, family.spoiled(emptied)).model,
    }
    return {"arms": {name: figures(family, model) for name, model in models.items()}}


# ----------------------------------------------------------------------------------------------------------- the report


SIZES = {"smoke": (150, 300), "small": (500, 10_000), "paper": (500, 10_000)}


def ran(
    args, name: str, setting: Setting, seed: int, data: dict[str, zoo.Images], on_map: bool
) -> dict:
    """One seed of one setting, from its file where it was done before."""
    folder = args.cache / args.scale / "relatives"
    kind = "map" if on_map else "test"

    def work() -> dict:
        if setting.data not in data:
            data[setting.data] = zoo.load(setting.data, args.root, args.scale)
        images = data[setting.data]
        chosen, most = SIZES[args.scale]
        held = tuple(t[chosen:] for t in images.val) if on_map else images.test
        family = Family(
            setting, images, seed, folder / "ancestors",
            tuple(t[:most] for t in held), tuple(t[:chosen] for t in images.val),
        )  # fmt: skip
        return (mapped if on_map else judged)(family)

    safe = name.replace(": ", "-").replace(", ", "-").replace(" ", "-")
    path = folder / kind / f"{safe}-{setting.digest}-{seed}.json"
    new = not path.exists()
    found = results.cached(path, work)
    if new:
        shown = {arm: round(row["accuracy"], 2) for arm, row in found["arms"].items()}
        print(kind, name, seed, shown, flush=True)
    return found


def summary(rows: Sequence[dict], versus: Sequence[str]) -> dict:
    """Means of every arm, and paired differences of the assembled model to some of them."""

    def column(arm: str, figure: str) -> list[float]:
        return [row["arms"][arm][figure] for row in rows]

    def gain(arm: str, figure: str) -> list[float | None]:
        sign = -1 if figure == "loss" else 1
        both = zip(column("assembled", figure), column(arm, figure), strict=True)
        return interval([sign * (ours - theirs) for ours, theirs in both])

    arms = {
        arm: {
            "accuracy": statistics.fmean(column(arm, "accuracy")),
            "accuracy_sd": statistics.pstdev(column(arm, "accuracy"))
            if len(rows) < 2
            else statistics.stdev(column(arm, "accuracy")),
            "loss": statistics.fmean(column(arm, "loss")),
        }
        for arm in rows[0]["arms"]
    }
    gains = {arm: {"accuracy": gain(arm, "accuracy"), "loss": gain(arm, "loss")} for arm in versus}
    return {"n": len(rows), "arms": arms, "assembled_minus": gains}


def main(argv: Sequence[str] | None = None) -> None:
    torch.set_num_threads(1)
    parser = zoo.parser(__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--map-seeds", type=int, default=2)
    parser.add_argument("--map", action="store_true", help="the map, beside what was tested")
    parser.add_argument("--settings", nargs="+", default=None, help="some of the scale's settings")
    parser.add_argument("--cells", nargs="+", default=None, help="some of the map's cells")
    parser.add_argument("--out", type=Path, default=Path("mal_relatives.json"))
    args = parser.parse_args(argv)
    data: dict[str, zoo.Images] = {}
    report = results.load(args.out) if args.out.exists() else {}
    report.update(scale=args.scale, factors=FACTORS, rounds=ROUNDS, validation=SIZES[args.scale][0])
    tests, tried = report.setdefault("test", {}), report.setdefault("map", {})

    if args.map:
        for name, setting in cells(args.scale).items():
            if args.cells is None or name in args.cells:
                rows = [
                    ran(args, name, setting, seed, data, True)
                    for seed in range(100, 100 + args.map_seeds)
                ]
                found = summary(
                    rows, ("base", "one step", "one step, repaired", "random", "nothing")
                )
                tried[name] = {"setting": asdict(setting), **found}
                results.save(args.out, report)
    for name, setting in SETTINGS[args.scale].items():
        if args.settings is not None and name not in args.settings:
            continue
        rows = [ran(args, name, setting, seed, data, False) for seed in range(args.seeds)]
        found = summary(rows, ("base", *CONTROLS, *REFERENCES))
        logs = [row["log"] for row in rows]
        merges = statistics.fmean(sum(step["accepted"] for step in log) for log in logs)
        found["merges"] = {"accepted": merges, "tried": len(logs[0])}
        gains = {arm: found["assembled_minus"][arm]["accuracy"] for arm in ("base", *CONTROLS)}
        found["beats_base_and_controls"] = all(
            low is not None and low > 0 for _, low, _ in gains.values()
        )
        tests[name] = {"setting": asdict(setting), **found}
        print(name, json.dumps(gains), found["beats_base_and_controls"], flush=True)
        results.save(args.out, report)


if __name__ == "__main__":
    main()
