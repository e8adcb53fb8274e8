"""Experts in one product: torch's kernels refuse rows that are no multiple of 16 bytes, once they run on values."""

import pytest
import torch
from torch import nn

from graftlib import slim, surgery, trace
from graftlib.surgery import SurgeryError, SurgeryWarning


class Experts(nn.Module):
    """Two experts of a hidden layer each; the first half of the rows goes to the first."""

    def __init__(self, hidden=32):
        super().__init__()
        self.into = nn.Parameter(torch.randn(2, hidden, 8))
        self.out = nn.Parameter(torch.randn(2, hidden, 8))

    def forward(self, x):
        ends = torch.tensor([2, 4], dtype=torch.int32, device=x.device)
        x = torch.relu(nn.functional.grouped_mm(x, self.into.transpose(1, 2), offs=ends))
        return nn.functional.grouped_mm(x, self.out, offs=ends)


@pytest.fixture
def graph():
    return trace(Experts().eval(), torch.randn(4, 8))


def hidden(graph):
    return next(each for each in graph.axis_classes if each.free)


@pytest.mark.parametrize("size", [13, 6, 31])
def test_a_width_that_would_not_run_is_refused(graph, size):
    with pytest.raises(SurgeryError, match="16 bytes"):
        surgery.prune(graph, {hidden(graph): size})


def test_a_width_that_runs_is_taken(graph):
    small = surgery.prune(graph, {hidden(graph): 12})
    assert small(torch.randn(4, 8)).shape == (4, 8)
    assert small.into.shape == (2, 12, 8)


def test_a_share_takes_the_next_width_that_runs(graph):
    with pytest.warns(SurgeryWarning, match="other sizes"):
        small = surgery.prune(graph, 13 / 32)
    assert small.into.shape == (2, 16, 8)
    small(torch.randn(4, 8))


@pytest.mark.parametrize("multiple_of", [1, 2, 3])
def test_a_budget_takes_widths_that_run(graph, multiple_of):
    small = slim(graph, budget={"params": 0.6}, multiple_of=multiple_of).model
    assert 0 < small.into.shape[1] <= 0.6 * 32
    small(torch.randn(4, 8))


@pytest.mark.parametrize(("size", "runs"), [(13, False), (16, True)])
def test_where_the_trace_has_another_op_than_the_run(size, runs):
    """In single precision the capture falls back to an op without such a demand."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    config = transformers.MixtralConfig(
        **sizes, num_key_value_heads=1, intermediate_size=32, num_local_experts=2
    )
    model = transformers.MixtralForCausalLM(config).eval()
    ids = {"input_ids": torch.arange(6)[None]}
    graph = trace(model, (), ids)
    each = next(c for c in graph.axis_classes if c.size == 32 and c.free)
    if runs:
        surgery.prune(graph, {each: size})(**ids)
        return
    with pytest.raises(SurgeryError, match="16 bytes"):
        surgery.prune(graph, {each: size})


def test_torch_still_refuses_such_rows():
    """Once it does not, the rule can go."""
    with pytest.raises(RuntimeError, match="16 bytes"):
        Experts(13)(torch.randn(4, 8))
