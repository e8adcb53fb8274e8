"""Hosts of other shapes: compiled and wrapped targets, closures, and counting that rarely asks the device."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.utils import counters

from graftlib import GraftError, attach
from graftlib.graft import TransferWarning
from graftlib.graft.linked import LinkedTensor
from graftlib.graft.step_counter import UNREAD, StepCounter
from graftlib_adapters import MergeNet


def sgd(world, **kwargs):
    return torch.optim.SGD(world.target.parameters(), lr=0.1, **kwargs)


def same(one, other):
    return all(torch.equal(one[k], other[k]) for k in one)


# ---------------------------------------------------------------------------------------------------- torch.compile


def test_a_compiled_target_is_compiled_once_and_breaks_nowhere(make_world):
    """Counted by the eager backend; and it trains as the uncompiled one, to the bit."""
    stats, ends = [], []
    for grafted in (False, True):
        torch._dynamo.reset()
        counters.clear()
        world = make_world()
        compiled = torch.compile(world.target, backend="eager")
        optimizer = sgd(world)
        if grafted:
            graft = attach(MergeNet(trust=0.2), world.mapping, cycle=2).follow(optimizer)
        for i in range(7):
            optimizer.zero_grad()
            world.loss(i, compiled).backward()
            optimizer.step()
        stats.append((counters["stats"]["unique_graphs"], dict(counters["graph_break"])))
        ends.append(world.weights())
    graft.detach()
    assert stats[0] == stats[1] == (1, {})
    assert not same(*ends)
    eager = make_world()
    optimizer = sgd(eager)
    other = attach(MergeNet(trust=0.2), eager.mapping, cycle=2).follow(optimizer)
    eager.train(optimizer, 7)
    assert same(eager.weights(), ends[1])
    other.detach()


def test_the_counters_see_a_recompilation(make_world):
    """The negative control: another batch size is another graph."""
    torch._dynamo.reset()
    counters.clear()
    world = make_world()
    compiled = torch.compile(world.target, backend="eager", dynamic=False)
    compiled(world.x[0])
    compiled(world.x[0][:2])
    assert counters["stats"]["unique_graphs"] == 2


# ---------------------------------------------------------------------------------------------------------- wrappers


class Wrapper(nn.Module):
    """Holds its module as DDP does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # dynamo's own look
@pytest.mark.parametrize("wrap", [Wrapper, lambda m: torch.compile(m, backend="eager")])
def test_a_layer_that_is_wrapped_after_attaching_is_still_found(world, nudge, wrap):
    graft = attach(nudge(gate=0.5), world.mapping, cycle=1)
    world.target.hidden = wrap(world.target.hidden)
    optimizer = sgd(world)
    graft.follow(optimizer)
    world.train(optimizer, 2)
    assert graft.history[1].changes["target:hidden.weight"].size > 0
    graft.detach()


def test_a_missing_layer_is_not_taken_for_a_wrapped_one(world):
    wrapped = Wrapper(world.target)
    assert LinkedTensor("target", wrapped, "hidden.weight").live() is world.target.hidden.weight
    for wrong in ("hidden.bais", "hiden.weight", "hidden", "module"):
        with pytest.raises(GraftError, match="no parameter"):
            LinkedTensor("target", wrapped, wrong).live()


# ---------------------------------------------------------------------------------------------------------- closures


@pytest.mark.parametrize("signal", ["trajectory", "gradient"])
@pytest.mark.parametrize("write", ["replace", "probe"])
@pytest.mark.parametrize("follow", [True, False])
def test_a_loss_inside_the_step_trains_as_one_before_it(make_world, nudge, write, signal, follow):
    plain, inside = make_world(), make_world()
    optimizer = sgd(plain, momentum=0.9)
    graft = attach(nudge(write, signal, gate=0.3), plain.mapping, cycle=2).follow(optimizer)
    plain.train(optimizer, 5)
    graft.detach()

    optimizer = sgd(inside, momentum=0.9)
    other = attach(nudge(write, signal, gate=0.3), inside.mapping, cycle=2)
    if follow:
        other.follow(optimizer, closure=True)

    seen = iter(range(5))

    def closure():
        optimizer.zero_grad()
        loss = inside.loss(next(seen))
        loss.backward()
        return loss

    for _ in range(5):
        if follow:
            assert optimizer.step(closure) is not None
        else:
            with other.step(closure=True):
                optimizer.step(closure=closure)
    other.detach()
    assert same(plain.weights(), inside.weights())


