"""Where merging costs: one run of neighbouring layers at a time, first to last, against all of them at once (H4, H6).

    python -m examples.paper.mal_positions --scale small --root DIR --cache out/zoo --out out/laws

Bases are the deepest members of each family, sources all members of the same one. Read is the threshold (1 point of
accuracy, test images) where only one module with a weight is merged, with the norms behind it. Writes `positions.json`:
threshold by relative depth, and single layers minus everything (H6), with intervals from resampled bases and sources.
"""

from __future__ import annotations

import time

import torch

from graftlib import trace
from graftlib_adapters.assembly import AssemblyError
from graftlib_adapters.assembly.paired_source import pair_source

from ..common import results
from . import mal, zoo

ARMS = ("matched, keep", "random, keep", "shrink, keep")


def groups(base: zoo.Member, source: zoo.Member, data: dict[str, zoo.Images]) -> list[list[str]]:
    """The base's modules that are paired with some of the source, with the norms behind them, in order."""
    shape = data[base.data].shape
    graph = trace(base.model(shape), (torch.zeros(2, *shape),))
    try:
        return pair_source(graph, mal.entry(source, data[source.data].shape)).module_groups
    except AssemblyError:
        return []


def main() -> None:
    setup = mal.setting(
        __doc__.partition("\n")[0],
        [("--minutes", {"type": float, "default": 1e9, "help": "CPU minutes for each data set"})],
    )
    setup.args.out.mkdir(parents=True, exist_ok=True)
    report: dict = {"scale": setup.scale, "tolerance_points": mal.TOLERANCE}
    for name in setup.data:
        rows = list(positions(setup, name))
        report[name] = {"pairs": rows, "summary": summary(rows)}
        for title, found in report[name]["summary"].items():
            print(f"{name}: {title} {mal.text(found)}", flush=True)
    results.save(setup.args.out / "positions.json", report)


def positions(setup: mal.Setting, name: str):
    """One row a pair and run of layers; the run None is everything."""
    began, members = time.process_time(), setup.members[name]
    for base in members:
        deepest = max(
            m.architecture.depth
            for m in members
            if m.architecture.family == base.architecture.family
        )
        if base.architecture.depth != deepest:
            continue
        for source in members:
            kin = setup.scale == "smoke" or source.architecture.family == base.architecture.family
            if source.name == base.name or not kin:
                continue
            found = groups(base, source, setup.data)
            for i, layers in enumerate([None, *found] if len(found) > 1 else []):
                path = setup.cached("positions", name, base.name, source.name, str(i))
                if not path.exists() and time.process_time() - began > 60 * setup.args.minutes:
                    continue
                result = results.cached(
                    path,
                    lambda b=base, s=source, w=layers: mal.walked(
                        b, s, setup.data, setup.scale, arms=ARMS, layers=w
                    ),
                )
                edges = {
                    a: mal.curve(result, a, "test_accuracy").threshold(mal.TOLERANCE) for a in ARMS
                }
                depth = None if layers is None else (i - 1) / (len(found) - 1)
                yield {
                    "base": base.name,
                    "source": source.name,
                    "layers": layers,
                    "depth": depth,
                    **edges,
                }


def summary(rows: list[dict]) -> dict[str, dict]:
    """Thresholds by thirds of the depth, and one layer minus everything."""
    found = {}
    for arm in ARMS:
        thirds: dict[str, dict] = {"first third": {}, "middle third": {}, "last third": {}}
        whole = {(r["base"], r["source"]): r[arm] for r in rows if r["depth"] is None}
        single: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            if row["depth"] is not None:
                key = row["base"], row["source"]
                third = list(thirds)[min(int(3 * row["depth"]), 2)]
                thirds[third].setdefault(key, []).append(row[arm])
                single.setdefault(key, []).append(row[arm])
        means = {
            third: {key: sum(v) / len(v) for key, v in values.items()}
            for third, values in thirds.items()
        }
        for third, values in means.items():
            if values:
                found[f"H4 {third}: {arm}"] = mal.clustered(values)
        first, last = means["first third"], means["last third"]
        later = {key: last[key] - first[key] for key in first.keys() & last.keys()}
        if later:
            found[f"H4 last minus first third: {arm}"] = mal.clustered(later)
        gap = {k: sum(v) / len(v) - whole[k] for k, v in single.items() if k in whole}
        if gap:
            found[f"H6 one layer minus all: {arm}"] = mal.clustered(gap)
    return found


if __name__ == "__main__":
    main()
