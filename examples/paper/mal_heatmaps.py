"""Mean loss of merging for every ordered pair of a zoo, on the same and on different data, and what it follows.

    python examples/paper/mal_heatmaps.py --scale small --root DIR --cache out/zoo --out out/laws

Draws, for each data set of the bases and each of the sources, the mean test loss over the merging factor (rows receive,
columns give; light is better) and the threshold, also for the controls. Writes `heatmaps.json`: thresholds (1 point of
accuracy; read off the test images) against random permutations and against shrinking, over all pairs with intervals
from resampled bases and sources; and the hypotheses H1 (narrower sources), H2 (truncation on both sides), H3 (same
data), H5 (wider bases). One file a pair is kept under `--cache`, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import json
import time

import mal
import torch
import zoo

from graftlib_adapters.assembly import HeatMap

Pairs = dict[tuple[str, str], dict]


def measured(setup: mal.Setting, of_base: str, of_source: str, minutes: float) -> Pairs:
    """Every ordered pair of different members that is there or can be done within the CPU minutes."""
    began, found = time.process_time(), {}
    pairs = [
        (base, source)
        for base in setup.members[of_base]
        for source in setup.members[of_source]
        if of_base != of_source or base.name != source.name
    ]
    # In a drawn order, so that a run that is cut short has seen some of everything.
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    for i in order.tolist():
        base, source = pairs[i]
        path = setup.cached("pairs", of_base, of_source, base.name, source.name)
        if path.exists() or time.process_time() - began < 60 * minutes:
            found[base.name, source.name] = mal.kept(
                path, lambda b=base, s=source: mal.walked(b, s, setup.data, setup.scale)
            )
    return found


def figures(pairs: Pairs, arm: str, what: str) -> dict[tuple[str, str], float]:
    """A number for each pair in which something meets: ``mean loss``, ``threshold``, ``barrier``."""
    found = {}
    for key, result in pairs.items():
        if "refused" in result:
            continue
        loss, hits = (mal.curve(result, arm, f"test_{f}") for f in ("loss", "accuracy"))
        found[key] = {
            "mean loss": lambda loss=loss: loss.mean,
            "mean excess": lambda loss=loss: loss.mean_excess,
            "barrier": lambda loss=loss: loss.barrier,
            "threshold": lambda hits=hits: hits.threshold(mal.TOLERANCE),
        }[what]()
    return found


def minus(one: dict, other: dict) -> dict:
    return {key: one[key] - other[key] for key in one.keys() & other.keys()}


def chosen(pairs: Pairs, arm: str) -> dict[tuple[str, str], float]:
    """Test accuracy at the threshold that validation images chose, minus the base's."""
    found = {}
    for key, result in pairs.items():
        if "refused" not in result:
            edge = mal.curve(result, arm, "val_accuracy").threshold(mal.TOLERANCE)
            hits = result["arms"][arm]["test_accuracy"]
            last = max(i for i, factor in enumerate(result["factors"]) if factor <= edge)
            found[key] = hits[last] - hits[0]
    return found


def draw(setup: mal.Setting, pairs: Pairs, of_base: str, of_source: str) -> None:
    names = [tuple(m.name for m in setup.members[d]) for d in (of_base, of_source)]
    for arm in mal.ARMS:
        for what, unit, better in (
            ("mean excess", "nats over the base", "low"),
            ("threshold", "merging factor", "high"),
        ):
            title = f"{what} of merging ({arm}): {of_source} into {of_base}"
            heat = HeatMap(title, unit, *names, figures(pairs, arm, what), better)
            file = f"{what}-{arm}-{of_base}-{of_source}".replace(", ", "-").replace(" ", "-")
            heat.save(setup.args.out / f"{file}.png")


def family(name: str) -> str:
    return name.partition("-")[0]


def width(name: str) -> int:
    return int(name.split("-w")[1].split("-")[0])


