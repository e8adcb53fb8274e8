"""Search the graft's own freedom on held-out training images: many settings, few of them for long.

    python -m examples.paper.search                                              # smoke: digits, seconds
    python -m examples.paper.search --scale small --root DIR --out search.json   # CIFAR-10, half an hour

Successive halving: every setting is trained for a short time with a few seeds, the better ones for longer with more. A
setting is ranked by its mean paired difference to the arm that it adds a graft to: plain training, distillation, or
training from a transplanted start. What comes out on top is one of many, so its gain here is too large by chance:
confirm it, and its controls, once on ``--split test`` (table 1). No test image is read here.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..common import command, results
from .experiment import Arm, Distil, Experiment, Graft, Setup, Start, controls, facts_of
from .harness import report_of, shared_arguments
from .images import (
    BLOCKS,
    last_convolutions,
    mobilenet_network,
    project,
    residual_links,
    rounds_of,
    strong_network,
)

__all__ = ["CHOSEN", "STAGES", "Stage", "experiment", "search", "searched"]


@dataclass(frozen=True)
class Stage:
    """One round of the halving.

    Attributes:
        share: length of its trainings, of the scale's own.
        seeds: of every setting.
        keep: settings that go on.
        controlled: whether each setting's random source runs beside it.
    """

    share: float
    seeds: int
    keep: int
    controlled: bool = False


STAGES = (Stage(0.2, 2, 5), Stage(0.3, 4, 2), Stage(1.0, 8, 1, controlled=True))
OVERHEARD = ("default", "trust 0.05", "no bound", "all residual branches, trust 0.05")
"""Settings of which it is also asked how much of their transfers comes from the source."""
CHOSEN = "trust 0.05, until 30 %"
"""What was left of CIFAR-10's search."""
FIRST_SEED = 100
METRIC = "M top-1"


def experiment(setup: Setup) -> Experiment:
    """Every setting as an arm; ``versus`` names first the arm that it adds a graft to."""
    block, residual = project(BLOCKS[setup.scale]), residual_links(setup.scale)
    one = Graft("S", "M", (("fc", block),))
    stem, head = ("conv1", "features.0.0"), ("fc", "classifier.1")
    ends = (stem, last_convolutions(setup.scale), head)

    def wide(graft: Graft = one, trust: float | None = 0.05, **options: Any) -> Graft:
        return replace(graft, options={"trust": trust, **options})

    early = replace(one, stop=0.3)
    pulled = replace(one, links=ends, aligned=True, method="pull", lr=1e-2)
    grafts = {
        # How large a transfer may be, when, how often.
        "default": one,
        "trust 0.05": wide(),
        "trust 0.2": wide(trust=0.2),
        "no bound": wide(trust=None),
        "trust 0.05, until 30 %": wide(early),
        "no bound, until 30 %": wide(early, None),
        "no bound, until 30 %, every step": wide(replace(early, cycle=1), None),
        "every step": replace(one, cycle=1),
        "trust 0.05, every second step": wide(replace(one, cycle=2)),
        # How it writes, what it learns from and how fast, how much of a matrix it reads.
        "trust 0.05, gradient": wide(signal="gradient"),
        "trust 0.05, probe": wide(write="probe"),
        "trust 0.2, probe, every step": wide(replace(one, cycle=1), 0.2, write="probe"),
        "trust 0.05, adapter lr 0.01": wide(replace(one, lr=1e-2)),
        "the authors' form": replace(one, options={"init": "paper", "rank": None}),
        "MLP adapter": replace(one, method="mlp"),
        # Which layers, and how many.
        "all residual branches": replace(one, links=residual),
        "all residual branches, trust 0.05": wide(replace(one, links=residual)),
        "classifier to classifier, trust 0.05": wide(replace(one, links=(head,)), rank=None),
        "last convolution, trust 0.05": wide(replace(one, links=ends[1:2])),
        "stem to stem, trust 0.05": wide(replace(one, links=(stem,)), rank=None),
        # Units of the source in the target's order before the adapter reads them.
        "aligned ends, trust 0.05": wide(replace(one, links=ends, aligned=True), rank=None),
        "aligned stem, pull": replace(pulled, links=(stem,)),
        "aligned ends, pull": pulled,
        "aligned ends, pull, adapter lr 0.05": replace(pulled, lr=5e-2),
        "aligned last convolution, pull": replace(pulled, links=ends[1:2]),
        "aligned classifier, pull": replace(pulled, links=(head,)),
        "aligned stem, shared until 10 %": replace(
            one, links=(stem,), aligned=True, method="sharing", stop=0.1, cycle=1
        ),
    }
    arms = [Arm("plain", ("M",))]
    arms += [Arm(name, ("M",), graft) for name, graft in grafts.items()]
    begun = Start("S", "M")
    kd = Distil("kd", "M", "S")
    arms += [
        Arm("kd", ("M",), distil=kd),
        Arm("transplanted start", ("M",), start=begun),
        Arm("transplanted start, stem alone", ("M",), start=Start("S", "M", (stem,))),
    ]
    beside = {"graft": one, "graft, trust 0.05": wide(), "aligned ends, pull": pulled}
    for name, graft in beside.items():
        arms += [
            Arm(f"start + {name}", ("M",), graft, start=begun, versus=("transplanted start",)),
            Arm(f"kd + {name}", ("M",), graft, kd, versus=("kd",)),
        ]
    grafted = [arm for arm in arms if arm.graft is not None]
    arms += [_changed(arm, "random source", spoil="random") for arm in grafted]
    arms += [
        _changed(arm, "overheard", method="mergenet, overheard")
        for arm in grafted
        if arm.name in OVERHEARD
    ]
    return Experiment(
        "search",
        {"M": mobilenet_network(setup), "S": strong_network(setup)},
        tuple(arms),
        rounds_of(setup),
        of_paper="none: the paper searches nothing",
    )


