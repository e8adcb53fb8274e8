"""Units that are switched off go first, whatever switches them off: pruning them keeps the function."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as masks

from graftlib.graph import trace
from graftlib.surgery import SurgeryError, prune
from graftlib.surgery.importance import ranking, reads

UNITS = 6


class Residual(nn.Module):
    """A branch with a layer scale, and a stream that it is added to; the inner class is switched off by a mask."""

    def __init__(self):
        super().__init__()
        self.stem, self.up = nn.Linear(3, UNITS), nn.Linear(UNITS, UNITS)
        self.scale, self.head = nn.Parameter(torch.randn(UNITS)), nn.Linear(UNITS, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.scale * self.up(x).tanh())


class Masked(nn.Module):
    """A buffer multiplies the hidden channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, UNITS), nn.Linear(UNITS, 2)
        self.register_buffer("mask", torch.ones(UNITS))

    def forward(self, x):
        return self.b(F.gelu(self.a(x)) * self.mask)


class Gated(nn.Module):
    """Two weights make a hidden unit, by their product."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(3, UNITS, bias=False), nn.Linear(3, UNITS)
        self.down = nn.Linear(UNITS, 2)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Heads(nn.Module):
    """Self-attention by hand; the heads are units of two places each."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 2 * UNITS) for _ in range(3))
        self.o = nn.Linear(2 * UNITS, 3)

    def forward(self, x):
        q, k, v = (
            each(x).unflatten(-1, (-1, 2)).transpose(1, 2) for each in (self.q, self.k, self.v)
        )
        scores = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.o((scores @ v).transpose(1, 2).flatten(2))


class Fused(Heads):
    """The same by one op."""

    def forward(self, x):
        q, k, v = (
            each(x).unflatten(-1, (-1, 2)).transpose(1, 2) for each in (self.q, self.k, self.v)
        )
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Table(nn.Module):
    """An embedding's columns are units."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(7, UNITS), nn.Linear(UNITS, 2)

    def forward(self, ids):
        return self.out(self.table(ids).relu())


class Behind(nn.Module):
    """What the hidden units are read by is switched off itself, a layer later."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, UNITS), nn.Linear(UNITS, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


def conv_norm(depthwise=False):
    between = [nn.Conv2d(UNITS, UNITS, 3, groups=UNITS), nn.ReLU6()] if depthwise else []
    first = [nn.Conv2d(2, UNITS, 3, bias=False), nn.BatchNorm2d(UNITS), nn.ReLU()]
    net = nn.Sequential(*first, *between, nn.Conv2d(UNITS, 3, 3, padding=1))
    for statistic in (net[1].running_mean, net[1].running_var):
        statistic.uniform_(0.5, 2)
    return net


def group_norm():
    return nn.Sequential(
        nn.Conv2d(2, 2 * UNITS, 1),
        nn.GroupNorm(UNITS, 2 * UNITS),
        nn.SiLU(),
        nn.Conv2d(2 * UNITS, 3, 1),
    )


def linear(wrap=lambda layer: layer):
    return nn.Sequential(wrap(nn.Linear(3, UNITS)), nn.ReLU(), nn.Linear(UNITS, 2))


def zero(*tensors):
    """Rows or columns, of each (tensor, axis)."""

    def switch(units):
        for tensor, axis in tensors:
            tensor.data.movedim(axis, 0)[units] = 0

    return switch


def both_places(units):
    return torch.cat([2 * units, 2 * units + 1])


def off_row_by_row(net, units):
    """Some by their row, some by their column, some by a gain of 0 under a shift that the ReLU takes away."""
    for i, unit in enumerate(units.tolist()):
        if i % 3 == 0:
            net[0].weight.data[unit] = 0
            net[1].running_mean[unit] = net[1].bias.data[unit] = 0
        elif i % 3 == 1:
            net[-1].weight.data[:, unit] = 0
        else:
            net[1].weight.data[unit], net[1].bias.data[unit] = 0, -0.7


def off_behind(net, units):
    net.b.weight.data[:3, units] = 0
    net.c.weight.data[:, 3:] = 0


def mask_rows(net, units):
    mask = torch.ones_like(net[0].weight)
    mask[units] = 0
    masks.custom_from_mask(net[0], "weight", mask)
    net[0].bias.data[units] = 0


