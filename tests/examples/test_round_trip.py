"""The benchmark of saving and loading runs, goes on where it stopped, and keeps what is not equal."""

from __future__ import annotations

import sys

from examples.benchmarks.round_trip import brief, main, summary
from examples.common import results


def ran(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["round_trip", *map(str, words)])
    main()


def test_a_slimmed_model_comes_back_and_is_not_tried_again(monkeypatch, tmp_path, capsys):
    words = ["--family", "hf", "--only", "bert", "-o", tmp_path / "rows.json"]
    ran(monkeypatch, *words, "--brief", tmp_path / "brief.json")
    found = results.load(tmp_path / "brief.json")
    assert (
        found["summary"]["hf"] | {"models": 1, "same": 1, "answers": 1, "fewer": 1, "errors": 0}
        == found["summary"]["hf"]
    )
    assert found["odd"] == {"hf": {}}
    assert "bert" in capsys.readouterr().out
    ran(monkeypatch, *words)
    assert "{'same'" not in capsys.readouterr().out


def test_rows_that_are_not_equal_stay_in_the_short_report():
    rows = {"a": {"same": True, "answers": True}, "b": {"same": False}, "c": {"error": "no"}}
    report = {"summary": {"hf": summary(rows)}, "versions": {}, "hf": rows}
    assert [*brief(report)["odd"]["hf"]] == ["b", "c"]
