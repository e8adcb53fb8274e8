"""Layers fitted to data: never worse on it, exact where the kept units say all, and nothing else is touched."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from graftlib.graph import trace
from graftlib.surgery import SurgeryError, SurgeryWarning, prune, refit
from graftlib.surgery.consumers import use_of

few = pytest.mark.filterwarnings("ignore::graftlib.surgery.SurgeryWarning")


def mlp(seed=0, hidden=6, bias=True, device="cpu"):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2, bias=bias))
    return net.double().to(device)


def error(slim, model, x):
    with torch.no_grad():
        return float((slim(x) - model(x)).square().sum())


@few
@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 40), st.booleans())
def test_a_fit_is_never_worse_on_its_data(seed, kept, rows, bias):
    model = mlp(seed, 8, bias)
    x = torch.randn(rows, 3).double()
    graph = trace(model, x)
    plain, fitted = (prune(graph, {0: kept}, data=d) for d in (None, [x]))
    assert error(fitted, model, x) <= error(plain, model, x) * (1 + 1e-9) + 1e-18


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.lists(st.floats(0.2, 3.0), min_size=3, max_size=3))
def test_what_the_kept_units_say_is_read_from_them(seed, factors):
    """Dropped units that are multiples of kept ones are made up for, through the nonlinearity, to the last digits."""
    model = mlp(seed)
    with torch.no_grad():
        for i, factor in enumerate(factors):
            model[0].weight[3 + i] = factor * model[0].weight[i]
            model[0].bias[3 + i] = factor * model[0].bias[i]
    x, unseen = torch.randn(50, 3).double(), torch.randn(20, 3).double()
    # Inputs that never wake a kept unit cannot tell what is to be read from it.
    said = torch.linalg.svdvals(model[:2](x)[:, :3].detach())
    assume(said[-1] > 0.01 * said[0])
    graph = trace(model, x)
    fitted = prune(graph, {0: [0, 1, 2]}, data=[x], ridge=1e-12)
    close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    close(fitted(unseen), model(unseen))
    with pytest.raises(AssertionError):
        close(prune(graph, {0: [0, 1, 2]})(unseen), model(unseen))


class Twice(nn.Module):
    """Convolutions whose second half of channels repeats the first; the classifier reads them through a mean."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            for tensor in (self.a.weight, self.a.bias):
                tensor[3:] = tensor[:3]
            self.b.weight[4:] = 2 * self.b.weight[:4]

    def forward(self, x):
        return self.head(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3)))


@few
def test_layers_are_fitted_in_their_order(device):
    """The second reads what the first, already fitted, makes: both have to be right."""
    torch.manual_seed(0)
    model = Twice().double().eval().to(device)
    x = torch.randn(24, 2, 8, 8, device=device).double()
    graph = trace(model, x)
    first, second = (c for c in graph.axis_classes if c.free)
    keep = {first: [0, 1, 2], second: [0, 1, 2, 3]}
    fitted = prune(graph, keep, data=x.split(8), ridge=1e-12)
    torch.testing.assert_close(fitted(x), model(x), rtol=1e-6, atol=1e-6)
    assert error(prune(graph, keep), model, x) > 1e-3


OPS = {
    "linear": (nn.Linear(4, 3), (2, 5, 4)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 6)),
    "dilated": (nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), bias=False), (2, 4, 7, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=(0, 1)), (2, 4, 7, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 7, 6)),
    "same": (nn.Conv1d(4, 6, 3, padding="same", dilation=2), (2, 4, 9)),
    "reflecting": (nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 9)),
    "volume": (nn.Conv3d(2, 3, 2), (2, 2, 4, 3, 5)),
}


