"""Mean loss of merging for every ordered pair of a zoo, on the same and on different data, and what it follows.

    python -m examples.paper.mal_heatmaps --scale small --root DIR --cache out/zoo --out out/laws

Draws, for each data set of the bases and each of the sources, the rise of the test loss in the mean over the merging
factor (rows receive, columns give; light is better) and the threshold; on the same data also the controls' thresholds.
Writes `heatmaps.json`: thresholds (1 point of accuracy, and 0.1 nats; read off the test images) against random
permutations and against shrinking, over all pairs and by the base's family, with intervals from resampled bases and
sources; and the hypotheses H1 (narrower sources), H2 (truncation), H3 (same data), H5 (wider bases). One file a pair is
kept under `--cache`, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import time
from itertools import product

import torch

from graftlib_adapters.assembly import HeatMap

from ..common import results
from . import mal, zoo

Pairs = dict[tuple[str, str], dict]
Values = dict[tuple[str, str], float]


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
            arms = mal.ARMS if of_base == of_source else mal.MATCHED
            found[base.name, source.name] = results.cached(
                path,
                lambda b=base, s=source, a=arms: mal.walked(b, s, setup.data, setup.scale, arms=a),
            )
    return found


def figures(pairs: Pairs, arm: str, what: str) -> Values:
    """A number for each pair in which something meets: ``mean loss``, ``mean excess``, ``barrier``, or a threshold."""
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
            "loss threshold": lambda loss=loss: loss.threshold(mal.NATS),
        }[what]()
    return found


def arms_of(pairs: Pairs) -> list[str]:
    """The arms that were walked."""
    return next((list(p["arms"]) for p in pairs.values() if "refused" not in p), [])


def minus(one: Values, other: Values) -> Values:
    return {key: one[key] - other[key] for key in one.keys() & other.keys()}


def chosen(pairs: Pairs, arm: str) -> Values:
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
    for arm in arms_of(pairs):
        for what, unit, better in (
            ("mean excess", "nats over the base", "low"),
            ("threshold", "merging factor", "high"),
        ):
            if what == "mean excess" and arm not in mal.MATCHED:
                continue  # a control is not followed to its end
            title = f"{what} of merging ({arm}): {of_source} into {of_base}"
            heat = HeatMap(title, unit, *names, figures(pairs, arm, what), better)
            file = f"{what}-{arm}-{of_base}-{of_source}".replace(", ", "-").replace(" ", "-")
            heat.save(setup.args.out / f"{file}.png")


def family(name: str) -> str:
    return name.partition("-")[0]


def sizes(name: str) -> tuple[int, int]:
    """Width and depth of ``mlp-w64-d2``."""
    width, depth = name.split("-")[1:]
    return int(width[1:]), int(depth[1:])


def gaps(pairs: Pairs, what: str) -> dict[str, Values]:
    """Thresholds of matching minus those of each control, for all pairs; of `keep`, by the base's family too."""
    found = {}
    baselines = [arm for arm in arms_of(pairs) if arm not in mal.MATCHED]
    for baseline in baselines:
        matched = "matched, " + baseline.split(", ")[1]
        gap = minus(figures(pairs, matched, what), figures(pairs, baseline, what))
        found[f"{matched} minus {baseline}"] = gap
        for each in sorted({family(base) for base, _ in gap if matched == "matched, keep"}):
            some = {k: v for k, v in gap.items() if family(k[0]) == each}
            found[f"{matched} minus {baseline}, {each} base"] = some
    return found


def by_source(values: Values, one: int, other: int) -> Values:
    """H1, H2: for the same base, sources of one width minus those of another, same family and depth.

    Args:
        values: of ordered pairs.
        one: the sign of source width minus base width: -1 narrower, 0 as wide, 1 wider.
        other: the same for those that are taken away.
    """
    found = {}
    for base, source in values:
        for baseline in (s for b, s in values if b == base):
            kin = family(base) == family(source) == family(baseline)
            if kin and sizes(source)[1] == sizes(baseline)[1]:
                signs = [sign(sizes(s)[0] - sizes(base)[0]) for s in (source, baseline)]
                if signs == [one, other]:
                    gap = values[base, source] - values[base, baseline]
                    found[base, f"{source} {baseline}"] = gap
    return found


