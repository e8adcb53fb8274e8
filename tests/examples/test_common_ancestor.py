"""Networks that begin with another's trained weights, the positive control, and the angle to a source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.benchmarks import paper_tables
from examples.common import results
from examples.paper import common_ancestor, downhill, training
from examples.paper.experiment import Arm, Setup
from examples.paper.harness import main
from examples.paper.run_files import RunFiles

from .toy import CPU, build

ROOT = Path(__file__).parents[2]


def family(**ancestor):
    """A fresh or trained A, and M and B that begin with it."""
    toy = build(Setup())
    M = toy.networks["M"]
    networks = {
        "A": replace(M, **ancestor),
        "M": replace(M, begins="A"),
        "B": replace(M, begins="A"),
    }
    return replace(toy, networks=networks, arms=(Arm("plain", ("M",)),))


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_network_begins_with_what_another_learned(tmp_path):
    toy = family()
    run_files = RunFiles(toy, Setup(), tmp_path)
    ancestor = run_files.source("A")
    assert not same(ancestor, training.made("A", toy.networks["A"], training.SOURCE_SEED, CPU))
    learners = [
        training.Learner(name, toy.networks[name], seed, 8, CPU, {"A": ancestor})
        for name, seed in (("M", 0), ("M", 1), ("B", 0))
    ]
    assert all(same(learner.model, ancestor) for learner in learners)
    learners[0].step()
    assert not same(learners[0].model, ancestor)
    assert same(learners[1].model, ancestor)  # a copy, not the source's own


def test_an_ancestor_that_is_never_trained_is_the_common_start(tmp_path):
    toy = family(source_rounds=0)
    found = RunFiles(toy, Setup(), tmp_path).source("A")
    assert same(found, training.made("A", toy.networks["A"], training.SOURCE_SEED, CPU))


def test_runs_and_sources_are_named_by_their_ancestors_too(tmp_path):
    names = set()
    for toy in (family(), family(source_rounds=3), build(Setup())):
        run_files = RunFiles(toy, Setup(), tmp_path)
        names.add(run_files.path(toy.arm("plain"), 0))
        names |= {run_files._source_paths("B")[0]} if "B" in toy.networks else set()
    assert len(names) == 5


def test_an_arm_reads_the_ancestor_of_those_it_trains(tmp_path):
    toy = family()
    run_files = RunFiles(toy, Setup(), tmp_path)
    assert run_files.needs(toy.arm("plain")) == ["A"]
    first, again = (run_files.record(toy.arm("plain"), seed) for seed in (0, 0))
    assert first == again
    assert first["weights"] == run_files.record(toy.arm("plain"), 1)["weights"]


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 10.0))
def test_a_way_keeps_to_the_sphere_and_ignores_lengths(rows, columns, scale):
    here, there = torch.randn(2, rows, columns + 1, dtype=torch.float64)
    way = downhill._way(here, there)
    assert abs((way * here).sum()) < 1e-9
    torch.testing.assert_close(downhill._way(here, scale * there), way)
    torch.testing.assert_close(downhill._way(here, here), torch.zeros_like(here))
    assert (way * there).sum() > 0  # and it leads there


@pytest.mark.slow
def test_the_measure_finds_the_end_of_its_own_training_and_no_noise(tmp_path):
    out = tmp_path / "downhill.json"
    downhill.main(["--rounds", "8", "--cache", str(tmp_path), "--out", str(out)])
    found = results.load(out)
    assert set(found["means"]) == set(downhill.STARTS)
    for kinds in found["means"].values():
        own = [mean for mean, _, _ in kinds["its own end"]]
        noise = [mean for mean, _, _ in kinds["noise"]]
        assert min(own) > 0.3
        assert max(map(abs, noise)) < 0.15
        assert len(own) == downhill.PHASES


@pytest.mark.slow
def test_the_positive_control_runs_with_its_controls(tmp_path, capsys):
    out = tmp_path / "found.json"
    arms = ["shared until 10 %", "untrained: pull", "untrained: pull, random source"]
    flags = ["--rounds", "6", "--cache", str(tmp_path), "--out", str(out), "--arms", *arms]
    main(common_ancestor.experiment, common_ancestor.__doc__, flags)
    rows = results.load(out)["metrics"]["M top-1"]
    assert set(rows) == {"plain", *arms}
    assert "minus untrained: pull, random source" in rows["untrained: pull"]
    assert "minus plain" not in rows["untrained: pull"]  # it has a reference of its own
    assert "common_ancestor" in capsys.readouterr().out


def test_every_arm_of_it_is_compared_with_its_own_start():
    made = common_ancestor.experiment(Setup())
    for arm in made.arms:
        start = arm.start.source
        assert (start in {"A0", "F0"}) is arm.name.startswith("untrained: ")
        if arm.graft is not None and arm.graft.spoil is None:
            assert arm.versus[0] == ("plain" if start == "A" else "untrained: plain")


def row(**differences):
    return {"mean": 1.0, "sd": 0.1, **differences}


@pytest.mark.parametrize(
    ("plain", "control", "gains"),
    [
        ([0.5, 0.1, 0.9], [0.4, 0.1, 0.7], True),
        ([0.5, -0.1, 1.1], [0.4, 0.1, 0.7], False),
        ([0.5, 0.1, 0.9], [0.4, -0.1, 0.9], False),
    ],
)
def test_a_gain_is_one_over_plain_and_over_the_controls(plain, control, gains):
    rows = {
        "plain": row(),
        "graft": row(**{"minus plain": plain, "minus graft, random source": control}),
        "kd": row(**{"minus plain": [1.0, 0.5, 1.5]}),  # no graft: nothing to count
    }
    found = paper_tables.gains({"metrics": {"M": rows}})
    assert found == ([("graft", "M")] if gains else [])