@pytest.mark.parametrize("name", OPS)
def test_a_use_is_a_product_of_its_rows(name):
    """rows @ weight^T + bias is what the op computed; what is fitted is what runs."""
    from graftlib.surgery.recording import Twin

    module, shape = OPS[name]
    found = []
    Twin(module).run(((torch.randn(shape),), {}), lambda op: found.append(use_of(op)))
    (use,) = (use for use in found if use is not None)
    product = use.rows(0, shape[0]) @ use.matrix(use.weight).transpose(1, 2)
    product = product.movedim(0, 1).flatten(1) + (0 if use.bias is None else use.bias)
    torch.testing.assert_close(product, use.results(0, shape[0]))
    torch.testing.assert_close(use.unmatrix(use.matrix(use.weight)), use.weight)


@few
def test_only_readers_change_and_the_model_is_as_it_was():
    torch.manual_seed(0)
    model = Twice().train()
    x = torch.randn(40, 2, 8, 8)
    before, hooks = copy.deepcopy(model.state_dict()), len(model.a._forward_hooks)
    graph = trace(model, x)
    first = next(c for c in graph.axis_classes if c.free)
    plain, fitted = (prune(graph, {first: 3}, data=d) for d in (None, [x]))
    moved = {k for k, v in plain.state_dict().items() if not torch.equal(v, fitted.state_dict()[k])}
    assert moved == {"b.weight"}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert fitted.training
    assert len(fitted.a._forward_hooks) == hooks
    assert prune(graph, {first: 3}, data=[x], inplace=True) is model
    assert all(torch.equal(fitted.state_dict()[k], v) for k, v in model.state_dict().items())
    assert model.a.out_channels == 3


def test_the_data_matter():
    """A fit to other inputs is a worse fit to these."""
    model = mlp(hidden=12)
    x = torch.rand(64, 3).double()
    graph = trace(model, x)
    own, other = (prune(graph, {0: 5}, data=[d]) for d in (x, -4 * x))
    assert error(own, model, x) < 0.5 * error(other, model, x)


def test_rescaling_keeps_the_mean_square():
    model = mlp(hidden=12)
    x = torch.randn(64, 3).double()
    graph = trace(model, x)
    plain = prune(graph, {0: 5})
    scaled = prune(graph, {0: 5}, data=[x], refit="rescale")

    def power(net):
        return (net(x) - net[2].bias).square().mean()

    torch.testing.assert_close(power(scaled), power(model))
    assert not torch.isclose(power(plain), power(model), rtol=1e-2)
    ratio = scaled[2].weight / plain[2].weight
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))
    assert torch.equal(scaled[2].bias, plain[2].bias)


