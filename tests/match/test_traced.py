"""The same promises on graphs that were really traced."""

import pytest
import torch
from torch import nn

from graftlib.errors import MatchError, ViewError
from graftlib.graph import trace
from graftlib.match import Mapping, matrix, matrix_shape, unmatrix


class EveryKind(nn.Module):
    """A layer of each kind that has a view, and norms and biases between them."""

    def __init__(self, width=4, heads=2):
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.lstm = nn.LSTM(width, 3, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(6, 2, batch_first=True)
        self.conv = nn.Conv1d(2, 4, 3)
        self.depthwise = nn.Conv1d(4, 8, 2, groups=4)
        self.grouped = nn.Conv1d(8, 4, 1, groups=2)
        self.up = nn.ConvTranspose1d(4, 6, 2, groups=2)
        self.head = nn.Linear(6, 10)

    def forward(self, ids):
        x = self.embed(ids)
        x = self.norm(x + self.attn(x, x, x)[0])
        x = self.gru(self.lstm(x)[0])[0].transpose(1, 2)
        x = self.up(self.grouped(self.depthwise(self.conv(x))))
        return self.head(x.mean(-1))


class TiedBlocks(nn.Module):
    """Residual blocks; the head is the embedding."""

    def __init__(self, blocks, width):
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


IDS = torch.arange(8)[None]


@pytest.fixture(scope="module")
def every():
    return trace(EveryKind(), (IDS,))


@pytest.fixture(scope="module")
def big():
    return trace(TiedBlocks(4, 8), (IDS,))


@pytest.fixture(scope="module")
def small():
    return trace(TiedBlocks(2, 4), (IDS,))


def addresses(mapping):
    return [(pair.source.address, pair.target.address) for pair in mapping.pairs]


def test_every_weight_has_a_view_and_every_vector_says_why_not(every):
    viewed = {}
    for parameter in every.parameters():
        tensor = every.tensor(parameter.fqn)
        if tensor.ndim < 2:
            with pytest.raises(ViewError):
                matrix_shape(parameter)
            continue
        parts = [
            parameter,
            *(parameter.select(name) for name in parameter.parts if name != "heads"),
        ]
        if parameter.groups > 1:
            parts += [parameter.select(f"group[{i}]") for i in range(parameter.groups)]
        for part in parts:
            m = matrix(part, tensor)
            assert m.shape == matrix_shape(part)
            assert torch.equal(unmatrix(part, m, into=tensor), tensor)
        viewed[parameter.fqn] = matrix_shape(parameter)
    assert viewed["up.weight"] == (6, 4)
    assert viewed["grouped.weight"] == (4, 4)
    assert viewed["lstm.weight_ih_l0_reverse"] == (12, 4)
    assert viewed["attn.in_proj_weight"] == (12, 4)


def test_parts_of_a_traced_model_are_where_torch_has_them(every):
    weight = every.tensor("attn.in_proj_weight")
    for name, rows in zip(("query", "key", "value"), weight.chunk(3), strict=True):
        assert torch.equal(matrix(every.parameter(f"attn.in_proj_weight::{name}"), weight), rows)
    weight = every.tensor("lstm.weight_hh_l0")
    for name, rows in zip(("input", "forget", "cell", "output"), weight.chunk(4), strict=True):
        assert torch.equal(matrix(every.parameter(f"lstm.weight_hh_l0::{name}"), weight), rows)


def test_link_auto_save_and_load(big, small, tmp_path):
    mapping = Mapping(big, small).link("blocks.{i}.0", "blocks.{i}.0", direction="both")
    assert addresses(mapping) == [(f"blocks.{i}.0.weight", f"blocks.{i}.0.weight") for i in (0, 1)]
    mapping.auto(spectrum=True)
    assert ("embed.weight", "embed.weight") in addresses(mapping)
    mapping.save(tmp_path / "map.yaml")
    loaded = Mapping.load(tmp_path / "map.yaml", big, small)
    assert loaded.pairs == mapping.pairs
    assert "TiedBlocks -> TiedBlocks" in str(loaded)


def test_a_tied_head_is_the_embedding(big, small):
    mapping = Mapping(big, small).link("head", "head")
    assert addresses(mapping) == [("embed.weight", "embed.weight")]


def test_a_fix_works_on_a_traced_model(big, small):
    mapping = Mapping(big, small)
    with pytest.raises(MatchError) as error:
        mapping.link("bloks.{i}.2", "blocks.{i}.2")
    assert error.value.fix == "mapping.link('blocks.{i}.2.weight', 'blocks.{i}.2')"
    eval(error.value.fix, {"mapping": mapping})
    assert len(mapping) == 2


def test_two_traces_of_one_model_are_one_model(big):
    again = trace(big.model, (IDS,))
    with pytest.raises(MatchError, match="to itself"):
        Mapping(big, again).link("blocks.0.0", "blocks.0.0")


def test_a_model_without_memory_can_be_mapped():
    with torch.device("meta"):
        graphs = [trace(TiedBlocks(n, 4), (torch.zeros(1, 8, dtype=torch.int64),)) for n in (3, 2)]
    assert len(Mapping(*graphs).auto()) >= 4


def test_making_a_mapping_leaves_the_models_alone(big, small):
    before = {name: tensor.clone() for name, tensor in big.model.state_dict().items()}
    Mapping(big, small).auto(spectrum=True, direction="both")
    after = big.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
