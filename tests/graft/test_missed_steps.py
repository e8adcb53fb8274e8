"""A graft that cannot work says so, once, and names the cause; one that can says nothing (warnings are errors here)."""

import pytest
import torch
from torch import nn

from graftlib import Mapping, attach, trace
from graftlib.graft import TransferWarning
from graftlib_adapters import MergeNet


def sgd(world):
    return torch.optim.SGD(world.target.parameters(), lr=0.1)


class Sam(torch.optim.Optimizer):
    """Never calls its own step(): two half steps, the second through its base optimizer."""

    def __init__(self, base):
        super().__init__(base.param_groups[0]["params"], {})
        self.base, self.param_groups = base, base.param_groups

    def second_step(self):
        self.base.step()

    def step(self, closure=None):
        raise NotImplementedError


def test_a_wrapper_whose_own_step_never_runs_is_named_with_what_runs(world, nudge):
    base = sgd(world)
    graft = attach(nudge(), world.mapping, cycle=2).follow(Sam(base))
    world.loss(0).backward()
    with pytest.warns(TransferWarning, match=r"this SGD on target:hidden.*follows another.*Sam"):
        base.step()
    world.train(base, 3)
    graft.detach()


def test_following_its_base_optimizer_mends_it(world, nudge):
    """The advice, run."""
    base = sgd(world)
    graft = attach(nudge(), world.mapping, cycle=2).follow(base)
    sam = Sam(base)
    for i in range(4):
        world.loss(i).backward()
        sam.second_step()
        base.zero_grad()
    assert graft.step_count == 4


def test_an_optimizer_that_took_anothers_place_is_named_once(world, nudge):
    optimizer = sgd(world)
    graft = attach(nudge(), world.mapping, cycle=2).follow(optimizer)
    world.train(optimizer, 2)
    replaced = torch.optim.AdamW(world.target.parameters(), lr=1e-3)
    with pytest.warns(TransferWarning, match="this AdamW on"):
        world.train(replaced, 1)
    world.train(replaced, 3)
    assert graft.step_count == 2


def test_a_step_outside_of_the_block_is_named(world, nudge):
    optimizer = sgd(world)
    graft = attach(nudge(), world.mapping, cycle=1)
    with graft.step():
        world.loss(0).backward()
    with pytest.warns(TransferWarning, match="outside of `with graft.step"):
        optimizer.step()


@pytest.mark.parametrize("follow", [True, False])
def test_steps_by_hand_are_noticed_by_their_gradients(world, nudge, follow):
    graft = attach(nudge(), world.mapping, cycle=2)
    if follow:
        graft.follow(sgd(world))

    def train():
        for i in range(4):
            with graft.step() if not follow else torch.enable_grad():
                world.target.zero_grad()
                world.loss(i).backward()
                for parameter in world.target.parameters():
                    parameter.data -= 0.1 * parameter.grad

    with pytest.warns(TransferWarning, match="no optimizer step is counted") as warned:
        train()
    assert len(warned) == 1
    graft.detach()


def test_steps_by_hand_after_the_optimizer_was_dropped_are_said_at_detach(world, nudge):
    optimizer = sgd(world)
    graft = attach(nudge(gate=0.3), world.mapping, cycle=1).follow(optimizer)
    world.train(optimizer, 2)
    world.target.zero_grad()
    world.loss(0).backward()
    for parameter in world.target.parameters():
        parameter.data -= 0.1 * parameter.grad
    with pytest.warns(TransferWarning, match="no optimizer step is counted"):
        graft.detach()


def test_a_target_that_never_has_a_gradient_is_named(world, nudge):
    optimizer = sgd(world)
    attach(nudge(), world.mapping, cycle=2).follow(optimizer)

    def train(steps):
        for i in range(steps):
            optimizer.zero_grad()
            world.target.conv(world.x[i]).sum().backward()
            optimizer.step()

    train(2)
    with pytest.warns(TransferWarning, match=r"'target:hidden\.weight' had no gradient"):
        train(1)
    train(5)


def test_a_frozen_target_is_named_when_it_is_attached(world, nudge):
    world.target.hidden.weight.requires_grad_(requires_grad=False)
    optimizer = sgd(world)
    with pytest.warns(TransferWarning, match=r"target:hidden\.weight: frozen"):
        graft = attach(nudge(), world.mapping)
    graft.follow(optimizer)
    world.train(optimizer, 5)


class Attic(nn.Module):
    """Has a layer that its forward pass never reads."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(6, 7), nn.Linear(6, 7)

    def forward(self, x):
        return self.used(x)


def test_a_target_that_is_never_read_is_named_when_it_is_attached(nudge):
    source, target, example = nn.Linear(6, 7), Attic(), (torch.zeros(2, 6),)
    mapping = Mapping(trace(source, example), trace(target, example))
    with pytest.warns(TransferWarning, match="never reads it"):
        attach(nudge(), mapping.link("weight", "unused.weight")).detach()
    other = Mapping(trace(source, example), trace(target, example))
    attach(nudge(), other.link("weight", "used.weight"))


# -------------------------------------------------------------------------------- what is right says nothing


def test_optimizers_of_other_parameters_and_other_times_are_nobodys_business(make_world, nudge):
    """Before following, after detaching, of another model, and of the adapter itself."""
    world, other = make_world(), make_world(seed=1)
    optimizer = sgd(world)
    graft = attach(MergeNet(), world.mapping, cycle=1)
    world.train(optimizer, 2)
    graft.follow(optimizer)
    other.train(sgd(other), 3)
    world.train(optimizer, 3)
    graft.detach()
    world.train(sgd(world), 2)


def test_accumulation_a_late_checkpoint_and_idle_layers_are_no_missed_steps(world, nudge):
    optimizer = sgd(world)
    graft = attach(nudge(gate=0.2), world.mapping, cycle=2).follow(optimizer)
    world.loss(0).backward()
    world.target.load_state_dict(world.weights() | {"hidden.bias": torch.zeros(7)})
    world.target.hidden.weight.data.mul_(0.9)  # one move before any step
    for i in range(5):
        world.loss(i).backward()
    for i in range(5):
        optimizer.step()
        optimizer.zero_grad()
        if i % 2:
            world.loss(i).backward()
    assert graft.step_count == 5


def test_the_hook_that_listens_for_gradients_goes_with_the_first_step(world, nudge):
    hooks = lambda: len(world.target.hidden.weight._post_accumulate_grad_hooks or ())  # noqa: E731
    optimizer = sgd(world)
    graft = attach(nudge(), world.mapping).follow(optimizer)
    assert hooks() == 1
    world.train(optimizer, 1)
    assert hooks() == 0
    graft.detach()
    other = attach(nudge(), world.mapping).follow(optimizer)
    other.detach()
    assert hooks() == 0


def test_a_warning_that_is_an_error_stops_the_training_and_nothing_else(world, nudge):
    """Settled weights, and a graft that can be detached."""
    before = world.weights()
    base = sgd(world)
    graft = attach(nudge(gate=0.5), world.mapping, cycle=1).follow(Sam(base))
    with pytest.raises(TransferWarning):
        base.step()
    graft.detach()
    assert all(torch.equal(before[k], v) for k, v in world.weights().items())
