"""Units are read off, whatever the layout; what cannot be read is left out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graftlib.graph import trace
from graftlib.graph.capture import TRACERS, capture
from graftlib.graph.layergraph import LayerGraph

from . import traps

LAYOUTS = ("concatenated", "interleaved", "grouped")
WORDS = {"query": "q", "key": "k", "value": "v"}


def parts(graph, fqn):
    return {name: list(part.units) for name, part in graph.parameter(fqn).parts.items()}


@settings(max_examples=25)
@given(
    st.sampled_from(LAYOUTS),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
def test_fused_units_are_those_of_the_layout(
    layout, groups, per, size, batch, steps, written, rotary
):
    model = traps.Fused(layout, groups * per, 2 * size, groups, written, rotary)
    graph = trace(model, torch.empty(batch, steps, groups * per * 2 * size, device="meta"))
    expected = {word: model.units()[short] for word, short in WORDS.items()}
    assert parts(graph, "qkv.weight") == parts(graph, "qkv.bias") == expected
    weight = graph.parameter("qkv.weight")
    assert weight.role == "attention.fused"
    assert weight.parts["query"].heads == groups * per
    assert weight.parts["key"].heads == (groups if layout == "grouped" else groups * per)
    output = graph.parameter("proj.weight")
    assert (output.role, output.heads) == ("attention.output", groups * per)
    assert output.parts["heads"].axis == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_parts_are_what_the_attention_reads(layout):
    """Zeroing the units of a part silences that operand, and no other."""
    model = traps.Fused(layout)
    graph = trace(model, torch.empty(1, 4, 12))
    x = torch.randn(1, 4, 12)
    for i, word in enumerate(WORDS):
        twin = traps.Fused(layout)
        twin.load_state_dict(model.state_dict())
        with torch.no_grad():
            units = list(graph.parameter("qkv.weight").parts[word].units)
            twin.qkv.weight[units] = 0
            twin.qkv.bias[units] = 0
            operands = twin.split(x)
        assert [bool(o.any()) for o in operands] == [i != j for j in range(3)]


def test_the_heads_of_an_output_projection_are_its_columns():
    model = traps.Fused("concatenated", heads=2, size=3)
    graph = trace(model, torch.empty(1, 4, 6))
    head = graph.parameter("proj.weight::head[1]").selection
    assert (head.axis, list(head.units)) == (1, [3, 4, 5])


@pytest.mark.parametrize("tracer", TRACERS)
def test_separate_projections_with_fewer_key_heads(tracer):
    model = traps.SeparateProjections()
    args = (torch.randn(2, 5, 12), torch.randn(2, 7, 12))
    graph = LayerGraph(model, capture(model, args, tracers=(tracer,)))
    found = {p.fqn: (p.role, p.heads) for p in graph.parameters("{name}.weight")}
    assert found == {
        "q.weight": ("attention.query", 4),
        "k.weight": ("attention.key", 2),
        "v.weight": ("attention.value", 2),
        "o.weight": ("attention.output", 4),
    }
    assert graph.parameter("k.weight").parts["heads"].units == range(6)


@pytest.mark.parametrize("same", [True, False], ids=["self", "cross"])
def test_in_proj_is_cut_before_or_after_its_layer(same):
    model = nn.MultiheadAttention(6, 3, batch_first=True)
    x, y = torch.empty(2, 4, 6), torch.empty(2, 5, 6)
    graph = trace(model, (x, x, x) if same else (x, y, y))
    weight = graph.parameter("in_proj_weight")
    assert weight.role == "attention.fused"
    assert (
        parts(graph, "in_proj_weight")
        == parts(graph, "in_proj_bias")
        == {
            "query": list(range(6)),
            "key": list(range(6, 12)),
            "value": list(range(12, 18)),
        }
    )
    assert {part.heads for part in weight.parts.values()} == {3}
    assert graph.parameter("out_proj").role == "attention.output"


def test_what_is_no_projection_has_no_role():
    graph = trace(traps.NotAttention(), torch.empty(2, 3, 6))
    assert {p.role for p in graph.parameters(kind="linear")} == {"weight"}
    assert not any(p.parts for p in graph.parameters())


class ShuffledByValues(traps.Fused):
    """Which unit is whose depends on a permutation that the data gives."""

    def split(self, x):
        q, k, v = super().split(x)
        order = x.sum((0, 1)).argsort()[: self.size]
        return q, k.index_select(-1, order), v


def test_a_layout_that_cannot_be_read_has_a_role_and_no_parts():
    graph = trace(ShuffledByValues("concatenated"), torch.empty(2, 5, 12))
    weight = graph.parameter("qkv.weight")
    assert weight.role == "attention.fused"
    assert dict(weight.parts) == {}


class EmptyPrefix(nn.Module):
    """Attention that leaves its first tokens as they are, of which there are none."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.query, self.key = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = (self.turned(layer(x)) for layer in (self.query, self.key))
        return (q @ k.transpose(1, 2)).softmax(-1)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, : self.prefix], x[:, self.prefix :].sin()], 1)


@pytest.mark.parametrize("prefix", [0, 1])
def test_slices_without_elements_are_followed(prefix: int) -> None:
    graph = trace(EmptyPrefix(prefix), (torch.randn(2, 4, 6),))
    assert [each.size for each in graph.axis_classes if each.free] == [6]
    assert graph.check().passed
