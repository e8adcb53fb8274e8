"""The library draws random numbers, and nobody else's numbers change: those of no device, of no generator."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from graftlib import Mapping, attach, trace
from graftlib.random_state import all_preserved, preserved
from graftlib_adapters import MergeNet


class Dropping(nn.Module):
    """Draws in its forward pass, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)) * (torch.rand(8, device=x.device) > 0.5))


@pytest.fixture
def seedings(monkeypatch):
    """Whatever seeds an accelerator, or all of them."""
    calls = []
    for name in ("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, name=name, **kw: calls.append(name))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: calls.append("torch.manual_seed"))
    return calls


def test_numbers_inside_are_those_of_the_seed_and_numbers_after_those_of_the_user():
    torch.manual_seed(3)
    inside = torch.rand(4)
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    with preserved(3):
        assert torch.equal(torch.rand(4), inside)
    assert torch.equal(torch.rand(4), expected)


def test_without_a_seed_the_users_numbers_are_drawn_twice():
    with preserved():
        once = torch.rand(4)
    assert torch.equal(torch.rand(4), once)


def test_an_error_inside_leaves_the_state_too():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), preserved(1):
        torch.rand(3) @ torch.rand(4)
    assert torch.equal(before, torch.get_rng_state())


def test_trace_check_attach_and_a_transfer_seed_nothing(seedings):
    before = torch.get_rng_state()
    source, target, x = (
        Dropping(),
        nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)),
        torch.ones(2, 6),
    )
    before = torch.get_rng_state()
    mapping = Mapping(trace(source, (x,)), trace(target, (x,)))
    mapping.target.check()
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    graft = attach(MergeNet(), mapping.link("first", "0"), cycle=1)
    graft.follow(optimizer)
    target(x).sum().backward()
    optimizer.step()
    graft.load_state_dict(graft.state_dict())
    graft.detach()
    assert torch.equal(before, torch.get_rng_state())
    assert not seedings


def test_the_watch_on_seedings_sees_one(seedings):
    """The negative control."""
    torch.manual_seed(0)
    torch.cuda.manual_seed_all(0)
    assert seedings == ["torch.manual_seed", "manual_seed_all"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
def test_an_accelerators_numbers_are_left_alone_too():
    torch.cuda.manual_seed(5)
    expected = torch.rand(4, device="cuda")
    torch.cuda.manual_seed(5)
    with preserved(0):
        inside = torch.rand(4, device="cuda")
    with preserved(0):
        assert torch.equal(inside, torch.rand(4, device="cuda"))
    assert torch.equal(torch.rand(4, device="cuda"), expected)


def test_the_numbers_of_python_numpy_and_torch_stay():
    def drawn():
        return random.random(), np.random.rand(), torch.rand(()).item()

    with all_preserved():
        first = drawn()
    with pytest.raises(ValueError), all_preserved():  # noqa: PT011, PT012
        assert drawn() == first
        raise ValueError
    assert drawn() == first
