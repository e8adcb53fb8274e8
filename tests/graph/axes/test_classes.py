"""What a class says, how much is free, and what a member means."""

from __future__ import annotations

import pytest
import torch
from axis_models import CASES
from torch import nn

from graftlib.graph import LayerGraph, trace
from graftlib.graph.axes import AxisClass, Member, axis_classes, freedom, frozen_shares
from graftlib.graph.axes.check import permute
from graftlib.graph.capture import capture


def classes(name):
    model = CASES[name].make().eval()
    return axis_classes(LayerGraph(model, capture(model, CASES[name].inputs, tracers=("fake",))))


def words(each):
    return [str(member) for member in each.members]


def test_a_class_lists_all_that_moves_together():
    hidden, *frozen = classes("conv_norm")
    assert words(hidden) == [
        "a.weight[0]",
        "a.bias[0]",
        "n.weight[0]",
        "n.bias[0]",
        "n.running_mean[0]",
        "n.running_var[0]",
        "z.weight[1]",
    ]
    assert [each.frozen_by for each in frozen] == ["the input 'arg0'", "the output"]


def test_print_says_which_op_tied_what():
    text = str(classes("residual")[0])
    assert text.startswith("6 units, free\n  a.weight[0]")
    assert "linear in 'b'" in text
    assert (
        text.splitlines()[-1]
        == "  tied by linear in 'a', linear in 'b', linear in 'c', add in the model itself, linear in 'z'"
    )


def test_heads_and_their_dimensions_are_told_apart():
    by_size = {each.size: words(each) for each in classes("packed_attention") if each.free}
    assert "qkv.weight[0] from 0 as (*2* 4)" in by_size[2]
    assert "qkv.weight[0] from 16 as (*2* 4)" in by_size[2]
    assert "o.weight[1] from 0 as (*2* 4)" in by_size[2]
    values = [words(each) for each in classes("packed_attention") if each.size == 4 and each.free]
    assert any("o.weight[1] from 0 as (2 *4*)" in each and len(each) == 3 for each in values)


def test_a_sum_inside_a_product_has_a_member_a_row():
    """(h 3 d): the values of each head lie apart."""
    keys, values = (
        words(each) for each in classes("interleaved_attention") if each.size == 4 and each.free
    )
    assert [w for w in values if w.startswith("qkv.weight")] == [
        "qkv.weight[0] from 8 as (*4*)",
        "qkv.weight[0] from 20 as (*4*)",
    ]
    assert len([w for w in keys if w.startswith("qkv.weight")]) == 4


def test_the_direction_of_a_permutation():
    """Entry i of an order is the unit that comes to place i; a 3-cycle shows it."""
    member, order = Member("w", 0, 0, (3,), 0), torch.tensor([2, 0, 1])
    tensor = torch.tensor([10.0, 20.0, 30.0])
    permute(tensor, member, order)
    assert tensor.tolist() == [30.0, 10.0, 20.0]


def test_a_factor_moves_whole_rows():
    tensor = torch.arange(8.0)
    permute(tensor, Member("w", 0, 2, (3, 2), 0), torch.tensor([1, 2, 0]))
    assert tensor.tolist() == [0, 1, 4, 5, 6, 7, 2, 3]


def test_freedom_counts_elements_on_axes_that_move():
    """Two matrices 3 x 6 and 6 x 2: of both axes of each, one is frozen."""
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    assert freedom(trace(model, torch.randn(4, 3))) == pytest.approx((18 + 12) / (36 + 24))


def test_positions_of_a_kernel_are_no_units():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))
    graph = trace(model, torch.randn(1, 3, 8, 8))
    assert freedom(graph) == pytest.approx((3 * 6 + 6 * 2) / (2 * 3 * 6 + 2 * 6 * 2))
    assert all(member.axis < 2 for each in axis_classes(graph) for member in each.members)


def test_a_model_without_weights_is_free():
    assert freedom(trace(nn.ReLU(), torch.randn(3))) == 1.0


