"""In a notebook a report is what is printed, and names in it are text."""

import html

import pytest
import torch
from torch import nn

import graftlib
from graftlib import Mapping, surgery, trace
from graftlib.slim import costs_of, latency_of
from graftlib.view import diff
from graftlib_adapters import lmc, transplant

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


def test_the_names_are_in_what_is_printed(made):
    """Else the test above would see nothing."""
    assert sum(NAME in str(each) for each in made.values()) >= 5
