"""What `coverage --all` found of edits, in few columns, for `docs/benchmarks`.

    python -m examples.benchmarks.coverage_brief --family hf --found FOLDER --set "which models"

In: the results of a walk over every architecture of a family, and of some of them on later code with ``--later``. Out:
``coverage_FAMILY_all.json`` (totals, a row for whatever did not go as it should, the names of those whose configuration
cannot say the sizes, and of those that do not run by themselves by what keeps them) and the same for reading,
``coverage_FAMILY_all.md``.
"""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from graftlib.disk import write_whole

from ..common import command, results
from .coverage import Row, _versions

STEPS = (0.3, 0.4, 0.5, 0.6, 0.8, 1.01)
SAID = "no, said"


def shortened(row: Row) -> Row:
    """One model: what became of half of it; ``cpu_s`` of the edit, trace left out."""
    edit = row.get("prune", {})
    if not row.get("traced"):
        return {"outcome": f"not traced: {row['error'][:120]}"}
    if not edit["done"]:
        return {"outcome": f"refused: {edit['error'][:120]}", "cpu_s": edit["cpu_s"]}
    short = {
        "outcome": "ran" if edit.get("ran") else "other shapes",
        "left": round(edit["left"], 3),
        "classes_left": edit["classes_left"],
        "cpu_s": round(edit["cpu_s"], 1),
    }
    if "saved" in edit:
        said = SAID if edit.get("config_warned") else "no"
        short["saved"] = "yes" if edit["saved"] else said
    return short


def is_odd(row: Row) -> bool:
    """Whether a model did not go as it should: not halved, not loaded again, much or some classes left."""
    failed = row["outcome"] != "ran" or row.get("saved") == "no"
    return failed or row["left"] > 0.8 or bool(row["classes_left"])


def unbuilt(rows: list[Row]) -> dict[str, list[str]]:
    """What kept a model from running by itself -> names."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if "unbuilt" in row:
            found.setdefault(_reason(row["unbuilt"]), []).append(row["name"])
    return found


def _reason(words: str) -> str:
    if "not below" in words or "is not tiny" in words:
        return "too large"
    if words.startswith("it does not run"):
        return "does not run on the inputs made for it"
    if words.startswith("StopIteration"):
        return "no class with a head is built from its configuration"
    return "its configuration refuses the small sizes"


def totals(rows: dict[str, Row]) -> Row:
    """Counts, and how the shares and the seconds are spread."""
    done = [row for row in rows.values() if "left" in row]
    left, seconds = [row["left"] for row in done], [row["cpu_s"] for row in done]
    saved = Counter(row["saved"] for row in done if "saved" in row)
    below, spread = 0.0, {}
    for step in STEPS:
        spread[f"{below} to {min(step, 1.0)}"] = sum(below <= share < step for share in left)
        below = step
    return {
        "models that run by themselves": len(rows),
        "half pruned, ran, gave the traced shapes": sum(row["outcome"] == "ran" for row in done),
        "of these, every class got smaller": sum(row["classes_left"] == 0 for row in done),
        "share of parameters left, median": median(left),
        "share of parameters left, spread": spread,
        "CPU s of the edit, median, 95 %, most": [
            round(n, 1) for n in (median(seconds), quantiles(seconds, n=20)[-1], max(seconds))
        ],
        "saved, loaded, same answers": dict(saved),
    }


def page(document: Row) -> str:
    """The totals, and by name what is not as it should be."""
    rows, later = document["rows"], document["later"]
    lines = [f"# Half of every class: {document['family']}", "", document["set"], ""]
    lines += [f"- {key}: {_said(value)}" for key, value in document["totals"].items()]
    code = document["code"]
    if later:
        code += f", of the later ones: {document['later code']}"
    lines.append(f"- code of the rows: {code}")
    lines += [f"- {key}: {value}" for key, value in document["facts"].items()]
    lines += ["", "## Not as it should be", ""]
    lines += ["| model | outcome | share left | classes left | saved | share left on later code |"]
    lines += ["|" + " --- |" * 6]
    for name, row in rows.items():
        if is_odd(row) or name in later:
            new = later.get(name, {})
            cells = [name, row["outcome"], row.get("left", "–"), row.get("classes_left", "–")]
            cells += [row.get("saved", "–"), new.get("left", "–")]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    if said := document["said"]:
        lines += [
            "",
            "## Configurations that cannot say the sizes, as a warning says",
            "",
            _listed(said),
        ]
    lines += ["", "## Models that do not run by themselves", ""]
    lines += [
        f"- {why} ({len(names)}): {_listed(names)}" for why, names in document["unbuilt"].items()
    ]
    return "\n".join(lines) + "\n"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__, "docs/benchmarks")
    parser.add_argument("--family", choices=("hf", "timm"), required=True)
    parser.add_argument("--found", type=Path, required=True, help="folder that coverage wrote")
    parser.add_argument("--later", type=Path, help="likewise, of some models on later code")
    parser.add_argument("--set", required=True, help="which models they are, in words")
    options = parser.parse_args()
    name = f"coverage_{options.family}_all"
    found, later = (
        results.load(folder / f"{name}.json")["rows"] if folder else []
        for folder in (options.found, options.later)
    )
    rows = {row["name"]: shortened(row) for row in found if "unbuilt" not in row}
    document = {
        "family": options.family,
        "set": options.set,
        "facts": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            **_versions(),
        },
        "code": _codes(found),
        "later code": _codes(later),
        "totals": totals(rows),
        "rows": {name: row for name, row in rows.items() if is_odd(row)},
        "said": [name for name, row in rows.items() if row.get("saved") == SAID],
        "later": {row["name"]: shortened(row) for row in later},
        "unbuilt": unbuilt(found),
    }
    results.save(options.out / f"{name}.json", document)
    write_whole(options.out / f"{name}.md", page(document))


def _codes(rows: list[Row]) -> str:
    return ", ".join(sorted({row["code"] for row in rows if "code" in row}))


if __name__ == "__main__":
    main()
