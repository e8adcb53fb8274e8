"""Mixtures of experts in one product: right in any precision, and its classes checked in double."""

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlib.graph import trace
from graftlib.graph.axes import frozen_ops
from graftlib.graph.axes.grouped import grouped_matmul

runs = st.lists(st.integers(0, 3), min_size=1, max_size=4)


def ends(sizes):
    return torch.tensor(sizes).cumsum(0).to(torch.int32)


@settings(max_examples=30)
@given(runs, st.integers(0, 2), st.booleans())
def test_every_row_meets_the_matrix_of_its_run(sizes, spare, biased):
    x = torch.randn(sum(sizes) + spare, 3, dtype=torch.float64)
    y = torch.randn(len(sizes), 3, 2, dtype=torch.float64)
    bias = torch.randn(len(sizes), 2, dtype=torch.float64) if biased else None
    found = grouped_matmul(x, y, ends(sizes), bias)
    owner = [e for e, n in enumerate(sizes) for _ in range(n)]
    for row, e in enumerate(owner):
        expected = x[row] @ y[e] + (bias[e] if biased else 0)
        torch.testing.assert_close(found[row], expected)
    assert found.shape == (len(x), 2)
    assert not found[len(owner) :].any()


@settings(max_examples=30)
@given(runs)
def test_runs_may_lie_along_what_is_summed(sizes):
    x = torch.randn(3, sum(sizes), dtype=torch.float64)
    y = torch.randn(sum(sizes), 2, dtype=torch.float64)
    found = grouped_matmul(x, y, ends(sizes))
    pieces = zip(x.split(sizes, 1), y.split(sizes), strict=True)
    torch.testing.assert_close(found, torch.stack([a @ b for a, b in pieces]))


@pytest.mark.skipif(
    not hasattr(torch.nn.functional, "grouped_mm"),
    reason="this torch has no grouped_mm to compare with",
)
def test_it_is_torchs_own_in_half_precision():
    x, y = torch.randn(8, 16).bfloat16(), torch.randn(3, 16, 8).bfloat16()
    expected = torch.nn.functional.grouped_mm(x, y, offs=ends([2, 0, 6]))
    torch.testing.assert_close(grouped_matmul(x, y, ends([2, 0, 6])), expected)
    batch = torch.randn(3, 8, 16).bfloat16()
    torch.testing.assert_close(grouped_matmul(batch, y), torch.nn.functional.grouped_mm(batch, y))


def test_runs_of_columns_are_refused():
    with pytest.raises(NotImplementedError):
        grouped_matmul(torch.ones(2, 3, 4), torch.ones(4, 5), ends([1, 4]))


def test_a_mixture_as_it_is_delivered_passes_its_check():
    """Not the experts one by one: the fused product, which knows no doubles, and the export that keeps it."""
    config = hf.MixtralConfig(
        vocab_size=17,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    torch.manual_seed(0)
    graph = trace(hf.MixtralForCausalLM(config).eval(), torch.randint(0, 17, (2, 12)))
    assert frozen_ops(graph) == {}
    # What each expert computes inside, and the stream that all read.
    assert {16, 24} <= {each.size for each in graph.axis_classes if each.free}
    assert graph.check().passed
