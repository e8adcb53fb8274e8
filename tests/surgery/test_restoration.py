"""A fit never harms: on inputs that it has not seen, the model is no further from what it was than without it."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graftlib.graph import trace
from graftlib.surgery import SurgeryError, SurgeryWarning, prune, refit
from graftlib.surgery.holdout import Holdout
from graftlib.surgery.recording import Twin, Walk, alone

quiet = pytest.mark.filterwarnings("ignore::graftlib.surgery.SurgeryWarning")


class Attention(nn.Module):
    """Two layers of attention and MLP behind norms, on six tokens."""

    def __init__(self, width=16):
        super().__init__()
        self.inside = nn.Linear(8, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(2))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x):
        x = self.inside(x)
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x))


class Layer(nn.Module):
    def __init__(self, width, heads=4):
        super().__init__()
        self.heads, self.norm, self.qkv = heads, nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.o, self.up, self.down = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x):
        y = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.o(F.scaled_dot_product_attention(*y).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


def deep():
    layers = [nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(24, 4))


def convolutions():
    net = nn.Sequential(
        *(nn.Conv2d(2, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 16, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )
    with torch.no_grad():
        for _ in range(20):
            net(inputs("convolutions", 32))
    return net


SHAPES = {"deep": (12,), "convolutions": (2, 6, 6), "attention": (6, 8)}
MODELS = {"deep": deep, "convolutions": convolutions, "attention": Attention}


def inputs(name, samples):
    """Correlated: a few factors and some noise, as real inputs are."""
    shape = SHAPES[name]
    count = torch.Size(shape).numel()
    mix = torch.randn(5, count, generator=torch.Generator().manual_seed(5))
    x = torch.randn(samples, 5) @ mix + 0.3 * torch.randn(samples, count)
    return x.view(samples, *shape)


def error(slim, model, x):
    with torch.no_grad():
        return float((slim(x) - model(x)).square().sum())


def restored(name, samples, seed):
    """(error on unseen inputs without the fit, with it)."""
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    x, unseen = inputs(name, samples), inputs(name, 200)
    graph = trace(model, x[:2])
    plain, fitted = (prune(graph, 0.5, data=d) for d in (None, x.split(16)))
    return error(plain, model, unseen), error(fitted, model, unseen)


@quiet
@pytest.mark.parametrize("samples", [2, 12, 100])
@pytest.mark.parametrize("name", MODELS)
def test_a_fit_never_harms_on_unseen_inputs(name, samples):
    gains = []
    for seed in range(3):
        before, after = restored(name, samples, seed)
        assert after <= before * (1 + 1e-9)
        gains.append(after / before)
    assert samples < 100 or max(gains) < 0.7


@quiet
def test_a_fit_without_held_out_rows_does_harm(monkeypatch):
    """The control: with a weak ridge for every layer and nothing taken back, little data makes models worse."""
    monkeypatch.setattr(refit, "RIDGES", (1e-6,))
    monkeypatch.setattr(refit, "_solution", lambda learnt, *_: refit._solve(learnt, _[1], 1e-6))
    monkeypatch.setattr(refit, "_take_back", lambda *_: None)
    pairs = [restored(name, 12, seed) for name in MODELS for seed in range(3)]
    assert any(after > before for before, after in pairs)


def test_little_data_is_said():
    torch.manual_seed(0)
    model, x = deep().eval(), inputs("deep", 20)
    graph = trace(model, x)
    with pytest.warns(
        SurgeryWarning, match=r"fewer than 2 rows .*: 3 \('\d.weight': 14 rows, 12 feat"
    ):
        prune(graph, 0.5, data=[x])


@pytest.mark.parametrize(
    ("sizes", "held_out"),
    [
        ((50,), [[*range(4, 50, 5)]]),
        ((20, 1), [[*range(2, 20, 3)], [0]]),
        ((2, 2), [[1], [1]]),
        ((1, 1), [[], [0]]),
        ((3,), [[1]]),
    ],
)
def test_samples_are_held_out_whole(sizes, held_out):
    holdout = Holdout([((torch.zeros(size, 3),), {}) for size in sizes])
    for number, (size, samples) in enumerate(zip(sizes, held_out, strict=True)):
        assert holdout.rows(number, size).nonzero().flatten().tolist() == samples
        # With seven rows for each sample, as of the places of an image: all of them.
        rows = holdout.rows(number, 7 * size).view(size, 7)
        assert rows.all(1).nonzero().flatten().tolist() == samples
        assert torch.equal(rows.any(1), rows.all(1))


def test_of_one_sample_a_fifth_of_its_rows_is_held_out():
    holdout = Holdout([((torch.zeros(1, 3),), {})])
    assert holdout.rows(0, 10).nonzero().flatten().tolist() == [8, 9]


@quiet
def test_both_models_go_over_the_inputs_once(monkeypatch):
    """Once in step; before that once over what is held out, and once over the first batch to see what is used."""
    torch.manual_seed(0)
    model, x = deep().eval(), inputs("deep", 40)
    graph = trace(model, x[:4])
    samples = []
    run = Twin._run
    monkeypatch.setattr(
        Twin,
        "_run",
        lambda self, batch, record: samples.append(len(batch[0][0])) or run(self, batch, record),
    )
    prune(graph, 0.5, data=x.split(10))
    assert sum(samples) == 2 * 40 + 10


@quiet
def test_batches_may_have_other_lengths():
    torch.manual_seed(0)
    model = Attention().eval()
    x = inputs("attention", 40)
    graph = trace(model, x[:2])
    fitted = prune(graph, 0.5, data=[x[:20], x[20:39, :4], x[39:, :3]])
    assert error(fitted, model, x) < error(prune(graph, 0.5), model, x)


class Failing(nn.Module):
    """Refuses long inputs half-way."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        if len(x) > 8:
            raise RuntimeError("too long for me")
        return self.c(x)


