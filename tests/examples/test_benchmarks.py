"""Benchmarks run by their command, print their section of the docs, and go on where they stopped."""

from __future__ import annotations

import runpy
import sys

import pytest

from examples.common import results
from examples.common.command import add_root, parser


def ran(name, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_module(f"examples.benchmarks.{name}", run_name="__main__")


def test_a_model_has_a_process_of_its_own_and_is_measured_once(monkeypatch, tmp_path, capsys):
    out = tmp_path / "breaks.json"
    ran("breaks", monkeypatch, "--models", "mlp", "--out", out)
    assert "| `mlp` | 3 |" in capsys.readouterr().out
    (row,) = results.load(out)["rows"]
    assert row["left_out"]["unseen"] == []
    monkeypatch.setattr("examples.common.processes.apart", None)
    ran("breaks", monkeypatch, "--models", "mlp", "--out", out)
    assert "| `mlp` | 3 |" in capsys.readouterr().out


def test_a_graft_is_compared_on_digits(monkeypatch, tmp_path, capsys):
    sizes = ["--source-size", 256, "--source-epochs", 1, "--epochs", 1, "--seeds", 2, "--jobs", 1]
    arms = ["--arms", "plain", "mergenet"]
    folder = ["--cache", tmp_path, "--out", tmp_path / "accuracy.json"]
    ran("accuracy", monkeypatch, *sizes, *arms, *folder)
    rows = results.load(tmp_path / "accuracy.json")["arms"]
    assert rows["mergenet"]["n"] == 2
    gap = rows["mergenet"]["minus plain"][0]
    assert f"{gap:+.2f}" in capsys.readouterr().out


def test_the_data_are_named_by_an_option_or_by_the_environment(monkeypatch, capsys):
    def asked(*words):
        command = parser("What it does.", "x.json")
        add_root(command)
        return command.parse_args(words)

    monkeypatch.delenv("GRAFTLIB_DATA", raising=False)
    with pytest.raises(SystemExit):
        asked()
    assert "--root" in capsys.readouterr().err
    assert asked("--root", "here").root.name == "here"
    monkeypatch.setenv("GRAFTLIB_DATA", "there")
    assert asked().root.name == "there"
    assert asked().out.name == "x.json"
