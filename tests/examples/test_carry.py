"""The measurement of grafts that carry knowledge: what its controls change, and that its textbook forms are those."""

import copy

import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision is not installed")

from torch.nn.functional import cross_entropy

from examples.paper import captured, carry
from graftlib import Mapping, attach, trace


@pytest.fixture
def data():
    x = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
    y = torch.arange(32) % 4
    return captured.Data.of(x, y, x[:8], y[:8], "cpu")


@pytest.mark.parametrize("cosine", [1.0, 0.8, 0.0])
def test_noise_turns_by_the_angle_it_is_given_and_keeps_the_norm(cosine):
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(3, 4, 2, 2)
    v = carry.turned(w, torch.tensor(cosine), generator)
    torch.testing.assert_close(v.norm(), w.norm())
    torch.testing.assert_close(
        (v * w).sum() / w.square().sum(), torch.tensor(cosine), atol=1e-5, rtol=0
    )


def test_slow_weights_go_half_of_the_way_and_the_fast_begin_there():
    fast, slow = [torch.nn.Parameter(torch.tensor([4.0, 0.0]))], [torch.tensor([0.0, 2.0])]
    carry._slow_step(fast, slow)
    assert fast[0].tolist() == slow[0].tolist() == [2.0, 1.0]


def student(data, kind=""):
    return carry.Student(data, 8, 8, 2, kind)


def test_a_netaug_step_descends_both_losses(data):
    """The shared block moves by the sum of its two gradients; the wider network's block is the target's."""
    used = student(data, "netaug")
    trainer = used.trainer
    trainer.begin(1, 4)
    used.fresh.model.load_state_dict(trainer.model.state_dict())
    trainer.widen(carry._widened(used.fresh))
    models = [copy.deepcopy(each) for each in (trainer.model, trainer.wide)]
    before = trainer.model.layer1[0].conv1.weight.detach().clone()
    carry._step(trainer)
    seen = {}

    def batch(x, y):
        seen["x"], seen["y"] = x, y
        return captured.Trainer._loss(trainer, x, y)

    trainer.t.zero_()  # the same batch once more, to look at it
    trainer._loss = batch
    trainer._compute()
    for model in models:
        cross_entropy(model(seen["x"]), seen["y"]).backward()
    one, other = (model.layer1[0].conv1.weight.grad for model in models)
    gradient = one + other[carry.block(one)] + captured.DECAY["sgd"] * before
    now = trainer.model.layer1[0].conv1.weight
    torch.testing.assert_close(now, before - captured.RATE["sgd"] * gradient)
    assert torch.equal(trainer.wide.layer1[0].conv1.weight[carry.block(now)], now)
    assert not torch.equal(one, gradient)


def test_a_stepwise_trainer_trains_as_the_other_does(data):
    weights = []
    for stepwise in (False, True):
        maker = carry._maker(data, 2)
        trainer = captured.Trainer(maker, data, "sgd", 8, 8, stepwise=stepwise)
        trainer.begin(3, 4)
        for _ in range(4):
            carry._step(trainer) if stepwise else trainer.optimizer.step()
        weights.append(trainer.model.fc.weight.detach().clone())
    assert torch.equal(*weights)


def test_a_scrambled_source_is_read_whole_units_at_a_time_in_no_common_order(data):
    wide, slim = (carry._maker(data, width)() for width in (4, 2))
    mapping = Mapping(*(trace(model, (data.test_x[:2],)) for model in (wide, slim)))
    for layer in carry.links_of(slim):
        mapping.link(layer, layer)
    graft = attach(carry.Scrambled(mapping), mapping, cycle=1, seed=4)
    module = graft._runner.module
    rows = [module.reads1.view(2, 2, 9), module.reads2.view(2, 2, 9)]
    for reads in rows:  # a kernel stays a kernel
        assert torch.equal(reads - reads[..., :1], torch.arange(9).expand(2, 2, 9).int())
    readers = carry.AlignedPull(mapping).build(graft.plan.matrices, graft.plan.links)
    assert not torch.equal(readers.reads1, module.reads1)
    graft.detach()


def test_noise_waits_for_the_run_whose_angles_it_repeats(data, tmp_path):
    told = []
    settings = ("noise of the slow weights' angle", "slow weights", "pull")
    carry.work(
        data, (5,), settings, float("inf"), 0, 1, tmp_path, set(), told.append,
        batch=8, streams=1, width=2, steps=20,
    )  # fmt: skip
    runs = [record for record in told if record["kind"] == "run"]
    assert [record["setting"] for record in runs] == [
        "wide source",
        "equal source",
        "slow weights",
        "noise of the slow weights' angle",
        "pull",
    ]
    assert runs[-1]["transfers"] == 2
    assert not [record for record in told if record["kind"] == "error"]
