"""Write docs/assembly-laws.md from the JSON that the experiments on assembly left: no figure by hand.

    python -m examples.paper.mal_heatmaps --scale small --root DIR --out out/laws    # and the other mal_*.py
    python -m examples.paper.mal_report --laws out/laws

Copies the reports and the pictures that the page shows into docs, and writes the page. Without ``--laws`` it writes the
page anew from what is there.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from ..common import results
from ..common.markdown import signed, table

DOCS = Path(__file__).parents[2] / "docs"
REPORTS = ("heatmaps", "positions", "lambda")
FAMILIES = ("mlp", "cnn", "vgg", "resnet", "vit")


def read(name: str) -> dict:
    path = DOCS / "benchmarks" / f"mal_{name}.json"
    return results.load(path) if path.exists() else {}


def interval(found: dict | None, which: str = "mean", digits: int = 2) -> str:
    """``+0.12 [+0.08, +0.16]``; in bold where zero lies outside."""
    if not found:
        return ""
    low, high = found[f"{which}_low"], found[f"{which}_high"]
    text = signed([found[which], low, high], digits)
    return f"**{text}**" if low > 0 or high < 0 else text


def the_zoo(found: dict) -> str:
    rows = []
    for family in FAMILIES:
        row = [f"`{family}`"]
        for data, members in found["members"].items():
            some = [hits for name, hits in members.items() if name.startswith(f"{family}-")]
            floor = found["floors"][data][family]
            row.append(f"{min(some):.1f} to {max(some):.1f} ({len(some)}; floor {floor:g})")
        rows.append(row)
    return table(["family", *(f"{data}, %" for data in found["members"])], rows)


def same_data(maps: dict) -> dict[str, dict]:
    """Data set -> its map, sources of the same data."""
    return {t.split(" <- ")[0]: row for t, row in maps.items() if len(set(t.split(" <- "))) == 1}


def thresholds(maps: dict, what: str) -> str:
    """Medians of each arm, and the paired gaps of matching to its controls, over all pairs."""
    rows = []
    for data, row in same_data(maps).items():
        for pad in ("zero", "keep"):
            line = [data, f"`{pad}`"]
            line += [
                f"{row[f'{arm}, {pad}'][what]['median']:.2f}"
                for arm in ("matched", "random", "shrink")
            ]
            gaps = [
                row[f"{what}: matched, {pad} minus {arm}, {pad}"] for arm in ("random", "shrink")
            ]
            rows.append([*line, *(interval(gap, "median") for gap in gaps)])
    head = ["data", "pad", "matched", "random", "shrink", "matched minus random", "minus shrink"]
    return table(head, rows)


def by_family(maps: dict, what: str, pad: str) -> str:
    rows = []
    for family in FAMILIES:
        row = [f"`{family}`"]
        for found in same_data(maps).values():
            for baseline in ("random", "shrink"):
                row.append(
                    interval(
                        found.get(f"{what}: matched, {pad} minus {baseline}, {pad}, {family} base")
                    )
                )
        rows.append(row)
    head = ["base"]
    for data in same_data(maps):
        head += [f"{data}: minus random", "minus shrink"]
    return table(head, rows)


def chosen(maps: dict) -> str:
    rows = []
    for data, row in same_data(maps).items():
        for arm in [
            name for name in row if name.endswith((", zero", ", keep")) and ":" not in name
        ]:
            rows.append([data, arm, interval(row[arm]["test points at the chosen factor"])])
    return table(["data", "arm", "test points over the base"], rows)


def laws(found: dict, starts: tuple[str, ...], which: str = "mean") -> str:
    rows = []
    for data, titles in found.items():
        for title, values in titles.items():
            if title.startswith(starts):
                rows.append([data, title, interval(values, which), str(values["n"])])
    return table(["data", "difference", "mean [95 %]", "pairs"], rows)


def positions(found: dict) -> str:
    rows = []
    for data, report in found.items():
        if isinstance(report, dict):
            for title, values in report["summary"].items():
                rows.append([data, title, interval(values), str(values["n"])])
    return table(["data", "threshold of", "mean [95 %]", "pairs"], rows)


def assemblies(found: dict) -> str:
    rows = []
    for title, arms in found["assemblies"].items():
        row = [title, f"{arms['zoo']['base']:.2f}"]
        row += [f"{arms[arm]['test gain']:+.2f} ({arms[arm]['merged']})" for arm in arms]
        rows.append(row)
    return table(["base", "test %", "zoo", "scrambled", "nothing"], rows)


def relatives(found: dict) -> str:
    """Settings that were tested, each with every control."""
    parts = []
    for name, row in found["test"].items():
        setting, kept = row["setting"], row["merges"]
        widths = ", ".join(str(width) for width, _ in setting["sources"])
        domain = setting["domain"]
        where = "" if domain == "as they are" else f"; all but the ancestor saw {domain} images"
        rows = []
        for arm, figures in row["arms"].items():
            gain = row["assembled_minus"].get(arm)
            mean = f"{figures['accuracy']:.2f} ± {figures['accuracy_sd']:.2f}"
            rows.append([arm, mean, f"{figures['loss']:.3f}", bracket(gain and gain["accuracy"])])
        parts.append(
            f"**{name}**: {setting['data']}, an ancestor of width {setting['ancestor'][0]}, a base of width\n"
            f"{setting['base'][0]}, sources of widths {widths}, {setting['share']} images each{where}.\n"
            f"{kept['accepted']:.1f} of {kept['tried']} merges were taken.\n"
        )
        parts.append(table(["", "test %", "loss", "assembled minus it, points"], rows) + "\n")
    return "\n".join(parts)


def tried(found: dict) -> str:
    """The map of settings: points over the base, on validation images that chose nothing."""
    arms = ("assembled", "one step", "one step, repaired", "untuned", "random", "nothing")
    rows = []
    for name, row in found["map"].items():
        base = row["arms"]["base"]["accuracy"]
        gains = [
            f"{row['arms'][arm]['accuracy'] - base:+.1f}" if arm in row["arms"] else ""
            for arm in arms
        ]
        rows.append([name.replace("strangers", "another ancestor"), f"{base:.1f}", *gains])
    return table(["", "base", *arms], rows)


def bracket(values: list[float] | None, digits: int = 2) -> str:
    """Mean, low and high as `interval` writes them."""
    if values is None:
        return ""
    mean, low, high = values
    return interval({"mean": mean, "mean_low": low, "mean_high": high}, digits=digits)


def checkpoints(part: dict) -> str:
    """Every arm of every source, at the factor that validation chose."""
    rows = []
    for name, pair in part["pairs"].items():
        for arm, each in pair["arms"].items():
            best = each["test_at_best"]
            gains = [bracket(best["accuracy_gain"], 1), bracket(best["loss_gain"], 3)]
            factors = [f"{each['held']:.2f}", f"{each['best']:.2f}"]
            rows.append([name, arm, *factors, f"{best['accuracy']:.1f}", *gains])
    sizes = ", ".join(f"{name} {number}" for name, number in part["examples"].items())
    head = [
        "source",
        "arm",
        "largest λ within 1 point",
        "λ of least loss",
        "test %",
        "points",
        "loss gain",
    ]
    return f"The base reads {part['base']['accuracy']:.1f} % ({sizes}).\n\n{table(head, rows)}"


def coverage(maps: dict) -> str:
    rows = [
        [title, str(row["pairs"]), str(row["of"]), str(row["nothing_meets"])]
        for title, row in maps.items()
    ]
    return table(["base <- source", "pairs walked", "of", "nothing meets"], rows)


def take(folder: Path) -> None:
    """The reports without their raw walks, and the pictures that the page shows."""
    for name in REPORTS:
        report = results.load(folder / f"{name}.json")
        report.pop("walks", None)
        for part in report.values():
            if isinstance(part, dict) and "summary" in part:
                del part["pairs"]
        results.save(DOCS / "benchmarks" / f"mal_{name}.json", report)
    (DOCS / "pictures").mkdir(exist_ok=True)
    for picture in pictures(folder):
        shutil.copy(picture, DOCS / "pictures" / picture.name)


def pictures(folder: Path) -> list[Path]:
    """The heat maps of the same data and one of different data, and one walk within each family."""
    heat = [
        f"mean-excess-matched-keep-{data}-{data}.png"
        for data in ("mnist", "fashion-mnist", "cifar10")
    ]
    heat.append("mean-excess-matched-keep-mnist-fashion-mnist.png")
    kin = re.compile(r"lambda-fashion-mnist-([a-z]+)-w\d+-d\d+-\1-")
    walks = [file for file in sorted(folder.glob("lambda-*.png")) if kin.match(file.name)]
    return [folder / name for name in heat] + walks


def shown(start: str) -> str:
    files = sorted((DOCS / "pictures").glob(f"{start}*.png"))
    return "\n\n".join(f"![{file.stem}](pictures/{file.name})" for file in files)


def page() -> str:
    heat, places, walks = (read(name) for name in REPORTS)
    maps = heat["maps"]
    text = (Path(__file__).parent / "mal_report.md").read_text()
    parts = {
        "ZOO": the_zoo(heat),
        "COVERAGE": coverage(maps),
        "THRESHOLDS": thresholds(maps, "threshold"),
        "LOSS_THRESHOLDS": thresholds(maps, "loss threshold"),
        "BY_FAMILY": by_family(maps, "threshold", "keep"),
        "LOSS_BY_FAMILY": by_family(maps, "loss threshold", "keep"),
        "CHOSEN": chosen(maps),
        "WIDTHS": laws(heat["laws"], ("H1", "H2", "H5")),
        "DATA": laws(heat["laws"], ("H3",)),
        "POSITIONS": positions(places),
        "ASSEMBLIES": assemblies(walks),
        "RELATIVES": relatives(read("relatives")),
        "TRIED": tried(read("relatives")),
        "TEXTS": checkpoints(read("checkpoints")["texts"]),
        "IMAGES": checkpoints(read("checkpoints")["images"]),
        "HEATMAPS": shown("mean-excess"),
        "WALKS": shown("lambda"),
    }
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--laws", type=Path, help="folder that the experiments wrote to")
    args = parser.parse_args()
    if args.laws:
        take(args.laws)
    (DOCS / "assembly-laws.md").write_text(page())


if __name__ == "__main__":
    main()
