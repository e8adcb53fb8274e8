"""Two small models that do not look alike, and an adapter small enough to check by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftlib import Mapping, trace
from graftlib.graft import Adapter


class Teacher(nn.Module):
    """A source with convolutions, wider than its pupil."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class Pupil(nn.Module):
    """A target with a hidden linear layer, a norm with running statistics, and a tied pair of names."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6, 7)
        self.head = nn.Linear(7, 5)
        self.same_head = self.head

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.same_head(torch.relu(self.hidden(x)))


class Nudge(Adapter):
    """W + gate * (the overlapping leading block of the source): an identity until its gate has learned."""

    def __init__(self, write="replace", signal="trajectory", gate=0.0):
        self.write, self.signal, self.gate = write, signal, gate

    def build(self, matrices, links):
        return _Nudge(matrices, links, self.gate)


class _Nudge(nn.Module):
    def __init__(self, matrices, links, gate):
        super().__init__()
        self.matrices, self.links = matrices, links
        self.gates = nn.Parameter(torch.full((len(links),), float(gate)))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, matrices):
        if self.training:
            self.calls += 1
        new = dict(enumerate(matrices))
        for gate, link in zip(self.gates, self.links, strict=True):
            into, source = matrices[link.target], matrices[link.source]
            rows, columns = min(into.shape[0], source.shape[0]), min(into.shape[1], source.shape[1])
            block = torch.zeros_like(into)
            block[:rows, :columns] = source[:rows, :columns]
            new[link.target] = new[link.target] + gate * block
        return [new[i] for i, matrix in enumerate(self.matrices) if matrix.written]

    def facts(self):
        return {
            link.name: [float(g)] for link, g in zip(self.links, self.gates.detach(), strict=True)
        }


class World:
    """Source, target, mapping, data: everything that a short training needs, made from one seed."""

    def __init__(self, seed=0, source=("conv2",), target=("hidden",), direction="forward"):
        torch.manual_seed(seed)
        self.source, self.target = Teacher(), Pupil()
        self.x, self.y = torch.randn(24, 4, 1, 6, 6), torch.randint(0, 5, (24, 4))
        example = (torch.zeros(2, 1, 6, 6),)
        self.mapping = Mapping(trace(self.source, example), trace(self.target, example))
        for one, other in zip(source, target, strict=True):
            self.mapping.link(one, other, direction=direction)

    def loss(self, i, model=None):
        i %= len(self.x)
        return nn.functional.cross_entropy(
            (self.target if model is None else model)(self.x[i]), self.y[i]
        )

    def train(self, optimizer, steps, start=0):
        """A plain loop that knows nothing of grafts."""
        for i in range(start, start + steps):
            optimizer.zero_grad()
            self.loss(i).backward()
            optimizer.step()

    def weights(self):
        return {name: value.clone() for name, value in self.target.state_dict().items()}


@pytest.fixture
def world():
    return World()


@pytest.fixture(scope="session")
def make_world():
    return World


@pytest.fixture(scope="session")
def nudge():
    return Nudge
