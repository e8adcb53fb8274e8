"""Figures of the recipes are those of the files they name."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
BENCHMARKS = ROOT / "docs" / "benchmarks"
sys.path.insert(0, str(ROOT / "examples" / "benchmarks"))

from intervals import interval  # noqa: E402


def test_every_file_that_is_named_is_there():
    names = set(re.findall(r"`(\w+\.json)`", RECIPES))
    assert len(names) > 5
    assert all((BENCHMARKS / name).is_file() for name in names)


def text(found: list[float], *, cost: bool = False) -> str:
    mean, low, high = found
    return f"{-mean if cost else mean:+.1f} [{low:+.1f}, {high:+.1f}]".removeprefix("+" * cost)


def transplant(setting: str, one: str, other: str) -> list[float]:
    runs = json.loads((BENCHMARKS / "transplant.json").read_text())["settings"][setting]["runs"]
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
        ("accuracy_fashion_10000", "mergenet, trust 0.02", True),
        ("accuracy_digits_200", "mergenet unbounded", True),
        ("accuracy_digits_200", "mergenet paper form", True),
    ],
)
def test_arms_are_worth_what_is_said(name, arm, cost):
    row = json.loads((BENCHMARKS / f"{name}.json").read_text())["arms"][arm]
    assert re.sub(r"\s+", " ", RECIPES).count(text(row["minus plain"], cost=cost))


CHOSEN = "S→M, trust 0.05"


@pytest.mark.parametrize(
    ("arm", "against", "cost"),
    [
        (CHOSEN, "plain", False),
        (CHOSEN, f"{CHOSEN}, random source", False),
        (CHOSEN, f"{CHOSEN}, equal-norm noise", False),
        ("kd S→M", "plain", False),
        ("nkd S→M", "plain", False),
        ("dkd S→M", "plain", True),
        ("rkd S→M", "plain", True),
    ],
)
def test_the_confirmed_graft_is_worth_what_is_said(arm, against, cost):
    rows = json.loads((BENCHMARKS / "paper_table1_cifar10.json").read_text())["metrics"]["M top-1"]
    said = re.sub(r"\s+", " ", RECIPES)
    found = text(rows[arm][f"minus {against}"], cost=cost)
    assert found in said or found.removeprefix("+") in said
    gaps = [a - b for a, b in zip(rows[CHOSEN]["values"], rows["kd S→M"]["values"], strict=True)]
    assert f"{text(interval(gaps))} to `kd`" in said


@pytest.mark.parametrize(
    ("arm", "against", "cost"),
    [
        (CHOSEN, "plain", False),
        (CHOSEN, f"{CHOSEN}, random source", False),
        (CHOSEN, f"{CHOSEN}, equal-norm noise", False),
        ("kd S→M", "plain", True),
    ],
)
def test_the_same_graft_on_other_images_is_worth_what_is_said(arm, against, cost):
    rows = json.loads((BENCHMARKS / "paper_table1_fashion.json").read_text())["metrics"]["M top-1"]
    assert text(rows[arm][f"minus {against}"], cost=cost) in re.sub(r"\s+", " ", RECIPES)


def test_what_the_search_kept_is_worth_what_is_said():
    found = json.loads((BENCHMARKS / "paper_search.json").read_text())
    assert found["split"] == "validation"
    said = re.sub(r"\s+", " ", RECIPES)
    kept = found["rungs"][-1]["settings"]
    assert len(kept) == 5
    assert all(text(row["difference"]) in said for row in kept.values())