def test_what_a_model_raises_is_raised_and_no_thread_stays():
    torch.manual_seed(0)
    model, x = Failing().eval(), torch.randn(20, 3)
    graph = trace(model, x[:4])
    before, threads = (
        {k: v.clone() for k, v in model.state_dict().items()},
        threading.active_count(),
    )
    with pytest.raises(SurgeryError, match="too long for me") as raised:
        prune(graph, 0.5, data=[x[:4], x])
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert threading.active_count() == threads
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_walk_sees_the_weight_that_was_written_at_its_stop():
    """And closes where it stands."""
    net, x = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), torch.randn(3, 2)

    def stops(names, op):
        return names.get(id(op[1][1])) if op[0]._schema.name == "aten::linear" else None

    with alone():
        walk, other = (Walk(net, ((x,), {}), stops) for _ in range(2))
        assert [other.advance(), walk.advance()] == ["0.weight", "0.weight"]
        other.close()
        with torch.no_grad():
            net[0].weight.mul_(3)
        assert walk.advance() == "2.weight"
        with torch.no_grad():
            net[2].bias.fill_(7)
        assert walk.advance() is None
    torch.testing.assert_close(walk.result, net(x))
    assert threading.active_count() == 1 or all(
        t is not walk._thread for t in threading.enumerate()
    )


class Forked(nn.Module):
    """Takes another way where its input is large: its branches run in another order."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.d = nn.Linear(8, 2)

    def forward(self, x):
        first, second = (self.b, self.c) if float(x.detach().max()) < 50 else (self.c, self.b)
        x = self.a(x).relu()
        return self.d((first(x) + second(x)).relu())


@quiet
def test_models_that_go_different_ways_are_left_from_there():
    torch.manual_seed(0)
    model, x = Forked().eval(), torch.randn(40, 4)
    graph = trace(model, x)
    units = [c for c in graph.axis_classes if c.free][:1]
    threads = threading.active_count()
    fitted = prune(graph, {units[0]: 4}, data=[x, 1000 * x])
    plain = prune(graph, {units[0]: 4})
    assert error(fitted, model, x) <= error(plain, model, x) * (1 + 1e-9)
    assert threading.active_count() == threads


@quiet
def test_an_exact_narrowing_is_not_touched():
    """Where nothing is missing there is nothing to fit, and nothing to take back."""
    torch.manual_seed(0)
    model, x = deep().eval(), inputs("deep", 100)
    with torch.no_grad():
        model[0].weight[::2], model[0].bias[::2] = 0, 0
    graph = trace(model, x)
    first = next(c for c in graph.axis_classes if c.free)
    plain, fitted = (prune(graph, {first: 12}, data=d) for d in (None, [x]))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, fitted.state_dict()[name]), name


def test_a_fit_leaves_the_random_state():
    torch.manual_seed(0)
    model, x = deep().eval(), inputs("deep", 200)
    graph, state = trace(model, x), torch.get_rng_state()
    prune(graph, 0.5, data=[x])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_walk_holds_nothing_for_gradients():
    """Whether gradients are recorded is a matter of each thread; with them every activation would be held."""
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)
    with alone():
        walk = Walk(net, ((x,), {}), lambda names, op: None)
        walk.advance()
    assert not walk.result.requires_grad
    assert net(x).requires_grad
