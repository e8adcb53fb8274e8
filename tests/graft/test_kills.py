"""A training that is killed again and again, anywhere, and goes on from its checkpoints, ends as one that was not."""

import os
import random
import signal
import traceback

import pytest
import torch

from graftlib import attach
from graftlib.graft.linked import LinkedTensor
from graftlib.graft.transfer import AdapterRunner
from graftlib_adapters import MergeNet

PLACES = (
    "before the step",
    "in a write",
    "in the adapter's update",
    "before the rename",
    "after it",
)


def train(world, folder, write, steps, die=None):
    """Train to the end, with a checkpoint after every step; `die`: (step, place) at which the process kills itself."""
    now = {"step": 0}

    def mark(place):
        if die is not None and now["step"] >= die[0] and place == die[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, name, place in (
        (LinkedTensor, "put", "in a write"),
        (AdapterRunner, "update", "in the adapter's update"),
    ):
        if die is not None and die[1] == place:
            _before(owner, name, lambda place=place: mark(place))
    parameters = [*world.target.parameters(), *world.source.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    graft = attach(MergeNet(rank=3, write=write), world.mapping, cycle=2, total_steps=steps)
    path = folder / "checkpoint.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        now["step"] = saved["step"]
        world.source.load_state_dict(saved["source"])
        world.target.load_state_dict(saved["target"])
        optimizer.load_state_dict(saved["optimizer"])
        graft.load_state_dict(saved["graft"])
    graft.follow(optimizer)
    for i in range(now["step"], steps):
        optimizer.zero_grad()
        (world.loss(i) + world.loss(i, world.source)).backward()
        mark("before the step")
        optimizer.step()
        now["step"] = i + 1
        with graft.settled():
            state = {"step": i + 1, "source": world.source.state_dict()}
            state |= {"target": world.target.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"graft": graft.state_dict()}, path.with_suffix(".new"))
        mark("before the rename")
        path.with_suffix(".new").replace(path)
        mark("after it")
    graft.detach()
    return {
        **world.target.state_dict(),
        **{f"s.{k}": v for k, v in world.source.state_dict().items()},
    }


def _before(owner, name, call):
    method = getattr(owner, name)

    def called(*args, **kwargs):
        call()
        return method(*args, **kwargs)

    setattr(owner, name, called)


def life(world, folder, write, steps, die):
    """One process, of which `world` keeps nothing; whether it was killed (otherwise its end is in ``end.pt``)."""
    child = os.fork()
    if child == 0:
        try:
            torch.save(train(world, folder, write, steps, die), folder / "end.pt")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def check(world, folder, write, kills):
    """One training in one life, and one in so many: the same bits. Returns how many lives ended by SIGKILL."""
    steps = 2 * kills + 4
    whole, killed = folder / "whole", folder / "killed"
    whole.mkdir()
    killed.mkdir()
    assert not life(world, whole, write, steps, None)
    died = reached = 0
    while died < kills:
        die = (reached + random.randrange(1, 3), random.choice(PLACES))
        if not life(world, killed, write, steps, die):
            break
        died += 1
        path = killed / "checkpoint.pt"
        reached = torch.load(path, weights_only=True)["step"] if path.exists() else 0
    if not (killed / "end.pt").exists():
        assert not life(world, killed, write, steps, None)
    one, other = (torch.load(path / "end.pt", weights_only=True) for path in (whole, killed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert died >= kills // 2
    return died


@pytest.mark.parametrize("write", ["replace", "probe"])
def test_a_training_that_is_killed_a_few_times_ends_bit_identical(make_world, tmp_path, write):
    check(make_world(direction="both"), tmp_path, write, 4)


@pytest.mark.slow
def test_a_hundred_kills_change_no_bit(make_world, tmp_path):
    died, runs, world = 0, 0, make_world(direction="both")
    while died < 100:
        folder = tmp_path / str(runs)
        folder.mkdir()
        died += check(world, folder, ("replace", "probe")[runs % 2], 25)
        runs += 1


def test_a_checkpoint_without_the_graft_ends_elsewhere(make_world, tmp_path):
    """The negative control: the state of the graft is what makes the bits equal."""
    whole = train(make_world(direction="both"), tmp_path, "replace", 6)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    (tmp_path / "checkpoint.pt").unlink()
    assert saved["step"] == 6
    world = make_world(direction="both")
    optimizer = torch.optim.AdamW([*world.target.parameters(), *world.source.parameters()], lr=1e-2)
    for start in (0, 3):
        graft = attach(MergeNet(rank=3), world.mapping, cycle=2, total_steps=6).follow(optimizer)
        for i in range(start, start + 3):
            optimizer.zero_grad()
            (world.loss(i) + world.loss(i, world.source)).backward()
            optimizer.step()
        graft.detach()
    assert any(not torch.equal(whole[k], v) for k, v in world.target.state_dict().items())
