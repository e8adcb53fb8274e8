"""Run an experiment: every arm with every seed, resumed where it was stopped, as a table and as JSON.

In: a function `Setup` -> `Experiment`, and a command line. Out: the printed table, and with ``--out`` the report.
Always true: arms share seeds, initial weights and batches; accuracy is that of the last step; settings are chosen on
``--split validation`` and reported on ``--split test``. Where the rest is: the records in `experiment.py`, the loop in
`training.py`, what a graft must beat in `controls.py` and `baselines.py`, files in `run_files.py`, figures in
`summary.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

from ..common import command, results
from .experiment import Arm, Experiment, Setup, facts_of, setup_as
from .run_files import RunFiles
from .summary import show, summarise

__all__ = ["main", "report_of", "shared_arguments"]

Build = Callable[[Setup], Experiment]

SEEDS = {"smoke": 2, "small": 8, "paper": 8}


def main(build: Build, about: str | None, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line of a table file.

    Args:
        build: makes the experiment at the size that is asked for.
        about: the file's docstring.
        arguments: instead of the command line's.

    Returns:
        The report.
    """
    args = _parser(about).parse_args(arguments)
    seeds = args.seeds or SEEDS[args.scale]
    if seeds < 2:
        raise SystemExit("--seeds 2 or more: one seed has no spread, and proves nothing")
    setup = Setup(
        args.scale,
        args.split,
        args.data,
        args.root,
        args.models,
        args.device or ("cuda" if args.scale == "paper" else "cpu"),
        args.rounds,
        tuple(_setting(text) for text in args.set or ()),
    )
    report = report_of(
        build,
        setup,
        cache=args.cache,
        seeds=range(args.first_seed, args.first_seed + seeds),
        arms=args.arms,
        jobs=args.jobs,
    )
    print(report.pop("table"))
    if args.out:
        results.save(args.out, report)
    return report


def report_of(
    build: Build,
    setup: Setup,
    *,
    cache: Path,
    seeds: Sequence[int],
    arms: Sequence[str] | None = None,
    jobs: int = 1,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """All runs of an experiment, and what they say.

    Args:
        build: makes the experiment.
        setup: at which size, on which data.
        cache: the folder of finished runs; those that are there are not run again.
        seeds: of the runs.
        arms: names of those to run, ``plain`` among them in any case; None for all.
        jobs: processes.
        tell: called with a line after each run.

    Returns:
        Plain data, and the printed table under ``table``.
    """
    torch.set_num_threads(1)
    run_files = _run_files(build, setup, cache)
    experiment = run_files.experiment
    chosen = _chosen(experiment, arms)
    # The frozen sources first, then the arms, then those that repeat the sizes of another arm's transfers.
    for arm in chosen:
        for name in run_files.needs(arm):
            run_files.source(name)
    records: list[dict[str, Any]] = []
    for late in (False, True):
        todo = [
            (arm, seed) for seed in seeds for arm in chosen if (arm.noise_of is not None) is late
        ]
        work = (delayed(_work)(build, setup, cache, arm.name, seed) for arm, seed in todo)
        for record in Parallel(n_jobs=jobs, return_as="generator")(work):
            records.append(record)
            scores = ", ".join(f"{k} {v:.2f}" for k, v in record["metrics"].items())
            tell(f"{record['arm']}, seed {record['seed']}: {scores}")
    found = summarise(replace(experiment, arms=tuple(chosen)), records)
    codes = sorted({record["code"] for record in records})
    report = {
        "experiment": experiment.name,
        "scale": setup.scale,
        "split": setup.split,
        "result": experiment.result,
        "data": {name: facts_of(p.task.facts) for name, p in experiment.networks.items()},
        "paper's figures": experiment.of_paper,
        "seeds": list(seeds),
        **found,
        "givers": run_files.source_scores(),
        "settings": {
            "rounds": experiment.rounds,
            "players": facts_of(experiment.networks),
            "arms": {arm.name: {"graft": facts_of(arm.graft)} for arm in chosen if arm.graft},
        },
        "code": codes,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    return {**report, "table": _page(experiment, setup, report, codes)}


def _page(experiment: Experiment, setup: Setup, report: dict[str, Any], codes: list[str]) -> str:
    lines = [f"{experiment.name}, {setup.scale}, {setup.split} split, seeds {report['seeds']}"]
    if not experiment.result:
        lines.append("THE DATA IS A STAND-IN: this shows that the code runs, and is no result.")
    lines += [f"  {name}: {facts['about']}" for name, facts in report["data"].items()]
    lines.append(f"  the paper's figures: {experiment.of_paper}")
    lines += [f"  frozen {name}: {scores}" for name, scores in report["givers"].items()]
    if len(codes) > 1:
        lines.append(f"  these runs come from {len(codes)} states of the code: {', '.join(codes)}")
    return "\n".join([*lines, "", show(experiment, report)])


def _work(build: Build, setup: Setup, cache: Path, arm: str, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    run_files = _run_files(build, setup, cache)
    return run_files.record(run_files.experiment.arm(arm), seed)


def _run_files(build: Build, setup: Setup, cache: Path) -> RunFiles:
    return _opened(_Named(build), setup, Path(cache))


class _Named:
    """A function that is equal to another of the same name and file: a worker gets a new copy with every task."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.name = (build.__code__.co_filename, build.__qualname__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


@lru_cache(maxsize=2)
def _opened(build: _Named, setup: Setup, cache: Path) -> RunFiles:
    experiment = setup_as(build.build(setup), setup)
    device = torch.device(setup.device)
    networks = {
        name: replace(network, task=network.task.to(device))
        for name, network in experiment.networks.items()
    }
    return RunFiles(replace(experiment, networks=networks), setup, cache)


def _chosen(experiment: Experiment, names: Sequence[str] | None) -> list[Arm]:
    known = [arm.name for arm in experiment.arms]
    if names is None:
        return list(experiment.arms)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SystemExit(f"no such arm: {', '.join(unknown)}. There are: {'; '.join(known)}")
    return [arm for arm in experiment.arms if arm.name == "plain" or arm.name in names]


def _setting(text: str) -> tuple[str, Any]:
    """``trust=0.02`` as a name and a value, read as JSON where it is JSON."""
    name, equals, value = text.partition("=")
    if not equals:
        raise SystemExit(f"--set takes NAME=VALUE, and {text!r} has no '='")
    try:
        found = json.loads(value)
    except json.JSONDecodeError:
        found = value
    return name, tuple(found) if isinstance(found, list) else found


def _parser(about: str | None) -> argparse.ArgumentParser:
    parser = command.parser(about)
    parser.add_argument("--scale", choices=sorted(SEEDS), default="smoke")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--seeds", type=int, help="how many; 2 at smoke scale, else 8")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", help="names of rows; plain is always among them")
    shared_arguments(parser)
    parser.add_argument("--models", type=Path, default=os.environ.get("GRAFTLIB_MODELS"))
    parser.add_argument("--device", help="cpu, and cuda for --scale paper, unless named")
    parser.add_argument("--rounds", type=int, help="length of a training, instead of the scale's")
    parser.add_argument(
        "--set", nargs="+", metavar="NAME=VALUE", help="for every graft: cycle=2 trust=0.02"
    )
    parser.add_argument("--jobs", type=int, default=1)
    return parser


def shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Which data, from where, and where runs are kept: what every file with a command line of its own takes as well."""
    parser.add_argument("--data", help="data set, where a file offers several")
    command.add_root(parser, required=False)
    parser.add_argument("--cache", type=Path, default=Path("out/paper"))
