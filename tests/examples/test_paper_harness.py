"""The laws of the paper's harness: arms differ in one thing, runs survive a kill, intervals are the textbook's."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats

from examples.common.intervals import interval
from examples.paper import harness, pictures, run_files, squad, summary, vqa
from examples.paper.controls import Noise, link, spoiled
from examples.paper.experiment import (
    Arm,
    Experiment,
    Setup,
    facts_of,
    setup_as,
)
from examples.paper.training import digest, made

from .toy import BOTH, CPU, GRAFT, Halves, build, perceptron


def report_in(folder: Path, *, tell=lambda line: None, **options) -> dict[str, Any]:
    return harness.report_of(build, Setup(), cache=folder, seeds=(0, 1), tell=tell, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished experiment: its folder, its report, and its records by arm and seed."""
    folder = tmp_path_factory.mktemp("finished")
    harness._opened.cache_clear()
    report = report_in(folder)
    records = [json.loads(path.read_text()) for path in folder.glob("run-*.json")]
    return folder, report, {(r["arm"], r["seed"]): r for r in records}


def test_arms_share_weights_and_batches(finished):
    _, report, records = finished
    same = report["same in every arm"]
    assert set(same["batches"]) == set(same["weights"]) == {"R", "M"}
    for (_, seed), record in records.items():
        for network, seen in record["batches"].items():
            assert seen.startswith(same["batches"][network][seed])
    assert same["batches"]["M"][0] != same["batches"]["M"][1]
    assert same["batches"]["M"][0] != same["batches"]["R"][0]


def test_another_order_of_the_data_is_refused(finished):
    *_, records = finished
    runs = summary.by_arm(list(records.values()))
    summary.check(runs)
    runs["kd"][1] = {**runs["kd"][1], "batches": {"M": "another"}}
    with pytest.raises(summary.MismatchError, match="'kd', seed 1: the batches of 'M'"):
        summary.check(runs)


def test_who_trains_beside_changes_nothing(finished):
    """Dropout included: R beside a grafted M, and M alone with an adapter that never learns, are plain's to the bit."""
    *_, records = finished
    for seed in (0, 1):
        plain = records["plain", seed]
        beside = records["one way, co-trained", seed]
        assert beside["loss"]["R"] == plain["loss"]["R"]
        assert beside["loss"]["M"] != plain["loss"]["M"]
        assert records["never learns", seed]["loss"]["M"] == plain["loss"]["M"]
        assert records["both ways", seed]["loss"]["R"] != plain["loss"]["R"]


def test_controls_are_there_and_differ(finished):
    *_, records = finished
    names = [f"one way{text}" for text in ("", ", random source", ", shuffled source")]
    names += ["one way, source at initialisation", "one way, equal-norm noise", "plain"]
    assert len({records[name, 0]["loss"]["M"] for name in names}) == len(names)
    assert records["one way", 0]["transfers"] == 3  # before steps 0, 2 and 4; 0.8 of 8 rounds to 6


def test_a_killed_experiment_ends_as_if_it_had_not_been(finished, tmp_path, monkeypatch):
    """Killed between two runs, then in the middle of one: no run is done twice, and the report is the same."""
    _, whole, _ = finished
    lines: list[str] = []

    def killed(line: str) -> None:
        lines.append(line)
        if len(lines) == 5:
            raise KeyboardInterrupt

    harness._opened.cache_clear()
    with pytest.raises(KeyboardInterrupt):
        report_in(tmp_path, tell=killed)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("run-*")}

    def dies(*args: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_files, "run", dies)
        with pytest.raises(KeyboardInterrupt):
            report_in(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("run-*")} == before
    harness._opened.cache_clear()
    resumed = report_in(tmp_path)
    assert before.items() <= {p.name: p.read_bytes() for p in tmp_path.glob("run-*")}.items()
    assert without_clocks(resumed) == without_clocks(whole)
    assert not list(tmp_path.glob(".*"))


