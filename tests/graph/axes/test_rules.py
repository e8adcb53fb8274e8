"""Every op pattern: the classes are those that hold, and the model says so itself."""

from __future__ import annotations

import pytest
import torch
from axis_models import CASES, Case, Fn
from torch import nn

from graftlib.graph import LayerGraph, trace
from graftlib.graph.axes import axis_classes, check, frozen_ops, rule
from graftlib.graph.axes.algebra import tie
from graftlib.graph.axes.registry import find, rules
from graftlib.graph.capture import capture


def seen(case: Case) -> LayerGraph:
    """The graph as a rung sees it that keeps track of tensors made from nothing."""
    model = case.make().eval()
    return LayerGraph(model, capture(model, case.inputs, rungs=("fake", "real")), case.inputs)


@pytest.mark.parametrize("name", CASES)
def test_the_classes_are_the_symmetries(name):
    case = CASES[name]
    graph = seen(case)
    assert sorted(each.size for each in axis_classes(graph) if each.free) == case.sizes
    assert frozen_ops(graph) == {}
    result = check(graph, example=(case.inputs, {}))
    assert result.passed, str(result)
    assert result.classes == len(case.sizes)


@pytest.mark.parametrize("name", CASES)
def test_the_usual_trace_holds_too(name):
    case = CASES[name]
    result = check(trace(case.make().eval(), case.inputs), example=(case.inputs, {}))
    assert result.max_rel_error < 1e-9, str(result)


def test_an_op_without_a_rule_freezes_and_is_counted():
    model = Fn(
        lambda m, x: m.z(torch.special.bessel_j1(m.a(x))), a=nn.Linear(3, 6), z=nn.Linear(6, 2)
    ).eval()
    graph = trace(model, torch.randn(4, 3))
    assert not any(each.free for each in axis_classes(graph))
    assert list(frozen_ops(graph)) == ["aten.special_bessel_j1.default"]
    assert any("no rule" in (each.frozen_by or "") for each in axis_classes(graph))


def test_a_rule_can_be_added():
    model = Fn(
        lambda m, x: m.z(torch.special.bessel_j0(m.a(x))), a=nn.Linear(3, 6), z=nn.Linear(6, 2)
    )
    name = "aten.special_bessel_j0.default"
    before = trace(model, torch.randn(4, 3))
    assert frozen_ops(before) == {name: 1}

    @rule(name)
    def bessel(x):
        return x

    try:
        after = trace(model, torch.randn(4, 3))
        assert [each.size for each in axis_classes(after) if each.free] == [6]
        assert check(after).passed
    finally:
        from graftlib.graph.axes import registry

        del registry._rules[name]


def test_a_wrong_rule_is_found_out():
    """The check is able to fail: a roll is not the identity on its axis."""
    from graftlib.graph.axes import registry

    model = Fn(lambda m, x: m.z(m.a(x).roll(1, -1)), a=nn.Linear(3, 6), z=nn.Linear(6, 2)).eval()
    kept = registry._rules["aten.roll"]
    try:
        rule("aten.roll")(lambda x, *args: x)
        result = check(trace(model, torch.randn(4, 3)))
    finally:
        registry._rules["aten.roll"] = kept
    assert not result.passed
    assert result.warning is None
    assert result.max_rel_error > 1e-3


def test_a_rule_that_does_not_fit_freezes():
    from graftlib.graph.axes import registry

    kept = registry._rules["aten.relu"]
    try:
        rule("aten.relu")(lambda x: tie(x[0], x[1]))
        graph = trace(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(4, 3))
        assert frozen_ops(graph) == {"aten.relu.default (rule does not fit)": 1}
        assert not any(each.free for each in axis_classes(graph))
    finally:
        rule("aten.relu")(kept.apply)
        registry._rules["aten.relu"] = kept


def test_in_place_ops_have_the_rule_of_the_others():
    assert find("aten.add_.Tensor") is find("aten.add.Tensor")
    assert find("aten.relu_.default") is find("aten.relu.default")
    assert find("aten.no_such_op.default") is None


def test_every_rule_says_its_equation():
    from graftlib.graph.axes import registry

    built_in = [name for name in rules() if name.startswith(("aten.", "torchvision."))]
    assert len(built_in) > 350
    assert all(registry._rules[name].apply.__doc__ for name in built_in)


class ChosenExpert(nn.Module):
    """Which expert runs depends on the input; the others are never seen."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 6)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.z = nn.Linear(6, 2)

    def forward(self, x):
        h = self.a(x)
        return self.z(self.experts[int(x.sum() > 0)](h).relu() + h)


def test_what_an_unseen_expert_would_tie_is_frozen():
    graph = trace(ChosenExpert().eval(), torch.ones(4, 3))
    assert graph.real
    assert not any(each.free for each in axis_classes(graph))
