"""The demo runs, leaves an ordinary network and few files, and says no more than its intervals do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn")

from examples import demo

points = st.floats(-20, 20, allow_nan=False)


@given(points, points)
def test_a_sentence_claims_what_its_interval_shows(one, other):
    low, high = sorted((one, other))
    said = demo.sentence(low, high)
    assert ("better" in said) is (low > 0)
    assert ("worse" in said) is (high < 0)
    assert ("no difference" in said) is (low <= 0 <= high)


def test_a_row_is_paired_by_seed():
    """The same gain in every seed is seen, however much the seeds differ; in another order it is not."""
    ends = {name: [50.0, 70.0, 90.0] for name in ("source", *demo.STARTS)}
    ends["distillation"] = [51.0, 71.2, 91.1]
    ends["MergeNet graft"] = [91.1, 51.0, 71.2]
    rows = {line[:26].strip(): line for line in demo.table(ends)}
    assert "better than a random start" in rows["distillation"]
    assert "no difference" in rows["MergeNet graft"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    demo.main(["--out", str(folder), "--seeds", "2", "--images", "60", "--steps", "12"])
    return folder


def test_it_writes_the_files_that_it_lists(out):
    assert {path.name for path in out.iterdir()} == set(demo.FILES)
    report = json.loads((out / "report.json").read_text())
    assert len(report["table"]) == 1 + len(demo.STARTS)
    assert [len(curve) for curve in report["curves"][0].values()] == [demo.POINTS] * 6


def test_a_seed_decides_its_runs_and_a_graft_leaves_nothing(out):
    again, _, models = demo.run(1, 60, 12)
    first, second = json.loads((out / "report.json").read_text())["curves"]
    assert again == second
    assert first != second
    assert len({tuple(model.state_dict()) for model in models.values()}) == 1


def test_one_seed_is_refused(tmp_path):
    with pytest.raises(SystemExit):
        demo.main(["--out", str(tmp_path), "--seeds", "1"])
    assert not any(tmp_path.iterdir())


def test_it_is_short():
    assert len(Path(demo.__file__).read_text().splitlines()) <= 200