def test_a_closure_that_is_evaluated_twice_or_never_is_refused(world, nudge):
    class Fickle(torch.optim.SGD):
        times = 2

        def step(self, closure=None):
            for _ in range(self.times):
                closure()

    optimizer = Fickle(world.target.parameters(), lr=0.1)
    graft = attach(nudge(), world.mapping, cycle=1).follow(optimizer, closure=True)
    with pytest.raises(GraftError, match="twice"):
        optimizer.step(lambda: world.loss(0))
    optimizer.times = 0
    with pytest.raises(GraftError, match="did not evaluate"):
        optimizer.step(lambda: world.loss(0))
    graft.detach()


# ------------------------------------------------------------------------------------------------------ half precision


def test_a_write_that_overflows_in_the_weights_own_dtype_is_skipped(world, nudge):
    """Finite in the adapter's float32, infinite in float16."""
    world.target.half()
    before = world.weights()
    graft = attach(nudge(gate=1e7), world.mapping, cycle=1)
    with pytest.warns(TransferWarning, match="not finite"), graft.step():
        assert same(before, world.weights())


# ---------------------------------------------------------------------------------------------------------- counting


class Flag(torch.Tensor):
    """A flag on a device: reading it is counted."""

    reads = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__):
            cls.reads += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def flag(value):
    return torch.tensor(float(value)).as_subclass(Flag)


def test_flags_are_read_at_transfers_only(world, nudge):
    """Steps of a fused optimizer under GradScaler, by hand: the attribute that the scaler sets for the step."""
    optimizer = sgd(world, fused=True)
    graft = attach(nudge(gate=0.1), world.mapping, cycle=4).follow(optimizer)
    Flag.reads, reads = 0, []
    for i in range(9):
        world.loss(i).backward()
        optimizer.found_inf = flag(i == 2)
        optimizer.step()
        optimizer.zero_grad()
        reads.append(Flag.reads)
    # Step 0 consumes a transfer. The skipped step 2 is only found out where a transfer could have been due.
    asked = [i for i in range(9) if reads[i] > (reads[i - 1] if i else 0)]
    assert asked == [0, 3, 4, 5, 8]
    assert [e.step for e in graft.history] == [0, 4, 8]
    del optimizer.found_inf
    assert graft.step_count == 8
    graft.detach()


names = st.sets(st.sampled_from("ab"), min_size=1)


@given(st.lists(st.tuples(names, st.one_of(st.none(), st.booleans()), st.booleans()), max_size=30))
def test_the_count_is_that_of_reading_every_flag_at_once(steps):
    """Whenever it is read; and until then it is never more than promised."""
    counted = frozenset("ab")
    lazy, stepped, count = StepCounter(counted), set(), 0
    for owned, skipped, look in steps:
        lazy.record(owned, None if skipped is None else torch.tensor(float(skipped)))
        if not skipped:
            stepped |= owned
        if stepped >= counted:
            stepped, count = set(), count + 1
        assert lazy.known <= count <= lazy.at_most
        if look:
            assert lazy.read() == count == lazy.at_most
    assert lazy.read() == count
    assert lazy.stepped == stepped


def test_unread_flags_do_not_pile_up():
    counter = StepCounter(frozenset("a"))
    for _ in range(UNREAD + 5):
        counter.record("a", torch.zeros(1))
    assert (counter.known, counter.at_most, counter.exact) == (UNREAD, UNREAD + 5, False)
