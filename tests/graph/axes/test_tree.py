"""The axis tree: it prints like an einops pattern, says where units lie, and names the class of a layer."""

from __future__ import annotations

import pytest
import torch
from axis_models import CASES
from torch import nn

from graftlib import trace
from graftlib.errors import MatchError
from graftlib.graph.axes.check import draw, permute
from graftlib.graph.axes.tree import Leaf, Product, Sum


def graph_of(name):
    return trace(CASES[name].make().eval(), CASES[name].inputs)


def pattern(graph, fqn):
    return " | ".join(map(str, graph.axes(fqn)))


@pytest.mark.parametrize("name", CASES)
def test_without_units_every_place_stays_where_it_is(name: str):
    graph = graph_of(name)
    for parameter in graph.parameters():
        try:
            axes = graph.axes(parameter.fqn)
        except MatchError:
            continue  # the forward pass does not read it
        assert tuple(axis.size for axis in axes) == parameter.shape
        for axis in axes:
            assert axis.positions({}).tolist() == list(range(axis.size))


@pytest.mark.parametrize("name", CASES)
def test_places_agree_with_the_members_of_the_classes(name: str):
    """Two encodings of one fact: a tree that reads an order, and members that are permuted one by one."""
    graph = graph_of(name)
    orders = draw([each for each in graph.axis_classes if each.free], seed=3)
    state = graph.model.state_dict()
    for fqn in {member.fqn for each, _ in orders for member in each.members}:
        by_members = state[fqn].clone()
        for each, order in orders:
            for member in each.members:
                if member.fqn == fqn:
                    permute(by_members, member, order)
        by_tree = state[fqn]
        for number, axis in enumerate(graph.axes(fqn)):
            by_tree = by_tree.index_select(number, axis.positions(dict(orders)))
        assert torch.equal(by_tree, by_members), fqn


@pytest.mark.parametrize("name", CASES)
def test_an_axis_of_other_sizes_holds_as_many_places(name: str):
    """Any units of the free classes, repeated or left out: a `resized` axis is as long as its `positions`."""
    graph = graph_of(name)
    random = torch.Generator().manual_seed(1)
    counts = {each: i % 2 * each.size + 1 for i, each in enumerate(graph.axis_classes) if each.free}
    units = {c: torch.randint(c.size, (n,), generator=random) for c, n in counts.items()}
    tensors = dict.fromkeys(member.fqn for each in counts for member in each.members)
    for fqn in tensors:
        for axis in graph.axes(fqn):
            assert axis.resized(counts).size == len(axis.positions(units))
            assert axis.resized({}) == axis


def test_patterns_of_packed_and_nested_axes():
    """Heads of a packed projection are one class; the order inside of queries and keys is another than of values."""
    graph = graph_of("packed_attention")
    rows, columns = graph.axes("qkv.weight")
    query, key, value = rows.terms
    assert str(query) == str(key) != str(value)
    heads = {leaf.axis_class for leaf in rows.leaves() if leaf.axis_class.size == 2}
    assert len(heads) == 1
    assert columns.size == 6


def test_a_fixed_leaf_says_by_what():
    graph = trace(nn.Sequential(nn.Linear(3, 4)), torch.zeros(1, 3))
    out, into = graph.axes("0.weight")
    assert (out.frozen_by, into.frozen_by) == ("the output", "the input 'input'")
    assert pattern(graph, "0.weight") == "4 | 3"
    assert str(graph.axes("0.weight")) == "4 | 3  (4: the output; 3: the input 'input')"


def test_what_is_fixed_as_a_whole_keeps_its_structure():
    """Two rotated halves of every head: one run for those who move units, two for those who read."""
    graph = graph_of("rope")
    assert str(graph.axes("q.weight")[0]) == "(c1 (2 + 2))"
    head = list(graph.axes("q.weight")[0].leaves())[1]
    assert (head.size, str(head.structure), head.axis_class.size) == (4, "(2 + 2)", 4)
    assert {leaf.frozen_by for leaf in head.structure.leaves()} == {head.frozen_by}