# name -> (model, shape of its input, how units are switched off)
KINDS = {
    "rows": (linear, (4, 3), lambda m, u: zero((m[0].weight, 0), (m[0].bias, 0))(u)),
    "columns": (linear, (4, 3), lambda m, u: zero((m[2].weight, 1))(u)),
    "weight norm": (
        lambda: linear(parametrizations.weight_norm),
        (4, 3),
        lambda m, u: zero((m[0].parametrizations.weight.original0, 0), (m[0].bias, 0))(u),
    ),
    "pruned by a mask": (linear, (4, 3), mask_rows),
    "a buffer": (Masked, (4, 3), lambda m, u: zero((m.mask, 0))(u)),
    "a gate": (Gated, (4, 3), lambda m, u: zero((m.gate.weight, 0))(u)),
    "batch norm": (conv_norm, (2, 2, 7, 7), lambda m, u: zero((m[1].weight, 0), (m[1].bias, 0))(u)),
    "batch norm, in three ways": (conv_norm, (2, 2, 7, 7), off_row_by_row),
    "depthwise": (
        lambda: conv_norm(True),
        (2, 2, 7, 7),
        lambda m, u: zero((m[3].weight, 0), (m[3].bias, 0))(u),
    ),
    "before depthwise": (
        lambda: conv_norm(True),
        (2, 2, 7, 7),
        lambda m, u: zero((m[1].weight, 0), (m[1].bias, 0), (m[3].bias, 0))(u),
    ),
    "groups": (
        group_norm,
        (2, 2, 5, 5),
        lambda m, u: zero((m[1].weight, 0), (m[1].bias, 0))(both_places(u)),
    ),
    "heads by values": (
        Heads,
        (2, 5, 3),
        lambda m, u: zero((m.v.weight, 0), (m.v.bias, 0))(both_places(u)),
    ),
    "heads by outputs": (Heads, (2, 5, 3), lambda m, u: zero((m.o.weight, 1))(both_places(u))),
    "heads by both": (
        Fused,
        (2, 5, 3),
        lambda m, u: (
            zero((m.v.weight, 0), (m.v.bias, 0))(2 * u),
            zero((m.o.weight, 1))(2 * u + 1),
        ),
    ),
    "a table": (Table, (2, 4), lambda m, u: zero((m.table.weight, 1))(u)),
    "a layer later": (Behind, (4, 3), off_behind),
    "a residual stream": (
        Residual,
        (4, 3),
        lambda m, u: zero((m.stem.weight, 0), (m.stem.bias, 0), (m.scale, 0))(u),
    ),
}


def case(kind, seed, dead):
    """A model with units that are off and whose other tensors are large, its input and its class of `UNITS`."""
    build, shape, switch = KINDS[kind]
    torch.manual_seed(seed)
    model = build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.uniform_(0.2, 1)
    first = next(model.parameters())
    with torch.no_grad():
        if first.shape[0] in (UNITS, 2 * UNITS):
            first[torch.tensor(dead)] *= 50
        switch(model, torch.tensor(dead))
    x = torch.randint(0, 7, shape) if kind == "a table" else torch.randn(shape).double()
    graph = trace(model, x)
    classes = [c for c in graph.axis_classes if c.free and c.size == UNITS]
    return model, x, graph, classes[0]


deads = st.lists(st.integers(0, UNITS - 1), min_size=1, max_size=UNITS - 1, unique=True)


@settings(max_examples=6)
@given(st.integers(0, 10_000), deads)
@pytest.mark.parametrize("kind", KINDS)
def test_units_that_are_off_go_first(kind, seed, dead):
    """They have the score 0, no other has, and without them the function is the same."""
    model, x, graph, units = case(kind, seed, sorted(dead))
    scores = ranking("magnitude", graph, model)(units)
    assert sorted((scores == 0).nonzero().flatten().tolist()) == sorted(dead)
    slim = prune(graph, {units: UNITS - len(dead)})
    with torch.no_grad():
        torch.testing.assert_close(slim(x), model(x), rtol=1e-9, atol=1e-9)


def test_a_score_that_knows_no_gains_breaks_the_law():
    """The control: the norm of what makes a unit times that of what reads it keeps channels that are off."""

    def norms(graph, model, each):
        score = torch.ones(each.size).double()
        for reading in (False, True):
            side = [m for m in each.members if reads(graph, m) is reading and "weight" in m.fqn]
            sides = [model.get_parameter(m.fqn).detach().movedim(m.axis, 0) for m in side]
            score *= sum(t.reshape(len(t), -1).square().sum(1) for t in sides)
        return score

    broken = 0
    for kind in ("batch norm", "a buffer", "a gate"):
        model, x, graph, units = case(kind, 0, [0, 2, 4])
        slim = prune(graph, {units: 3}, importance=norms)
        broken += not torch.allclose(slim(x), model(x), rtol=1e-6, atol=1e-6)
    assert broken == 3


def test_a_constant_channel_is_not_off():
    """A gain of 0 leaves the shift: a ReLU takes a negative one away, and a SiLU does not."""
    for act, off in ((nn.ReLU(), True), (nn.SiLU(), False)):
        torch.manual_seed(0)
        model = conv_norm().eval()
        model[2] = act
        with torch.no_grad():
            model[1].weight[1], model[1].bias[1] = 0, -0.5
        graph = trace(model, torch.randn(1, 2, 7, 7))
        scores = ranking("magnitude", graph, model)(graph.axis_classes[0])
        assert (scores == 0).tolist() == [off and i == 1 for i in range(UNITS)]


