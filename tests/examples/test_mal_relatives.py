"""Relatives: who sees which images, what the controls go through, and what the report claims."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.common import results
from examples.paper import mal_relatives as relatives
from examples.paper import zoo
from graftlib import trace
from graftlib_adapters.assembly import align, problem

SMALL = relatives.SETTINGS["smoke"]["mlp"]


@pytest.fixture(scope="module")
def images():
    return zoo.load("digits", Path("nowhere"), "smoke")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("relatives")


@pytest.fixture(scope="module")
def family(images, cache):
    held = tuple(t[150:] for t in images.val)
    return relatives.Family(SMALL, images, 0, cache, held, tuple(t[:150] for t in images.val))


def test_no_two_networks_see_the_same_image(family, images):
    """The ancestor's images and the shares lie side by side in one drawn order; all shares are these together."""
    count = 1 + len(SMALL.sources)
    shares = [family.share(i)[0] for i in range(count)]
    first, size = SMALL.first[0], SMALL.share
    assert torch.equal(torch.cat(shares), family.pool[0][first : first + count * size])
    assert torch.equal(torch.cat(shares), family.part(0, count * size)[0])
    assert len(family.pool[1]) == len(images.train[1])


def test_more_images_than_there_are_is_an_error(family):
    with pytest.raises(ValueError, match="digits has 1097 images"):
        family.part(0, 1000)


def test_an_untuned_wider_relative_holds_the_base(family):
    """Both are cut from one network by magnitude, so the first layer of the base is found in it to the bit."""
    wide, base = family.plain[0], family.start
    task = problem(*(trace(m, family.example) for m in (base, wide)))
    found = align(task, base.state_dict(), wide.state_dict())
    moved = found.transported(wide.state_dict())["1.weight"]
    assert torch.equal(moved, base.state_dict()["1.weight"])


def test_an_untuned_independent_model_does_not(family, images, cache):
    """The negative control of the law above."""
    held = family.read, family.chosen
    other = relatives.Family(replace(SMALL, kin=False), images, 0, cache, *held)
    assert torch.equal(other.start.state_dict()["1.weight"], family.start.state_dict()["1.weight"])
    task = problem(*(trace(m, family.example) for m in (other.start, other.plain[0])))
    given = other.plain[0].state_dict()
    moved = align(task, other.start.state_dict(), given).transported(given)["1.weight"]
    assert not (moved == other.start.state_dict()["1.weight"]).any(1).any()


def test_the_controls_go_through_the_same_choice(family):
    """Their loop with coordinate descent is `assemble`, to the bit; with random permutations it is not."""
    made = relatives.assembled(family, family.sources)
    assert made.record.accepted
    ours = relatives.greedy(family, family.sources, "coordinate").state_dict()
    theirs = made.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    drawn = relatives.greedy(family, family.sources, "random").state_dict()
    assert any(not torch.equal(drawn[name], theirs[name]) for name in theirs)


def test_only_descendants_live_in_the_other_domain(images, family, cache):
    mirrored = replace(SMALL, domain="mirrored")
    other = relatives.Family(mirrored, images, 0, cache, family.read, family.chosen)
    assert torch.equal(other.share(0)[0], family.share(0)[0].flip(-1))
    assert torch.equal(other.chosen[0], family.chosen[0].flip(-1))
    theirs = other.ancestor.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in family.ancestor.state_dict().items())


def rows(*gains: float) -> list[dict]:
    """Seeds whose assembled model beats all else by these points."""
    arms = ("base", *relatives.CONTROLS)
    return [
        {
            "arms": {
                **{arm: {"accuracy": 70.0 + i, "loss": 1.0} for arm in arms},
                "assembled": {"accuracy": 70.0 + i + gain, "loss": 0.5},
            }
        }
        for i, gain in enumerate(gains)
    ]


def test_differences_are_paired():
    """Seeds differ by far more than arms do: an unpaired interval would hold zero."""
    found = relatives.summary(rows(1.0, 1.5, 2.0), ("base",))["assembled_minus"]["base"]
    assert found["accuracy"] == pytest.approx([1.5, 0.258, 2.742], abs=1e-3)
    assert found["loss"] == pytest.approx([0.5, 0.5, 0.5])


def test_one_seed_has_no_interval():
    found = relatives.summary(rows(1.0), ("base",))["assembled_minus"]["base"]["accuracy"]
    assert found == [1.0, None, None]


def run(folder: Path) -> dict:
    out = folder / "out.json"
    line = ["--scale", "smoke", "--cache", str(folder), "--out", str(out), "--seeds", "2"]
    relatives.main([*line, "--map", "--map-seeds", "1", "--cells", "mlp: strangers"])

    return results.load(out)


def test_it_runs_once_with_every_control(tmp_path, monkeypatch):
    first = run(tmp_path)
    found = first["test"]["mlp"]
    wanted = {"base", "assembled", *relatives.CONTROLS, *relatives.REFERENCES}
    assert set(found["arms"]) == wanted
    assert set(found["assembled_minus"]) == wanted - {"assembled"}
    lows = [found["assembled_minus"][a]["accuracy"][1] for a in ("base", *relatives.CONTROLS)]
    assert found["beats_base_and_controls"] is all(low > 0 for low in lows)
    assert set(first["map"]) == {"mlp: strangers"}

    def never(*args, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(relatives, "Family", never)
    assert run(tmp_path) == first
