"""The laws of a live graft: what a transfer does, when it counts, and how it is taken back."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from graftlib import GraftError, attach
from graftlib.graft import AdapterOptimizer, TransferCycle, TransferWarning, settled
from graftlib_adapters import MergeNet, MLPAdapter, ParameterSharing

WRITES = ("replace", "probe")
SIGNALS = ("trajectory", "gradient")
FROZEN = AdapterOptimizer(lr=0.0, weight_decay=0.0)


def sgd(world, **kwargs):
    return torch.optim.SGD(world.target.parameters(), lr=0.1, **kwargs)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ------------------------------------------------------------------------------------------ attaching changes nothing


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("adapter", [MergeNet, MLPAdapter])
def test_the_first_transfer_of_an_identity_adapter_keeps_the_forward_pass_to_the_bit(
    world, adapter, write
):
    world.target.eval()
    before = world.target(world.x[0])
    graft = attach(adapter(write=write), world.mapping, cycle=1)
    with graft.step():
        assert len(graft.history) == 1, "a transfer was performed"
        assert torch.equal(world.target(world.x[0]), before)
    graft.detach()


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("adapter", [MergeNet, MLPAdapter])
def test_and_after_its_first_update_a_transfer_changes_the_target(world, adapter, write, signal):
    """The negative control of every identity law: an attach that does nothing fails here."""
    optimizer = sgd(world)
    graft = attach(adapter(write=write, signal=signal), world.mapping, cycle=1).follow(optimizer)
    world.train(optimizer, 1)
    assert graft.history[1].changes["target:hidden.weight"].size > 0
    pending = world.target.hidden.weight.clone()
    with graft.settled():
        assert not torch.equal(world.target.hidden.weight, pending)


def test_an_adapter_that_never_learns_leaves_training_bit_identical(make_world, nudge):
    """Counting, writing, hooks and undoing together cost nothing but time."""
    plain, grafted = make_world(), make_world()
    plain.train(sgd(plain, momentum=0.9), 11)
    optimizer = sgd(grafted, momentum=0.9)
    graft = attach(nudge(), grafted.mapping, cycle=2, optimizer=FROZEN).follow(optimizer)
    grafted.train(optimizer, 11)
    graft.detach()
    assert same(plain.weights(), grafted.weights())
    assert len(graft.history) == 6


def test_the_hosts_random_numbers_are_left_alone(make_world):
    def draws(graft):
        world = make_world()
        torch.manual_seed(3)
        optimizer = sgd(world)
        if graft:
            attach(MergeNet(), world.mapping, cycle=1).follow(optimizer)
        world.train(optimizer, 3)
        return torch.rand(4)

    assert torch.equal(draws(graft=True), draws(graft=False))


# --------------------------------------------------------------------------------------------- what the adapter learns


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("write", WRITES)
def test_the_adapter_learns_from_exactly_what_the_step_made_of_the_weights(
    world, nudge, write, signal
):
    """By hand: one SGD step of lr 0.1 moves a weight by 0.1 g, whichever weights it is applied to."""
    graft = attach(nudge(write, signal, gate=0.5), world.mapping, cycle=1, optimizer=FROZEN)
    before = world.target.hidden.weight.detach().clone()
    optimizer = sgd(world)
    seen = {}
    with graft.step():
        written = world.target.hidden.weight.detach().clone()
        world.loss(0).backward()
        gradient = world.target.hidden.weight.grad.clone()
        runner = graft._running()
        step = runner.optimizer.step
        runner.optimizer.step = lambda: (
            seen.update(g=runner.module.gates.grad.clone()),
            step(),
        )
        optimizer.step()
    assert not torch.equal(written, before)
    block = torch.zeros_like(before)
    source = world.source.conv2.weight.detach().reshape(12, -1)
    block[:7, :6] = source[:7, :6]
    expected = (gradient * block).sum() * (0.1 if signal == "trajectory" else 1.0)
    torch.testing.assert_close(seen["g"], expected[None], rtol=1e-4, atol=1e-6)
    stepped_from = written if write == "replace" else before
    torch.testing.assert_close(world.target.hidden.weight.detach(), stepped_from - 0.1 * gradient)


def test_a_probe_is_stepped_from_the_very_bits_before_it(world, nudge):
    """With a zero learning rate the weights after a probe are the weights before it."""
    graft = attach(nudge("probe", gate=0.5), world.mapping, cycle=1)
    before = world.weights()
    optimizer = torch.optim.AdamW(world.target.parameters(), lr=0.0)
    with graft.step():
        world.target.eval()
        world.loss(0).backward()
        optimizer.step()
    assert same(before, world.weights())


# ------------------------------------------------------------------------------------------------------------ counting


@pytest.mark.parametrize("clip", [1e-8, 1e3])
def test_the_adapters_gradient_is_clipped(world, nudge, clip):
    graft = attach(
        nudge(signal="gradient"), world.mapping, cycle=1, optimizer=AdapterOptimizer(clip=clip)
    ).follow(sgd(world))
    runner = graft._running()
    step, norms = runner.optimizer.step, []
    runner.optimizer.step = lambda: (
        norms.append(runner.module.gates.grad.norm().item()),
        step(),
    )
    world.train(next(iter(graft._followed)), 1)
    assert (norms[0] <= 1.01e-8) == (clip == 1e-8)


@pytest.mark.parametrize("write", WRITES)
def test_step_and_follow_train_alike(make_world, nudge, write):
    follows, steps = make_world(), make_world()
    optimizer = sgd(follows, momentum=0.9)
    graft = attach(nudge(write, gate=0.1), follows.mapping, cycle=3).follow(optimizer)
    follows.train(optimizer, 10)
    graft.detach()

    optimizer = sgd(steps, momentum=0.9)
    other = attach(nudge(write, gate=0.1), steps.mapping, cycle=3)
    for i in range(10):
        with other.step():
            optimizer.zero_grad()
            steps.loss(i).backward()
            optimizer.step()
    assert same(follows.weights(), steps.weights())
    assert [e.step for e in other.history] == [e.step for e in graft.history] == [0, 3, 6, 9]


@pytest.mark.parametrize("follow", [True, False])
def test_gradient_accumulation_counts_optimizer_steps(world, nudge, follow):
    optimizer = sgd(world)
    graft = attach(nudge(gate=0.1), world.mapping, cycle=2)
    if follow:
        graft.follow(optimizer)
    for i in range(12):
        with contextlib.nullcontext() if follow else graft.step():
            (world.loss(i) / 3).backward()
            if i % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    assert graft.step_count == 4
    assert [e.step for e in graft.history] == [0, 2, 4][: 3 if follow else 2]


def test_steps_in_a_share_of_training_need_the_total_and_the_last_stretch_is_free(world, nudge):
    cycle = TransferCycle(1, stop=0.5)
    with pytest.raises(GraftError, match="total_steps"):
        attach(nudge(), world.mapping, cycle=cycle)
    optimizer = sgd(world)
    graft = attach(nudge(), world.mapping, cycle=cycle, total_steps=8).follow(optimizer)
    world.train(optimizer, 8)
    assert [e.step for e in graft.history] == [0, 1, 2, 3]
    assert not graft.pending


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("write", WRITES)
def test_a_step_that_gradscaler_skips_is_not_counted_and_keeps_its_write(
    world, nudge, write, signal, fused
):
    optimizer = torch.optim.AdamW(world.target.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    graft = attach(nudge(write, signal, gate=0.1), world.mapping, cycle=2).follow(optimizer)
    counted = []
    for i in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = world.loss(i)
        scaler.scale(loss).backward()
        if i in (0, 3):
            world.target.head.weight.grad.fill_(float("inf"))
        was = world.target.hidden.weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        if i == 0:
            assert graft.pending
            assert torch.equal(world.target.hidden.weight, was), "the write is still in place"
        counted.append(graft.step_count)
    assert counted == [0, 1, 2, 2, 3, 4]
    assert all(torch.isfinite(p).all() for p in world.target.parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_under_gradscaler_the_gradient_signal_is_unscaled(make_world, nudge, fused):
    norms = []
    for scale in (2.0**12, 1.0):
        world = make_world()
        optimizer = torch.optim.AdamW(world.target.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        graft = attach(nudge(signal="gradient"), world.mapping, cycle=1).follow(optimizer)
        scaler.scale(world.loss(0)).backward()
        scaler.step(optimizer)
        norms.append(graft.history[0].signal["target:hidden.weight"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_gradient_clipping_is_seen_by_the_gradient_signal(world, nudge):
    optimizer = sgd(world)
    graft = attach(nudge(signal="gradient"), world.mapping, cycle=1).follow(optimizer)
    world.loss(0).backward()
    nn.utils.clip_grad_norm_(world.target.parameters(), 1e-3)
    optimizer.step()
    assert graft.history[0].signal["target:hidden.weight"] <= 1e-3


@pytest.mark.parametrize("write", WRITES)
def test_several_optimizers_count_one_step_a_round(make_world, nudge, write):
    """Two optimizers of the target, each owning one linked layer: as one optimizer over both."""

    def run(split):
        world = make_world(source=("conv2", "fc"), target=("hidden", "head"))
        groups = [list(world.target.hidden.parameters())]
        rest = [p for p in world.target.parameters() if all(p is not q for q in groups[0])]
        groups = [groups[0], rest] if split else [groups[0] + rest]
        optimizers = [torch.optim.SGD(group, lr=0.1) for group in groups]
        graft = attach(nudge(write, gate=0.1), world.mapping, cycle=2).follow(*optimizers)
        for i in range(7):
            world.target.zero_grad()
            world.loss(i).backward()
            for optimizer in optimizers:
                optimizer.step()
        graft.detach()
        return world.weights(), graft.step_count, len(graft.history)

    (one, *counts), (two, *other) = run(split=False), run(split=True)
    assert same(one, two)
    assert counts == other == [7, 4]


def test_a_source_with_its_own_loop_is_written_too_and_only_the_targets_steps_count(
    make_world, nudge
):
    world = make_world(direction="both")
    target = sgd(world)
    source = torch.optim.SGD(world.source.parameters(), lr=0.1)
    before = world.source.conv2.weight.detach().clone()
    graft = attach(nudge(gate=0.1), world.mapping, cycle=2).follow(target, source)
    for i in range(8):
        if i % 2:
            source.zero_grad()
            world.loss(i, world.source).backward()
            source.step()
        target.zero_grad()
        world.loss(i).backward()
        target.step()
    assert graft.step_count == 8
    assert [e.step for e in graft.history] == [0, 2, 4, 6, 8]
    assert set(graft.history[0].signal) == {"target:hidden.weight", "source:conv2.weight"}
    assert not torch.equal(before, world.source.conv2.weight)


def test_a_source_write_that_nobody_steps_is_taken_back_at_the_next_transfer(make_world, nudge):
    world = make_world(direction="both")
    target = sgd(world)
    idle = torch.optim.SGD(world.source.parameters(), lr=0.1)
    before = world.source.conv2.weight.detach().clone()
    graft = attach(nudge(gate=0.1), world.mapping, cycle=2).follow(target, idle)
    assert not torch.equal(before, world.source.conv2.weight)
    world.train(target, 5)
    graft.detach()
    assert torch.equal(before, world.source.conv2.weight)


def test_a_frozen_source_is_never_written(world, nudge):
    world.source.requires_grad_(requires_grad=False)
    before = copy.deepcopy(world.source.state_dict())
    optimizer = sgd(world)
    attach(nudge(gate=0.3), world.mapping, cycle=1).follow(optimizer)
    world.train(optimizer, 4)
    assert same(before, dict(world.source.state_dict()))


def test_an_adapter_with_nothing_to_learn_shares_one_value(make_world):
    world = make_world(direction="both")
    optimizer = torch.optim.SGD([*world.target.parameters(), *world.source.parameters()], lr=0.1)
    attach(ParameterSharing(), world.mapping, cycle=1).follow(optimizer)
    source = world.source.conv2.weight.reshape(12, -1)
    assert torch.equal(source[:7, :6], world.target.hidden.weight)


# ------------------------------------------------------------------------------------------------------------- undoing


@pytest.mark.parametrize("write", WRITES)
def test_settled_and_detach_give_back_the_weights_before_a_pending_write(world, nudge, write):
    before = world.weights()
    graft = attach(nudge(write, gate=0.7), world.mapping, cycle=1).follow(sgd(world))
    pending = world.weights()
    assert not same(before, pending)
    with graft.settled():
        assert same(before, world.weights())
        with graft.settled():
            assert same(before, world.weights())
        assert same(before, world.weights())
    assert same(pending, world.weights())
    with settled(world.target):
        assert same(before, world.weights())
    assert same(pending, world.weights())
    graft.detach()
    assert same(before, world.weights())


def test_weights_loaded_over_a_pending_write_are_respected(world, nudge):
    optimizer = sgd(world)
    graft = attach(nudge(gate=0.7), world.mapping, cycle=1).follow(optimizer)
    loaded = {k: torch.full_like(v, 0.5) for k, v in world.weights().items()}
    world.target.load_state_dict(loaded)
    with graft.settled():
        assert same(loaded, world.weights())
    graft.detach()
    assert same(loaded, world.weights())


def test_weights_loaded_while_settled_are_respected_too(world, nudge):
    graft = attach(nudge(gate=0.7), world.mapping, cycle=1).follow(sgd(world))
    loaded = {k: torch.full_like(v, 0.5) for k, v in world.weights().items()}
    with graft.settled():
        world.target.load_state_dict(loaded)
    assert same(loaded, world.weights())


def fingerprint(model):
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    )
    return {
        "types": [(name, type(module)) for name, module in model.named_modules()],
        "keys": list(model.state_dict()),
        "ids": [
            (name, id(p), p.requires_grad)
            for name, p in model.named_parameters(remove_duplicate=False)
        ],
        "hooks": [len(getattr(m, hook, ())) for m in model.modules() for hook in hooks],
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


@pytest.mark.parametrize("steps", [0, 1, 3, 4])
def test_detach_leaves_no_trace(world, steps):
    before = fingerprint(world.target), fingerprint(world.source)
    optimizer = sgd(world)
    hooks = len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)
    graft = attach(MergeNet(), world.mapping, cycle=3).follow(optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == hooks[1] + 1
    world.train(optimizer, steps)
    graft.detach()
    graft.detach()
    assert (fingerprint(world.target), fingerprint(world.source)) == before
    assert (
        len(optimizer._optimizer_step_pre_hooks),
        len(optimizer._optimizer_step_post_hooks),
    ) == hooks
    assert graft.history
    attach(MergeNet(), world.mapping)


def test_after_detach_training_goes_on_as_if_never_grafted(make_world, nudge):
    grafted, plain = make_world(), make_world()
    optimizer = sgd(grafted)
    graft = attach(nudge(gate=0.2), grafted.mapping, cycle=2).follow(optimizer)
    grafted.train(optimizer, 5)
    graft.detach()
    plain.target.load_state_dict(grafted.target.state_dict())
    grafted.train(optimizer, 4, start=5)
    plain.train(sgd(plain), 4, start=5)
    assert same(plain.weights(), grafted.weights())


# ------------------------------------------------------------------------------------------------------ going on later


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5])
def test_a_resumed_run_ends_bit_identical(make_world, tmp_path, write, stop):
    def start():
        world = make_world(direction="both", source=("conv2",), target=("hidden",))
        parameters = [*world.target.parameters(), *world.source.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        return (
            world,
            optimizer,
            attach(MergeNet(write=write), world.mapping, cycle=2, total_steps=9),
        )

    world, optimizer, graft = start()
    graft.follow(optimizer)
    world.train(optimizer, stop)
    with graft.settled():
        torch.save(
            {
                "source": world.source.state_dict(),
                "target": world.target.state_dict(),
                "optimizer": optimizer.state_dict(),
                "graft": graft.state_dict(),
            },
            tmp_path / "checkpoint.pt",
        )
    world.train(optimizer, 9 - stop, start=stop)
    graft.detach()

    resumed, optimizer, other = start()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.source.load_state_dict(saved["source"])
    resumed.target.load_state_dict(saved["target"])
    optimizer.load_state_dict(saved["optimizer"])
    other.load_state_dict(saved["graft"])
    other.follow(optimizer)
    resumed.train(optimizer, 9 - stop, start=stop)
    other.detach()
    assert same(world.weights(), resumed.weights())
    assert graft.history == other.history


def test_a_resumed_run_without_the_grafts_state_does_not(make_world):
    """The negative control: the state carries something."""
    ends = []
    for carry in (True, False):
        world = make_world()
        optimizer = sgd(world)
        graft = attach(MergeNet(), world.mapping, cycle=1).follow(optimizer)
        world.train(optimizer, 3)
        with graft.settled():
            weights, state = world.weights(), graft.state_dict()
        graft.detach()
        world.target.load_state_dict(weights)
        other = attach(MergeNet(), world.mapping, cycle=1)
        if carry:
            other.load_state_dict(state)
        other.follow(optimizer)
        world.train(optimizer, 2, start=3)
        other.detach()
        ends.append(world.weights())
    assert not same(*ends)


def test_ranks_from_an_energy_share_are_kept_by_a_resumed_run(make_world):
    world = make_world()
    state = attach(MergeNet(rank=0.9), world.mapping).state_dict()
    other = make_world(seed=1)
    with torch.no_grad():
        other.source.conv2.weight[:, 1:].zero_()
    graft = attach(MergeNet(rank=0.9), other.mapping)
    assert graft.state_dict()["matrices"] != state["matrices"]
    graft.load_state_dict(state)
    assert graft.state_dict()["matrices"] == state["matrices"]
    with graft.step():
        pass


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: [],
        lambda s: {**s, "format": 99},
        lambda s: {**s, "format": 2},
        lambda s: {k: v for k, v in s.items() if k != "module"},
        lambda s: {**s, "links": ["elsewhere -> nowhere"]},
        lambda s: {
            **s,
            "matrices": {
                **s["matrices"],
                "target:hidden.weight": {"rows": 9, "columns": 9, "rank": 4},
            },
        },
        lambda s: {**s, "module": {}},
    ],
)
def test_a_foreign_state_is_refused_before_anything_changes(world, spoil):
    graft = attach(MergeNet(), world.mapping)
    state = graft.state_dict()
    with pytest.raises(GraftError):
        graft.load_state_dict(spoil(state))
    after = graft.state_dict()
    assert after["counts"] == state["counts"]
    assert same(after["module"], state["module"])


# ----------------------------------------------------------------------------------------------------------- bad input


def test_an_adapter_attached_twice_to_one_parameter_is_refused(world, nudge):
    graft = attach(nudge(), world.mapping)
    with pytest.raises(GraftError, match=r"hidden\.weight.*another graft"):
        attach(nudge(), world.mapping)
    graft.detach()
    attach(nudge(), world.mapping)


def test_follow_refuses_optimizers_that_do_not_own_the_target(world, nudge):
    graft = attach(nudge(), world.mapping)
    with pytest.raises(GraftError, match="steps none"):
        graft.follow(torch.optim.SGD(world.source.parameters(), lr=0.1))
    with pytest.raises(GraftError, match="LBFGS"):
        graft.follow(torch.optim.LBFGS(world.target.parameters()))
    with pytest.raises(GraftError, match="not Linear"):
        graft.follow(nn.Linear(2, 2))
    with pytest.raises(GraftError, match="needs the optimizer"):
        graft.follow()
    assert not graft.history
    optimizer = sgd(world)
    graft.follow(optimizer)
    with pytest.raises(GraftError, match="already"):
        graft.follow(optimizer)
    with pytest.raises(GraftError, match="follows an optimizer"), graft.step():
        pass


def test_follow_wants_an_optimizer_for_every_written_parameter(make_world, nudge):
    world = make_world(direction="both")
    with pytest.raises(GraftError, match=r"source:conv2\.weight"):
        attach(nudge(), world.mapping).follow(sgd(world))


def test_a_closure_is_refused(world, nudge):
    optimizer = sgd(world)
    attach(nudge(), world.mapping, cycle=1).follow(optimizer)
    with pytest.raises(GraftError, match="closure"):
        optimizer.step(lambda: world.loss(0))


def test_parameters_replaced_behind_the_optimizers_back_are_noticed(world, nudge):
    optimizer = sgd(world)
    attach(nudge(), world.mapping, cycle=4).follow(optimizer)
    world.target.hidden.weight = nn.Parameter(world.target.hidden.weight.detach().clone())
    with pytest.raises(GraftError, match="no longer the parameter"):
        world.train(optimizer, 1)


def test_modules_replaced_after_attaching_are_noticed(world, nudge):
    graft = attach(nudge(), world.mapping)
    world.target.hidden = nn.Identity()
    with pytest.raises(GraftError, match=r"no parameter 'hidden\.weight' any more"), graft.step():
        pass


def test_a_transfer_that_is_not_finite_is_skipped_counted_and_in_the_end_an_error(world, nudge):
    optimizer = sgd(world)
    graft = attach(nudge(gate=0.5), world.mapping, cycle=1, nan_limit=3)
    with torch.no_grad():
        world.source.conv2.weight.fill_(float("nan"))
    before = world.weights()
    with pytest.warns(TransferWarning, match="not finite"):
        graft.follow(optimizer)
    assert same(before, world.weights())
    assert graft.skipped == 1
    assert "finite" in graft.history[0].skipped
    with pytest.warns(TransferWarning):
        world.train(optimizer, 1)
    with pytest.raises(GraftError, match="3 transfers in a row"):
        world.train(optimizer, 1)
    assert all(torch.isfinite(v).all() for v in world.weights().values())


def test_a_loss_that_is_not_finite_teaches_nothing(world, nudge):
    optimizer = sgd(world)
    graft = attach(nudge(gate=0.5), world.mapping, cycle=4).follow(optimizer)
    (world.loss(0) * float("nan")).backward()
    with pytest.warns(TransferWarning, match="what the step made"):
        optimizer.step()
    assert graft._running().module.gates.item() == 0.5


def test_meta_models_and_empty_mappings_say_what_is_missing(make_world, nudge):
    world = make_world(source=(), target=())
    with pytest.raises(GraftError, match="links nothing"):
        attach(nudge(), world.mapping)
    with pytest.raises(GraftError, match="takes an Adapter"):
        attach(world.mapping, nudge())
    world.mapping.link("conv2", "hidden")
    world.target.to("meta")
    with pytest.raises(GraftError, match="meta device"):
        attach(nudge(), world.mapping)


# ---------------------------------------------------------------------------------------------------- dtypes, autocast


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_keep_their_dtype_and_a_skipped_change_its_bits(make_world, dtype):
    world = make_world()
    world.target.to(dtype)
    world.source.to(dtype)
    before = world.weights()
    graft = attach(MergeNet(), world.mapping, cycle=1)
    with graft.step():
        assert same(before, world.weights())
        assert world.target.hidden.weight.dtype == dtype


def test_a_write_inside_autocast_and_no_grad_is_the_same_write(make_world):
    ends = []
    for inside in (False, True):
        world = make_world()
        optimizer = sgd(world)
        graft = attach(MergeNet(), world.mapping, cycle=1).follow(optimizer)
        world.train(optimizer, 1)
        world.loss(1).backward()
        with contextlib.ExitStack() as stack:
            if inside:
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
                stack.enter_context(torch.no_grad())
            optimizer.step()
        graft.detach()
        ends.append((graft.history, world.weights()))
    assert ends[0][0] == ends[1][0]
    assert same(ends[0][1], ends[1][1])


@pytest.mark.parametrize("source_too", [True, False])
def test_a_graft_goes_where_its_target_is(world, device, source_too):
    """Both may move after attaching; a source that stays behind is read across."""
    graft = attach(MergeNet(), world.mapping, cycle=1)
    world.target.to(device)
    if source_too:
        world.source.to(device)
    world.x, world.y = world.x.to(device), world.y.to(device)
    optimizer = sgd(world)
    graft.follow(optimizer)
    world.train(optimizer, 3)
    assert {p.device.type for p in graft._running().module.parameters()} == {device}
    assert graft.history[-1].changes["target:hidden.weight"].size > 0
    graft.detach()
    assert world.target.hidden.weight.device.type == device