def test_a_layer_scale_switches_its_branch_off_and_not_the_stream():
    torch.manual_seed(0)
    model = Residual().eval()
    with torch.no_grad():
        model.scale[:3] = 0
    graph = trace(model, torch.randn(2, 3))
    scores = ranking("magnitude", graph, model)(graph.axis_classes[0])
    assert bool((scores > 0).all())


def test_a_score_is_the_product_of_what_scales():
    """Twice the gain, half the deviation, twice the mask: the score follows each, and each alone."""
    torch.manual_seed(0)
    model = conv_norm().double().eval()
    with torch.no_grad():
        model[1].bias.zero_()
    graph = trace(model, torch.randn(1, 2, 7, 7).double())
    units = graph.axis_classes[0]
    before = ranking("magnitude", graph, model)(units)
    with torch.no_grad():
        model[1].weight[0] *= 2
        model[1].running_var[1] = 4 * model[1].running_var[1] + 3 * model[1].eps
        model[4 - 1].weight[:, 2] *= 3
    after = ranking("magnitude", graph, model)(units)
    expected = torch.tensor([2, 0.5, 3, 1, 1, 1]).double()
    torch.testing.assert_close(after / before, expected, rtol=1e-9, atol=0)


class Overwritten(nn.Module):
    """A buffer of zeros is written into through a view: it is not zero any more when it is read."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, UNITS), nn.Linear(UNITS, 2)

    def forward(self, x):
        y = self.a(x) * 0
        y[:, :].add_(self.a(x))
        return self.b(y)


def test_what_is_written_into_a_view_is_seen():
    torch.manual_seed(0)
    model = Overwritten().eval()
    graph = trace(model, torch.randn(2, 3))
    for units in graph.axis_classes:
        assert bool((ranking("magnitude", graph, model)(units) > 0).all())


def test_behind_a_head_of_zeros_the_weights_decide():
    torch.manual_seed(0)
    model = linear()
    with torch.no_grad():
        model[0].weight[[1, 4]] *= 0.01
        model[0].bias.zero_()
        model[2].weight.zero_()
        model[2].weight[:, 0] = 0
    graph = trace(model, torch.randn(2, 3))
    scores = ranking("magnitude", graph, model)(graph.axis_classes[0])
    assert scores.shape == (UNITS,)
    assert prune(graph, {0: 4})[2].in_features == 4


def test_old_weight_norm_counts_its_g():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, UNITS)), nn.Linear(UNITS, 2))
    with torch.no_grad():
        model[0].weight_g[2], model[0].bias[2] = 0, 0
    graph = trace(model, torch.randn(2, 3))
    scores = ranking("magnitude", graph, model)(graph.axis_classes[0])
    assert (scores == 0).tolist() == [i == 2 for i in range(UNITS)]


def test_scoring_leaves_the_model_and_the_random_state():
    model, _, graph, units = case("batch norm", 0, [1])
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    ranking("magnitude", graph, model)(units)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_an_unknown_importance_is_refused_with_the_nearest():
    _, _, graph, units = case("rows", 0, [1])
    with pytest.raises(SurgeryError, match="no importance 'magnitud'") as error:
        prune(graph, {units: 3}, importance="magnitud")
    assert error.value.near == ("'magnitude'",)
    assert "'uniform'" in str(error.value)


# --- contractions of other forms, and layers that `flow` does not open ---


class Experts(nn.Module):
    """Weights of three axes, contracted by `einsum`, `bmm` or a product that is broadcast."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.w, self.v = (
            nn.Parameter(torch.randn(3, 4, UNITS)),
            nn.Parameter(torch.randn(3, UNITS, 2)),
        )

    def forward(self, x):
        if self.how == "einsum":
            h = torch.einsum("bi,eih->beh", x, self.w).relu()
            return torch.einsum("beh,eho->beo", h, self.v)
        x = x[None].expand(3, -1, -1) if self.how == "bmm" else x[None]
        return torch.matmul(torch.matmul(x, self.w).relu(), self.v)


@pytest.mark.parametrize("how", ["einsum", "bmm", "broadcast"])
@pytest.mark.parametrize("reading", [False, True])
@settings(max_examples=6)
@given(off=st.sets(st.integers(0, UNITS - 1), min_size=1, max_size=UNITS - 1))
def test_weights_of_three_axes(how, reading, off):
    model, x, dead = Experts(how), torch.randn(5, 4), sorted(off)
    with torch.no_grad():
        model.w[:, :, dead] *= 0 if not reading else 9
        model.v[:, dead] *= 9 if not reading else 0
    slim = prune(trace(model, (x,)), {0: UNITS - len(dead)})
    assert torch.allclose(slim(x), model(x), atol=1e-5)


