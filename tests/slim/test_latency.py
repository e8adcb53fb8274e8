"""Latency: exact where it was measured, from the cache where it is known, a budget like any other."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

import graftlib
from graftlib.slim import latency_of
from graftlib.slim.costs import costs_of
from graftlib.surgery import SurgeryError

from . import nets


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and short measurements."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency_module(), "_SECONDS", 1e-4)
    monkeypatch.setattr(latency_module(), "_WHOLE", 1e-3)
    return tmp_path


def latency_module():
    return sys.modules[latency_of.__module__]


@pytest.mark.parametrize("kind", [*nets.INPUTS])
def test_at_the_traced_sizes_the_prediction_is_the_measured_time(kind):
    model, x = nets.made(kind)
    graph = graftlib.trace(model, x)
    found = latency_of(graph)
    whole = found.constant + sum(ms for *_, ms in found.ops)
    assert found.total([each.size for each in graph.axis_classes]) == pytest.approx(whole)
    assert all(ms > 0 for *_, ms in found.ops)
    assert not found.fixed
    assert "the rest" in str(found)


def test_ops_are_called_as_at_the_smaller_sizes(monkeypatch):
    """The time of an op that is proportional to what it makes is foretold exactly; groups follow their channels."""
    shapes = []

    def least(run, seconds, device):
        result = run()
        shapes.append(tuple(result.shape))
        return float(result.numel())

    monkeypatch.setattr(latency_module(), "_least_ms", least)
    monkeypatch.setattr(latency_module(), "measured_ms", lambda model, graph: 1e9)
    model, x = nets.made(nets.Conv)
    graph = graftlib.trace(model, x)
    found = latency_of(graph)
    inner = graph.axis_class("stem", "out")
    costs = costs_of(graph)
    sizes = [8 if each == inner else each.size for each in costs.classes]
    now = [each.size for each in costs.classes]
    small = nets.Conv(8).eval()
    small.wide, small.grouped = nn.Conv2d(8, 32, 1), model.grouped
    small.up, small.head = model.up, model.head
    again = latency_of(graftlib.trace(small, x))
    difference = sum(ms for *_, ms in again.ops) - sum(ms for *_, ms in found.ops)
    assert found.total(sizes) - found.total(now) == pytest.approx(difference, rel=0.05)
    assert len({shape[1] for shape in shapes if len(shape) == 4}) > 4


def test_what_is_known_is_not_measured_again(cache, monkeypatch):
    model, x = nets.made(nets.Residual)
    graph = graftlib.trace(model, x)
    monkeypatch.setattr(latency_module(), "measured_ms", lambda model, graph: 1e9)
    first = latency_of(graph)
    (file,) = cache.glob("graftlib/latency/*.json")
    assert json.loads(file.read_text())["machine"] == first.machine
    runs = []

    def least(run, seconds, device):
        runs.append(seconds)
        return 1.0

    monkeypatch.setattr(latency_module(), "_least_ms", least)
    again = latency_of(graph)
    assert again.ops == first.ops
    assert not runs
    known = json.loads(file.read_text())
    wrong = [float("nan"), -1.0, "1.0", True]
    spoilt = {"machine": first.machine, "ms": {c: wrong[i % 4] for i, c in enumerate(known["ms"])}}
    for damage in ("{", '{"machine": 3, "ms": []}', "[]", json.dumps(spoilt)):
        runs.clear()
        file.write_text(damage)
        assert [ms for *_, ms in latency_of(graph).ops] == pytest.approx([1.0] * len(first.ops))
        assert len(runs) > 3


def test_a_cache_that_cannot_be_written_is_none(cache):
    (cache / "graftlib").write_text("a file in the way")
    model, x = nets.made(nets.Written)
    assert latency_of(graftlib.trace(model, x)).ops


def test_an_op_that_runs_at_its_own_sizes_only_is_named(monkeypatch):
    """Its time is a constant."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 32), nn.Linear(32, 2)

        def forward(self, x):
            return self.b(torch.nn.functional.group_norm(self.a(x), 32))

    found = latency_of(graftlib.trace(Halves().eval(), torch.randn(2, 4)))
    assert found.total.terms
    if found.fixed:
        assert "group_norm" in found.fixed[0]
        assert "group_norm" in str(found)


def test_ops_that_take_longer_alone_than_in_the_pass_are_scaled_down(monkeypatch):
    model, x = nets.made(nets.Residual)
    graph = graftlib.trace(model, x)
    monkeypatch.setattr(latency_module(), "measured_ms", lambda model, graph: 1e-3)
    found = latency_of(graph)
    assert sum(ms for *_, ms in found.ops) == pytest.approx(1e-3)
    assert found.constant == 0


def test_factors_are_not_negative():
    rows = np.array([[1.0, 4.0], [1.0, 2.0], [1.0, 1.0]])
    exact = latency_module()._not_negative(rows, np.array([9.0, 5.0, 3.0]))
    assert exact == pytest.approx([1, 2])
    falling = latency_module()._not_negative(rows, np.array([1.0, 2.0, 3.0]))
    assert (falling >= 0).all()
    assert falling[1] == 0


def test_a_budget_of_time(monkeypatch):
    monkeypatch.setattr(latency_module(), "_least_ms", lambda run, s, d: float(run().numel()))
    model, x = nets.made(nets.Residual)
    graph = graftlib.trace(model, x)
    monkeypatch.setattr(latency_module(), "measured_ms", lambda model, graph: 1e9)
    whole = sum(ms for *_, ms in latency_of(graph).ops)
    whole *= 1.1
    monkeypatch.setattr(latency_module(), "measured_ms", lambda model, graph: whole)
    small = graftlib.slim(graph, budget={"latency_ms": 0.6})
    after = small.report.widths.costs["latency_ms"]
    assert 0.4 * whole < after <= 0.6 * whole
    assert "latency, ms" in str(small)
    absolute = graftlib.slim(graph, budget={"latency_ms": 0.6 * whole})
    assert absolute.edit == small.edit


def test_both_passes_are_timed_after_any_slimming():
    model, x = nets.made(nets.Residual)
    small = graftlib.slim(graftlib.trace(model, x), budget={"macs": 0.5})
    assert small.report.measured_ms is not None
    assert "measured, ms" in str(small)
    assert "latency, ms" not in str(small)
    assert small.report.to_dict()["measured_ms"] == small.report.measured_ms


def test_without_values_there_is_no_time():
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4)
    with pytest.raises(SurgeryError, match="cannot be timed"):
        latency_of(graftlib.trace(model, x))