def by_base(values: Values, each: str) -> Values:
    """H5: for the same source, the widest base of a family minus the narrowest of the same depth."""
    names = {base for base, _ in values if family(base) == each}
    widths = {sizes(name)[0] for name in names}
    found: Values = {}
    if len(widths) < 2:
        return found
    for base, source in values:
        slim = f"{each}-w{min(widths)}-d{sizes(base)[1]}" if base in names else ""
        if base in names and sizes(base)[0] == max(widths) and (slim, source) in values:
            found[base, source] = values[base, source] - values[slim, source]
    return found


def sign(number: int) -> int:
    return (number > 0) - (number < 0)


def laws(same: dict[str, Pairs], different: dict[tuple[str, str], Pairs]) -> dict:
    """Hypotheses as paired differences, with the intervals of resampled bases and sources."""
    found: dict[str, dict] = {}
    for data, pairs in same.items():
        groups: dict[str, Values] = {}
        for arm in mal.MATCHED:
            edges = figures(pairs, arm, "threshold")
            kin = {k: v for k, v in edges.items() if family(k[0]) == family(k[1])}
            groups[f"threshold, same family: {arm}"] = kin
            groups[f"threshold, other family: {arm}"] = {
                k: v for k, v in edges.items() if k not in kin
            }
            for title, one, other in (
                ("H1 narrower minus wider source", -1, 1),
                ("H1 narrower minus as wide", -1, 0),
                ("H2 wider minus as wide", 1, 0),
            ):
                groups[f"{title}: {arm}"] = by_source(edges, one, other)
            excess = figures(pairs, arm, "mean excess")
            for each in sorted({family(base) for base, _ in excess}):
                groups[f"H5 mean excess, widest minus narrowest {each} base: {arm}"] = by_base(
                    excess, each
                )
        found[data] = {title: mal.clustered(values) for title, values in groups.items() if values}
    for (of_base, of_source), pairs in different.items():
        for arm in mal.MATCHED:
            near, far = (figures(p, arm, "threshold") for p in (same.get(of_base, {}), pairs))
            if gap := minus(near, far):
                title = f"H3 {of_base} minus {of_source} sources, into {of_base}: {arm}"
                found.setdefault("H3", {})[title] = mal.clustered(gap)
    return found


def main() -> None:
    setup = mal.setting(
        __doc__.partition("\n")[0],
        [
            ("--minutes", {"type": float, "default": 1e9, "help": "CPU minutes for each map"}),
            ("--across", {"type": float, "default": 1e9, "help": "the same, for different data"}),
        ],
    )
    setup.args.out.mkdir(parents=True, exist_ok=True)
    maps = {}
    for a, b in sorted(product(setup.data, repeat=2), key=lambda pair: pair[0] != pair[1]):
        maps[a, b] = measured(setup, a, b, setup.args.minutes if a == b else setup.args.across)
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
        for arm in arms_of(pairs):
            row[arm] = {
                what: mal.clustered(figures(pairs, arm, what))
                for what in ("threshold", "loss threshold")
            }
            if arm in mal.MATCHED:
                row[arm]["mean excess"] = mal.clustered(figures(pairs, arm, "mean excess"))
            row[arm]["test points at the chosen factor"] = mal.clustered(chosen(pairs, arm))
        for what in ("threshold", "loss threshold"):
            for title, gap in gaps(pairs, what).items():
                found = row[f"{what}: {title}"] = mal.clustered(gap)
                text = mal.text(found, "median")
                print(f"{of_base} <- {of_source}: {what}: {title}: {text}", flush=True)
        report["maps"][f"{of_base} <- {of_source}"] = row
    same = {a: p for (a, b), p in maps.items() if a == b and p}
    report["laws"] = laws(same, {k: p for k, p in maps.items() if k[0] != k[1] and p})
    for data, rows in report["laws"].items():
        for title, found in rows.items():
            print(f"{data}: {title} {mal.text(found)}")
    report["members"] = {
        d: {m.name: round(m.facts["test_accuracy"], 2) for m in members}
        for d, members in setup.members.items()
    }
    report["floors"] = {d: {f: zoo.floor(f, d) for f in zoo.FAMILIES} for d in setup.data}
    results.save(setup.args.out / "heatmaps.json", report)


if __name__ == "__main__":
    main()
