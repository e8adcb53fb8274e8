"""The script for a GPU: its data file, its models, its captured step, its sharing of a device."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torchvision", reason="torchvision is not installed")

from examples.common import results
from examples.paper import captured, gpu_table1, on_gpu


@pytest.fixture
def data():
    x = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    y = torch.arange(64) % 4
    return captured.Data.of(x, y, x[:16], y[:16], "cpu")


def trainer(data, regime="adamw"):
    return captured.Trainer(lambda: captured.MobileNet(4, 3, 0.125), data, regime, 32, 8)


def trained(trainer, seed, steps=8):
    trainer.begin(seed, steps)
    for _ in range(steps):
        trainer.optimizer.step()
    return trainer.losses[:steps].clone()


@given(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 6), st.integers(1, 6))
def test_images_come_back_from_their_differences(n, channels, height, width):
    x = torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8).numpy()
    assert np.array_equal(on_gpu._summed(on_gpu._differences(x)), x)


def test_the_authors_mobilenet_has_their_number_of_parameters():
    model = captured.MobileNet(100, 3)
    assert sum(p.numel() for p in model.parameters()) == 2_369_380
    target = model.get_submodule(captured.MobileNet.TARGET)
    assert target.weight.shape == (160, 960, 1, 1)
    assert model.blocks(model.stem(torch.zeros(1, 3, 32, 32))).shape[2:] == (5, 5)


@pytest.mark.parametrize("regime", ["adamw", "sgd"])
def test_a_trainer_begins_anew_to_the_bit(data, regime):
    """A run is decided by its seed, not by what the trainer did before..."""
    used = trainer(data, regime)
    trained(used, 3)
    assert torch.equal(trained(used, 5), trained(trainer(data, regime), 5))


def test_another_seed_is_another_run(data):
    """...and by its seed indeed."""
    used = trainer(data)
    assert not torch.equal(trained(used, 3), trained(used, 5))


@pytest.mark.parametrize("regime", ["adamw", "sgd"])
def test_the_rate_that_the_step_reads_is_the_schedules(data, regime):
    """At a rate of zero the weights stand still."""
    used = trainer(data, regime)
    used.begin(1, 8)
    before = used.model.classifier.weight.detach().clone()
    used.rates.zero_()
    used.optimizer.step()
    assert torch.equal(used.model.classifier.weight, before)
    used.rates.fill_(0.01)
    used.optimizer.step()
    assert not torch.equal(used.model.classifier.weight, before)


def test_sgd_is_torchs(data):
    used = trainer(data, "sgd")
    used.begin(1, 4)
    model = captured.MobileNet(4, 3, 0.125)
    model.load_state_dict(used.model.state_dict())
    torchs = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9, weight_decay=5e-4)
    for t in range(4):
        used.optimizer.step()
        for parameter, mine in zip(model.parameters(), used.parameters, strict=True):
            # Of the gradient with the decay already in it, which is all that the step leaves behind.
            parameter.grad = mine.grad - 5e-4 * parameter.detach()
        torchs.param_groups[0]["lr"] = captured.rate("sgd", t, 4)
        torchs.step()
    for parameter, mine in zip(model.parameters(), used.parameters, strict=True):
        torch.testing.assert_close(parameter, mine, rtol=1e-4, atol=1e-5)


class Place:
    """Somewhere to run: entered and left around each turn."""

    def on(self):
        return contextlib.nullcontext()


@given(st.integers(1, 4), st.lists(st.integers(0, 3), max_size=9))
def test_every_job_runs_once_and_a_raising_one_is_recorded(places, lengths):
    ran, errors = [], []

    def run(place, job):
        number, length = job
        for _ in range(length):
            yield
        if length == 3:
            raise ValueError(f"job {number}")
        ran.append(number)

    jobs = list(enumerate(lengths))
    share = gpu_table1._share
    share(jobs, [Place() for _ in range(places)], run, lambda *_: True, errors.append)
    assert sorted(ran) == [i for i, length in jobs if length != 3]
    assert sorted(error["job"][0] for error in errors) == [i for i, n in jobs if n == 3]


def test_a_table_pairs_runs_of_one_seed():
    """Pinned: differences 1 and 3; the seed that only one setting has counts for none."""
    scores = {("plain", 1): 50.0, ("plain", 2): 60.0, ("paper", 1): 51.0, ("paper", 2): 63.0}
    scores["paper", 3] = 99.0
    runs = [
        {
            "kind": "run",
            "data": {"dataset": "d"},
            "setting": setting,
            "seed": seed,
            "steps": 8,
            "epochs": 1.0,
            "top-1": top,
            "loss": 1.0,
            "training loss": 1.0,
        }
        for (setting, seed), top in scores.items()
    ]
    (table,) = on_gpu.table(runs)
    difference = table["differences"]["paper - plain"]
    assert difference["n"] == 2
    assert difference["top-1"][0] == 2.0
    assert difference["top-1"][1] < 0 < difference["top-1"][2]
    assert "NaN" not in results.dumps({"table1": [table]})


def test_a_norm_reset_gives_rows_of_mean_zero_and_variance_one():
    rows = gpu_table1._Rows([False, True])
    (new,) = rows([torch.randn(2, 3), 5 + torch.randn(4, 50)])
    torch.testing.assert_close(new.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(new.var(1, unbiased=False), torch.ones(4), atol=1e-4, rtol=0)
