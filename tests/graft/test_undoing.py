"""Taking a write back, whatever happened to the model since: left settled, cast, moved, operated on, or forgotten."""

import copy
import gc
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from graftlib import GraftError, Mapping, attach, trace
from graftlib.graft import TransferWarning, settled


def sgd(world):
    return torch.optim.SGD(world.target.parameters(), lr=0.1)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def pending(world, nudge):
    """A graft with a pending write, and the weights before it."""
    before = world.weights()
    graft = attach(nudge(gate=0.7), world.mapping, cycle=1).follow(sgd(world))
    assert not same(before, world.weights())
    return graft, before


# ----------------------------------------------------------------------------------------------------- inside settled


def test_detaching_inside_settled_is_final(world, pending):
    graft, before = pending
    with graft.settled():
        graft.detach()
    assert same(before, world.weights())


def test_detaching_inside_the_models_settled_is_final(world, pending):
    graft, before = pending
    with settled(world.target), graft.settled():
        graft.detach()
    assert same(before, world.weights())


def test_loading_a_state_inside_settled_forgets_the_write_before_it(world, nudge):
    optimizer = sgd(world)
    graft = attach(nudge(gate=0.7), world.mapping, cycle=3)
    fresh = graft.state_dict()
    fresh["counts"] |= {"step": 1, "decided": 1}  # nothing is due
    before = world.weights()
    graft.follow(optimizer)
    with graft.settled():
        graft.load_state_dict(fresh)
    assert same(before, world.weights())
    assert not graft.pending
    graft.detach()
    assert same(before, world.weights())


def test_an_average_that_is_updated_inside_settled_has_no_pending_write_in_it(world, pending):
    graft, before = pending
    average = torch.optim.swa_utils.AveragedModel(world.target)
    with graft.settled():
        average.update_parameters(world.target)
    assert torch.equal(average.module.hidden.weight, before["hidden.weight"])


# --------------------------------------------------------------------------------------------------- casts and moves

CASTS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "half and back": lambda m: m.half().float(),
    "bfloat16 and back": lambda m: m.bfloat16().float(),
    "bfloat16, then half": lambda m: m.bfloat16().half(),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("inside", [False, True])
def test_a_model_that_was_cast_settles_in_its_new_dtype(world, pending, make_world, cast, inside):
    """As if the settled weights had been cast."""
    graft, before = pending
    expected = make_world().target
    expected.load_state_dict(before)
    CASTS[cast](expected)
    if inside:
        with graft.settled():
            CASTS[cast](world.target)
            assert same(expected.state_dict(), world.weights())
        assert not same(expected.state_dict(), world.weights())
    else:
        CASTS[cast](world.target)
    with graft.settled():
        assert same(expected.state_dict(), world.weights())
    graft.detach()
    assert same(expected.state_dict(), world.weights())


@pytest.mark.parametrize("write", ["replace", "probe"])
def test_a_model_that_was_cast_trains_on(world, nudge, write):
    optimizer = sgd(world)
    graft = attach(nudge(write, gate=0.3), world.mapping, cycle=1).follow(optimizer)
    world.train(optimizer, 2)
    world.target.double()
    world.x = world.x.double()
    optimizer.zero_grad()
    world.train(optimizer, 2, start=2)
    assert graft.history[2].signal["target:hidden.weight"] > 0
    graft.detach()
    assert world.target.hidden.weight.dtype == torch.float64


def test_a_write_that_was_cast_and_changed_is_left_with_a_word(world, pending):
    graft, _ = pending
    world.target.half()
    with torch.no_grad():
        world.target.hidden.weight.mul_(2)
    now = world.weights()
    with pytest.warns(TransferWarning, match="was cast from"):
        graft.detach()
    assert same(now, world.weights())


def test_weights_on_the_meta_device_are_said(world, pending):
    graft, _ = pending
    world.target.to("meta")
    with pytest.raises(GraftError, match="meta device"), graft.settled():
        pass
    with pytest.warns(TransferWarning, match="meta device"):
        graft.detach()
    assert not graft.attached


def test_a_settled_tensor_with_nan_is_put_back_and_written_again(world, pending):
    """NaN in the user's own weights: values are compared with NaN equal to NaN."""
    graft, _ = pending
    (write,) = graft._pending.pending
    write.settled[0, 0] = float("nan")
    written = world.weights()
    with graft.settled():
        assert world.target.hidden.weight[0, 0].isnan()
    assert same(written, world.weights())


# ---------------------------------------------------------------------------------------------------------- surgery


def test_detach_comes_off_when_a_linked_layer_is_gone(make_world, nudge):
    """And what is still there is settled."""
    world = make_world(source=("conv2", "fc"), target=("hidden", "head"))
    optimizer = sgd(world)
    before = world.target.head.weight.detach().clone()
    graft = attach(nudge(gate=0.7), world.mapping, cycle=1).follow(optimizer)
    world.target.hidden = nn.Identity()
    with pytest.warns(TransferWarning, match=r"no parameter 'hidden\.weight' any more"):
        graft.detach()
    assert not graft.attached
    assert torch.equal(world.target.head.weight, before)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    optimizer.step()
    graft.detach()


# ---------------------------------------------------------------------------------------------------------- forgotten


@pytest.mark.parametrize("follow", [True, False])
def test_a_graft_that_nobody_keeps_takes_its_write_back(make_world, nudge, follow):
    """Its weights, not its gradients' graph: garbage may be collected in the middle of a step."""
    world = make_world()
    before = world.weights()
    graft = attach(nudge(gate=0.7), world.mapping, cycle=1)
    optimizer = sgd(world)
    if follow:
        graft.follow(optimizer)
    else:
        with graft.step():
            pass
    assert not same(before, world.weights())
    loss = world.loss(0)
    del graft, optimizer
    gc.collect()
    assert torch.equal(before["hidden.weight"], world.target.hidden.weight)
    loss.backward()


