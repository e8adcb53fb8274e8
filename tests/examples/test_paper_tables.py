"""Every table file of the paper runs at smoke scale, with every control, two seeds, and the paper's figures beside."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from examples.common import results

FOLDER = Path(__file__).parents[2] / "examples" / "paper"

QUICK = ["fig3_cycle", "table5_self"]
SLOW = [
    "fig1_sharing",
    "table1_cross_structure",
    "table2_cross_modal",
    "table3_cross_task",
    "table4_challenging",
    "table6_layers",
    "table7_ablation",
]
STANDIN = {"table3_cross_task", "table4_challenging", "table6_layers"}
ENGLISH = ("random source", "shuffled source", "source at initialisation", "equal-norm noise")


def smoke(name, folder, printed):
    module = importlib.import_module(f"examples.paper.{name}")
    harness = importlib.import_module("examples.paper.harness")
    out = folder / f"{name}.json"
    arguments = ["--scale", "smoke", "--cache", str(folder / "cache"), "--out", str(out)]
    harness.main(module.experiment, module.__doc__, arguments)
    report, text = results.load(out), printed.readouterr().out
    assert report["experiment"] == name
    assert report["result"] is (name not in STANDIN)
    assert ("THE DATA IS A STAND-IN" in text) is (name in STANDIN)
    assert all(facts["about"] in text for facts in report["data"].values())
    for rows in report["metrics"].values():
        assert {row["n"] for row in rows.values()} == {2}
        assert all("minus plain" in row for arm, row in rows.items() if arm != "plain")
        assert (
            any("paper" in row for row in rows.values())
            or report["experiment"] == "table2_cross_modal"
        )
    arms = set(report["cost"])
    grafted = {arm for arm in arms if f"{arm}, equal-norm noise" in arms}
    assert grafted
    for arm in grafted:
        assert "↔" in arm or "T_cycle" in arm or all(f"{arm}, {text}" in arms for text in ENGLISH)
    transfers = [row["transfers"] for arm, row in report["cost"].items() if "transfers" in row]
    assert transfers
    assert min(transfers) > 0
    return report


@pytest.mark.parametrize("name", QUICK)
def test_it_runs(name, tmp_path, capsys):
    report = smoke(name, tmp_path, capsys)
    rows = report["metrics"]["M top-1"]
    assert (
        len({tuple(row["values"]) for row in rows.values()}) > 2
    )  # the arms are not all the same run


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_others_run_too(name, tmp_path, capsys):
    smoke(name, tmp_path, capsys)


def test_there_is_a_file_for_every_table_and_it_says_how_to_run_it():
    found = {path.stem for path in FOLDER.glob("table*.py")} | {
        p.stem for p in FOLDER.glob("fig*.py")
    }
    assert found == {*QUICK, *SLOW}
    text = (FOLDER / "README.md").read_text()
    for name in found:
        about = (FOLDER / f"{name}.py").read_text().split('"""')[1]
        assert f"python -m examples.paper.{name} --scale small" in about
        assert "not run yet" in about
        assert f"`{name}.py`" in text
