"""What units are worth: each measure agrees with a slow plain version, and sees a unit that does nothing."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graftlib import surgery, trace
from graftlib.slim.importance import importances
from graftlib.slim.names import FROM_DATA, IMPORTANCES
from graftlib.surgery import SurgeryError, SurgeryWarning, prune
from graftlib.surgery.whole_model import outer_classes

from . import nets


def perceptron():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    x = torch.randn(16, 3).double()
    graph = trace(model, x)
    return model, x, graph, graph.axis_class("0")


def measured(how, model, graph, each, batches, losses=None):
    return importances(graph, model, [each], how, batches, losses)[each]


def test_the_measures_of_inputs_are_those_of_their_papers():
    model, x, graph, each = perceptron()
    batches = [((x[:5],), {}), ((x[5:],), {})]
    hidden, weight = model[1](model[0](x)).detach(), model[2].weight.detach()
    columns = weight.square().sum(0)
    due = {
        "activation": hidden.abs().mean(0),
        "wanda": (columns * hidden.square().mean(0)).sqrt(),
        "fluctuation": columns * hidden.var(0, correction=0),
    }
    for how, values in due.items():
        torch.testing.assert_close(measured(how, model, graph, each, batches), values)


@pytest.mark.parametrize(("how", "power"), [("taylor", 1), ("fisher", 2)])
def test_the_gradient_of_a_gate_is_that_of_autograd(how, power):
    model, x, graph, each = perceptron()
    labels = torch.randint(0, 2, (16,))

    def losses(net):
        for part in (slice(0, 8), slice(8, 16)):
            yield F.cross_entropy(net(x[part]), labels[part])

    due = torch.zeros(8).double()
    for part in (slice(0, 8), slice(8, 16)):
        gate = torch.ones(8, dtype=torch.float64, requires_grad=True)
        loss = F.cross_entropy(model[2](model[1](model[0](x[part])) * gate), labels[part])
        due += torch.autograd.grad(loss, gate)[0].abs() ** power / 2
    torch.testing.assert_close(measured(how, model, graph, each, None, losses), due)
    assert all(p.grad is None for p in model.parameters())


def test_the_names_are_those_that_are_known():
    assert (*surgery.IMPORTANCES, *FROM_DATA) == IMPORTANCES


@pytest.mark.parametrize("how", [*FROM_DATA, "magnitude"])
@pytest.mark.parametrize("kind", [nets.Residual, nets.GroupedHeads], ids=lambda k: k.__name__)
def test_a_unit_that_is_switched_off_is_worth_least(how, kind):
    model, x = nets.made(kind)
    graph = trace(model, x)
    name = {nets.Residual: "blocks.0.0", nets.GroupedHeads: "up"}[kind]
    each = graph.axis_class(name, "out")
    reader = model.down if kind is nets.GroupedHeads else model.blocks[0][3]
    batches = [((x,), {})]
    before = measured(how, model, graph, each, batches)
    assert int(before.argmin()) != 5 or float(before.min()) > 0
    with torch.no_grad():
        if how == "activation":  # it looks at what arrives, not at what reads it
            made = model.up if kind is nets.GroupedHeads else model.blocks[0][1]
            made.weight[5], made.bias[5] = 0, 0
        else:
            reader.weight[:, 5] = 0
    after = measured(how, model, graph, each, batches)
    assert int(after.argmin()) == 5
    assert float(after[5]) == 0 < float(after.sort().values[1])


def test_every_reader_of_a_stream_counts():
    """... so switching one of them off leaves the unit worth something."""
    model, x = nets.made(nets.GroupedHeads)
    graph = trace(model, x)
    stream = graph.axis_class("embed", "out")
    with torch.no_grad():
        model.q.weight[:, 3] = 0
    assert float(measured("wanda", model, graph, stream, [((x,), {})])[3]) > 0


def test_units_that_never_fluctuate_go_first_and_biases_make_up_for_them():
    """What they gave was a constant; without the fit the outputs are off by it."""
    model, x, graph, each = perceptron()
    with torch.no_grad():
        model[0].weight[:3], model[0].bias[:3] = 0, 2
    kept = measured("fluctuation", model, graph, each, [((x,), {})]).topk(5).indices.sort().values
    assert kept.tolist() == [3, 4, 5, 6, 7]
    bare = prune(graph, {each: kept})
    mended = prune(graph, {each: kept}, data=[x], refit="bias")
    assert (bare(x) - model(x)).abs().max() > 0.1
    torch.testing.assert_close(mended(x), model(x))
    assert torch.equal(mended[2].weight, bare[2].weight)


def test_what_cannot_be_measured_is_left_and_named():
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.cell, self.z = nn.Linear(3, 8), nn.GRUCell(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.z(self.cell(self.a(x)))

    model, x = Norms().eval(), torch.randn(4, 3)
    graph = trace(model, x)
    with pytest.warns(SurgeryWarning, match=r"1 of 2 classes .* a\.weight"):
        known = importances(graph, model, outer_classes(graph), "wanda", [((x,), {})])
    assert len(known) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(importances(graph, model, outer_classes(graph), "taylor", [((x,), {})])) == 2


def test_refusals():
    model, x, graph, each = perceptron()
    with pytest.raises(SurgeryError, match="no importance 'tailor'") as error:
        measured("tailor", model, graph, each, None)
    assert "'taylor'" in error.value.near
    with pytest.raises(SurgeryError, match="measured on data"):
        measured("wanda", model, graph, each, None)
    with pytest.raises(SurgeryError, match="no finite number for each"):
        measured(lambda *_: torch.ones(3), model, graph, each, None)
    with pytest.raises(SurgeryError, match="no finite number for each"):
        measured("wanda", model, graph, each, [((x * float("nan"),), {})])