def test_the_direction_of_reading():
    """Entry i of the places is the old place that the new place i is read from: a 3-cycle shows it."""
    graph = trace(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.zeros(1, 2))
    hidden = graph.axis_class("0")
    axis = graph.axes("0.weight")[0]
    assert axis.positions({hidden: torch.tensor([2, 0, 1])}).tolist() == [2, 0, 1]


def test_sums_and_products_by_hand():
    each, other = (object() for _ in range(2))
    heads, dim = Leaf(2, each, "a"), Leaf(3, other, "b")  # type: ignore[arg-type]
    axis = Sum((Leaf(1), Product((heads, dim)), dim))
    assert str(axis) == "(1 + (a b) + b)"
    assert axis.positions({each: torch.tensor([1])}).tolist() == [0, 4, 5, 6, 7, 8, 9]
    assert axis.positions({other: torch.tensor([2, 0])}).tolist() == [0, 3, 1, 6, 4, 9, 7]


class TestFind:
    @pytest.mark.parametrize("name", ["packed_attention", "interleaved_attention", "rope"])
    def test_parts_are_as_large_as_the_roles_say(self, name):
        """Two readings of one fact: data followed unit by unit, and axes tied op by op."""
        graph = graph_of(name)
        parameters = [each for each in graph.parameters() if each.parts]
        assert parameters
        for parameter in parameters:
            for part in parameter.parts.values():
                rows = graph.axes(parameter.fqn)[part.axis].find(part.role)
                assert rows.size == len(part.units)
                assert rows.find("heads").size == part.heads
                assert rows.find("head_dim").size == len(part.units) // part.heads

    def test_the_class_of_the_heads_by_name(self):
        """What a user wants: prune the heads of a packed projection."""
        graph = graph_of("packed_attention")
        heads = graph.axes("qkv.weight")[0].find("heads")
        assert heads.axis_class is graph.axis_class("o", "in")

    def test_what_differs_between_operands_is_named_with_its_operand(self):
        rows = graph_of("packed_attention").axes("qkv.weight")[0]
        with pytest.raises(MatchError, match="2 parts of") as raised:
            rows.find("head_dim")
        assert raised.value.fix == "name the operand first: axis.find('query').find('heads')"
        assert rows.find("query").find("head_dim") == rows.find("key").find("head_dim")
        assert rows.find("query").find("head_dim") != rows.find("value").find("head_dim")

    def test_a_role_that_nothing_has_names_those_there_are(self):
        graph = graph_of("packed_attention")
        with pytest.raises(MatchError, match="no parts of") as raised:
            graph.axes("qkv.weight")[0].find("quer")
        assert "'query'" in raised.value.near
        with pytest.raises(MatchError, match="no parts of"):
            graph.axes("qkv.weight")[1].find("query")  # the columns


class TestAxisClass:
    def test_a_layer_names_its_channels(self):
        graph = trace(
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)),
            torch.zeros(1, 3, 4, 4),
        )
        channels = graph.axis_class("0", "out")
        assert channels is graph.axis_class("1") is graph.axis_class("2", "in")
        assert channels is graph.axis_class("0", 0)
        assert graph.axis_class("0", "in").frozen_by == "the input 'input'"

    def test_of_nested_classes_the_outer(self):
        graph = graph_of("packed_attention")
        assert graph.axis_class("o", "in").size == 2

    def test_what_cannot_be_named_says_why(self):
        graph = trace(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)), torch.zeros(1, 3, 4, 4)
        )
        with pytest.raises(MatchError, match="has no axis 'outt'"):
            graph.axis_class("0", "outt")
        with pytest.raises(MatchError, match="0 axis classes"):
            graph.axis_class("0", "kh")
        with pytest.raises(MatchError, match="no parameter 'conv'"):
            graph.axis_class("conv")
        with pytest.raises(MatchError, match="reads no parameter"):
            graph.axes("conv")
