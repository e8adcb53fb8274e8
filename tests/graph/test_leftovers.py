"""What a copy computes is not found by the user's model: caches outside of the modules are as before."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from graftlib.graph import trace
from graftlib.graph.leftovers import Leftovers
from graftlib.surgery import SurgeryError, permute

KEPT: object = None


class Keeps(nn.Module):
    """Its first weight is turned once, and kept where `kept` says."""

    def __init__(self, kept):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.kept = kept

    def forward(self, x):
        turned = self.kept(self, lambda: self.a.weight.t().contiguous())
        return self.b((x @ turned + self.a.bias).relu())


def closure():
    held = None

    def kept(model, make):
        nonlocal held
        held = make() if held is None else held
        return held

    return kept


def dictionary():
    held = {}
    return lambda model, make: held["w"] if "w" in held else held.setdefault("w", make())


def listed():
    held = []

    def kept(model, make):
        if not held:
            held.append(make())
        return held[0]

    return kept


def module_global():
    def kept(model, make):
        global KEPT
        KEPT = make() if KEPT is None else KEPT
        return KEPT

    return kept


def attribute_of_a_function():
    def kept(model, make):
        if not hasattr(kept, "held"):
            kept.held = make()
        return kept.held

    return kept


@pytest.mark.parametrize(
    "place", [closure, dictionary, listed, module_global, attribute_of_a_function]
)
def test_caches_outside_of_the_model_are_as_before(place, monkeypatch):
    monkeypatch.setitem(globals(), "KEPT", None)
    model, x = Keeps(place()), torch.randn(4, 6)
    due = model.b(model.a(x).relu())
    graph = trace(model, (x,))
    assert graph.check().passed
    assert torch.allclose(model(x), due)
    with pytest.raises(SurgeryError, match="without a change of the function"):
        permute(graph, seed=0)  # what the run above has kept does not move


@pytest.mark.parametrize("size", [None, 4])
def test_cached_tables_keep_their_values(size):
    @functools.lru_cache(maxsize=size)
    def table(n):
        return torch.arange(n).float()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(self.a(x).relu()) * table(x.shape[0])[:, None]

    model, x = Net(), torch.randn(4, 6)
    assert trace(model, (x,)).check().passed
    assert model(x).dtype == torch.float32
    assert table(4).device.type == "cpu"


def test_the_callers_own_lists_are_kept():
    left, tensor = Leftovers(), torch.zeros(2)
    left.note([tensor])
    held, other = [tensor], [tensor]
    left.forget(held)
    assert held
    assert not other


class Gained(nn.Module):
    """A gain that is asked for in a precision that a copy in doubles has already."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gain = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.b((self.a(x) * self.gain.float()).relu())


def test_weights_that_an_op_gives_back_are_none_of_the_runs():
    assert trace(Gained(), torch.randn(4, 6)).check().passed