def test_a_consumed_write_is_not_taken_back(world, nudge):
    """The negative control."""
    optimizer = sgd(world)
    graft = attach(nudge(gate=0.7), world.mapping, cycle=5).follow(optimizer)
    world.train(optimizer, 1)
    trained = world.weights()
    del graft, optimizer
    gc.collect()
    assert same(trained, world.weights())


def test_a_followed_graft_lives_as_long_as_its_optimizer(world, nudge):
    optimizer = sgd(world)
    attach(nudge(gate=0.7), world.mapping, cycle=2).follow(optimizer)
    gc.collect()
    pending = world.weights()
    world.train(optimizer, 2)
    assert not same(pending, world.weights())
    assert len(optimizer._optimizer_step_post_hooks) == 1


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_graft_is_not_copied(world, nudge, duplicate):
    graft = attach(nudge(), world.mapping)
    with pytest.raises(GraftError, match="neither copied nor pickled"):
        duplicate(graft)


def test_the_model_of_a_graft_is(world, pending):
    graft, _ = pending
    copied = pickle.loads(pickle.dumps(copy.deepcopy(world.target)))
    assert torch.equal(copied.hidden.weight, world.target.hidden.weight)
    assert not copied.hidden.weight._post_accumulate_grad_hooks
    graft.detach()


# ------------------------------------------------------------------------------------------------------ how it is used


def test_nested_steps_of_one_graft_are_refused(world, nudge):
    graft = attach(nudge(), world.mapping)
    optimizer = sgd(world)
    with graft.step():
        with pytest.raises(GraftError, match="inside `with"), graft.step():
            pass
        with pytest.raises(GraftError, match="inside `with"):
            graft.follow(optimizer)
        world.train(optimizer, 1)
    assert graft.step_count == 1
    with graft.step():
        world.train(optimizer, 1)
    assert graft.step_count == 2


def test_an_optimizer_inside_another_is_one_step(world, nudge):
    class Outer(torch.optim.SGD):
        """Steps an optimizer of its own, as ZeroRedundancyOptimizer does."""

        def step(self, closure=None):
            inner.step()

    inner, outer = sgd(world), Outer(world.target.parameters(), lr=0.1)
    graft = attach(nudge(gate=0.2), world.mapping, cycle=2)
    with graft.step():
        world.train(outer, 1)
    assert graft.step_count == 1
    graft.follow(outer)
    world.train(outer, 2)
    assert graft.step_count == 3


def test_one_optimizer_followed_twice_is_refused(world, nudge):
    optimizer = sgd(world)
    with pytest.raises(GraftError, match="twice"):
        attach(nudge(), world.mapping).follow(optimizer, optimizer)


def test_inference_mode_is_refused_where_nothing_could_be_trained(world, make_world, nudge):
    graft, optimizer = attach(nudge(gate=0.5), world.mapping, cycle=1), sgd(world)
    with torch.inference_mode():
        with pytest.raises(GraftError, match="inference_mode"):
            graft.follow(optimizer)
        with pytest.raises(GraftError, match="inference_mode"), graft.step():
            pass
    before = world.weights()
    graft.follow(optimizer)
    with torch.inference_mode(), graft.settled():
        assert same(before, world.weights())
    world.train(optimizer, 2)
    other = make_world(seed=1)
    with torch.inference_mode():
        late = attach(nudge(), other.mapping)
        late.load_state_dict({**graft.state_dict(), "resume": None})
    optimizer = sgd(other)
    late.follow(optimizer)
    other.train(optimizer, 3)
    assert late.history[-2].signal["target:hidden.weight"] > 0


def test_two_threads_may_step_their_own_grafts(make_world, nudge):
    """The set of torch's global hooks never changes under an optimizer that is going through it."""
    worlds = [make_world(seed=i) for i in range(3)]
    grafts = [attach(nudge(gate=0.1), world.mapping, cycle=2) for world in worlds]
    with grafts[0].step():
        pass
    hooks = dict(_global_optimizer_pre_hooks), dict(_global_optimizer_post_hooks)
    errors = []

    def train(world, graft):
        optimizer = sgd(world)
        try:
            for i in range(8):
                with graft.step():
                    optimizer.zero_grad()
                    world.loss(i).backward()
                    optimizer.step()
                    assert hooks == (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=train, args=pair) for pair in zip(worlds, grafts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [graft.step_count for graft in grafts] == [8, 8, 8]


# ----------------------------------------------------------------------------------------------------------- wrappers

WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compile": lambda m: torch.compile(m, backend="eager"),
    "both": lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_every_verb_looks_through_a_wrapper(make_world, nudge, wrap):
    """Traced, linked, attached, followed, settled, saved and detached as the model inside."""
    world = make_world()
    source, target = WRAPPERS[wrap](world.source), WRAPPERS[wrap](world.target)
    mapping = Mapping(trace(source, (world.x[0],)), trace(target, (world.x[0],)))
    mapping.link("conv2", "hidden")
    before = world.weights()
    graft = attach(nudge(gate=0.7), mapping, cycle=1)
    graft.follow(torch.optim.SGD(target.parameters(), lr=0.1))
    assert not same(before, world.weights())
    with settled(target):
        assert same(before, world.weights())
    with graft.settled():
        state = graft.state_dict()
    assert set(state["matrices"]) == {"source:conv2.weight", "target:hidden.weight"}
    graft.load_state_dict(state)
    assert graft.to_fx() is not None
    graft.detach()
    assert same(before, world.weights())
