"""Kinds, roles and axes, one row a convention."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graftlib.graph import trace

from . import traps


class Conv1D(nn.Module):
    """A linear layer stored in, out."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Turned(nn.Module):
    """Products and einsums whose weight stands in every way."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.ones(4, 4)) for _ in range(3))

    def forward(self, x):
        x = x @ self.a
        x = x @ self.b.t()
        return torch.einsum("bi,oi->bo", x, self.c)


class WrittenNorm(nn.Module):
    """RMS norm written out, then a layer scale that is no norm."""

    def __init__(self):
        super().__init__()
        self.weight, self.gamma = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        return x.tanh() * self.gamma


class Standardised(nn.Conv2d):
    """A convolution that normalises its weight before use."""

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias)


class LearnedQuery(nn.Module):
    """A parameter that goes through layers as data does."""

    def __init__(self):
        super().__init__()
        self.query, self.fc = nn.Parameter(torch.ones(1, 4)), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.fc(self.query)


IMAGE = torch.empty(1, 4, 6, 6)
ROWS = [
    (nn.Linear(4, 3), torch.empty(2, 4), "weight", ("linear", "weight", "out in", 1)),
    (nn.Linear(4, 3), torch.empty(2, 4), "bias", ("bias", "bias", "out", 1)),
    (Conv1D(), torch.empty(2, 4), "weight", ("linear", "weight", "in out", 1)),
    (Conv1D(), torch.empty(2, 4), "bias", ("bias", "bias", "out", 1)),
    (nn.Conv2d(4, 2, 3), IMAGE, "weight", ("conv", "weight", "out in kh kw", 1)),
    (nn.Conv2d(4, 4, 3, groups=4), IMAGE, "weight", ("depthwise", "weight", "out in kh kw", 4)),
    (nn.Conv2d(4, 4, 3, groups=2), IMAGE, "weight", ("grouped", "weight", "out in kh kw", 2)),
    (nn.Conv1d(4, 2, 3), torch.empty(1, 4, 6), "weight", ("conv", "weight", "out in kw", 1)),
    (
        nn.Conv3d(4, 2, 1),
        torch.empty(1, 4, 2, 2, 2),
        "weight",
        ("conv", "weight", "out in kd kh kw", 1),
    ),
    (
        nn.ConvTranspose2d(4, 2, 3, groups=2),
        IMAGE,
        "weight",
        ("transposed_conv", "weight", "in out kh kw", 2),
    ),
    (
        nn.Embedding(5, 3),
        torch.zeros(2, dtype=torch.long),
        "weight",
        ("embedding", "weight", "entry dim", 1),
    ),
    (nn.BatchNorm2d(4), IMAGE, "weight", ("norm", "gain", "unit", 1)),
    (nn.GroupNorm(2, 4), IMAGE, "bias", ("norm", "shift", "unit", 1)),
    (nn.LayerNorm(4), torch.empty(2, 4), "bias", ("norm", "shift", "unit", 1)),
    (nn.RMSNorm(4), torch.empty(2, 4), "weight", ("norm", "gain", "unit", 1)),
    (nn.PReLU(4), IMAGE, "weight", ("other", "weight", "axis0", 1)),
    (Turned(), torch.empty(2, 4), "a", ("linear", "weight", "in out", 1)),
    (Turned(), torch.empty(2, 4), "b", ("linear", "weight", "out in", 1)),
    (Turned(), torch.empty(2, 4), "c", ("linear", "weight", "out in", 1)),
    (WrittenNorm(), torch.empty(2, 4), "weight", ("norm", "gain", "unit", 1)),
    (WrittenNorm(), torch.empty(2, 4), "gamma", ("other", "gain", "unit", 1)),
    (Standardised(4, 2, 3), IMAGE, "weight", ("conv", "weight", "out in kh kw", 1)),
    (LearnedQuery(), torch.empty(2, 4), "fc.weight", ("linear", "weight", "out in", 1)),
]


@pytest.mark.parametrize(("model", "x", "fqn", "expected"), ROWS)
def test_a_parameter_is_what_its_op_makes_of_it(model, x, fqn, expected):
    p = trace(model, x).parameter(fqn)
    assert (p.kind, p.role, " ".join(p.axes), p.groups) == expected
    assert p.depth is not None


@pytest.mark.parametrize(
    ("make", "gates"),
    [
        (nn.LSTM, ("input", "forget", "cell", "output")),
        (nn.GRU, ("reset", "update", "new")),
        (nn.RNN, ()),
    ],
)
def test_gates_of_recurrent_layers(make, gates):
    graph = trace(make(4, 3, 2), torch.empty(5, 2, 4))
    for p in graph.parameters("weight_*"):
        assert (p.kind, p.axes, tuple(p.parts)) == ("recurrent", ("out", "in"), gates)
        assert [list(part.units) for part in p.parts.values()] == [
            [*range(3 * i, 3 * i + 3)] for i in range(len(gates))
        ]
    assert {(p.kind, tuple(p.parts)) for p in graph.parameters("bias_*")} == {("bias", gates)}


def test_the_projection_of_an_lstm_has_no_gates():
    graph = trace(nn.LSTM(4, 6, proj_size=3), torch.empty(5, 2, 4))
    assert dict(graph.parameter("weight_hr_l0").parts) == {}
    assert len(graph.parameter("weight_hh_l0").parts) == 4


def test_a_parameter_that_nothing_reads_has_no_depth():
    model = nn.Linear(3, 3)
    model.spare = nn.Conv2d(2, 2, 3)
    model.lost = nn.Parameter(torch.ones(2, 2))
    graph = trace(model, torch.empty(1, 3))
    spare = graph.parameter("spare.weight")
    assert (spare.kind, spare.axes, spare.depth) == ("conv", ("out", "in", "kh", "kw"), None)
    assert graph.parameter("lost").kind == "other"
    assert [p.fqn for p in graph.parameters() if p.depth is None] == [
        "lost",
        "spare.weight",
        "spare.bias",
    ]


def test_each_name_of_a_tied_tensor_has_its_own_kind():
    graph = trace(traps.TiedLinear(), torch.zeros(1, 3, dtype=torch.long))
    embed, head = graph.parameter("embed"), graph.parameter("head")
    assert (embed.kind, embed.tied_to) == ("embedding", None)
    assert (head.kind, head.tied_to, head.axes) == ("linear", "embed.weight", ("out", "in"))
    assert embed.depth < head.depth
    assert graph.layers[-1].parameters == ("head.weight",)
