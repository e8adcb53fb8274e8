"""In a notebook a report is what is printed, and names in it are text."""

import html
import sys

import pytest
import torch
from torch import nn

import graftlib
from graftlib import Mapping, surgery, trace
from graftlib.errors import MissingExtraError
from graftlib.slim import costs_of, latency_of
from graftlib.view import diff
from graftlib_adapters import assemble, lmc, transplant

NAME = "<img src=x onerror=alert(1)>&amp;"


def hostile():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module(NAME, nn.Linear(4, 16))
    model.add_module("act", nn.ReLU())
    model.add_module("out", nn.Linear(16, 2))
    return model


X = torch.randn(8, 4)


def reports():
    graph, other = (trace(hostile(), (X,)) for _ in range(2))
    with torch.no_grad():
        other.model.out.weight.add_(0.1)
        other.model[0].bias.add_(1.0)
    yield "AxisClass", graph.axis_class(NAME)
    yield "CheckResult", graph.check()
    yield "Costs", costs_of(graph)
    yield "Curve", lmc(graph.model, other.model, args=(X,), evaluate=lambda model: 0.0)
    yield "Diff", diff(graph, other)
    yield "Latency", latency_of(graph)
    yield "Preview", surgery.preview(graph, {NAME: 8})
    yield "SlimReport", graftlib.slim(graph, budget={"params": 0.6}).report
    yield "Transplanted", transplant(Mapping(graph, other))


@pytest.fixture(scope="module")
def made():
    return dict(reports())


@pytest.mark.parametrize(
    "name",
    [
        "AxisClass",
        "CheckResult",
        "Costs",
        "Curve",
        "Diff",
        "Latency",
        "Preview",
        "SlimReport",
        "Transplanted",
    ],
)
def test_a_report_shows_its_print_and_no_markup(made, name):
    shown = made[name]._repr_html_()
    assert html.unescape(shown.removeprefix("<pre>").removesuffix("</pre>")) == str(made[name])
    assert shown.count("<") == shown.count(">") == 2


@pytest.mark.parametrize(
    ("name", "rows"),
    [("Curve", "factors"), ("Diff", "changes"), ("Latency", "ops"), ("SlimReport", "rows")],
)
def test_a_report_with_rows_is_a_table(made, name, rows):
    pytest.importorskip("pandas", reason="pandas is not installed")
    table = made[name].to_dataframe()
    assert len(table) == len(getattr(made[name], rows)) > 0
    columns, expected = made[name].table()
    assert tuple(table.columns) == columns
    assert [*map(tuple, table.astype(object).to_numpy()[:, :1])] == [each[:1] for each in expected]


def test_a_plan_is_a_table_of_its_steps():
    pytest.importorskip("pandas", reason="pandas is not installed")
    assembly = assemble(hostile(), [hostile()], args=(X,), evaluate=lambda model: 0.0)
    table = assembly.record.to_dataframe()
    assert [*table["reason"]] == [step.reason for step in assembly.record.steps]
    assert len(table) == 1


def test_without_pandas_the_extra_is_named(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"graftlib\[dataframe\]"):
        made["Diff"].to_dataframe()


def test_the_names_are_in_what_is_printed(made):
    """Else the test above would see nothing."""
    assert sum(NAME in str(each) for each in made.values()) >= 5
