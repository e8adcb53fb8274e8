"""What docs/measurements says of a GPU: made from the report, and no claim where an interval holds zero."""

import copy
from pathlib import Path

import pytest

from examples.benchmarks import gpu_tables
from examples.common import results

ROOT = Path(__file__).parents[2]


@pytest.fixture
def report():
    return results.load(ROOT / "docs" / "benchmarks" / "on_gpu.json")


def test_the_page_holds_the_section_that_the_report_makes(report):
    page = (ROOT / "docs" / "measurements" / "gpu.md").read_text("utf-8")
    assert gpu_tables.gpu(report) in page
    report["cost"][0]["ratio"] += 1
    assert gpu_tables.gpu(report) not in page


@pytest.mark.parametrize(
    ("interval", "clear"),
    [
        ([1.0, 0.1, 1.9], True),
        ([-1.0, -1.9, -0.1], True),
        ([1.0, -0.1, 2.1], False),
        ([0.0, 0.0, 0.0], False),
        ([1.0, None, None], False),
    ],
)
def test_a_difference_counts_where_its_interval_leaves_zero_out(interval, clear):
    assert gpu_tables.unequal({"paper - plain": {"top-1": interval}}) == ["paper - plain"] * clear


def test_the_paper_form_wins_only_where_it_beats_plain_training_and_every_control(report):
    all_above = copy.deepcopy(report)
    (table,) = all_above["table1"]
    ours = [name for name in table["differences"] if name.startswith("paper - ")]
    assert "paper - plain" in ours
    assert len(ours) > 1
    for name in ours:
        table["differences"][name]["top-1"] = [2.0, 1.0, 3.0]
    assert "every control? Yes" in gpu_tables.gpu(all_above)
    for name in ours:
        one_open = copy.deepcopy(all_above)
        one_open["table1"][0]["differences"][name]["top-1"] = [2.0, -1.0, 5.0]
        assert "every control? Not shown" in " ".join(gpu_tables.gpu(one_open).split())
