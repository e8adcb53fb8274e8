"""Every op pattern: the classes are those that hold, and the model says so itself."""

from __future__ import annotations

import pytest
import torch
from axis_models import CASES, Case, Fn
from torch import nn

from graftlib.errors import RuleError
from graftlib.graph import LayerGraph, ops, trace
from graftlib.graph.axes import axis_classes, check, frozen_ops, rule
from graftlib.graph.axes.algebra import tie
from graftlib.graph.axes.values import Axes
from graftlib.graph.capture import capture
from graftlib.graph.ops import find, rules


def seen(case: Case) -> LayerGraph:
    """The graph as a tracer sees it that keeps track of tensors made from nothing."""
    model = case.make().eval()
    return LayerGraph(model, capture(model, case.inputs, tracers=("fake", "real")), case.inputs)


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
        del ops._rules[name]


def test_a_wrong_rule_is_found_out():
    """The check is able to fail: a roll is not the identity on its axis."""
    model = Fn(lambda m, x: m.z(m.a(x).roll(1, -1)), a=nn.Linear(3, 6), z=nn.Linear(6, 2)).eval()
    kept = ops._rules["aten.roll"]
    try:
        rule("aten.roll")(lambda x, *args: x)
        result = check(trace(model, torch.randn(4, 3)))
    finally:
        ops._rules["aten.roll"] = kept
    assert not result.passed
    assert result.warning is None
    assert result.max_rel_error > 1e-3


def without_fit(x):
    raise NotImplementedError("not this one")


def with_a_typo(x):
    return x.dimensions


def without_an_argument():
    return None


def without_a_return(x):
    tie(x[0], x[0])


def of_another_shape(x):
    return Axes((*x, *x))


def past_the_end(x):
    return Axes(x[i] for i in range(5))


def by_a_name_that_is_none(x):
    return ops.op().named["no_such_argument"]


@pytest.fixture
def relu():
    """Sets the rule of relu for a test."""
    right = ops._rules["aten.relu"]
    yield rule("aten.relu")
    ops._rules["aten.relu"] = right


def rectified():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    return trace(model, torch.randn(4, 3))


@pytest.mark.parametrize("wrong", [without_fit, lambda x: tie(x[0], x[1])])
def test_a_rule_that_does_not_fit_freezes(relu, wrong):
    relu(wrong)
    graph = rectified()
    assert frozen_ops(graph) == {"aten.relu.default (rule does not fit)": 1}
    assert not any(each.free for each in axis_classes(graph))


@pytest.mark.parametrize(
    "wrong",
    [
        with_a_typo,
        without_an_argument,
        without_a_return,
        of_another_shape,
        past_the_end,
        by_a_name_that_is_none,
    ],
)
def test_a_rule_with_a_fault_is_an_error_that_names_op_node_and_rule(relu, wrong):
    """A missing answer is not "frozen": that would hide the fault as lost freedom."""
    relu(wrong)
    graph = rectified()
    for ask in (axis_classes, check, lambda graph: graph.freedom):
        with pytest.raises(RuleError) as caught:
            ask(graph)
        text = str(caught.value)
        assert "'aten.relu.default'" in text
        assert "'relu_default' in '1'" in text
        assert wrong.__name__ in text
        assert "test_rules.py" in text
        assert (caught.value.op, caught.value.node) == ("aten.relu.default", "relu_default")


NUMBERS = {
    "cumsum": lambda x: x.cumsum(0),
    "sort": lambda x: x.sort()[0],
    "softmax": lambda x: x.softmax(0),
    "argmax": lambda x: x.argmax(0),
    "topk": lambda x: x.topk(1)[0],
    "max": lambda x: x.max(0)[0],
    "sum": lambda x: x.sum(0),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1),
    "flatten": lambda x: x.flatten(),
    "squeeze": lambda x: x.squeeze(),
    "expand": lambda x: x.expand(3),
    "repeat": lambda x: x.repeat(2, 2),
    "stack": lambda x: torch.stack([x, x]),
    "cat": lambda x: torch.cat([x[None], x[None]]),
    "where": lambda x: torch.where(x > 0, x, -x),
    "logsumexp": lambda x: x.logsumexp(0),
    "var": lambda x: x.var(),
    "norm": lambda x: x.norm(),
    "matmul": lambda x: x[None] @ x[None],
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "movedim": lambda x: x[None, None].movedim(0, 1),
    "argsort": lambda x: x.argsort(),
    "cummax": lambda x: x.cummax(0)[0],
    "clamp": lambda x: x.clamp(0, 1),
    "tril": lambda x: x[None, None].tril(),
    "pad": lambda x: nn.functional.pad(x[None, None], (1, 1)),
    "unbind": lambda x: x[None].unbind()[0],
    "index": lambda x: x[None][torch.zeros(2, dtype=torch.long)],
    "gather": lambda x: x[None].gather(0, torch.zeros(2, dtype=torch.long)),
    "einsum": lambda x: torch.einsum("i,j->ij", x[None], x[None]),
    "interpolate": lambda x: nn.functional.interpolate(x[None, None, None], 4),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_tensor_without_axes_breaks_no_rule(name):
    model = Fn(
        lambda m, x: (m.z(m.a(x)), NUMBERS[name](m.a(x).sum())),
        a=nn.Linear(3, 6),
        z=nn.Linear(6, 2),
    )
    graph = trace(model.eval(), torch.randn(4, 3))
    assert [each.size for each in axis_classes(graph) if each.free] == [6]


def test_in_place_ops_have_the_rule_of_the_others():
    assert find("aten.add_.Tensor") is find("aten.add.Tensor")
    assert find("aten.relu_.default") is find("aten.relu.default")
    assert find("aten.no_such_op.default") is None


def test_every_rule_says_its_equation():
    built_in = [name for name in rules() if name.startswith(("aten.", "torchvision."))]
    assert len(built_in) > 350
    assert all(ops._rules[name].apply.__doc__ for name in built_in)


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
