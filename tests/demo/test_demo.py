"""``graftlib demo``: it writes what it promises, prints what it wrote, and refuses before it works."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from graftlib import GraftError
from graftlib_adapters.demo import command, folder, report


def test_it_writes_exactly_the_promised_files(finished):
    assert {file.name for file in finished.out.iterdir()} == set(folder.FILES)
    assert all(file.stat().st_size > 100 for file in finished.out.iterdir())
    assert (finished.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert finished.report["files"] == {name: str(finished.out / name) for name in folder.FILES}


def test_the_table_shows_the_figures_of_the_report(finished):
    lines, text = finished.result.stdout.splitlines(), " ".join(finished.result.stdout.split())
    for role, facts in finished.report["models"].items():
        low, high = facts["accuracy"]["interval"]
        size = facts["onnx_bytes"]
        cells = [
            f"{facts['trained_on']:,}",
            f"{100 * facts['accuracy']['mean']:.2f}",
            f"{100 * low:.1f}-{100 * high:.1f}",
            f"{facts['parameters']:,}",
            *([f"{size / 1000:,.0f}", "kB"] if size else []),
            f"{facts['seconds']:.1f}",
        ]
        assert [*role.split(), *cells] in [line.split() for line in lines]
    difference = finished.report["differences"]["grafted - plain"]["mean"]
    assert f"minus plain {100 * difference:+.2f} points" in text
    assert f"{100 * finished.report['onnx']['accuracy']:.2f} % in onnxruntime" in text
    assert f"{finished.report['onnx']['max_rel_difference']:.1e}" in text


def test_accuracy_is_that_of_the_last_epoch(finished):
    (run,) = finished.report["runs"]
    for role, facts in finished.report["models"].items():
        curve = run["curves"][role]
        assert facts["accuracy"]["values"] == [curve["accuracy"][-1]]
        assert len(curve["accuracy"]) == len(curve["loss"]) == len(curve["steps"])


def test_it_says_how_little_one_seed_says(finished):
    text = " ".join(finished.result.stdout.split())
    assert "one seed proves nothing" in text
    assert "397 held-out images" in text
    assert "docs/benchmarks" in text
    assert "the source trains on 80 images, the targets on 40" in text


def test_all_targets_saw_the_same_batches(finished):
    curves = finished.report["runs"][0]["curves"]
    seen = {role: curves[role]["batches"] for role in curves}
    assert seen["plain"] == seen["grafted"] == seen["random source"]
    assert seen["source"] != seen["plain"]  # the comparison is able to fail


def test_only_the_grafted_ones_were_grafted(finished):
    curves = finished.report["runs"][0]["curves"]
    transfers = {role: len(curve["history"]) for role, curve in curves.items()}
    assert transfers == {"source": 0, "plain": 0, "grafted": 1, "random source": 1}
    assert finished.report["graft"]["transfers"] == 1


def test_the_shipped_file_is_the_grafted_target(finished):
    assert finished.report["onnx"]["accuracy"] == pytest.approx(
        finished.report["models"]["grafted"]["accuracy"]["mean"], abs=1e-9
    )
    assert finished.report["onnx"]["report"]["path"] == str(finished.out / "slim.onnx")
    assert finished.report["onnx"]["max_rel_difference"] < 1e-4


def test_the_same_seed_gives_the_same_figures(finished, repeated):
    assert repeated.report["seeds"] == [3, 4]
    assert _figures(repeated.report["runs"][0]) == _figures(finished.report["runs"][0])
    assert repeated.report["runs"][0]["curves"] != repeated.report["runs"][1]["curves"]
    assert repeated.report["onnx"]["accuracy"] == finished.report["onnx"]["accuracy"]


def test_several_seeds_give_mean_and_deviation(repeated):
    plain = repeated.report["models"]["plain"]["accuracy"]
    assert len(plain["values"]) == 2
    assert plain["mean"] == pytest.approx(np.mean(plain["values"]))
    assert plain["sd"] == pytest.approx(np.std(plain["values"], ddof=1))


def test_json_on_stdout_is_the_report(repeated):
    assert json.loads(repeated.result.stdout) == repeated.report


def test_the_table_of_several_seeds_shows_deviations(repeated, capsys):
    report.print_table(repeated.report)
    shown = " ".join(capsys.readouterr().out.split())
    plain = repeated.report["models"]["plain"]["accuracy"]
    assert f"plain 40 {100 * plain['mean']:.2f} {100 * plain['sd']:.2f}" in shown
    assert "one seed proves nothing" not in shown


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_dry_run_says_what_it_would_do_and_writes_nothing(graftlib, tiny, tmp_path, flags):
    out = tmp_path / "out"
    result = graftlib("demo", *tiny, "--dry-run", "-o", out, *flags)
    assert result.exit_code == 0
    assert list(tmp_path.iterdir()) == []
    for name in folder.FILES:
        assert str(out / name) in result.stdout
    if flags:
        assert json.loads(result.stdout)["budget"]["train_size"] == 40


def test_unknown_data_is_refused(graftlib, tmp_path):
    result = graftlib("demo", "--data", "digit", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "there is no data set 'digit'" in result.stderr
    assert "nearest  'digits'" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist", "cifar10-npz"])
@pytest.mark.parametrize("root", ["", "absent"])
def test_an_absent_root_is_refused_with_the_fix(graftlib, tmp_path, name, root):
    named = ["--root", tmp_path / root] if root else []
    result = graftlib("demo", "--data", name, *named, "-o", tmp_path / "out", "--dry-run")
    assert result.exit_code == 1
    assert "fix" in result.stderr
    assert name in result.stderr
    assert ("--root DIR" if not root else str(tmp_path / root)) in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_out_is_refused_before_training(graftlib, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "graftlib_adapters.demo.experiment.run", None
    )  # training would be a TypeError
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        result = graftlib("demo", *tiny, "-o", out)
        assert result.exit_code == 1
        assert "cannot be written" in result.stderr
        assert "--out" in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_impossible_sizes_are_refused(graftlib, tiny, tmp_path):
    result = graftlib("demo", *tiny, "--train-size", 5000, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "20 to 1400" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_names_the_extra(graftlib, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "LIBRARIES", ("torchvision", "no_such_library"))
    result = graftlib("demo", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert 'pip install "graftlib[demo]"' in result.stderr
    assert "no_such_library" in result.stderr


def test_the_help_page_imports_nothing_of_the_demo():
    """The list of commands shows the demo's first line, read from its file and not run."""
    code = (
        "import sys; from typer.testing import CliRunner; from graftlib.cli.app import app\n"
        "print(CliRunner().invoke(app, ['--help']).output)\n"
        "heavy = {'torch', 'graftlib_adapters', 'torchvision', 'sklearn', 'matplotlib', 'onnx', 'onnxruntime'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"demo\s+Train a slim model", done.stdout)


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(GraftError):
        _fail_halfway(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_what_stood_there_before_survives_a_failure(tmp_path):
    (tmp_path / "slim.onnx").write_text("old")
    with pytest.raises(GraftError):
        _fail_halfway(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["slim.onnx"]
    assert (tmp_path / "slim.onnx").read_text() == "old"


def _fail_halfway(out):
    with folder.workshop(out) as stage:
        (stage / "slim.onnx").write_text("half")
        raise GraftError("something went wrong.")


def _figures(figures):
    """Figures without times."""
    if isinstance(figures, dict):
        return {key: _figures(value) for key, value in figures.items() if key != "seconds"}
    return [_figures(value) for value in figures] if isinstance(figures, list) else figures
