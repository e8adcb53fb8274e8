"""Width and depth for one budget: blocks that do little go, and the edit says so."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from torch import nn

import graftlib
from graftlib.slim import Edit
from graftlib.slim.costs import costs_of
from graftlib.surgery import SurgeryError, SurgeryWarning


class Block(nn.Module):
    """A branch behind a norm; `place` is what the code calls it by."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.layer_idx = place
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Stack(nn.Module):
    """Six blocks on a stream; the second and the fifth do next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.num_layers = 6
        self.stem, self.head = nn.Linear(3, 32), nn.Linear(32, 5)
        self.blocks = nn.ModuleList(map(Block, range(6)))
        with torch.no_grad():
            for place in (1, 4):
                for parameter in self.blocks[place].down.parameters():
                    parameter *= 1e-3

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def made():
    torch.manual_seed(0)
    return Stack().eval(), [torch.randn(64, 3)]


@pytest.fixture(scope="module")
def small():
    model, data = made()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SurgeryWarning)
        options = {"data": data, "refit": None, "multiple_of": 1}
        graph = graftlib.trace(model, data[0])
        return graftlib.slim(graph, budget={"macs": 0.66}, depth=True, **options)


def test_blocks_that_do_little_go_and_the_budget_holds(small):
    assert set(small.edit.dropped) <= {"blocks.1", "blocks.4"}
    assert small.edit.dropped == small.report.dropped != ()
    assert len(small.model.blocks) == small.model.num_layers == 6 - len(small.edit.dropped)
    assert [each.layer_idx for each in small.model.blocks] == [*range(len(small.model.blocks))]
    _, (x,) = made()
    costs = costs_of(graftlib.trace(small.model, x)).at()
    assert small.report.widths.costs == costs
    assert costs["macs"] <= 0.66 * small.report.before["macs"]
    assert "without     blocks." in str(small)
    assert small.report.to_dict()["dropped"] == [*small.edit.dropped]


def test_depth_is_chosen_where_it_is_nearer(small):
    model, data = made()
    options = {"data": data, "refit": None, "multiple_of": 1}
    graph = graftlib.trace(model, data[0])
    narrow = graftlib.slim(graph, budget={"macs": 0.66}, **options)
    assert narrow.edit.dropped == ()
    assert small.report.fidelity.error < narrow.report.fidelity.error


def test_the_edit_replays_on_models_tensors_and_optimizers(small):
    model, (x,) = made()
    before = copy.deepcopy(model.state_dict())
    edit = Edit.from_json(small.edit.to_json())
    assert edit == small.edit
    again = edit.apply(model)
    assert torch.equal(again(x), small.model(x))
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )
    state, due = edit.apply({f"module.{k}": v for k, v in before.items()}), small.model.state_dict()
    assert [*state] == [f"module.{name}" for name in due]
    assert all(torch.equal(state[f"module.{name}"], tensor) for name, tensor in due.items())
    optimizer = torch.optim.AdamW(model.named_parameters())
    model(x).sum().backward()
    optimizer.step()
    moved = edit.apply_optimizer(optimizer.state_dict(), model)
    mine = torch.optim.AdamW(again.named_parameters())
    mine.load_state_dict(moved)
    for name, parameter in again.named_parameters():
        assert mine.state[parameter]["exp_avg"].shape == parameter.shape, name
    gradients = edit.apply({n: p.grad for n, p in model.named_parameters()})
    for name, parameter in again.named_parameters():
        assert torch.allclose(mine.state[parameter]["exp_avg"], 0.1 * gradients[name])
    with pytest.raises(SurgeryError, match=r"others than the edit knows|differ"):
        edit.apply(again)


def test_it_is_saved_and_loaded(small, tmp_path):
    small.save(tmp_path)
    _, (x,) = made()
    assert torch.equal(graftlib.load(tmp_path, Stack)(x), small.model(x))


def test_documents_that_contradict_themselves_are_refused(small):
    for change in ({"blocks": {"blocks": {"0": None}}}, {"blocks": {"blocks": {"0": "1"}}}):
        text = json.dumps({**json.loads(small.edit.to_json()), **change})
        with pytest.raises(SurgeryError, match="contradicts itself"):
            Edit.from_json(text)


def test_a_block_that_is_kept_stays():
    model, data = made()
    graph = graftlib.trace(model, data[0])
    options = {"data": data, "refit": None, "multiple_of": 1, "keep": "blocks.4.up"}
    small = graftlib.slim(graph, budget={"macs": 0.7}, depth=True, **options)
    assert "blocks.4" not in small.edit.dropped
    (name,) = [new for new in [small.edit.renamed("blocks.4.up")] if new]
    assert small.model.get_submodule(name).out_features == 64
    with pytest.raises(SurgeryError, match="hits no layer"):
        graftlib.slim(graph, budget={"macs": 0.7}, depth=True, data=data, keep="block.4.up")


def test_depth_reaches_budgets_that_widths_do_not():
    model, data = made()
    graph = graftlib.trace(model, data[0])
    options = {"data": data, "refit": None, "minimum": 0.9}
    with pytest.raises(SurgeryError, match="below the smallest"):
        graftlib.slim(graph, budget={"macs": 0.6}, **options)
    assert graftlib.slim(graph, budget={"macs": 0.6}, depth=True, **options).edit.dropped


def test_depth_needs_data():
    model, data = made()
    with pytest.raises(SurgeryError, match="measured on data"):
        graftlib.slim(graftlib.trace(model, data[0]), budget={"macs": 0.6}, depth=True)
