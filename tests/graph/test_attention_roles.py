"""A role means the same parameters whatever the family: separate, packed, pooled or written as an einsum."""

import pytest
import torch
import torchvision
import transformers as hf
from torch import nn
from torch.nn import functional as F

from graftlib.graph import trace

from . import traps

WORDS = ("query", "key", "value")
IDS = torch.tensor([[3, 5, 7, 11, 2]])
SIZE = {
    "vocab_size": 17,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
GPT = {"vocab_size": 17, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 8}
X = torch.empty(1, 5, 16)
IMAGE = torch.empty(1, 3, 32, 32)
# name -> model, arguments, how many units its values have, one entry a layer.
FAMILIES = {
    "bert": (lambda: hf.BertModel(hf.BertConfig(**SIZE)), (IDS,), [16, 16]),
    "gpt2": (lambda: hf.GPT2Model(hf.GPT2Config(**GPT)), (IDS,), [16, 16]),
    "llama": (
        lambda: hf.LlamaModel(hf.LlamaConfig(**SIZE, num_key_value_heads=2)),
        (IDS,),
        [8, 8],
    ),
    "vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 16, 24),
        (IMAGE,),
        [16, 16],
    ),
    "swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4]),
        (IMAGE,),
        [16, 32],
    ),
    "torch": (lambda: nn.MultiheadAttention(16, 4, batch_first=True), (X, X, X), [16]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_values_are_found_alike(name):
    make, args, sizes = FAMILIES[name]
    graph = trace(make().eval(), args)
    values = [p for p in graph.parameters(role="attention.value") if p.role == "attention.value"]
    units = [p.selection or p.parts["heads"] for p in values]
    assert [len(part.units) for part in units] == sizes
    assert [p.axes[part.axis] for p, part in zip(values, units, strict=True)] == ["out"] * len(
        sizes
    )
    for word in WORDS:
        assert len(graph.parameters(role=f"attention.{word}")) == len(sizes)


def test_a_packed_projection_gives_the_part_that_was_asked_for():
    graph = trace(traps.Fused("interleaved", 2, 4), torch.empty(1, 3, 8))
    (found,) = graph.parameters(role="attention.key")
    assert found.address == "qkv.weight::key"
    assert list(found.selection.units) == traps.Fused("interleaved", 2, 4).units()["k"]
    (whole,) = graph.parameters(role="attention.fused")
    assert whole.address == "qkv.weight"
    # A bias is a bias, and a part that was named is not taken apart again.
    assert [p.fqn for p in graph.parameters("*.bias", role="attention.key")] == []
    assert graph.parameters("qkv::query", role="attention.key") == []


class PooledHeads(nn.Module):
    """A depthwise convolution and a maximum over neighbours stand between the projection and the attention."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.pool = nn.Conv1d(4, 4, 3, padding=1, groups=4)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
        k = self.pool(k.transpose(-1, -2).flatten(0, 1)).view(b, 2, 4, n).transpose(-1, -2)
        q = q.unflatten(2, (2, -1)).amax(2)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


def test_what_keeps_features_apart_is_seen_through():
    graph = trace(PooledHeads(), torch.empty(2, 6, 8))
    parts = {name: list(part.units) for name, part in graph.parameter("qkv").parts.items()}
    assert parts == {"query": [*range(8)], "key": [*range(8, 16)], "value": [*range(16, 24)]}
    assert graph.parameter("pool.weight").role == "weight"


class MixingPool(PooledHeads):
    """The convolution is not depthwise: the keys are its own features."""

    def __init__(self):
        super().__init__()
        self.pool = nn.Conv1d(4, 4, 3, padding=1)


def test_what_mixes_features_is_the_projection():
    graph = trace(MixingPool(), torch.empty(2, 6, 8))
    assert graph.parameter("pool.weight").role == "attention.key"
    assert "key" not in graph.parameter("qkv").parts


class WrittenAsEinsums(nn.Module):
    """Weights with heads of their own, and another order of axes in the scores."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Parameter(torch.ones(8, 2, 4)) for _ in range(4))

    def forward(self, x):
        q, k, v = (torch.einsum("bid,dnh->binh", x, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("binh,bjnh->bnij", q, k)
        scores = torch.max(scores, torch.full_like(scores, -1e4))
        mixed = torch.einsum("bnij,bjnh->binh", scores.softmax(-1), v)
        return torch.einsum("binh,dnh->bid", mixed, self.o)


def test_einsum_projections_have_a_role():
    graph = trace(WrittenAsEinsums(), torch.empty(2, 5, 8))
    roles = {p.fqn: p.role.removeprefix("attention.") for p in graph.parameters()}
    assert roles == {"q": "query", "k": "key", "v": "value", "o": "output"}


class TurnedContext(nn.Module):
    """The result's axes are not the query's in the query's order."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, 4)) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("binh,bjnh->bnij", q, k).softmax(-1)
        return self.o(torch.einsum("bnij,bjnh->bnih", scores, v).transpose(1, 2).flatten(2))


def test_a_result_in_another_order_claims_no_output():
    graph = trace(TurnedContext(), torch.empty(2, 5, 8))
    assert graph.parameter("v").role == "attention.value"
    assert graph.parameter("o").role == "weight"


class WritesIntoScores(traps.SeparateProjections):
    """Positions are written into the scores in place, as in MViT."""

    def forward(self, x, y):
        q, k, v = self.q(x), self.k(y), self.v(y)
        scores = q @ F.pad(k, (0, 6)).transpose(-1, -2)
        scores[:, :, :] = scores + 1
        return self.o(F.pad(scores.softmax(-1) @ v, (0, 6)))


def test_scores_that_are_written_into_are_scores():
    graph = trace(WritesIntoScores(), (torch.empty(2, 5, 12), torch.empty(2, 7, 12)))
    roles = {p.fqn: p.role for p in graph.parameters("{name}.weight")}
    assert roles["q.weight"] == "attention.query"
    assert roles["v.weight"] == "attention.value"


class GroupedProjection(nn.Module):
    """Queries made by a grouped convolution, as in SqueezeBERT."""

    def __init__(self):
        super().__init__()
        self.q = nn.Conv1d(8, 8, 1, groups=2)
        self.k, self.v = nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 1)

    def forward(self, x):
        q, k, v = (layer(x).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v)


def test_a_grouped_convolution_may_be_a_projection():
    graph = trace(GroupedProjection(), torch.empty(2, 8, 5))
    roles = {p.fqn: (p.kind, p.role) for p in graph.parameters("{name}.weight")}
    assert roles["q.weight"] == ("grouped", "attention.query")
    assert roles["k.weight"] == ("conv", "attention.key")
    assert dict(graph.parameter("q.weight").parts) == {}
