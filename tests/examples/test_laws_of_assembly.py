"""The experiments on assembly: they run whole, go on where they stopped, and their shortcuts change no figure."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples.common import results
from examples.common.training import loss_and_accuracy
from examples.paper import mal, mal_heatmaps, mal_lambda, mal_positions, zoo
from graftlib_adapters.assembly import Curve

SCRIPTS = {"heatmaps": mal_heatmaps, "positions": mal_positions, "lambda": mal_lambda}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("laws")


@pytest.fixture
def few(monkeypatch):
    """Two members of one family and one of another, hardly trained."""
    members = [zoo.Architecture("mlp", 16, 2), zoo.Architecture("mlp", 24, 2)]
    members.append(zoo.Architecture("cnn", 4, 3))
    monkeypatch.setattr(zoo, "architectures", lambda scale="small": members)
    monkeypatch.setitem(zoo.EPOCHS["smoke"], "digits", 1)


def ran(script, folder, monkeypatch) -> dict:
    module = SCRIPTS[script]
    out = folder / "out"
    line = [script, "--scale", "smoke", "--cache", str(folder / "cache"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    module.main()

    return results.load(out / f"{script}.json")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_second_run_measures_nothing_and_says_the_same(script, folder, few, monkeypatch):
    first = ran(script, folder, monkeypatch)

    def never(*args, **options):
        raise AssertionError("measured again")

    for where, name in ((zoo, "train"), (mal, "walked"), (mal_lambda, "once")):
        monkeypatch.setattr(where, name, never)
    assert ran(script, folder, monkeypatch) == first
    assert list((folder / "out").glob("*.png"))


def test_every_walk_begins_at_the_base(folder, few, monkeypatch):
    pairs = folder / "cache" / "smoke" / "pairs"
    if not pairs.exists():
        ran("heatmaps", folder, monkeypatch)
    files = list(pairs.glob("*.json"))
    assert len(files) == 6
    met = 0
    for file in files:
        base = zoo.member(
            next(a for a in zoo.architectures() if a.name == file.stem.split("--")[2]),
            "digits",
            folder / "cache" / "smoke",
        )
        result = json.loads(file.read_text())
        for arm in result.get("arms", {}).values():
            met += 1
            data = zoo.load("digits", Path(), "smoke")
            x, y = (t[: mal.SIZES["smoke"][1]] for t in data.test)
            expected = loss_and_accuracy(base.model(data.shape), x, y)
            assert arm["test_accuracy"][0] == pytest.approx(expected[1])
            assert arm["test_loss"][0] == pytest.approx(expected[0], rel=1e-5)
    assert met >= 6 * 2


class Fixed(mal.Scorer):
    """A scorer of models that hold their figures."""

    measured = 0

    def _measured(self, model):
        self.measured += 1
        return tuple(model.weight.flatten().tolist())


def shown(*figures):
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([figures]))
    return model


accuracies = st.lists(st.sampled_from([99.5, 98.5, 95.0, 88.0, 40.0]), min_size=4, max_size=4)


@given(st.lists(accuracies, min_size=1, max_size=4), st.integers(0, 2))
def test_a_walk_that_is_cut_short_has_the_same_threshold(walks, matched):
    scorer = Fixed(None, (1, 1), points=5, matched=matched)
    for walk in walks:
        for figure in (99.0, *walk):
            scorer(shown(-figure, figure, -figure, figure))
    for i, walk in enumerate(walks):
        whole = Curve(tuple(range(5)), (99.0, *walk))
        seen = [row[3] for row in scorer.rows[5 * i : 5 * i + 5]]
        short = Curve(tuple(range(5)), tuple(seen))
        assert short.threshold(mal.TOLERANCE) == whole.threshold(mal.TOLERANCE)
        if i < matched:
            assert seen == [99.0, *walk]
        lost = [j for j, figure in enumerate((99.0, *walk)) if figure <= 99.0 - mal.HOPELESS]
        if i >= matched and lost:
            assert all(math.isnan(figure) for figure in seen[lost[0] + 1 :])


def test_equal_models_are_measured_once():
    scorer = Fixed(None, (1, 1), points=2)
    for figure in (99.0, 98.0, 99.0, 98.0, 99.0, 97.0):
        scorer(shown(0.0, figure, 0.0, figure))
    assert scorer.measured == 3
    assert [row[1] for row in scorer.rows] == [99.0, 98.0, 99.0, 98.0, 99.0, 97.0]


def test_an_interval_of_pairs_that_share_a_base_is_wider():
    one = {(f"b{i}", f"s{j}"): float(i) for i in range(6) for j in range(6)}
    free = {(f"b{i}", f"s{j}"): float((7 * i + 5 * j) % 6) for i in range(6) for j in range(6)}
    spread = [found["mean_high"] - found["mean_low"] for found in map(mal.clustered, (one, free))]
    assert spread[0] > 1.5 * spread[1]
    assert mal.clustered(one)["mean"] == mal.clustered(free)["mean"] == 2.5


def test_contrasts_change_one_size_and_nothing_else():
    names = [f"{f}-w{w}-d{d}" for f in ("mlp", "cnn") for w in (4, 8, 16) for d in (1, 2)]
    pairs = [(base, source) for base in names for source in names if base != source]

    def value(base, source):
        (width, depth), kin = mal_heatmaps.sizes(source), base[:3] == source[:3]
        return 100.0 * depth + width + 1000 * kin + 0.1 * mal_heatmaps.sizes(base)[0]

    values = {pair: value(*pair) for pair in pairs}
    narrower = mal_heatmaps.by_source(values, -1, 1)
    assert set(narrower.values()) == {4 - 16.0}
    assert {base.split("-")[1] for base, _ in narrower} == {"w8"}
    wider = mal_heatmaps.by_source(values, 1, 0)
    assert set(wider.values()) == {4.0, 8.0, 12.0}
    assert all(f"d{mal_heatmaps.sizes(base)[1]} " not in both for base, both in wider)
    bases = mal_heatmaps.by_base(values, "cnn")
    assert {base for base, _ in bases} == {"cnn-w16-d1", "cnn-w16-d2"}
    assert all(gap == pytest.approx(1.2) for gap in bases.values())
    assert not mal_heatmaps.by_base({k: 1.0 for k in pairs if "w4" in k[0]}, "cnn")
