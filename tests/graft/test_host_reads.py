"""A transfer makes the host wait for the device as seldom as it can, and as often for two links as for one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graftlib import attach
from graftlib.graft.host_read import read_together
from graftlib_adapters import MergeNet

READS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero"}


class HostReads(TorchDispatchMode):
    """Counts the ops that bring a value to the host; a tensor as a list is one read of the whole of it."""

    def __init__(self):
        super().__init__()
        self.count, self.paused = 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not self.paused and func.name().partition(".")[0] in READS
        return func(*args, **(kwargs or {}))

    def leave_out(self, owner, name):
        """What `owner.name` reads does not count: AdamW keeps its step counts on the host on every device."""
        method = getattr(owner, name)

        def called(*args, **kwargs):
            self.paused = True
            try:
                return method(*args, **kwargs)
            finally:
                self.paused = False

        setattr(owner, name, called)


class Lists:
    """Counts `Tensor.tolist`, which on an accelerator is one copy of the whole tensor."""

    def __init__(self, monkeypatch):
        self.count = 0
        tolist = torch.Tensor.tolist

        def counted(tensor):
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)


def reads(world, adapter, monkeypatch, cycle=1):
    """Per step, once the bases are warm: (reads, of which as lists)."""
    optimizer = torch.optim.SGD(world.target.parameters(), lr=0.1)
    graft = attach(adapter, world.mapping, cycle=cycle).follow(optimizer)
    world.train(optimizer, 3)
    lists, counter = Lists(monkeypatch), HostReads()
    counter.leave_out(graft._running().optimizer, "step")
    with counter:
        world.train(optimizer, 4, start=3)
    graft.detach()
    return counter.count / 4, lists.count / 4


def plain(world):
    optimizer = torch.optim.SGD(world.target.parameters(), lr=0.1)
    with HostReads() as counter:
        world.train(optimizer, 4)
    return counter.count / 4


@pytest.mark.parametrize("write", ["replace", "probe"])
def test_three_reads_a_transfer_whatever_the_number_of_links(make_world, monkeypatch, write):
    """What the transfer is, whether the write is still there when the optimizer steps, and what the step made of it."""
    one = make_world()
    two = make_world(source=("conv2", "fc"), target=("hidden", "head"))
    for world in (one, two):
        single, lists = reads(world, MergeNet(rank=3, heads=2, write=write), monkeypatch)
        assert lists == 3
        assert single == plain(make_world())


def test_the_papers_form_reads_no_more(make_world, monkeypatch):
    single, lists = reads(make_world(), MergeNet(rank=3, heads=2, init="paper"), monkeypatch)
    assert (single, lists) == (plain(make_world()), 3)


def test_between_transfers_nothing_is_read(make_world, monkeypatch):
    world = make_world()
    single, lists = reads(world, MergeNet(rank=3, heads=2), monkeypatch, cycle=1000)
    assert (single, lists) == (plain(make_world()), 0)


def test_the_counters_see_a_read(monkeypatch):
    """The negative control."""
    lists = Lists(monkeypatch)
    with HostReads() as counter:
        value = torch.ones(3)
        float(value[0])
        bool(torch.equal(value, value))
        read_together(value, value)
    assert (counter.count, lists.count) == (2, 1)
