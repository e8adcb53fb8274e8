"""A module may have any name that torch takes: mappings find it, save it and load it."""

import pytest
import torch
from torch import nn

from graftlib import Mapping, trace
from graftlib_adapters import assemble
from graftlib_adapters.assembly import AssemblyError

NAMES = [
    "a::b",
    "::",
    "::query",
    "\ud800",
    "a" * 2000,
    "1e5",
    "null",
    "a: b",
    "*",
    "re:a",
    "{i}",
    "\x1b[31m",
    "é",
    " ",
]


def named(name):
    model = nn.Sequential()
    model.add_module(name, nn.Linear(3, 3))
    return model


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_auto_save_and_load_whatever_the_name(name, tmp_path):
    x = torch.zeros(2, 3)
    source, target = trace(named(name), (x,)), trace(nn.Sequential(nn.Linear(3, 3)), (x,))
    mapping = Mapping(source, target).auto()
    assert [pair.source.fqn for pair in mapping.pairs] == [f"{name}.weight"]
    mapping.save(tmp_path / "map.yaml")
    assert Mapping.load(tmp_path / "map.yaml", source, target).pairs == mapping.pairs
    assert source.parameter(f"{name}.weight").fqn == f"{name}.weight"
    assert str(mapping).isprintable() or all(
        line.isprintable() for line in str(mapping).splitlines()
    )


@pytest.mark.parametrize(
    "name", [n for n in NAMES if not n.startswith("re:") and n not in ("*", "{i}")]
)
def test_a_link_names_it(name):
    x = torch.zeros(2, 3)
    source, target = trace(named(name), (x,)), trace(nn.Sequential(nn.Linear(3, 3)), (x,))
    assert len(Mapping(source, target).link(name, "0")) == 1


def test_half_a_letter_cannot_be_saved_as_weights_and_nothing_is_written(tmp_path):
    model = named("\ud800")
    done = assemble(model, named("b"), args=(torch.zeros(2, 3),), merge_factor=0.5)
    with pytest.raises(AssemblyError, match="half of a letter"):
        done.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_not_finite_is_refused_by_name_and_the_others_go_on():
    base, good, bad = (nn.Sequential(nn.Linear(3, 3)) for _ in range(3))
    bad[0].weight.data[0, 0] = float("nan")
    done = assemble(base, [bad, good], args=(torch.zeros(2, 3),), merge_factor=0.5)
    assert [step.accepted for step in done.record.steps] == [False, True]
    assert "not finite" in done.record.steps[0].reason
    assert all(p.isfinite().all() for p in done.model.parameters())
