"""A state from outside is taken whole or not at all: whatever is wrong with it, the graft is as it was, to the bit."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

from graftlib import GraftError, attach
from graftlib.errors import CheckpointError
from graftlib.graft import TransferWarning, files
from graftlib_adapters import MergeNet

NAN, INF = math.nan, math.inf
JUNK = (None, "x", b"x", {}, [], (), -5, 1.5, 10**30, NAN, True, torch.ones(2), object())


def identical(one, other):
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(identical, one, other))
    return type(one) is type(other) and (one == other or one != one)


def trained(world, steps=2):
    """A graft with moments, a history and a pending transfer, one of whose two writes is consumed already."""
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (world.target, world.source)]
    graft = attach(MergeNet(1, 1, 2, width=4, trust=0.2), world.mapping, cycle=2, record=1)
    graft.follow(*optimizers)
    for i in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        world.loss(i).backward()
        world.loss(i, world.source).backward()
        for optimizer in optimizers:
            optimizer.step()
    world.loss(steps, world.source).backward()
    optimizers[1].step()
    return graft


@pytest.fixture(scope="module")
def pair(make_world):
    """A graft, and a good state of it; every test leaves it in that state."""
    graft = trained(make_world(direction="both"))
    graft.state = graft.state_dict()
    yield graft
    graft.detach()


def places(value, path=()):
    """The paths to everything in a nest of dicts and lists."""
    yield path
    children = value.items() if isinstance(value, dict) else ()
    for key, child in enumerate(value) if isinstance(value, list) else children:
        yield from places(child, (*path, key))


def changed(state, path, how):
    state = copy.deepcopy(state)
    *above, last = path
    owner = state
    for key in above:
        owner = owner[key]
    how(owner, last)
    return state


def drop(owner, key):
    del owner[key]


def spoil(junk):
    def put(owner, key):
        owner[key] = junk

    return put


def refused_or_taken(graft, state):
    """Loading `state` either works, and can be undone by loading the good one, or changes nothing."""
    before = graft.state_dict()
    weights = [t.local().clone() for t in graft.plan.tensors]
    try:
        graft.load_state_dict(state)
    except CheckpointError as error:
        refusal = str(error)
    else:
        return True
    assert identical(graft.state_dict(), before), refusal
    assert all(map(torch.equal, weights, (t.local() for t in graft.plan.tensors))), refusal
    return False


def test_the_state_that_is_spoilt_below_is_a_rich_one(pair):
    state = pair.state
    assert state["optimizer"]["state"]
    assert state["history"]
    assert state["resume"]["signals"].keys() == {"source:conv2.weight"}
    assert len(list(places(state))) > 100


@given(st.data())
def test_one_spoilt_field_is_refused_or_harmless(pair, data):
    """And what is taken can go on: nothing raises later."""
    path = data.draw(st.sampled_from([p for p in places(pair.state) if p]))
    how = data.draw(st.sampled_from([drop, *map(spoil, JUNK)]))
    if not refused_or_taken(pair, changed(pair.state, path, how)):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TransferWarning)
        pair._write_if_due()
    pair.load_state_dict(pair.state)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_value_that_is_not_finite_is_refused_wherever_it_could_reach_a_weight(pair, value):
    """Signals alone may hold it: an update that is not finite is skipped, as in the run that was saved."""
    paths = [p for p in places(pair.state) if p and isinstance(_at(pair.state, p), torch.Tensor)]
    reached = [p for p in paths if p[:2] != ("resume", "signals")]
    assert len(reached) > 20
    for path in reached:
        state = copy.deepcopy(pair.state)
        tensor = _at(state, path)
        if tensor.is_floating_point():
            tensor.view(-1)[-1] = value
            assert not refused_or_taken(pair, state), path


def _at(state, path):
    for key in path:
        state = state[key]
    return state


SPOILT = {
    "a count is missing": (("counts", "step"), drop),
    "a count is negative": (("counts", "step"), spoil(-5)),
    "a count is no whole number": (("counts", "step"), spoil(1.5)),
    "a rank is too large": (("matrices", "target:hidden.weight", "rank"), spoil(10**9)),
    "a rank is negative": (("matrices", "target:hidden.weight", "rank"), spoil(-1)),
    "the optimizer is gone": (("optimizer",), spoil(None)),
    "a moment has another shape": (("optimizer", "state", 0, "exp_avg"), spoil(torch.ones(3, 3))),
    "a moment is missing": (("optimizer", "state", 0, "exp_avg_sq"), drop),
    "a variance is negative": (("optimizer", "state", 0, "exp_avg_sq"), lambda o, k: o[k].sub_(1)),
    "a count of the optimizer has no arithmetic": (
        ("optimizer", "state", 0, "step"),
        lambda o, k: o.__setitem__(k, o[k].to(torch.float8_e4m3fn)),
    ),
    "a tensor is half": (("resume", "inputs", 0), lambda o, k: o.__setitem__(k, o[k].half())),
    "the history is gone": (("history",), spoil(None)),
    "an unknown tensor was stepped": (("stepped",), spoil(["target:elsewhere"])),
    "the pending transfer is empty": (("resume",), spoil({})),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_what_is_wrong_is_named_with_its_place(pair, fault):
    path, how = SPOILT[fault]
    with pytest.raises(CheckpointError) as refusal:
        pair.load_state_dict(changed(pair.state, path, how))
    assert path[0] in str(refusal.value)
    assert "fix" in str(refusal.value)


def test_a_state_of_an_earlier_format_is_refused_with_the_way_out(pair):
    with pytest.raises(CheckpointError, match="resume with the version that wrote it"):
        pair.load_state_dict({**pair.state, "format": 2})


def test_records_of_transfers_are_frozen_and_go_through_plain_data(pair):
    record = pair.history[0]
    with pytest.raises(AttributeError, match="immutable"):
        record.step = 3
    assert pair.state["history"][0] == record.to_dict()
    assert record.to_dict()["changes"]["target:hidden.weight"]["spectrum"]["before"]


def test_the_good_state_is_taken(pair):
    """The negative control: it is the spoiling that is refused."""
    assert refused_or_taken(pair, copy.deepcopy(pair.state))


def test_a_pending_transfer_that_comes_out_not_finite_is_skipped_like_any_other(make_world):
    """Its inputs are finite, and so is the adapter; what it makes of them is not."""
    world = make_world()
    graft = attach(MergeNet(rank=4, trust=0.2), world.mapping, cycle=1)
    optimizer = torch.optim.SGD(world.target.parameters(), lr=0.1)
    graft.follow(optimizer)
    world.train(optimizer, 2)
    with graft.settled():
        state, weights = graft.state_dict(), world.weights()
    graft.detach()
    for name, value in state["module"].items():
        if name.endswith("omega"):
            value.fill_(3e38)
    again = attach(MergeNet(rank=4, trust=None), world.mapping, cycle=1)
    again.load_state_dict(state)
    with pytest.warns(TransferWarning, match="not finite"):
        again.follow(optimizer)
    assert identical(weights, world.weights())
    again.detach()
    assert identical(weights, world.weights())


@given(st.binary(max_size=40), st.integers(0, 10**6))
def test_a_file_with_flipped_bytes_is_refused_or_read(tmp_path_factory, pair, patch, place):
    path = tmp_path_factory.mktemp("state") / files.NAME
    files.save({"graft": pair.state, "weights": {}}, path)
    data = bytearray(path.read_bytes())
    place %= len(data)
    data[place : place + len(patch)] = patch
    path.write_bytes(bytes(data))
    try:
        state = files.load(path)
    except CheckpointError:
        return
    try:
        files.take_up(pair, state, where=str(path))
    except CheckpointError:
        return
    pair.load_state_dict(pair.state)


@pytest.mark.parametrize(
    "header",
    [
        "[" * 5000,
        '{"items": 3}',
        '{"items": [[[1], 2]]}',
        '{"tensor": []}',
        "{}",
        '{"a": 1}',
        "1",
        "x",
    ],
)
def test_a_header_of_any_json_is_refused(tmp_path, header):
    path = tmp_path / files.NAME
    path.write_bytes(to_bytes({}, {files.HEADER: header}))
    with pytest.raises(CheckpointError):
        files.load(path)


@pytest.mark.parametrize(
    "weights", [None, [], {"target:hidden.weight": "x"}, {"target:hidden.weight": None}]
)
def test_the_fingerprints_beside_a_state_are_checked_too(pair, weights):
    with pytest.raises(CheckpointError):
        files.take_up(pair, {"graft": pair.state, "weights": weights}, where="here")


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "."])
def test_a_path_that_is_none_has_no_state(tmp_path, path):
    with pytest.raises(GraftError, match="no state"):
        files.load(tmp_path / path)
