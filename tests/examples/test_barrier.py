"""The barrier of aligned pairs: it is seen where it is, and gone where an order was only hidden."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from examples.common import results

barrier = importlib.import_module("examples.benchmarks.barrier")


@pytest.fixture(scope="module")
def data():
    return barrier.load("digits", Path("nowhere"))


def trained(sizes, data, seed):
    torch.manual_seed(seed)
    model = barrier.mlp(sizes)
    barrier.train(model, *data[:2], epochs=6)
    return model.eval()


@pytest.fixture(scope="module")
def hidden(data):
    """A trained network, and the same with its units in another order."""
    sizes = [64, 24, 24, 10]
    base = trained(sizes, data, seed=0)
    other, state = barrier.mlp(sizes), base.state_dict()
    p, q = (torch.randperm(24, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    moved = {
        "0.weight": state["0.weight"][p],
        "0.bias": state["0.bias"][p],
        "2.weight": state["2.weight"][q][:, p],
        "2.bias": state["2.bias"][q],
        "4.weight": state["4.weight"][:, q],
        "4.bias": state["4.bias"],
    }
    other.load_state_dict(moved)
    return base, other.eval()


ALIGNED = [name for name in barrier.ways(None) if name.startswith("ours")]


@pytest.mark.parametrize("name", ALIGNED)
def test_a_hidden_order_is_found_and_leaves_no_barrier(name, hidden, data):
    found = barrier.row(barrier.ways(None)[name], hidden, data)
    assert found["barrier"] == pytest.approx(0.0, abs=1e-5)
    assert found["accuracy_barrier"] == 0.0
    assert found["function_error"] < 1e-6
    assert found["objective"] == pytest.approx(square(hidden[0]), rel=1e-6)


def square(model) -> float:
    return float(sum(p.detach().double().square().sum() for p in model.parameters()))


def test_where_nothing_is_aligned_the_barrier_is_seen(hidden, data):
    found = barrier.row(barrier.ways(None)["as they are"], hidden, data)
    assert found["barrier"] > 0.05
    assert found["accuracy_barrier"] > 2.0
    assert found["objective"] < 0.5 * square(hidden[0])


def test_a_changed_function_is_seen(hidden, data):
    """Of an "alignment" that moves one layer alone."""
    base, other = hidden
    moved = {**other.state_dict(), "0.weight": other.state_dict()["0.weight"].flip(0)}
    assert barrier.judged(base, other, moved, data[2])["function_error"] > 0.1


def test_ours_is_held_against_the_best_published_method():
    rows = {
        name: {"barrier": [height, 0.0]}
        for name, height in (("ours", 0.03), ("rebasin", 0.05), ("git-re-basin", 0.01))
    }
    found = barrier.against_published(rows)
    assert found["best_published"] == "git-re-basin"
    assert found["ours_minus_best"] == pytest.approx(0.02)
    assert found["within_0.01"] is False
    assert barrier.against_published({"ours": rows["ours"]}) == {}


def test_it_runs_once(tmp_path, monkeypatch):
    out = tmp_path / "barrier.json"
    line = ["--data", "digits", "--width", "8", "--epochs", "1", "--pairs", "2"]
    line += ["--cache", str(tmp_path), "-o", str(out)]
    barrier.main(line)
    first = results.load(out)
    assert set(ALIGNED) < set(first["rows"])

    def never(*args, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(barrier, "row", never)
    monkeypatch.setattr(barrier, "train", never)
    barrier.main(line)
    assert results.load(out) == first
