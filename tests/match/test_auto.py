"""The assignment is the best one, and keeps the order of depth."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib.errors import MatchError
from graftlib.graph.parameter import Part
from graftlib.match import Mapping
from graftlib.match.auto import assign


def addresses(mapping):
    return [(pair.source.address, pair.target.address) for pair in mapping.pairs]


def pairs_of(make, source, target, **options):
    graphs = make.graph("A", source), make.graph("B", target)
    return Mapping(*graphs).auto(**options)


# --- the assignment ------------------------------------------------------------------------------------------------


def rising(rows, columns):
    """Every matching in which rows and columns rise together."""
    for count in range(min(rows, columns) + 1):
        for left in itertools.combinations(range(rows), count):
            for right in itertools.combinations(range(columns), count):
                yield list(zip(left, right, strict=True))


@st.composite
def worths(draw):
    rows, columns = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    values = st.lists(st.integers(-1, 6), min_size=rows * columns, max_size=rows * columns)
    return np.array(draw(values), dtype=np.int64).reshape(rows, columns)


@given(worths())
def test_the_assignment_is_the_best_of_all(worth):
    total = sum(worth[pair] for pair in assign(worth))
    assert total == max(sum(worth[pair] for pair in pairs) for pairs in rising(*worth.shape))


@given(worths())
def test_the_assignment_rises_and_takes_allowed_pairs(worth):
    chosen = assign(worth)
    for (i, j), (k, m) in itertools.pairwise(chosen):
        assert i < k
        assert j < m
    assert all(worth[pair] > 0 for pair in chosen)


@given(worths())
def test_equal_totals_go_to_the_earliest(worth):
    """Of all best matchings, the one whose last pair is earliest, then the one before it."""
    totals = {}
    for pairs in rising(*worth.shape):
        if all(worth[pair] > 0 for pair in pairs):
            totals.setdefault(sum(worth[pair] for pair in pairs), []).append(pairs)
    # Rows first: a later row is only used where it adds something.
    best = min(totals[max(totals)], key=lambda pairs: list(reversed(pairs)))
    assert assign(worth) == best


def test_a_greedy_choice_is_seen():
    """The largest single worth is not in the best assignment: the law above can fail."""
    worth = np.array([[3, 4, 0], [0, 0, 0], [0, 3, 0]])
    assert assign(worth) == [(0, 0), (2, 1)]


# --- who pairs with whom ---------------------------------------------------------------------------------------------


@given(st.data())
def test_depth_order_is_kept_and_every_parameter_has_one_partner(make, data):
    def side(prefix):
        records = []
        for i in range(data.draw(st.integers(1, 6))):
            kind = data.draw(st.sampled_from(["linear", "conv", "depthwise"]))
            role = data.draw(st.sampled_from(["weight", "attention.query", "attention.output"]))
            shape = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
            shape = shape if kind == "linear" else (*shape, 1, 1)
            role = role if kind == "linear" else "weight"
            depth = data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
            records.append(make.weight(f"{prefix}.{i}.weight", shape, kind, role, depth))
        return records

    try:
        mapping = pairs_of(make, side("a"), side("b"), min_similarity=0.0)
    except MatchError:
        return
    for one, other in itertools.combinations(mapping.pairs, 2):
        assert one.source.fqn != other.source.fqn
        assert one.target.fqn != other.target.fqn
        assert (one.source.depth - other.source.depth) * (
            one.target.depth - other.target.depth
        ) >= 0
    for pair in mapping.pairs:
        assert (pair.source.kind == "linear") == (pair.target.kind == "linear")
        assert pair.source.role == pair.target.role


def test_like_blocks_pair(make):
    mapping = pairs_of(make, make.blocks(4, 8), make.blocks(2, 4))
    assert len(mapping) == 4
    for pair in mapping.pairs:
        assert pair.source.fqn.split(".")[2] == pair.target.fqn.split(".")[2], "fc1 with fc1"


def test_attention_roles_agree_in_whatever_order_they_are_declared(make):
    source = make.separate("a", 4, order=("key", "value", "query"))
    target = make.separate("b", 4)
    mapping = pairs_of(make, source, target)
    assert addresses(mapping) == [
        (f"a.{name}.weight", f"b.{name}.weight") for name in ("query", "key", "value")
    ]


def test_a_packed_projection_pairs_with_separate_ones_part_by_part(make):
    mapping = pairs_of(make, [make.packed("a.weight", 8, 2)], make.separate("b", 4))
    assert addresses(mapping) == [
        (f"a.weight::{name}", f"b.{name}.weight") for name in ("query", "key", "value")
    ]


def test_two_packed_projections_pair_whole(make):
    mapping = pairs_of(make, [make.packed("a.weight", 8, 2)], [make.packed("b.weight", 4, 2)])
    assert addresses(mapping) == [("a.weight", "b.weight")]


def test_recurrent_weights_pair_with_their_like(make):
    def lstm(prefix, gates=4):
        parts = {str(i): Part(0, range(i, i + 1)) for i in range(gates)}
        return [
            make.weight(f"{prefix}.{name}", (gates, 1), "recurrent", parts=parts)
            for name in ("weight_hh_l0", "weight_ih_l0", "weight_ih_l0_reverse")
        ]

    mapping = pairs_of(make, lstm("a"), lstm("b")[::-1][:2])
    for source, target in addresses(mapping):
        assert source[2:] == target[2:]
    with pytest.raises(MatchError, match="no two compatible parameters"):
        pairs_of(make, lstm("a"), lstm("b", gates=3))


def test_kind_role_and_limit_narrow(make):
    source = [
        *make.blocks(3, 4),
        *make.separate("attn", 4),
        make.weight("c.weight", (4, 4, 1), "conv"),
    ]
    target = [
        *make.blocks(3, 4),
        *make.separate("attn", 4),
        make.weight("c.weight", (4, 4, 1), "conv"),
    ]
    assert addresses(pairs_of(make, source, target, kind="conv")) == [("c.weight", "c.weight")]
    assert len(pairs_of(make, source, target, role="attention.*")) == 3
    everything = pairs_of(make, source, target)
    few = pairs_of(make, source, target, limit=2)
    assert len(everything) > 2
    assert len(few) == 2
    assert set(addresses(few)) <= set(addresses(everything))


def test_what_is_linked_already_takes_no_part(make):
    source, target = make.graph("A", make.blocks(2, 4)), make.graph("B", make.blocks(2, 4))
    mapping = Mapping(source, target).link("blocks.1.fc2", "blocks.0.fc1").auto()
    assert len(mapping) == 4
    assert "source: 1 skipped: linked already" in str(mapping)
    again = Mapping(source, target).auto()
    with pytest.raises(MatchError, match="compatible"):
        again.auto()
    assert len(again) == 4


def test_a_half_linked_packed_projection_gives_its_other_parts(make):
    source = make.graph("A", [make.packed("a.weight", 4, 2)])
    target = make.graph("B", make.separate("b", 4))
    mapping = Mapping(source, target).link("a::query", "b.query").auto()
    assert [pair[0] for pair in addresses(mapping)[1:]] == ["a.weight::key", "a.weight::value"]


def test_a_model_never_pairs_with_itself(make):
    graph = make.graph("A", make.blocks(3, 4))
    mapping = Mapping(graph, graph).auto(min_similarity=0.1)
    assert len(mapping) > 0
    assert all(source != target for source, target in addresses(mapping))


def test_tied_unread_and_viewless_parameters_take_no_part(make):
    source = [
        make.weight("a.weight", (4, 4), depth=0.0),
        make.weight("b.weight", (4, 4), depth=1.0, tied_to="a.weight"),
        make.weight("c.weight", (4, 4), depth=None),
        make.weight("d.bias", (4,), "bias", "bias"),
    ]
    target = [make.weight(f"{name}.weight", (4, 4), depth=i / 3) for i, name in enumerate("wxyz")]
    mapping = pairs_of(make, source, target)
    assert addresses(mapping) == [("a.weight", "w.weight")]
    assert "source: 1 skipped: never read ('c.weight')" in str(mapping)
    assert "target: 3 without a partner: 'x.weight', 'y.weight', 'z.weight'" in str(mapping)


# --- the similarity --------------------------------------------------------------------------------------------------


def rule_of(make, one, other, **options):
    (pair,) = pairs_of(make, [one], [other], **options).pairs
    return pair.rule


def test_the_rule_explains_the_similarity(make):
    one, other = (
        make.weight("a.weight", (8, 4), depth=0.5),
        make.weight("b.weight", (4, 4), depth=0.48),
    )
    rule = rule_of(make, one, other)
    assert rule == "auto (similarity 0.90: kind 1.00, shape 0.71, depth 0.98)"
    rule = rule_of(make, one, other, weights={"shape": 0, "depth": 3})
    assert rule == "auto (similarity 0.98: kind 1.00, shape 0.71, depth 0.98)"


def test_related_kinds_are_half_similar(make):
    one = make.weight("a.weight", (4, 4, 3, 3), "conv")
    other = make.weight("b.weight", (4, 4, 3, 3), "grouped")
    assert "kind 0.50, shape 1.00" in rule_of(make, one, other)


@given(st.tuples(*[st.integers(1, 64)] * 4), st.floats(0, 1), st.floats(0, 1))
def test_similarities_lie_between_0_and_1_and_do_not_depend_on_the_side(make, sizes, near, far):
    one = make.weight("a.weight", sizes[:2], depth=near)
    other = make.weight("a.weight", sizes[2:], depth=far)
    rule = rule_of(make, one, other, min_similarity=0.0)
    assert rule == rule_of(make, other, one, min_similarity=0.0)
    assert all(0 <= float(number) <= 1 for number in re.findall(r"\d\.\d\d", rule))


def test_the_spectrum_tells_weights_apart(make):
    """A multiple of the same matrix has similarity 1, a matrix of rank one less."""
    torch.manual_seed(0)
    source = make.graph("A", [make.weight("a.weight", (6, 6))])
    target = make.graph(
        "B", make.spread([make.weight("b.weight", (6, 6)), make.weight("c.weight", (6, 6))])
    )
    w = source.tensors["a.weight"].data
    target.tensors["c.weight"].data = 3 * w.T
    target.tensors["b.weight"].data = torch.ones(6, 6)
    mapping = Mapping(source, target).auto(spectrum=True)
    assert addresses(mapping) == [("a.weight", "c.weight")]
    assert "spectrum 1.00" in mapping.pairs[0].rule
    assert addresses(Mapping(source, target).auto()) == [("a.weight", "b.weight")], "else the first"


@pytest.mark.parametrize(
    ("spoil", "what"),
    [(lambda w: w.data.fill_(torch.nan), "not finite"), (lambda w: w.to("meta"), "meta device")],
)
def test_the_spectrum_needs_finite_values(make, spoil, what):
    source = make.graph("A", [make.weight("a.weight", (3, 3))])
    target = make.graph("B", [make.weight("b.weight", (3, 3))])
    target.tensors["b.weight"] = spoil(target.tensors["b.weight"])
    with pytest.raises(MatchError, match=what) as error:
        Mapping(source, target).auto(spectrum=True)
    assert "target 'b.weight'" in str(error.value)
    assert "spectrum=False" in error.value.fix
    assert len(Mapping(source, target).auto(spectrum=False)) == 1


def test_the_spectrum_of_zeros_is_a_spectrum(make):
    source = make.graph("A", [make.weight("a.weight", (3, 3))])
    source.tensors["a.weight"].data.zero_()
    assert len(Mapping(source, source).auto.__self__) == 0
    target = make.graph("B", [make.weight("b.weight", (3, 5))])
    assert len(Mapping(source, target).auto(spectrum=True)) == 1


def test_the_same_question_has_the_same_answer(make):
    source, target = make.blocks(5, 8), make.blocks(3, 4)
    assert str(pairs_of(make, source, target)) == str(pairs_of(make, source, target))


# --- what is refused -----------------------------------------------------------------------------------------------


def test_similarities_that_are_too_low_name_the_best(make):
    one, other = (
        make.weight("a.weight", (64, 64), depth=0.0),
        make.weight("b.weight", (1, 1), depth=1.0),
    )
    with pytest.raises(MatchError, match="no pair is similar") as error:
        pairs_of(make, [one], [other])
    assert error.value.where == {"source": "'a.weight'", "target": "'b.weight'"}
    found = float(re.search(r"min_similarity=([\d.]+)", error.value.fix)[1])
    assert len(pairs_of(make, [one], [other], min_similarity=found)) == 1


def test_nothing_compatible_names_both_sides(make):
    source, target = [make.weight("a.weight", (2, 2))], [make.weight("b.weight", (2, 2, 1), "conv")]
    mapping = Mapping(make.graph("A", source), make.graph("B", target))
    with pytest.raises(MatchError) as error:
        mapping.auto()
    assert error.value.where == {"source": "linear (weight)", "target": "conv (weight)"}
    eval(error.value.fix.removeprefix("name them: "), {"mapping": mapping})
    assert len(mapping) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"direction": "sideways"},
        {"kind": "conv2d"},
        {"limit": 0},
        {"min_similarity": 1.5},
        {"min_similarity": float("nan")},
        {"weights": {"shpe": 1.0}},
        {"weights": {"shape": -1.0}},
        {"weights": {"shape": float("inf")}},
        {"weights": {"shape": float("nan")}},
        {"weights": {"kind": 0, "shape": 0, "depth": 0}},
        {"weights": {"spectrum": 1}},
    ],
)
def test_arguments_out_of_range_are_refused(make, wrong):
    mapping = Mapping(make.graph("A", make.blocks(1, 2)), make.graph("B", make.blocks(1, 2)))
    with pytest.raises(MatchError) as error:
        mapping.auto(**wrong)
    assert error.value.fix
    assert len(mapping) == 0
