"""The two controls of the check over whole models, and controls of the controls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from examples.benchmarks import breaks as benchmark
from examples.benchmarks.single_breaks import left_out_members, undone_ties
from graftlib.graph import ops, trace
from graftlib.graph.axes.algebra import tie
from graftlib.graph.axes.trial import Trial


@pytest.mark.parametrize("name", ["mlp", "vit", "llama"])
def test_every_single_break_of_a_small_model_is_seen(name):
    """Every member of every class left out in turn, every bridging tie undone: what the benchmark does at length."""
    row = benchmark.measure(name, seed=0)
    assert row["passed"]
    for kind in ("left_out", "undone"):
        assert row[kind]["breaks"] > 10
        assert row[kind]["unseen"] == []
        assert row[kind]["blind_but_seen"] == []
    # Keys of the three layers of a ViT, by head and by unit of a head; the others have no bias of keys.
    assert row["left_out"]["blind"] == (6 if name == "vit" else 0)


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(3, 6)
        self.y, self.z = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        return self.y(self.a(x).tanh()) + self.z(self.b(x).tanh())


def test_a_class_that_is_too_wide_is_seen(monkeypatch):
    """A rule that ties what need not move together passes the check, and fails this control."""
    seen = []

    def greedy(x):
        here = ops.op().node
        if seen and seen[0][0].graph is here.graph and seen[0][0] is not here:
            tie(seen[0][1], x[-1])
        else:
            seen[:] = [(here, x[-1])]
        return x

    graph = trace(TwoBranches().eval(), torch.randn(8, 3))
    narrow = list(undone_ties(graph))
    assert narrow
    assert all(each.seen for each in narrow)
    monkeypatch.setitem(ops._rules, "aten.tanh.default", ops.OpSpec(greedy))
    graph = trace(TwoBranches().eval(), torch.randn(8, 3))
    assert graph.check().passed
    assert [each.what for each in undone_ties(graph) if not each.seen] == [
        "tanh in the model itself"
    ]


def test_a_class_that_is_too_narrow_is_seen(monkeypatch):
    """A rule that ties nothing where something moves together fails the check."""
    monkeypatch.setitem(
        ops._rules,
        "aten.tanh.default",
        ops.OpSpec(lambda x: type(x)(_loose(axis.size) for axis in x)),
    )
    assert not trace(TwoBranches().eval(), torch.randn(8, 3)).check().passed


def _loose(size):
    from graftlib.graph.axes.combine import fresh

    return fresh(size)


def _deep(depth: int = 12) -> nn.Sequential:
    layers = []
    for i in range(depth):
        layers += [nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6()]
    model = nn.Sequential(*layers, nn.Conv2d(6, 2, 1))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.01)
    return model.eval()


def test_a_deep_model_keeps_its_signal():
    """With statistics drawn without regard to the input, every norm would shrink what it is given by a hundred."""
    breaks = list(left_out_members(trace(_deep(), torch.randn(2, 3, 8, 8))))
    assert len(breaks) > 60
    assert min(each.error for each in breaks) > 1e-4


def test_no_channel_is_cut_off_everywhere():
    """Behind every norm of a trial, every channel is positive somewhere."""
    trial = Trial(trace(_deep(), torch.randn(2, 3, 8, 8)))
    x = trial.args[0]
    for layer in trial.model:
        x = layer(x)
        if isinstance(layer, nn.ReLU6):
            assert (x.amax((0, 2, 3)) > 0).all()


def test_statistics_of_one_number_are_left_as_drawn():
    """One image of one pixel has no spread."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    graph = trace(model.eval(), torch.randn(1, 3, 1, 1))
    assert (Trial(graph).tensor("1.running_var") > 0.4).all()
    assert graph.check().passed