def searched(setup: Setup) -> list[Arm]:
    """The chosen setting with its controls, and what it adds a graft to, as arms of a table."""
    made = experiment(setup)
    arm = made.arm(CHOSEN)
    against = tuple(dict.fromkeys(("plain", *arm.versus)))
    named = replace(arm, name=f"S→M, {arm.name}", versus=against)
    return [*map(made.arm, against[1:]), *controls(named)]


def _changed(arm: Arm, what: str, **fields: Any) -> Arm:
    assert arm.graft is not None
    return replace(arm, name=f"{arm.name}, {what}", graft=replace(arm.graft, **fields))


def search(
    setup: Setup, cache: Path, stages: Sequence[Stage] = STAGES, jobs: int = 1
) -> dict[str, Any]:
    """Run the stages; finished runs are read from `cache`.

    Returns:
        Plain data: every stage with all its rows, best first, and the setting that is left.
    """
    if setup.split != "validation":
        raise ValueError("a search on test images would choose by them")
    made = experiment(setup)
    variants = (", random source", ", overheard")
    tried = [a for a in made.arms if a.graft is not None and not a.name.endswith(variants)]
    left = tried
    found: list[dict[str, Any]] = []
    codes: set[str] = set()
    for stage in stages:
        names = [arm.name for arm in left]
        probed = [f"{name}, overheard" for name in OVERHEARD] if not found else []
        references = [arm.name for arm in made.arms if arm.graft is None]
        if found:  # those that nothing is compared with have been seen
            references = [n for n in references if n in {arm.versus[0] for arm in left}]
        spoiled = [f"{name}, random source" for name in names] if stage.controlled else []
        report = report_of(
            experiment,
            replace(setup, rounds=max(1, round(made.rounds * stage.share))),
            cache=cache,
            seeds=range(FIRST_SEED, FIRST_SEED + stage.seeds),
            arms=[*names, *references, *spoiled, *probed],
            jobs=jobs,
        )
        codes |= set(report["code"])
        rows = report["metrics"][METRIC]
        left = sorted(left, key=lambda arm: -rows[arm.name][f"minus {arm.versus[0]}"][0])
        found.append(
            {
                "rounds": report["settings"]["rounds"],
                "seeds": report["seeds"],
                "settings": {arm.name: _row(report, arm) for arm in left},
                "references": {name: _short(rows[name]) for name in references},
                "random sources": {name: _short(rows[name]) for name in spoiled},
                "share of a transfer that comes from the source": {
                    name: report["cost"][f"{name}, overheard"]["said"]
                    for name in OVERHEARD[: len(probed)]
                },
            }
        )
        print(_page(found[-1]))
        left = left[: stage.keep]
    return {
        "experiment": "search",
        "scale": setup.scale,
        "split": setup.split,
        "data": report["data"],
        "givers": report["givers"],
        "tried": {arm.name: facts_of(arm.graft) for arm in tried},
        "rungs": found,
        "left": left[0].name,
        "code": sorted(codes),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def _row(report: dict[str, Any], arm: Arm) -> dict[str, Any]:
    row = report["metrics"][METRIC][arm.name]
    against = arm.versus[0]
    cost = report["cost"][arm.name]
    known = {key: cost[key] for key in ("cpu_seconds", "transfers", "said") if key in cost}
    return {
        **_short(row),
        "against": against,
        "difference": row[f"minus {against}"],
        **known,
    }


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("mean", "sd", "n", "values", "minus plain") if key in row}


def _page(stage: dict[str, Any]) -> str:
    lines = [f"\n{stage['rounds']} rounds, seeds {stage['seeds']}"]
    others = {**stage["references"], **stage["random sources"]}
    lines += [f"  {name}: {row['mean']:.2f}" for name, row in others.items()]
    for name, row in stage["settings"].items():
        mean, low, high = row["difference"]
        interval = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(f"  {name}: {row['mean']:.2f}, minus {row['against']} {interval}")
    for name, said in stage["share of a transfer that comes from the source"].items():
        lines.append(f"  {name}: of a transfer comes from the source {said}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--scale", choices=["smoke", "small"], default="smoke")
    shared_arguments(parser)
    parser.add_argument("--stages", type=int, default=len(STAGES), help="stop after so many")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args(arguments)
    setup = Setup(args.scale, "validation", args.data, args.root)
    found = search(setup, args.cache, STAGES[: args.stages], args.jobs)
    print(f"\nleft: {found['left']}")
    if args.out:
        results.save(args.out, found)
    return found


if __name__ == "__main__":
    main()
