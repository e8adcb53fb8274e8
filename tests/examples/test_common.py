"""What the examples share: data in fair halves, results that come back, runs that are done once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from examples.common import datasets, memory, results
from examples.common.datasets import stratified
from examples.common.processes import ProcessError, apart
from examples.common.training import accuracy, load_or_train


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 180), st.integers(0, 9))
@example([1, 1, 28, 4, 4], 4, 0).via("further off than one")
def test_a_stratified_draw_keeps_the_shares(counts, n, seed):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    n = min(n, len(labels))
    chosen = stratified(labels, seed, n)
    assert set(chosen.tolist()) == set(stratified(labels, seed)[:n].tolist())
    assert len(set(chosen.tolist())) == n
    taken = labels[chosen].bincount(minlength=len(counts))
    for count, got in zip(counts, taken.tolist(), strict=True):
        share = count / len(labels)
        assert abs(got - n * share) <= 0.5 + len(counts) * share / 2 + 1e-9


def test_another_seed_draws_other_images():
    labels = torch.arange(10).repeat(30)
    assert torch.equal(stratified(labels, 0, 50), stratified(labels, 0, 50))
    assert not torch.equal(stratified(labels, 0, 50), stratified(labels, 1, 50))


def test_the_halves_of_the_digits_share_no_image_and_the_first_alone_normalises():
    _, (x, _, test_x, test_y) = datasets.split("digits")
    train = {tuple(image.flatten().tolist()) for image in x}
    test = {tuple(image.flatten().tolist()) for image in test_x}
    assert (x.shape, test_x.shape) == ((1400, 1, 8, 8), (397, 1, 8, 8))
    assert len(train & test) == 0
    assert test_y.bincount(minlength=10).tolist() == pytest.approx([39.7] * 10, abs=1)
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)
    assert float(test_x.mean()) != pytest.approx(0, abs=1e-4)


def test_cifar10_is_read_and_split(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "cifar10_10k.npz", x=x, y=np.repeat(np.arange(10), 20))
    about, (train_x, _, _, test_y) = datasets.split("cifar10", tmp_path)
    assert train_x.shape == (160, 3, 32, 32)
    assert test_y.bincount().tolist() == [4] * 10
    assert "160 / 40, stratified, seed 0" in about


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "mnist", "digit"])
def test_what_is_absent_is_said_with_the_way_to_get_it(tmp_path, name):
    with pytest.raises(SystemExit, match="there are digits" if name == "digit" else "--root DIR"):
        datasets.split(name, tmp_path)


@pytest.mark.data
def test_the_larger_sets_are_read(data_root):
    x, y, test_x, _ = datasets.halves("fashion-mnist", data_root)
    assert (x.shape, test_x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert int(y.max()) == 9


words = st.text("abc", min_size=1, max_size=2)
leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, 1e-9]) | words
plain = st.recursive(
    leaves, lambda each: st.lists(each, max_size=4) | st.dictionaries(words, each, max_size=4)
)


@given(st.dictionaries(words, plain, max_size=3))
@example({"a": [{"b": 1, "c": []}, {"c": [{"a": 1}, {"a": 1}], "b": 1}]}).via("another order")
@example({"a": [{"b": {"a": 1}}, {"b": {"a": 2}}, {"c": 1}] * 9}).via("tables in tables")
@example({"a": [1, True, 1.0, 0, False, None] * 9}).via("equal, and written otherwise")
@example({"a": [{"b": i % 2, "c": "long words"} for i in range(9)] + [{"b": 1}]}).via("a pool")
def test_results_come_back_with_their_order(report):
    back = results._unpacked(json.loads(results.dumps(report)))
    assert back == report
    assert json.dumps(back) == json.dumps(report)  # keys in their order, too


@given(st.floats(-1e6, 1e6, allow_nan=False))
def test_a_short_number_prints_as_the_whole_one(value):
    short = results._short(value)
    assert f"{short:.4f}" == f"{value:.4f}"
    assert f"{short:.1%}" == f"{value:.1%}"
    assert abs(short - value) <= 1e-3 * abs(value)


def test_records_take_less_than_plain_text():
    report = {"runs": [{"seed": i, "accuracy": i / 3, "rounds": 8} for i in range(50)]}
    assert len(results.dumps(report)) < 0.3 * len(json.dumps(report, indent=1))


def test_what_repeats_is_written_once_and_read_as_copies(tmp_path):
    roles = [{"query": n % 3, "key": n % 3} for n in range(90)]
    assert len(results.dumps({"roles": roles})) < 0.2 * len(json.dumps(roles))
    results.save(tmp_path / "roles.json", {"roles": roles})
    again = results.load(tmp_path / "roles.json")["roles"]
    again[0]["query"] = 7
    assert again[1:] == roles[1:]


def test_a_record_that_some_lack_is_by_column_too(tmp_path):
    edits = [{"left": n / 7, "ran": True} for n in range(40)]
    rows = [{"name": n, "edit": edit} for n, edit in enumerate(edits)]
    del rows[3]["edit"], rows[20]["edit"]
    results.save(tmp_path / "rows.json", {"rows": rows})
    again = results.load(tmp_path / "rows.json")["rows"]
    assert [row.keys() for row in again] == [row.keys() for row in rows]
    assert again[1]["edit"]["ran"]
    assert (tmp_path / "rows.json").read_text("utf-8").count("ran") == 1


def test_the_published_results_are_small_and_in_their_shortest_form():
    files = sorted((Path(__file__).parents[2] / "docs" / "benchmarks").glob("*.json"))
    assert sum(path.stat().st_size for path in files) < 300_000
    longer = [
        path.name
        for path in files
        if len(results.dumps(results.load(path))) < len(path.read_text("utf-8"))
    ]
    assert longer == [], f"python -m examples.common.results {' '.join(longer)}"


def test_work_is_done_once(tmp_path):
    done = []
    path = tmp_path / "new" / "run.json"
    assert results.cached(path, lambda: done.append(1) or {"x": 1 / 3}) == {"x": 1 / 3}
    assert results.cached(path, lambda: done.append(2)) == {"x": 1 / 3}
    assert done == [1]


def test_trained_weights_are_kept(tmp_path):
    path, calls = tmp_path / "new" / "net.safetensors", []
    first = load_or_train(torch.nn.Linear(2, 2), path, calls.append)
    again = load_or_train(torch.nn.Linear(2, 2), path, calls.append)
    assert len(calls) == 1
    assert torch.equal(first.weight, again.weight)


def test_accuracy_counts_in_eval_mode_and_leaves_the_mode():
    model = torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.Identity()).train()
    x = torch.eye(4).repeat(200, 1)
    y = torch.arange(4).repeat(200)
    assert accuracy(model, x, y) == 100
    assert accuracy(model, x, (y + 1) % 4) == 0
    assert model.training


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel keeps no mark")
def test_a_peak_is_seen_after_it_is_over():
    before = memory.reset()
    block = torch.ones(2**24)  # 64 MiB
    del block
    grown = memory.peak() - before
    assert grown > 50 * 2**20
    memory.reset()
    assert memory.peak() - memory.resident() < 30 * 2**20


def test_a_process_of_its_own_gives_back_its_last_line(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, 2.5]}')
    assert apart("json.tool", "--compact", tmp_path / "x.json") == {"a": [1, 2.5]}
    with pytest.raises(ProcessError, match="absent") as failed:
        apart("json.tool", tmp_path / "absent.json")
    assert not failed.value.stopped
    with pytest.raises(ProcessError) as failed:
        apart("timeit", "while True: pass", limit=1)
    assert failed.value.stopped
