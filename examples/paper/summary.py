"""What the runs say together: means, paired differences with their intervals, costs, and the table.

In: the runs' records. Out: a report, JSON and text. Always true: a difference is taken seed by seed between runs that
shared initial weights and batches, which is checked first; a column without n >= 2 has no interval.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ..common.intervals import interval
from ..common.markdown import signed, table
from .experiment import Experiment

__all__ = ["MismatchError", "check", "show", "summarise"]

Runs = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> record


class MismatchError(RuntimeError):
    """Two runs that should differ in one thing differ in another."""


def by_arm(records: Sequence[dict[str, Any]]) -> Runs:
    """Arm -> seed -> record."""
    runs: Runs = {}
    for record in records:
        runs.setdefault(record["arm"], {})[record["seed"]] = record
    return runs


def check(runs: Runs) -> dict[str, dict[str, dict[int, str]]]:
    """Digests of initial weights and of batches, by network and seed, the same in every arm.

    Raises:
        MismatchError: they are not.
    """
    found: dict[str, dict[str, dict[int, str]]] = {"weights": {}, "batches": {}}
    for name, seeds in runs.items():
        for seed, record in seeds.items():
            for what, seen in found.items():
                for network, digest in record[what].items():
                    first = seen.setdefault(network, {}).setdefault(seed, digest[:12])
                    if first != digest[:12]:
                        raise MismatchError(
                            f"arm {name!r}, seed {seed}: the {what} of {network!r} are not those of the other arms"
                        )
    return found


def summarise(experiment: Experiment, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``metrics`` (metric -> arm -> row), ``cost`` (arm -> row) and the digests of `check`.

    A row has ``mean``, ``sd``, ``n``, ``values``, and where there is one ``paper``, and for each arm of ``versus``
    the paired difference ``minus ARM``: [mean, low, high]. A row of costs also has ``said``, what the adapter says of
    itself at the end: link -> means over the seeds.
    """
    runs = by_arm(records)
    shared = check(runs)
    metrics: dict[str, dict[str, Any]] = {}
    for arm in experiment.arms:
        for record in list(runs.get(arm.name, {}).values())[:1]:
            for metric in record["metrics"]:
                metrics.setdefault(metric, {})[arm.name] = _row(experiment, runs, arm.name, metric)
    costs = {name: _cost(list(seeds.values())) for name, seeds in runs.items()}
    return {"metrics": metrics, "cost": costs, "same in every arm": shared}


def _row(experiment: Experiment, runs: Runs, name: str, metric: str) -> dict[str, Any]:
    arm = experiment.arm(name)
    own = {seed: record["metrics"][metric] for seed, record in sorted(runs[name].items())}
    values = list(own.values())
    row: dict[str, Any] = {
        "mean": statistics.mean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "values": values,
    }
    if metric in arm.paper:
        row["paper"] = arm.paper[metric]
    for other in arm.versus:
        theirs = {
            seed: record["metrics"][metric]
            for seed, record in runs.get(other, {}).items()
            if metric in record["metrics"]
        }
        if other != name and own.keys() <= theirs.keys():
            row[f"minus {other}"] = interval([own[seed] - theirs[seed] for seed in own])
    return row


def _cost(records: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key in ("cpu_seconds", "wall_seconds", "peak_mib"):
        values = [r["cost"][key] for r in records if r["cost"][key] is not None]
        row[key] = statistics.mean(values) if values else None
    for key in ("transfers", "skipped"):
        if key in records[0]:
            row[key] = statistics.mean(r[key] for r in records)
    if records[0].get("said"):
        row["said"] = {
            link: [
                statistics.mean(values)
                for values in zip(*(r["said"][link] for r in records), strict=True)
            ]
            for link in records[0]["said"]
        }
    return row


def show(experiment: Experiment, report: dict[str, Any]) -> str:
    """One table a metric, ours beside the paper's."""
    parts = []
    for metric, rows in report["metrics"].items():
        head = ["arm", metric, "sd", "minus plain [95 %]", "minus its hardest baseline [95 %]"]
        head += ["paper", "paper's gain", "CPU s", "MiB"]
        lines = []
        plain = rows.get("plain", {}).get("paper")
        for name, row in rows.items():
            cost, paper = report["cost"][name], row.get("paper")
            gain = None if paper is None or plain is None else paper - plain
            lines.append(
                [
                    name,
                    f"{row['mean']:.2f}",
                    _number(row["sd"], ".2f"),
                    signed(row.get("minus plain")),
                    _hardest(name, row),
                    _number(paper, ".2f"),
                    "" if name == "plain" else _number(gain, "+.2f"),
                    _number(cost["cpu_seconds"], ".1f"),
                    _number(cost["peak_mib"], ".0f"),
                ]
            )
        parts.append(table(head, lines))
    return "\n\n".join(parts)


def _hardest(name: str, row: dict[str, Any]) -> str:
    """The least favourable of the differences to the arms that `name` must beat beside plain, and which it is."""
    baselines = {key: value for key, value in row.items() if key.startswith("minus ")}
    baselines.pop("minus plain", None)
    if not baselines:
        return ""
    worst = min(baselines, key=lambda key: baselines[key][0])
    return f"{signed(baselines[worst])} {worst.removeprefix('minus ').removeprefix(f'{name}, ')}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