def test_a_finished_experiment_trains_nothing(finished, monkeypatch):
    folder, whole, _ = finished
    monkeypatch.setattr(run_files, "run", lambda *args: pytest.fail("trained again"))
    assert report_in(folder) == whole


def without_clocks(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in ("cost", "table")}


def test_all_that_matters_is_in_the_key_and_the_rest_is_not(tmp_path):
    experiment = build(Setup())
    arm = experiment.arm("one way")

    def path(one: Experiment = experiment, of: Arm = arm, seed: int = 0) -> Path:
        return run_files.RunFiles(one, Setup(), tmp_path).path(of, seed)

    assert path(of=replace(arm, name="renamed", paper={"M right": 9.0}, versus=())) == path()
    assert path(replace(experiment, name="another table")) == path()
    changed = [
        path(seed=1),
        path(replace(experiment, rounds=9)),
        path(of=replace(arm, graft=replace(GRAFT, cycle=3))),
        path(of=replace(arm, graft=replace(GRAFT, options={"rank": 4}))),
        path(setup_as(experiment, Setup(overrides=(("trust", 0.1),))), of=experiment.arm("plain")),
        path(of=setup_as(experiment, Setup(overrides=(("trust", 0.1),))).arm("one way")),
        path(of=replace(arm, trains=("R", "M"))),
        path(replace(experiment, networks={**experiment.networks, "R": experiment.networks["M"]})),
    ]
    assert len({path(), *changed}) == 1 + len(changed)


def test_a_maker_with_arguments_out_of_sight_is_refused():
    with pytest.raises(TypeError, match="keywords only"):
        facts_of(partial(perceptron, 8))
    assert facts_of(partial(perceptron, width=8)) == {"make": "perceptron", "width": 8}


def test_settings_of_the_command_line_reach_every_graft():
    changed = setup_as(build(Setup()), Setup(rounds=3, overrides=(("cycle", 7), ("trust", 0.1))))
    assert changed.rounds == 3
    for arm in changed.arms:
        if arm.graft is not None:
            assert (arm.graft.cycle, arm.graft.options["trust"]) == (7, 0.1)
            assert arm.graft.options["heads"] == 2


def test_the_interval_is_scipys():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 8, generator=generator).tolist()
    found = interval([a - b for a, b in zip(ours, theirs, strict=True)])
    scipys = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found[1:] == pytest.approx([scipys.low, scipys.high])
    assert interval([1.5]) == [1.5, None, None]


def test_differences_are_taken_seed_by_seed(finished):
    _, report, records = finished
    row = report["metrics"]["M right"]["kd"]
    expected = [
        records["kd", seed]["metrics"]["M right"] - records["plain", seed]["metrics"]["M right"]
        for seed in (0, 1)
    ]
    assert row["minus plain"] == interval(expected)
    assert report["metrics"]["M right"]["plain"]["paper"] == 50.0


def test_noise_has_the_size_of_the_transfer_and_stays_in_its_matrix(finished):
    *_, records = finished
    models = {
        name: made(name, network, 0, CPU) for name, network in build(Setup()).networks.items()
    }
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in models.items()}
    sizes = records["both ways", 0]["sizes"]
    example = Halves("M").example()
    mapping = link(BOTH, models["R"], models["M"], example, example)
    noise = Noise("M", mapping, sizes, seed=0)
    step, rows = sizes[-1]
    noise.add(step + 1)
    assert all(torch.equal(v, before["M"][k]) for k, v in models["M"].state_dict().items())
    noise.add(step)
    for network, side in (("R", "source"), ("M", "target")):
        for name, value in models[network].state_dict().items():
            change = (value - before[network][name]).norm() / before[network][name].norm()
            assert float(change) == pytest.approx(
                rows[f"{side}:3.weight"] if name == "3.weight" else 0.0, rel=1e-4
            )
    assert min(rows.values()) > 0