def laws(same: dict[str, Pairs], different: dict[tuple[str, str], Pairs]) -> dict:
    """Thresholds in groups: means with the intervals of resampled bases and sources."""
    edges = {d: figures(p, "matched, keep", "threshold") for d, p in same.items()}
    found: dict[str, dict] = {}
    for name, values in edges.items():
        kin = {k: v for k, v in values.items() if family(k[0]) == family(k[1])}
        groups = {
            "H1 source narrower, same family": {
                k: v for k, v in kin.items() if width(k[1]) < width(k[0])
            },
            "H1 source as wide, same family": {
                k: v for k, v in kin.items() if width(k[1]) == width(k[0])
            },
            "H2 source wider, same family": {
                k: v for k, v in kin.items() if width(k[1]) > width(k[0])
            },
            "same family": kin,
            "other family": {k: v for k, v in values.items() if k not in kin},
        }
        barriers = figures(same[name], "matched, keep", "mean excess")
        for each in sorted({family(k[0]) for k in values}):
            sizes = sorted({width(k[0]) for k in values if family(k[0]) == each})
            ends = [("narrowest", sizes[0]), ("widest", sizes[-1])]
            for label, size in ends if len(sizes) > 1 else []:
                groups[f"H5 {each}, {label} base: mean excess"] = {
                    k: v
                    for k, v in barriers.items()
                    if family(k[0]) == each and width(k[0]) == size
                }
        found[name] = {title: mal.clustered(g) for title, g in groups.items() if g}
    for (of_base, of_source), pairs in different.items():
        far, near = figures(pairs, "matched, keep", "threshold"), edges[of_base]
        gap = {k: near[k] - far[k] for k in far.keys() & near.keys()}
        if gap:
            found[f"H3 {of_base} minus {of_source}, into {of_base}"] = mal.clustered(gap)
    return found


def main() -> None:
    setup = mal.setting(
        __doc__.partition("\n")[0],
        [("--minutes", {"type": float, "default": 1e9, "help": "CPU minutes for each map"})],
    )
    setup.args.out.mkdir(parents=True, exist_ok=True)
    maps = {
        (a, b): measured(setup, a, b, setup.args.minutes) for a in setup.data for b in setup.data
    }
    report: dict = {"scale": setup.scale, "tolerance_points": mal.TOLERANCE, "maps": {}}
    for (of_base, of_source), pairs in maps.items():
        if not any("refused" not in p for p in pairs.values()):
            continue
        draw(setup, pairs, of_base, of_source)
        wholes = len(setup.members[of_base]) * len(setup.members[of_source])
        row: dict = {
            "pairs": len(pairs),
            "of": wholes - (len(setup.members[of_base]) if of_base == of_source else 0),
            "nothing_meets": sum("refused" in p for p in pairs.values()),
        }
        for arm in mal.ARMS:
            row[arm] = {
                what: mal.clustered(figures(pairs, arm, what))
                for what in ("threshold", "mean excess")
            }
            row[arm]["test points at the chosen factor"] = mal.clustered(chosen(pairs, arm))
        for pad in ("zero", "keep"):
            edge = figures(pairs, f"matched, {pad}", "threshold")
            for other in (f"random, {pad}", "shrink, zero"):
                gap = minus(edge, figures(pairs, other, "threshold"))
                row[f"threshold, matched {pad} minus {other}"] = mal.clustered(gap)
                print(
                    of_base,
                    "<-",
                    of_source,
                    f"matched {pad} minus {other}:",
                    mal.text(mal.clustered(gap)),
                )
        report["maps"][f"{of_base} <- {of_source}"] = row
    same = {a: p for (a, b), p in maps.items() if a == b and p}
    report["laws"] = laws(same, {k: p for k, p in maps.items() if k[0] != k[1] and p})
    for title, row in report["laws"].items():
        for name, found in row.items() if title in same else [("", row)]:
            print(f"{title}: {name} {mal.text(found)}")
    report["members"] = {
        d: {m.name: round(m.facts["test_accuracy"], 2) for m in members}
        for d, members in setup.members.items()
    }
    report["floors"] = {d: {f: zoo.floor(f, d) for f in zoo.FAMILIES} for d in setup.data}
    (setup.args.out / "heatmaps.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