class Recurrent(nn.Module):
    """Its LSTM reads by an op that is no plain product, its head by one."""

    def __init__(self):
        super().__init__()
        self.a, self.lstm = nn.Linear(3, 6), nn.LSTM(6, 4, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        h = self.a(x)
        return self.lstm(h)[0], self.head(h)


class Tied(nn.Module):
    """The table is looked up in, and read as a matrix."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.out = nn.Linear(6, 7)
        self.out.weight = self.table.weight

    def forward(self, ids):
        return self.out(self.table(ids))


@few
def test_what_cannot_be_gathered_is_left_and_named():
    model = Recurrent()
    x = torch.randn(4, 5, 3)
    graph = trace(model, x)
    first = next(c for c in graph.axis_classes if any(m.fqn == "a.weight" for m in c.members))
    plain = prune(graph, {first: 3})
    with pytest.warns(SurgeryWarning, match="1 of 2 layers .* 'lstm.weight_ih_l0'"):
        fitted = prune(graph, {first: 3}, data=[x])
    assert torch.equal(fitted.lstm.weight_ih_l0, plain.lstm.weight_ih_l0)
    assert not torch.equal(fitted.head.weight, plain.head.weight)


def test_a_tied_table_is_left():
    model, ids = Tied(), torch.randint(0, 7, (2, 5))
    graph = trace(model, ids)
    stream = next(c for c in graph.axis_classes if c.free)
    fitted = prune(graph, {stream: 3}, data=[ids])
    assert torch.equal(fitted.table.weight, prune(graph, {stream: 3}).table.weight)
    assert fitted.out.weight is fitted.table.weight


class Again(nn.Module):
    """One layer reads two things."""

    def __init__(self):
        super().__init__()
        self.a, self.z = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return torch.stack([self.z(self.a(x).relu()), self.z(self.a(-x).relu())])


def test_a_layer_used_twice_is_fitted_to_both_uses():
    torch.manual_seed(0)
    model, x = Again().double(), torch.randn(40, 3).double()
    graph = trace(model, x)
    plain, fitted = (prune(graph, {0: 4}, data=d) for d in (None, [x]))
    assert error(fitted, model, x) < 0.8 * error(plain, model, x)


@pytest.mark.parametrize("form", ["tensor", "tuple", "pair", "mapping"])
def test_forms_of_inputs(form):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x, scale=1.0):
            return self.net(x * scale)

    model, x = Named(), torch.randn(30, 3).double()
    item = {"tensor": x, "tuple": (x,), "pair": ((x,), {"scale": 1.0}), "mapping": {"x": x}}[form]
    graph = trace(model, x)
    fitted = prune(graph, {0: 3}, data=iter([item]))
    expected = prune(graph, {0: 3}, data=[x])
    assert torch.equal(fitted.net[2].weight, expected.net[2].weight)


def test_statistics_are_those_of_the_data():
    torch.manual_seed(0)
    model = Twice().eval()
    x = torch.randn(8, 2, 8, 8) * 3 + 1
    graph = trace(model, x)
    first = next(c for c in graph.axis_classes if c.free)
    slim = prune(graph, {first: [0, 1, 2]}, data=x.split(4), refit=None, statistics=True)
    halves = [slim.a(half).transpose(0, 1).flatten(1) for half in x.split(4)]
    mean = torch.stack([half.mean(1) for half in halves]).mean(0)
    variance = torch.stack([half.var(1) for half in halves]).mean(0)
    torch.testing.assert_close(slim.norm.running_mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slim.norm.running_var, variance, rtol=1e-4, atol=1e-4)
    assert not slim.training
    assert slim.norm.momentum == 0.1
    assert torch.equal(slim.b.weight, model.b.weight[:, :3])


def test_what_makes_no_sense_is_refused():
    model, x = mlp(), torch.randn(4, 3).double()
    graph = trace(model, x)
    with pytest.raises(SurgeryError, match="holds no inputs"):
        prune(graph, {0: 3}, data=[])
    with pytest.raises(SurgeryError, match="cannot be read"):
        prune(graph, {0: 3}, data=torch.tensor(1.0))
    with pytest.raises(SurgeryError, match="'least-squares', 'bias', 'rescale' or None"):
        prune(graph, {0: 3}, data=[x], refit="ridge")
    with pytest.raises(SurgeryError, match="above 0"):
        prune(graph, {0: 3}, data=[x], ridge=0.0)


def test_inputs_without_rows_are_not_fitted_to():
    """A linear layer takes one vector as well: it gives nothing to learn from, and nothing is changed."""
    model, x = mlp(), torch.randn(3).double()
    graph = trace(model, x)
    plain = prune(graph, {0: 3})
    with pytest.warns(SurgeryWarning, match="not refitted"):
        fitted = prune(graph, {0: 3}, data=[x, x + 1, x - 1])
    assert all(torch.equal(v, fitted.state_dict()[k]) for k, v in plain.state_dict().items())


def test_a_fault_of_the_fit_is_not_blamed_on_the_data(monkeypatch):
    """What the model raises on `data` is an error that says so; what graftlib raises itself comes as it is."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = trace(model, torch.randn(4, 3))
    with pytest.raises(SurgeryError, match="does not run on data"):
        prune(graph, 0.5, data=[torch.randn(4, 5)])
    for place in ("use_of", "_least_squares", "_take_back"):

        def broken(*args, **kwargs):
            raise ValueError("a fault of our own")

        with monkeypatch.context() as patched:
            patched.setattr(refit, place, broken)
            patched.setitem(refit.REFITS, "least-squares", refit._least_squares)
            with pytest.raises(ValueError, match="a fault of our own"):
                prune(graph, 0.5, data=[torch.randn(40, 3)])