def test_frozen_classes_name_what_froze_them():
    graph = trace(
        nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 2)), torch.zeros(3, dtype=torch.long)
    )
    reasons = {words(each)[0]: each.frozen_by for each in axis_classes(graph) if not each.free}
    assert reasons == {"0.weight[0]": "embedding in '0'", "1.weight[0]": "the output"}


def test_a_class_prints_like_a_table():
    each = AxisClass(
        8, (Member("a", 0, 0, (2, 8), 1, blind=True, tied_by="linear in 'a'"),), "the output"
    )
    assert (
        str(each)
        == "8 units, frozen by the output\n  a[0] from 0 as (2 *8*) (blind)  linear in 'a'"
    )


def test_classes_are_equal_where_they_lie_in_one_place():
    """Whatever tied them: but not elsewhere, and not when something froze them."""
    here, there = Member("a", 0, 0, (2, 8), 1), Member("a", 0, 16, (2, 8), 1)
    elsewhere_tied = Member("a", 0, 0, (2, 8), 1, blind=True, tied_by="linear in 'a'")
    one, other = AxisClass(8, (here,)), AxisClass(8, (elsewhere_tied,), ties=("linear in 'a'",))
    assert (here, one) == (elsewhere_tied, other)
    assert {here: 1, one: 2} == {elsewhere_tied: 1, other: 2}
    assert one not in (AxisClass(8, (there,)), AxisClass(8, (here, there)))
    assert one != AxisClass(8, (here,), "the output")


def test_graphs_are_read_once():
    graph = trace(nn.Linear(3, 2), torch.randn(1, 3))
    assert axis_classes(graph) is axis_classes(graph)


class KeyBias(nn.Module):
    """A bias of keys adds one number to every score of a row."""

    def __init__(self, rotate: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.rotate = (
            nn.Linear(3, 4),
            nn.Linear(3, 4),
            nn.Linear(3, 4),
            rotate,
        )

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.rotate:
            k = k * torch.arange(1.0, x.shape[-2] + 1)[:, None]
        return (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v


@pytest.mark.parametrize("rotate", [False, True])
def test_a_key_bias_under_softmax_is_blind(rotate):
    graph = trace(KeyBias(rotate).eval(), torch.randn(2, 5, 3))
    blind = [m.fqn for each in axis_classes(graph) for m in each.members if m.blind]
    # Scaled by its position it is no longer one number for the row.
    assert blind == ([] if rotate else ["k.bias"])


def test_a_bias_before_an_instance_norm_is_blind():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 3))
    graph = trace(model, torch.randn(1, 3, 9, 9))
    assert [m.fqn for each in axis_classes(graph) for m in each.members if m.blind] == ["0.bias"]


@pytest.mark.parametrize("name", ["residual", "packed_attention", "grouped_conv", "sorted"])
def test_what_is_not_free_is_told_with_its_reason(name):
    model = CASES[name].make().eval()
    graph = LayerGraph(model, capture(model, CASES[name].inputs, tracers=("fake",)))
    shares = frozen_shares(graph)
    assert sum(shares.values()) + freedom(graph) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert {"the input 'arg0'", "the output"} <= shares.keys()


class AddedPositions(nn.Module):
    """A table that is no part of the state lies in the stream of residuals."""

    def __init__(self):
        super().__init__()
        self.a, self.z = nn.Linear(6, 6), nn.Linear(6, 2)
        self.register_buffer("places", torch.arange(24.0).view(4, 6), persistent=False)

    def forward(self, x):
        return self.z(self.a(x) + self.places)


def test_a_constant_is_named_as_the_reason():
    shares = frozen_shares(trace(AddedPositions(), torch.empty(4, 6)))
    # a: 36 weights on two axes, z: 12 on two.
    assert shares == pytest.approx(
        {"the constant 'places'": 48 / 96, "the input 'x'": 36 / 96, "the output": 12 / 96}
    )
