"""Axis classes against what others wrote by hand: Git Re-Basin's permutations and mergekit's spaces.

The published facts are the tables in `truth/`, with where they come from. They must agree both ways: every published
space is one class, or a product of classes that the table names and explains; no free class is without a space.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from truth.models import MODELS
from truth.table import Axis, Finer, Ours, Table, differences, names, read, source

from graftlib.graph import LayerGraph, trace
from graftlib.graph.axes import Member, check
from graftlib.graph.axes.check import TOLERANCE, changed, draw
from graftlib.graph.axes.trial import Trial, difference

GIT_RE_BASIN = ["mlp", "resnet20", "resnet50", "vgg16"]
MERGEKIT = ["exaone", "gemma", "llama", "solar", "stablelm"]


@cache
def seen(name: str) -> LayerGraph:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    return trace(model, (), inputs)


@cache
def ours(name: str) -> Ours:
    return Ours(seen(name), read(name).beyond)


def test_every_table_has_a_model_and_says_where_it_comes_from():
    assert names() == sorted(MODELS) == sorted([*GIT_RE_BASIN, *MERGEKIT])
    for name in names():
        assert source(name).keys() == {"repository", "commit", "path", "name", "licence"}
        assert len(source(name)["commit"]) == 40


@pytest.mark.parametrize("name", GIT_RE_BASIN)
def test_git_re_basin_and_we_agree_exactly(name):
    """Every permutation that is written down is one class over whole axes; there is no other."""
    table = read(name)
    assert table.ours == {}
    assert differences(table, ours(name)) == []


@pytest.mark.parametrize("name", MERGEKIT)
def test_mergekit_and_we_agree(name):
    """The residual stream and the inner units are one class each; attention is the same, and finer."""
    table = read(name)
    assert {space.partition("_")[0] for space in table.whole} == {
        "up",
        "running" if "running_residual" in table.spaces else "residual",
    }
    assert differences(table, ours(name)) == []


@pytest.mark.parametrize("name", names())
def test_the_agreed_classes_hold(name):
    """Agreement would be worth nothing if both were wrong: the model is run."""
    assert check(seen(name)).passed


@pytest.mark.parametrize("name", names())
def test_any_single_wrong_entry_of_a_table_is_seen(name):
    """The comparison is able to fail: an axis forgotten, moved to another space, or a number of units wrong."""
    table = read(name)
    wrong = [*_forgotten(table), *_moved(table), *_miscounted(table)]
    assert len(wrong) >= sum(map(len, table.whole.values()))
    assert [each for each in wrong if not differences(each, ours(name))] == []


def _forgotten(table: Table) -> list[Table]:
    return [
        replace(table, spaces={**table.spaces, space: axes - {axis}})
        for space, axes in table.whole.items()
        for axis in axes
    ]


def _moved(table: Table) -> list[Table]:
    """Every axis of a space in the next one instead, and two spaces made one."""
    spaces = list(table.whole)
    pairs = list(zip(spaces, [*spaces[1:], spaces[0]], strict=True))
    moved = [
        _with(table, {a: table.spaces[a] - {axis}, b: table.spaces[b] | {axis}})
        for a, b in pairs
        for axis in table.spaces[a]
    ]
    return moved + [_with(table, {a: table.spaces[a] | table.spaces[b]}) for a, b in pairs]


def _with(table: Table, spaces: dict[str, frozenset[Axis]]) -> Table:
    return replace(table, spaces={**table.spaces, **spaces})


def _miscounted(table: Table) -> list[Table]:
    def changed_to(name: str, each: Finer) -> Table:
        return replace(table, ours={**table.ours, name: each})

    return [
        wrong
        for name, each in table.ours.items()
        for wrong in (
            changed_to(name, replace(each, units=each.units + 1)),
            changed_to(name, replace(each, frozen=not each.frozen)),
        )
    ]


def test_an_attention_space_as_published_is_too_wide():
    """Why ours is finer: heads of values cannot be put in another order alone, nor units across heads."""
    graph = seen("stablelm")
    trial = Trial(graph)
    before = trial.run()
    space = read("stablelm").spaces["attn_v_0"]
    size = graph.model.config.hidden_size
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    with changed(trial, {Member(fqn, axis, 0, (size,), 0): order for fqn, axis in space}):
        assert difference(before, trial.run()) > 1e3 * TOLERANCE


def test_rotary_units_are_frozen_for_a_reason():
    """Why ours is narrower: the units of a head that rotary positions turn are told apart by their angles."""
    graph = seen("llama")
    trial = Trial(graph)
    before = trial.run()
    frozen = [each for each in graph.axis_classes if not each.free and each.size == 4]
    turned = [m for each in frozen for m in each.members if "layers.0.self_attn" in m.fqn]
    assert {m.fqn.split(".")[-2] for m in turned} == {"q_proj", "k_proj"}
    [(_, order)] = draw(frozen[:1], seed=0)
    with changed(trial, dict.fromkeys(turned, order)):
        assert difference(before, trial.run()) > 1e3 * TOLERANCE


def test_a_tied_table_is_one_parameter_in_one_class():
    """What mergekit says by leaving out the head of Gemma: the table is read for words and for logits."""
    graph = seen("gemma")
    keys = [m.fqn for c in graph.axis_classes for m in c.members if "embed" in m.fqn and c.free]
    assert keys == ["model.embed_tokens.weight"]
    assert not any("lm_head" in m.fqn for c in graph.axis_classes for m in c.members)
