"""Checkpoints: stand-ins run whole and say what they are; retrieval, probes and gains are what they are called."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from examples.common import results
from examples.paper import mal_checkpoints as checkpoints
from examples.paper import squad

pytest.importorskip("transformers")
pytest.importorskip("torchvision")


def test_it_runs_once_and_says_that_it_is_no_result(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    line = ["--scale", "smoke", "--cache", str(tmp_path), "--out", str(out)]
    checkpoints.main(line)
    assert "no result" in capsys.readouterr().out

    first = results.load(out)
    assert first["result"] is False
    assert set(first["texts"]["pairs"]) == {"every second", "by order"}
    assert set(first["texts"]["pairs"]["every second"]["arms"]) == {
        "matched",
        "identity",
        "random",
        "shrink",
    }
    assert set(first["texts"]["parts"]) == set(checkpoints.PARTS)
    arms = first["images"]["pairs"]["slim"]["arms"]
    wanted = {
        f"{how}, {pad}" for how in ("matched", "random", "shrink") for pad in ("keep", "zero")
    }
    assert set(arms) == wanted | {"identity, keep"}
    for row in arms.values():
        assert row["factors"][0] == 0.0
        assert row["best"] in row["factors"]
        assert len(row["val_loss"]) == len(row["factors"])

    def never(*args, **options):
        raise AssertionError("measured again")

    for name in ("walk", "refitted", "retrieved"):
        monkeypatch.setattr(checkpoints, name, never)
    checkpoints.main(line)
    assert results.load(out) == first


class Bags(nn.Module):
    """An encoder whose state of a token is the token, one-hot."""

    def forward(self, input_ids, attention_mask):
        states = nn.functional.one_hot(input_ids, 20).float()
        return type("Output", (), {"last_hidden_state": states})


def test_recall_counts_questions_whose_passage_is_nearest():
    """Of unequal lengths and in a shuffled order, so that padding or a wrong order would show."""
    model = checkpoints.Similar(Bags())
    passages = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]
    loss, hit = checkpoints.retrieved(model, [[1, 2], [7, 7, 7, 7], [8]], passages)
    assert hit.tolist() == [1, 1, 1]
    worse, missed = checkpoints.retrieved(model, [[7], [1, 2], [8]], passages)
    assert missed.tolist() == [0, 0, 1]
    assert bool((worse[:2] > loss[:2] + 1).all())
    alone = checkpoints.embedded(model, [passages[1]])
    assert torch.allclose(checkpoints.embedded(model, passages, batch=3)[1], alone[0])


def test_a_passage_is_the_sentence_of_the_answer_and_the_next():
    text = "First one. Second holds it. Third follows. Fourth is away."
    asked = squad.Question("a", "?", text, (("holds", text.index("holds")),))
    assert checkpoints.passage(asked).strip() == "Second holds it. Third follows."
    last = squad.Question("a", "?", text, (("away", text.index("away")),))
    assert checkpoints.passage(last) == "Fourth is away."


def test_a_paragraph_is_asked_about_once():
    answer = (("x", 0),)
    records = [squad.Question("a", str(i), f"context {i % 3}", answer) for i in range(9)]
    chosen = checkpoints.drawn(records, 5)
    assert len(chosen) == 3
    assert len({each.context for each in chosen}) == 3
    assert checkpoints.drawn(records, 2) == chosen[:2]


def test_the_probe_learns_what_is_linear():
    torch.manual_seed(0)
    x, y = torch.randn(400, 16), torch.randint(10, (400,))
    x[torch.arange(400), y] += 6
    probe = checkpoints.fitted(x[:300], y[:300])
    _, hits = checkpoints.classified(checkpoints.Probed(nn.Identity(), probe), x[300:], y[300:])
    assert float(hits.mean()) > 0.9
    drawn = y[torch.randperm(400)]
    spoilt = checkpoints.Probed(nn.Identity(), checkpoints.fitted(x[:300], drawn[:300]))
    assert float(checkpoints.classified(spoilt, x[300:], y[300:])[1].mean()) < 0.4


def test_a_walk_reads_validation_alone_and_stops_where_all_is_lost():
    """Accuracies of 100 and 70, and what would come is not asked for."""
    asked = []
    values = {0.1: 1.0, 0.2: 0.7, 0.3: 1.0, 0.4: 1.0}

    class Given:
        def model(self, arm, factor, layers=None):
            return factor

    def exam(factor):
        asked.append(factor)
        return torch.full((10,), factor), torch.full((10,), values[factor])

    never = partial(pytest.fail, "test examples chose something")
    base = torch.full((10,), 0.15), torch.ones(10)
    row = checkpoints.walk(Given(), checkpoints.Exam(exam, never), base, "matched", tuple(values))
    assert asked == [0.1, 0.2]
    assert row["val_accuracy"] == pytest.approx([100, 100, 70, None, None])
    assert row["best"] == 0.1
    assert 0.1 <= row["threshold"] < 0.2
    assert checkpoints.held(row) == 0.1
    assert checkpoints.held({"factors": [0.0, 0.1], "val_accuracy": [90.0, 88.9]}) == 0.0


def test_gains_are_paired_and_larger_is_better():
    base = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 1.0])
    found = torch.tensor([0.5, 1.5, 2.5]), torch.tensor([1.0, 1.0, 1.0])
    row = checkpoints.against(base, found)
    assert row["loss_gain"] == pytest.approx([0.5, 0.5, 0.5])
    assert row["accuracy_gain"][0] == pytest.approx(100 / 3)
    assert row["accuracy"] == 100
