"""The paper's harness on a task that takes no time: points of the plane, two perceptrons with dropout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from examples.paper.experiment import Arm, Distil, Experiment, Graft, Network, Setup, controls

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Halves:
    """Points of the plane by the sign of their first coordinate: a task that takes no time."""

    prefix: str
    size: int = 64
    augments: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        return {"about": "points", "prefix": self.prefix}

    @property
    def metrics(self):
        return (f"{self.prefix} right",)

    def to(self, device):
        return self

    def _points(self, n, seed):
        return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))

    def example(self):
        return (self._points(2, 2),)

    def inputs(self, index):
        return (self._points(self.size, 0)[index],)

    def labels(self, index):
        return (self._points(self.size, 0)[index, 0] > 0).long()

    def loss(self, outputs, labels):
        return cross_entropy(outputs, labels)

    def evaluate(self, model):
        x = self._points(200, 1)
        return {self.metrics[0]: 100 * float((model(x).argmax(1) == (x[:, 0] > 0)).double().mean())}


def perceptron(width: int) -> nn.Module:
    """With dropout, so that arms which drew it from one stream would differ."""
    return nn.Sequential(
        nn.Linear(2, width),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(width, width),
        nn.Linear(width, 2),
    )


GRAFT = Graft("R", "M", (("3", "3"),), cycle=2, options={"heads": 2, "width": 8, "trust": 0.5})
BOTH = replace(GRAFT, direction="both")


def build(setup: Setup) -> Experiment:
    networks = {
        name: Network(partial(perceptron, width=width), Halves(name), batch=16, lr=0.1)
        for name, width in (("R", 12), ("M", 8))
    }
    arms = [
        Arm("plain", ("R", "M"), paper={"M right": 50.0}),
        *controls(Arm("one way", ("M",), GRAFT)),
        Arm("one way, co-trained", ("R", "M"), GRAFT),
        *controls(Arm("both ways", ("R", "M"), BOTH), frozen=False),
        Arm("never learns", ("M",), replace(GRAFT, lr=0.0)),
        Arm("kd", ("M",), distil=Distil("kd", "M", "R")),
    ]
    return Experiment("toy", networks, tuple(arms), rounds=8, of_paper="nothing")