@pytest.mark.parametrize("how", ["random", "shuffled", "initial"])
def test_a_spoiled_source_knows_nothing(how):
    network = build(Setup()).networks["R"]
    trained, fresh = made("R", network, 0, CPU), made("R", network, 1, CPU)
    kept = digest(trained)
    found = spoiled(trained, fresh, replace(GRAFT, spoil=how), seed=0)
    ours, theirs = trained.get_parameter("3.weight"), found.get_parameter("3.weight")
    assert digest(trained) == kept
    assert not torch.equal(ours, theirs)
    if how == "random":
        torch.testing.assert_close((theirs.mean(), theirs.std()), (ours.mean(), ours.std()))
    elif how == "shuffled":
        assert sorted(ours.tolist()) == sorted(theirs.tolist())
    else:
        assert found is fresh


def test_an_arm_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no such arm: kdd"):
        report_in(tmp_path, arms=["kdd"])


def test_one_seed_is_no_result():
    with pytest.raises(SystemExit, match="one seed has no spread"):
        harness.main(build, "", ["--seeds", "1"])


@pytest.mark.parametrize("module", [vqa, pictures], ids=lambda module: module.__name__)
def test_the_examples_in_docstrings_hold(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


class Letters:
    """A tokenizer whose tokens are words of any letters."""

    cls_token_id, sep_token_id, pad_token_id = 1, 2, 0

    def __call__(self, text, **options):
        spots, start = [], 0
        for word in text.split(" "):
            spots.append((start, start + len(word)))
            start += len(word) + 1
        ids = [3 + sum(map(ord, word)) for word in text.split(" ")]
        return {"input_ids": ids[: options.get("max_length")], "offset_mapping": spots}


QUESTIONS = [
    squad.Question(
        "a", "who came", "then a Tall Man came , and all was well again", (("Tall Man", 7),)
    ),
    squad.Question("b", "when", "it was never said", ()),
]


@pytest.mark.parametrize("window", [False, True])
def test_answers_are_found_again_and_scored_as_text(window):
    found = squad.encode(QUESTIONS[:1], Letters(), 10, window=window, answerable=True)
    first, last = found.spans[0].tolist()
    spots = found.reading.spots[0]
    assert QUESTIONS[0].context[int(spots[first, 0]) : int(spots[last, 1])] == "Tall Man"
    logits = torch.zeros(1, 2, 10)
    logits[0, 0, first] = logits[0, 1, last] = 5.0
    assert squad.exact_and_f1(logits, found.reading) == (100.0, 100.0)
    logits[0, 0, first] = 0.0
    logits[0, 0, last] = 5.0  # 'Man' alone: all of it is right, and half of the answer is there
    exact, overlap = squad.exact_and_f1(logits, found.reading)
    assert (exact, round(overlap, 2)) == (0.0, 66.67)


def test_silence_counts_only_where_there_may_be_no_answer():
    found = squad.encode(QUESTIONS, Letters(), 16, window=False, answerable=True)
    assert found.spans[1].tolist() == [0, 0]
    logits = torch.zeros(2, 2, 16)
    logits[:, :, 0] = 5.0
    assert squad.exact_and_f1(logits, found.reading)[0] == 50.0
    loud = replace(found.reading, silence=False)
    assert squad.exact_and_f1(logits, loud)[0] == 0.0


def test_no_article_is_in_two_splits():
    records = [squad.Question(f"article {i % 48}", str(i), "", ()) for i in range(200)]
    train, test = squad.split(records, "test")
    learn, validation = squad.split(records, "validation")
    titles = SimpleNamespace(
        **{
            name: {r.article for r in part}
            for name, part in {
                "train": train,
                "test": test,
                "learn": learn,
                "validation": validation,
            }.items()
        }
    )
    assert (len(titles.train), len(titles.test)) == (40, 8)
    assert titles.validation < titles.train
    assert not titles.learn & (titles.validation | titles.test)
    assert len(titles.learn) == 32
