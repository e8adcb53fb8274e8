"""From a budget to a small model: the budget holds, what is kept is kept, the original stays."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import graftlib
from graftlib.slim.costs import costs_of
from graftlib.surgery import SurgeryError, SurgeryWarning

from . import nets

KINDS = pytest.mark.parametrize(
    "kind", [nets.Conv, nets.GroupedHeads, nets.Packed, nets.Residual, nets.TiedToStream]
)


def slim(kind, **options):
    model, x = nets.made(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SurgeryWarning)
        return model, x, graftlib.slim(graftlib.trace(model, x), **options)


@KINDS
def test_the_report_says_what_the_small_model_costs(kind):
    model, x, small = slim(kind, budget={"params": 0.6}, multiple_of=1)
    assert small.model(x).shape == model(x).shape
    assert small.report.widths.costs == costs_of(graftlib.trace(small.model, x)).at()
    assert small.report.widths.costs["params"] <= 0.6 * small.report.before["params"]
    assert "parameters" in str(small)


def test_the_original_stays_and_its_strongest_units_are_kept():
    model, x = nets.made(nets.Residual)
    with torch.no_grad():
        model.blocks[0][1].weight[:40], model.blocks[0][1].bias[:40] = 0, 0
    before = copy.deepcopy(model.state_dict())
    graph = graftlib.trace(model, x)
    keep = ["stem", "blocks.1.*"]
    small = graftlib.slim(graph, budget={"macs": 0.8}, keep=keep, multiple_of=1)
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )
    each = graph.axis_class("blocks.0.0", "out")
    assert {*range(40, 64)} <= {*small.edit.kept[each]}
    assert len(small.edit.kept[each]) < 64
    assert small.model.stem.out_channels == 32
    assert small.model.blocks[1][0].out_channels == 64
    torch.testing.assert_close(small.model(x), model(x))  # units that are off were all that went


def test_a_fit_to_data_restores_and_says_how_well_on_what_is_held_out():
    torch.manual_seed(0)
    data = [torch.randn(64, 3, 8, 8)]
    budget = {"macs": 0.6}
    _, _, plain = slim(nets.Residual, budget=budget, data=data, refit=None)
    _, _, fitted = slim(nets.Residual, budget=budget, data=data)
    _, _, biased = slim(nets.Residual, budget=budget, data=data, refit="bias")
    assert fitted.report.fidelity.error < biased.report.fidelity.error
    assert biased.report.fidelity.error < plain.report.fidelity.error
    assert plain.report.fidelity.samples == 12
    assert "held out" in str(fitted)


@pytest.mark.parametrize("importance", ["activation", "wanda", "fluctuation", "taylor", "fisher"])
def test_importances_from_data_go_the_whole_way(importance):
    data = [torch.randn(8, 5, 3)]
    _, x, small = slim(nets.GroupedHeads, budget={"macs": 0.7}, data=data, importance=importance)
    assert small.model(x).isfinite().all()


def test_by_default_data_decide_what_stays():
    """Units that nothing arrives at go first, however large their weights are; without data weights decide."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[0].weight[:8] *= 10
        model[0].bias[:8] = -1e3
    graph = graftlib.trace(model, torch.randn(2, 4))
    rules = {"budget": {"params": 0.55}, "multiple_of": 1, "refit": None}
    (with_data,) = graftlib.slim(graph, data=[torch.randn(64, 4)], **rules).edit.kept.values()
    (without,) = graftlib.slim(graph, **rules).edit.kept.values()
    assert [*with_data] == [*range(8, 16)]
    assert [*without] == [*range(8)]


@pytest.mark.parametrize("ranking", ["uniform", "isomorphic"])
def test_by_default_what_cannot_be_measured_goes_by_magnitude(ranking):
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.cell, self.z = nn.Linear(3, 8), nn.GRUCell(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.z(self.cell(self.a(x)))

    model, x = Cell().eval(), torch.randn(4, 3)
    graph = graftlib.trace(model, x)
    rules = {"budget": {"params": 0.6}, "multiple_of": 1, "refit": None, "ranking": ranking}
    small = graftlib.slim(graph, data=[x], **rules)
    assert len(small.edit.kept) == 2
    assert small.model(x).shape == (4, 2)
    if ranking == "isomorphic":  # where classes compete they are measured alike
        plain = graftlib.slim(graph, importance="magnitude", **rules)
        assert small.edit.kept == plain.edit.kept


def test_a_model_within_its_budget_is_copied():
    model, x, small = slim(nets.Written, budget={"macs": 1.0})
    assert small.edit.kept == {}
    assert small.model is not model
    assert torch.equal(small.model(x), model(x))


def test_what_the_code_holds_stays():
    _, _, small = slim(nets.Written, budget={"params": 0.7}, multiple_of=1)
    assert small.model.a.out_features == 16
    assert small.model.b.out_features < 16


def test_refusals():
    model, x = nets.made(nets.Residual)
    graph = graftlib.trace(model, x)
    with pytest.raises(SurgeryError, match="below the smallest"):
        graftlib.slim(graph, budget={"macs": 1e-4})
    with pytest.raises(SurgeryError, match="no ranking 'globl'"):
        graftlib.slim(graph, budget={"macs": 0.5}, ranking="globl")
    with pytest.raises(SurgeryError, match="hits no layer"):
        graftlib.slim(graph, budget={"macs": 0.5}, keep="stam")
    with pytest.raises(SurgeryError, match="no axis class may change"):
        graftlib.slim(graph, budget={"macs": 0.5}, keep="*")
    with pytest.raises(SurgeryError, match="minimum=2"):
        graftlib.slim(graph, budget={"macs": 0.5}, minimum=2)
    other = nn.Linear(3, 3)
    with pytest.raises(SurgeryError, match="not the one that was traced"):
        graftlib.slim(graph, budget={"macs": 0.5}, model=other)


class Named(torch.nn.Module):
    """Gives out a number beside its logits; the name of its last layer is half of a surrogate pair."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.add_module("\ud800", nn.Linear(8, 3))

    def forward(self, x):
        logits = self.get_submodule("\ud800")(self.a(x).relu())
        return logits, logits.sum()


def test_outputs_without_dimensions_and_names_that_are_no_text(tmp_path):
    x = torch.randn(64, 6)
    small = graftlib.slim(graftlib.trace(Named(), (x,)), budget={"params": 0.6}, data=[x])
    assert small.report.fidelity is not None
    with pytest.raises(SurgeryError, match="name cannot be written"):
        small.save(tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
