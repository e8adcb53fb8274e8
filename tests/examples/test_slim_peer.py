"""The comparison with another pruning tool: models trained side by side, equal costs, paired seeds."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

pytest.importorskip("torchvision", reason="torchvision is not installed")

from examples.benchmarks import slim_peer
from examples.common import together
from examples.common.together import Images, Recipe, train


@pytest.fixture
def images():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(48, 3, 8, 8, generator=random)
    y = torch.arange(48) % 10
    return Images(x, y, x, y)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 36, 10))


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_models_side_by_side_see_the_same_batches(images, rule):
    """However many are trained at a time, and whatever the random state is..."""
    pair = [net(), net()]
    train(pair, images, Recipe(rule, 0.05, 2, 16, most=2), 5)
    torch.manual_seed(7)
    alone = net()
    train([alone], images, Recipe(rule, 0.05, 2, 16, most=1), 5)
    for a, b, c in zip(*(m.parameters() for m in (*pair, alone)), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_another_seed_is_another_order(images):
    """...but not under another seed."""
    one, other = net(), net()
    train([one], images, Recipe("sgd", 0.05, 2, 16), 5)
    train([other], images, Recipe("sgd", 0.05, 2, 16), 6)
    assert not torch.equal(one[0].weight, other[0].weight)


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_a_step_is_that_of_torchs_optimizer(images, rule):
    model, recipe = net(), Recipe(rule, 0.05, 2, 16)
    plain = copy.deepcopy(model).train()
    train([model], images, recipe, 5)
    course = together._Course(images, recipe, 5)
    optimizer = (
        torch.optim.SGD(plain.parameters(), 1.0, momentum=0.9, weight_decay=5e-4, nesterov=True)
        if rule == "sgd"
        else torch.optim.AdamW(plain.parameters(), 1.0, weight_decay=0.05)
    )
    for rows, motion, rate in zip(course.order, course.motion, course.rates, strict=True):
        x = images.x[rows]
        grid = F.affine_grid(motion, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, mode="nearest", align_corners=False)
        optimizer.zero_grad()
        F.cross_entropy(plain(x), images.y[rows]).backward()
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@given(st.floats(0.1, 0.9), st.floats(0.2, 0.95), st.floats(1.2, 3.0))
def test_a_ratio_is_found_for_a_share_of_the_costs(share, first, power):
    kept, ratio = slim_peer.nearest(lambda ratio: 1 - ratio, lambda kept: kept**power, share, first)
    assert kept == 1 - ratio
    assert kept**power == pytest.approx(share, rel=0.05)


def test_differences_are_paired_over_common_seeds():
    runs = [
        {"setting": "peer group-L2, local", "seed": seed, "tuned": 50.0 + seed} for seed in range(3)
    ]
    runs += [{"setting": "peer Taylor, local", "seed": seed, "tuned": 40.0} for seed in range(3)]
    runs += [{"setting": "magnitude", "seed": seed, "tuned": 52.0 + seed} for seed in (1, 2, 5)]
    found = slim_peer.table([run | {"macs": 0.5, "seconds": 1.0} for run in runs], "tuned")
    assert found["best"] == "peer group-L2, local"
    assert found["rows"]["magnitude"]["minus best"] == [2.0, 2.0, 2.0]
    assert found["rows"]["magnitude"]["n"] == 3
    assert "minus best" not in found["rows"]["peer Taylor, local"]
