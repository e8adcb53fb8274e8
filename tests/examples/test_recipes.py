"""Figures of the recipes are those of the files they name."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

from examples.common import results
from examples.common.intervals import interval
from examples.common.markdown import signed

ROOT = Path(__file__).parents[2]
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
SAID = re.sub(r"\s+", " ", RECIPES)
BENCHMARKS = ROOT / "docs" / "benchmarks"


def test_every_file_that_is_named_is_there():
    names = set(re.findall(r"`(\w+\.json)`", RECIPES))
    assert len(names) > 5
    assert all((BENCHMARKS / name).is_file() for name in names)


def text(found: list[float], *, cost: bool = False) -> str:
    mean, low, high = found
    return f"{-mean if cost else mean:+.1f} [{low:+.1f}, {high:+.1f}]".removeprefix("+" * cost)


def transplant(setting: str, one: str, other: str) -> list[float]:
    runs = results.load(BENCHMARKS / "transplant.json")["settings"][setting]["runs"]
    found = {(run["arm"], run["seed"]): run["accuracy"] for run in runs}
    seeds = sorted({seed for _, seed in found})
    return interval([found[one, seed] - found[other, seed] for seed in seeds])


@pytest.mark.parametrize(
    ("setting", "one", "other"),
    [
        ("cifar10, shallow", "transplant", "random"),
        ("cifar10, plain convolutions", "transplant", "random"),
        ("fashion-mnist, shallow", "transplant", "random"),
    ],
)
def test_starts_are_worth_what_is_said(setting, one, other):
    assert text(transplant(setting, one, other)) in RECIPES


def test_a_graft_on_a_transplant_costs_what_is_said():
    found = transplant("cifar10, shallow", "transplant + graft", "transplant")
    assert f"cost {text(found, cost=True)}" in RECIPES


@pytest.mark.parametrize(
    ("name", "arm", "cost"),
    [
        ("accuracy_digits_200", "KD", False),
        ("accuracy_fashion_2000", "KD", False),
        ("accuracy_digits_200", "mergenet unbounded", True),
        ("accuracy_digits_200", "mergenet paper form", True),
    ],
)
def test_arms_are_worth_what_is_said(name, arm, cost):
    row = results.load(BENCHMARKS / f"{name}.json")["arms"][arm]
    assert text(row["minus plain"], cost=cost) in SAID


CARRIED = [
    "pull - plain",
    "pull - pull, untrained source",
    "pull - pull, each layer in an order of its own",
    "pull - noise of the pull's angle",
    "pull - start from the source",
    "pull - kd",
    "pull - plain, three times the steps",
    "pull - pull, matched units",
    "pull, until 30 % - plain",
    "pull, source of equal width - plain",
    "slow weights - plain",
    "netaug - plain",
    "plain, twice the steps - plain",
    "mergenet - plain",
]


@pytest.mark.parametrize("difference", CARRIED)
@pytest.mark.parametrize("dataset", ["cifar10", "fashion-mnist"])
def test_a_pull_is_worth_what_is_said(difference, dataset):
    tables = results.load(BENCHMARKS / "carry.json")["carry"]
    (one,) = [each for each in tables if each["data"]["dataset"] == dataset]
    assert text(one["differences"][difference]["top-1"]).lstrip("+") in SAID


def test_a_pull_costs_what_is_said():
    ratio = results.load(BENCHMARKS / "pull_cost.json")["arms"]["pulled"]["cpu_ratio"]
    assert (
        f"{ratio:.2f} times as long while the pull lasted, so {0.9 + ratio / 10:.3f} over" in SAID
    )


def test_trained_shapes_are_worth_what_is_said():
    report = results.load(BENCHMARKS / "mimetic.json")
    words = {"plain": "plain training", "equal norms": "noise of the same norms"}
    for other, what in words.items():
        assert f"{report['mimetic minus'][other]:+.1f} to {what}" in SAID
    assert f"{report['mimetic minus']['sign turned']:+.1f} to the other sign" in SAID
    for pair, spread in report["encoder"].items():
        if isinstance(spread, dict):
            assert f"{spread['mean']:.2f} ± {spread['sd']:.2f} ({pair})" in SAID


CHOSEN = "S→M, trust 0.05, until 30 %"


def rows(report: str, metric: str) -> dict[str, dict]:
    return results.load(BENCHMARKS / f"{report}.json")["metrics"][metric]


@pytest.mark.parametrize(
    ("report", "metric", "arm", "reference"),
    [
        ("paper_table1_cifar10", "M top-1", "MergeNet R→M", "plain"),
        ("paper_table1_cifar10", "M top-1", CHOSEN, "plain"),
        ("paper_table1_fashion", "M top-1", CHOSEN, "plain"),
        ("paper_table5", "M top-1", "classifier→block 8", "plain"),
        ("paper_table3", "S accuracy", "MergeNet QA→S", "plain"),
    ],
)
def test_each_graft_is_worth_what_its_row_says(report, metric, arm, reference):
    row = rows(report, metric)[arm]
    versus = (reference, f"{arm}, random source", f"{arm}, equal-norm noise")
    cells = " | ".join(text(row[f"minus {other}"]) for other in versus)
    assert f"{cells} | `{report}.json` |" in SAID


@pytest.mark.parametrize(
    ("report", "arm", "against", "cost"),
    [
        ("table1_cifar10", "kd S→M", "plain", False),
        ("table1_cifar10", "nkd S→M", "plain", False),
        ("table1_cifar10", "dkd S→M", "plain", False),
        ("table1_cifar10", "rkd S→M", "plain", True),
        ("table1_fashion", "kd S→M", "plain", True),
        ("table1_fashion", "dkd S→M", "plain", True),
        ("table5", "uskd", "plain", False),
        ("common_ancestor", "shared until 10 %", "plain", False),
        ("common_ancestor", "shared until 10 %", "shared until 10 %, random source", False),
        ("common_ancestor", "kd", "plain", False),
        ("common_ancestor", "from the end of F", "plain", False),
        ("common_ancestor", "pull", "plain", True),
        ("common_ancestor", "MergeNet, trust 0.05", "plain", True),
    ],
)
def test_what_helps_and_what_costs_is_worth_what_is_said(report, arm, against, cost):
    found = text(rows(f"paper_{report}", "M top-1")[arm][f"minus {against}"], cost=cost)
    assert found.removeprefix("+") in SAID


@pytest.mark.parametrize("arm", ["pull", "pull, random source"])
def test_a_pull_moves_away_by_what_is_said(arm):
    report = results.load(BENCHMARKS / "paper_common_ancestor.json")
    shares = [share for (share,) in report["cost"][arm]["said"].values()]
    assert f"{-100 * statistics.mean(shares):.1f} %" in SAID


def test_no_learned_graft_is_above_a_source_of_noise():
    learned = 0
    for file in BENCHMARKS.glob("paper_*.json"):
        for metric in results.load(file).get("metrics", {}).values():
            for arm, row in metric.items():
                found = row.get(f"minus {arm}, random source")
                if found is not None and "shar" not in arm:
                    learned += 1
                    assert found[1] <= 0, (file.name, arm)
    assert learned > 10


def test_the_sentiment_model_hardly_depends_on_its_source():
    found = rows("paper_table3", "S accuracy")
    spoilt = ("random source", "shuffled source", "source at initialisation")
    values = [found[f"MergeNet QA→S{how}"]["values"] for how in ("", *(f", {h}" for h in spoilt))]
    spread = [max(each) - min(each) for each in zip(*values, strict=True)]
    assert len(spread) == 8
    assert f"differs by at most {max(spread):.1f} between" in SAID
    assert found["MergeNet QA→S, equal-norm noise"]["values"] not in values


def test_a_start_across_families_is_worth_what_is_said():
    found = rows("paper_table1_cifar10", "M top-1")["transplanted start"]
    assert f"after eight epochs that start was {text(found['minus plain'])}" in SAID


def test_the_distance_to_distillation_is_what_is_said():
    found = rows("paper_table1_cifar10", "M top-1")
    mean = {arm: statistics.mean(row["values"]) for arm, row in found.items()}
    gaps = [mean["dkd S→M"] - mean[arm] for arm in ("MergeNet R→M", CHOSEN)]
    assert "To `dkd` the first two lose {:.1f} and {:.1f} points".format(*gaps) in SAID


def test_an_adapter_listens_as_much_as_is_said():
    stages = results.load(BENCHMARKS / "paper_search.json")["rungs"]
    found = stages[0]["share of a transfer that comes from the source"]
    shares = {name: [100 * s[0] for s in links.values()] for name, links in found.items()}
    (small,), (free,) = shares["default"], shares["no bound"]
    wide = shares["all residual branches, trust 0.05"]
    assert f"{small:.0f} % of a small link's transfer" in SAID
    assert f"{free:.0f} % without a bound" in SAID
    assert f"of wider layers {min(wide):.0f} to {max(wide):.0f} %" in SAID


def test_the_loss_leads_where_is_said():
    means = results.load(BENCHMARKS / "paper_downhill.json")["means"]
    lines = {
        "its own end": "the weights this training arrives at",
        "a sibling": "a sibling: the same start, other batches",
        "an aligned ResNet": "a strong ResNet, unit for unit",
        "noise": "noise",
    }
    for kind, said in lines.items():
        cells = (signed(means[start][kind][0], 3) for start in means)
        assert f"| {said} | {' | '.join(cells)} |" in SAID


def test_what_the_search_kept_is_worth_what_is_said():
    found = results.load(BENCHMARKS / "paper_search.json")
    assert found["split"] == "validation"
    second, last = (stage["settings"] for stage in found["rungs"][1:])
    assert (len(second), len(last)) == (5, 2)
    assert all(text(row["difference"]) in SAID for row in (*second.values(), *last.values()))
