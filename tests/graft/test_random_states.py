"""A graft leaves every device's random state alone: also those of GPUs, which torch.manual_seed would set too."""

import copy

import pytest
import torch
from torch import nn

from graftlib import Mapping, attach, trace
from graftlib_adapters import MergeNet

ADAPTERS = {
    "identity": MergeNet(heads=2),
    "paper": MergeNet(heads=2, rank=None, init="paper"),
}


def states(device):
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if device == "cuda" else [])]


def train(adapter, device, steps=3):
    source, target = (nn.Sequential(nn.Linear(4, n), nn.Linear(n, 5)) for n in (7, 6))
    x = torch.randn(2, 4)
    source, target, x = source.to(device), target.to(device), x.to(device)
    before = states(device)
    mapping = Mapping(trace(source, (x,)), trace(target, (x,)))
    mapping.link("0", "1")
    graft = attach(adapter, mapping, cycle=1)
    optimizer = torch.optim.SGD(target.parameters(), 0.1)
    graft.follow(optimizer)
    for _ in range(steps):
        for parameter in target.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    with graft.settled():
        saved = copy.deepcopy(graft.state_dict())
    graft.detach()
    again = attach(adapter, mapping, cycle=1)
    again.load_state_dict(saved)
    again.follow(optimizer)
    again.detach()
    return before


@pytest.mark.parametrize("name", ADAPTERS)
def test_tracing_attaching_training_and_resuming_draw_from_no_global_state(name, device):
    before = train(ADAPTERS[name], device)
    assert all(torch.equal(a, b) for a, b in zip(before, states(device), strict=True))


@pytest.mark.parametrize("name", ADAPTERS)
def test_no_gpu_is_seeded_anew(name, monkeypatch):
    """Seen without a GPU by the calls that would seed one..."""
    calls = []
    for function in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, function, calls.append)
    train(ADAPTERS[name], "cpu")
    assert calls == []


def test_seeding_torch_would_be_seen(monkeypatch):
    """...and torch.manual_seed makes one of them."""
    calls = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", calls.append)
    torch.manual_seed(5)
    assert calls == [5]
