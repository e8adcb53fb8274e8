"""A plan comes back from JSON as it was, refuses what is damaged, and forgets steps from its end."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftlib import trace
from graftlib_adapters.assembly import Alignment, AssemblyError, Permutation, Plan, problem
from graftlib_adapters.assembly.plan import Reads, Step, alignment_of, reads_of

names = st.text(max_size=8)
numbers = st.floats(-1e6, 1e6)


@st.composite
def steps(draw):
    accepted = draw(st.booleans())
    units = tuple(draw(st.permutations([0, 1, 2, -1])))
    return Step(
        source=draw(names),
        number=draw(st.integers(0, 9)),
        fingerprint=draw(names),
        accepted=accepted,
        reason=draw(names),
        factor=draw(st.floats(0, 1)),
        layers=draw(st.none() | st.lists(names, max_size=2).map(tuple)),
        before=draw(st.none() | numbers),
        after=draw(st.none() | numbers),
        tried=draw(st.integers(0, 50)),
        objective=draw(st.none() | numbers),
        reads=(Reads(draw(names), draw(names), 3, units),) if accepted else (),
    )


plans = st.builds(
    Plan,
    base=names,
    fingerprint=names,
    settings=st.dictionaries(names, st.none() | numbers | names, max_size=2),
    steps=st.lists(steps(), max_size=4).map(tuple),
    stopped=names,
)


@given(plans)
def test_a_plan_comes_back_from_json(plan):
    assert Plan.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False))) == plan


@given(plans)
def test_a_plan_comes_back_from_its_file(tmp_path_factory, plan):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan


@given(plans, st.integers(0, 4))
def test_undoing_leaves_a_beginning_with_that_many_fewer_merges(plan, count):
    if count > len(plan.accepted):
        with pytest.raises(AssemblyError, match="cannot be undone"):
            plan.without(count)
        return
    shorter = plan.without(count)
    assert shorter.steps == plan.steps[: len(shorter.steps)]
    assert len(shorter.accepted) == len(plan.accepted) - count
    assert count or shorter == plan


@given(plans.filter(lambda plan: plan.steps), st.data())
def test_any_field_that_is_missing_or_of_another_type_is_named(plan, data):
    whole = plan.to_json()
    place = data.draw(st.sampled_from(["plan", "step"]))
    fields = whole if place == "plan" else whole["steps"][0]
    name = data.draw(st.sampled_from(sorted(fields)))
    damaged = copy.deepcopy(whole)
    target = damaged if place == "plan" else damaged["steps"][0]
    target[name] = {"not": "this"} if name != "settings" else 3
    with pytest.raises(AssemblyError) as error:
        Plan.from_json(damaged)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"format": "graftlib assembly plan", "version": 2},
        {"format": "graftlib assembly plan", "version": True},
        {"format": "another", "version": 1},
    ],
)
def test_what_is_no_plan_is_refused(values):
    with pytest.raises(AssemblyError):
        Plan.from_json(values)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"])
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(AssemblyError, match="cannot be read as JSON"):
        Plan.load(tmp_path / "plan.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(AssemblyError, match="cannot be read"):
        Plan.load(tmp_path / "none.json")


# ---------------------------------------------------------------------------------- permutations


def met(base_width=4, source_width=6):
    def graph(width):
        model = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
        return trace(model, (torch.zeros(1, 3),))

    return problem(graph(base_width), graph(source_width))


def step_of(alignment):
    return Step("s", 0, "", True, "", 0.5, reads=reads_of(alignment))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_an_alignment_comes_back_from_its_step(bases, sources, seed):
    found = met(bases, sources)
    random = torch.Generator().manual_seed(seed)
    permutations = {
        i: Permutation.random(pair.bases, pair.sources, random)
        for i, pair in enumerate(found.classes)
    }
    again = alignment_of(found, step_of(Alignment(found, permutations, 0.0, ())))
    assert dict(again.permutations) == permutations


def test_a_step_of_other_models_is_refused():
    found, other = met(), met(5)
    permutations = {
        i: Permutation.identity(p.bases, p.sources) for i, p in enumerate(found.classes)
    }
    step = step_of(Alignment(found, permutations, 0.0, ()))
    with pytest.raises(AssemblyError, match="made for other models"):
        alignment_of(other, step)


def test_a_step_that_reads_a_unit_there_is_not_is_refused():
    found = met()
    (pair,) = found.classes
    reads = Reads(str(pair.base.members[0]), str(pair.source.members[0]), 6, (0, 1, 2, 99))
    with pytest.raises(AssemblyError):
        alignment_of(found, Step("s", 0, "", True, "", 0.5, reads=(reads,)))


def test_a_plan_prints_what_was_done_and_why():
    refused = Step("bad\x1b[31m", 0, "", False, "the best scores 1, not above 2")
    merged = Step("good", 1, "", True, "1 -> 2", 0.25, ("0", "2"))
    text = str(Plan("Net", "", {}, (refused, merged), "all sources were gone through once"))
    assert "1 of 2 steps merged into Net" in text
    assert "'good': merged at 0.25 into 2 modules; 1 -> 2" in text
    assert "not above 2" in text
    assert "\x1b" not in text
