"""The demo's images: nothing in both halves, classes in their shares, nothing half-read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from examples.common.datasets import load, stratified
from graftlib import GraftError


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 180), st.integers(0, 9))
@example([1, 1, 28, 4, 4], 4, 0).via("further off than one")
def test_a_stratified_draw_keeps_the_shares(counts, n, seed):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    n = min(n, len(labels))
    chosen = stratified(labels, n, seed)
    assert len(set(chosen.tolist())) == n
    taken = labels[chosen].bincount(minlength=len(counts))
    for count, got in zip(counts, taken.tolist(), strict=True):
        share = count / len(labels)
        assert abs(got - n * share) <= 0.5 + len(counts) * share / 2 + 1e-9


def test_another_seed_draws_other_images():
    labels = torch.arange(10).repeat(30)
    assert torch.equal(stratified(labels, 50, 0), stratified(labels, 50, 0))
    assert not torch.equal(stratified(labels, 50, 0), stratified(labels, 50, 1))


def test_the_halves_of_the_digits_share_no_image():
    images = load("digits")
    train = {tuple(x.flatten().tolist()) for x in images.train_x}
    test = {tuple(x.flatten().tolist()) for x in images.test_x}
    assert images.train_x.shape == (1400, 1, 8, 8)
    assert images.test_x.shape == (397, 1, 8, 8)
    assert len(train & test) == 0
    assert images.test_y.bincount(minlength=10).tolist() == pytest.approx([39.7] * 10, abs=1)


def test_normalisation_knows_the_training_half_alone():
    images = load("digits")
    assert float(images.train_x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(images.train_x.std()) == pytest.approx(1, abs=1e-3)
    assert float(images.test_x.mean()) != pytest.approx(0, abs=1e-4)


def test_cifar10_is_read_and_split(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10_10k.npz", x=x, y=np.repeat(np.arange(10), 20))
    images = load("cifar10-npz", tmp_path)
    assert images.train_x.shape == (160, 3, 32, 32)
    assert images.test_y.bincount().tolist() == [4] * 10
    assert "160 / 40, stratified, seed 0" in images.about


@pytest.mark.parametrize("content", ["garbage", "pickle", "shapes"])
def test_a_damaged_file_is_refused(tmp_path, content):
    file = tmp_path / "cifar10_10k.npz"
    if content == "garbage":
        file.write_bytes(b"PK\x03\x04 and then nothing")
    elif content == "pickle":
        np.savez(file, x=np.array([{"a": 1}], dtype=object), y=np.zeros(1))
    else:
        np.savez(file, x=np.zeros((200, 32, 32), dtype=np.uint8), y=np.zeros(200, dtype=np.int64))
    with pytest.raises(GraftError, match="cannot be read"):
        load("cifar10-npz", tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_the_larger_sets_are_read(data_root, name):
    images = load(name, data_root)
    assert images.train_x.shape == (60_000, 1, 28, 28)
    assert images.test_x.shape == (10_000, 1, 28, 28)
    assert images.classes == 10