class Bilinear(nn.Module):
    """One hidden layer is both factors."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(4, UNITS), nn.Bilinear(UNITS, UNITS, 2)

    def forward(self, x):
        return self.c(self.a(x), self.a(x))


@pytest.mark.parametrize("reading", [False, True])
def test_bilinear(reading):
    model, x = Bilinear(), torch.randn(5, 4)
    with torch.no_grad():
        model.a.weight[::2] *= 9 if reading else 0
        model.a.bias[::2] *= 9 if reading else 0
        model.c.weight[:, ::2] *= 0 if reading else 9
        model.c.weight[:, :, ::2] *= 0 if reading else 9
    assert torch.allclose(prune(trace(model, (x,)), {0: UNITS // 2})(x), model(x), atol=1e-5)


def test_a_slope_of_zero_cuts_off_what_is_below_zero():
    model, x = (
        nn.Sequential(nn.Linear(4, UNITS), nn.PReLU(UNITS), nn.Linear(UNITS, 2)),
        torch.randn(5, 4),
    )
    with torch.no_grad():
        model[0].weight[::2], model[0].bias[::2], model[1].weight[::2] = 0, -1, 0
        model[2].weight[:, ::2] *= 9
    assert torch.allclose(prune(trace(model, (x,)), {0: UNITS // 2})(x), model(x), atol=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_units_without_a_candidate_are_off(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.r, self.out = kind(4, UNITS, batch_first=True), nn.Linear(UNITS, 2)

        def forward(self, x):
            return self.out(self.r(x)[0])

    model, x = Net(), torch.randn(3, 5, 4)
    with torch.no_grad():
        for name, tensor in model.r.named_parameters():
            if "hh" in name or "ih" in name:
                tensor.view(-1, UNITS, *tensor.shape[1:])[2, ::2] = 0
        model.out.weight[:, ::2] *= 9
    graph = trace(model, (x,))
    (each,) = (c for c in graph.axis_classes if c.free)
    assert torch.allclose(prune(graph, {each: UNITS // 2})(x), model(x), atol=1e-6)


class Placed(nn.Module):
    """Positions are a buffer; what reads the units is known to no flow."""

    def __init__(self, kind, rows):
        super().__init__()
        self.a, self.r = nn.Linear(3, UNITS), kind(UNITS, 5, batch_first=True)
        self.out = nn.Linear(5, 2)
        self.register_buffer("places", torch.randn(rows, UNITS) if rows else torch.randn(UNITS))

    def forward(self, x):
        places = self.places[: x.shape[1]] if self.places.ndim == 2 else self.places
        return self.out(self.r(self.a(x) + places)[0])


@pytest.mark.parametrize("rows", [0, 9])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_units_that_positions_alone_make_are_on(kind, rows):
    """Units 0 and 1 are made by positions, 2 and 3 by nothing: these go, and the function stays."""
    torch.manual_seed(0)
    model, x = Placed(kind, rows).eval(), torch.randn(2, 4, 3)
    with torch.no_grad():
        model.a.weight[:4], model.a.bias[:4] = 0, 0
        model.places[..., 2:4] = 0
        model.r.weight_ih_l0[:, 2:4] *= 9
    graph = trace(model, (x,))
    each = graph.axis_class("a", "out")
    assert torch.allclose(prune(graph, {each: 4})(x), model(x), atol=1e-6)
    gone = prune(graph, {each: [2, 3, 4, 5]})  # the control
    assert not torch.allclose(gone(x), model(x), atol=1e-3)


def test_units_without_values_cannot_be_ranked():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, UNITS), nn.ReLU(), nn.Linear(UNITS, 2))
    graph = trace(model, (torch.empty(5, 4, device="meta"),))
    with pytest.raises(SurgeryError, match="no values to rank"):
        prune(graph, 0.5)
    assert prune(graph, 0.5, importance="uniform")[2].in_features == UNITS // 2


class Hyper(nn.Module):
    """What varies is the mask of a constant, and the weight of a layer whose input is one."""

    def __init__(self):
        super().__init__()
        self.first, self.makes, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.rand(8) + 0.5)
        self.register_buffer("input", torch.rand(2, 4))

    def forward(self, x):
        y = self.first(x) + self.table.masked_fill(x.sum(-1, keepdim=True) > 0, 0.25)
        z = nn.functional.linear(self.input, x[:2]).sum()
        return self.last(y + torch.relu(self.makes(y)) * z)


def test_a_constant_that_varies_by_its_mask_and_an_input_that_is_one_are_read():
    graph = trace(Hyper().eval(), (torch.randn(3, 4),))
    assert prune(graph, {"first": 4}).last.in_features == 4
