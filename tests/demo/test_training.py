"""The demo's comparison is fair: the graft is the only difference, and without learning there is none."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from graftlib import Mapping, trace
from graftlib_adapters.demo import recipe
from graftlib_adapters.demo.control import noise_source
from graftlib_adapters.demo.data import load
from graftlib_adapters.demo.models import make_source, make_target, parameter_count
from graftlib_adapters.demo.training import Lesson, train, train_grafted


@pytest.fixture(scope="module")
def images():
    return load("digits")


@pytest.fixture
def lesson(images):
    x, y = images.few(60, seed=0)
    return Lesson(
        x, y, (images.test_x[:50], images.test_y[:50]), epochs=4, batch=20, lr=0.1, seed=5
    )


@pytest.fixture
def models(images):
    torch.manual_seed(1)
    return make_source(images.shape, 10), make_target(images.shape, 10)


def mapped(source, target, images):
    example = (images.test_x[:2],)
    return recipe.link(Mapping(trace(source, example), trace(target, example)))


def same(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def watched(model):
    """The batches that `model` sees while it trains, copied."""
    seen = []
    model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone()) if module.training else None
    )
    return seen


def test_plain_and_grafted_see_the_same_batches(models, images, lesson):
    source, plain = models
    grafted = deepcopy(plain)
    first, second = watched(plain), watched(grafted)
    one, other = (
        train(plain, lesson),
        train_grafted(grafted, mapped(source, grafted, images), lesson),
    )
    assert len(first) == lesson.steps == 12
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert one.batches == other.batches


def test_another_seed_sees_other_batches(models, lesson):
    _, target = models
    other = Lesson(**{**vars(lesson), "seed": 6})
    assert train(deepcopy(target), lesson).batches != train(target, other).batches


def test_an_adapter_that_never_learns_changes_nothing(models, images, lesson, monkeypatch):
    """With a learning rate of 0, grafted training is plain training, bit for bit."""
    source, plain = models
    grafted = deepcopy(plain)
    train(plain, lesson)
    monkeypatch.setattr(recipe, "LEARNING_RATE", 0.0)
    curve = train_grafted(grafted, mapped(source, grafted, images), lesson)
    assert len(curve.history) == 3
    assert same(plain, grafted)


def test_an_adapter_that_learns_changes_something(models, images, lesson):
    source, plain = models
    grafted, before = deepcopy(plain), deepcopy(source)
    train(plain, lesson)
    train_grafted(grafted, mapped(source, grafted, images), lesson)
    assert not same(plain, grafted)
    assert same(before, source)  # the source is frozen


def test_the_last_stretch_is_the_targets_own(models, images, lesson):
    source, target = models
    history = train_grafted(target, mapped(source, target, images), lesson).history
    assert [entry["step"] for entry in history] == [0, 4, 8]
    assert max(entry["step"] for entry in history) < 0.8 * lesson.steps


def test_the_control_is_noise_of_the_same_moments(models):
    source, _ = models
    name = "layer4.0.downsample.0.weight"
    noise = noise_source(source, [name], seed=0)
    old, new = source.get_parameter(name).detach(), noise.get_parameter(name).detach()
    assert not torch.equal(old, new)
    assert float(new.mean()) == pytest.approx(float(old.mean()), abs=1e-6)
    assert float(new.std()) == pytest.approx(float(old.std()), rel=1e-4)
    others = [key for key in source.state_dict() if key != name]
    assert all(torch.equal(source.state_dict()[key], noise.state_dict()[key]) for key in others)


def test_the_target_is_slim(models):
    source, target = models
    assert parameter_count(source) > 20 * parameter_count(target)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_both_models_take_every_data_set(shape):
    x = torch.randn(2, *shape)
    assert make_source(shape, 7).eval()(x).shape == make_target(shape, 7).eval()(x).shape == (2, 7)
