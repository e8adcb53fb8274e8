"""A run that was stopped goes on behind its importances, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from graftlib import slim, trace
from graftlib.slim import Cache, slimming

from . import nets

RULES = {"budget": {"params": 0.7}, "multiple_of": 1, "refit": None}
DATA = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))]


def stopped(graph, cache, monkeypatch, **options):
    """A run that is killed once its importances are measured."""

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(slimming, "pruned", kill)
        with pytest.raises(KeyboardInterrupt):
            slim(graph, cache=cache, **{**RULES, "data": DATA, **options})


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return trace(*nets.made(nets.Residual))


def test_a_stopped_run_goes_on_to_the_same_end(graph, tmp_path, monkeypatch):
    stopped(graph, Cache(tmp_path / "x"), monkeypatch)
    cache = Cache(tmp_path / "x")
    with monkeypatch.context() as patch:
        patch.setattr(slimming, "importances", lambda *_: pytest.fail("measured again"))
        again = slim(graph, data=DATA, cache=cache, **RULES)
    assert cache.used == 1
    due = slim(graph, data=DATA, **RULES)
    assert again.edit == due.edit
    assert {c: w.tolist() for c, w in again.importances.items()} == {
        c: w.tolist() for c, w in due.importances.items()
    }


@pytest.mark.parametrize(
    "other",
    [
        {"data": [DATA[0] + 1e-6]},
        {"data": [DATA[0][:7]]},
        {"importance": "activation"},
        {"keep": "stem"},
        {"ranking": "global"},
    ],
    ids=["values", "samples", "measure", "classes", "ranking"],
)
def test_what_another_call_measured_is_not_used(graph, tmp_path, monkeypatch, other):
    stopped(graph, Cache(tmp_path / "x"), monkeypatch)
    cache = Cache(tmp_path / "x")
    stopped(graph, cache, monkeypatch, **other)
    assert cache.used == 0
    cache = Cache(tmp_path / "x")
    stopped(graph, cache, monkeypatch)
    assert cache.used == 1, "both are kept"


def test_other_weights_are_measured(graph, tmp_path, monkeypatch):
    stopped(graph, Cache(tmp_path / "x"), monkeypatch)
    model, x = nets.made(nets.Residual)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    cache = Cache(tmp_path / "x")
    stopped(trace(model, x), cache, monkeypatch)
    assert cache.used == 0


def test_a_damaged_file_is_none(graph, tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"\0" * 9)
    cache = Cache(tmp_path / "x")
    stopped(graph, cache, monkeypatch)
    assert cache.used == 0
    stopped(graph, cache, monkeypatch)
    assert cache.used == 1


@pytest.mark.parametrize(
    "spoil", [lambda t: t * float("nan"), lambda t: t[1:], lambda t: t.float()]
)
def test_numbers_that_are_no_importances_are_measured_again(graph, tmp_path, monkeypatch, spoil):
    stopped(graph, Cache(tmp_path / "x"), monkeypatch)
    known = load_file(tmp_path / "x")
    save_file({n: spoil(t) if t.numel() else t for n, t in known.items()}, tmp_path / "x")
    for used in (0, 1):  # the second finds what the first has written
        cache = Cache(tmp_path / "x")
        stopped(graph, cache, monkeypatch)
        assert cache.used == used
