"""What a search for a graft that helps needs: aligned sources, begun targets, and a fair choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.paper import images, run_files, search, training
from examples.paper.asked_twice import AskedTwice
from examples.paper.controls import aligned, link
from examples.paper.experiment import Arm, Experiment, Graft, Setup, Start, controls
from examples.paper.pull import Pull
from graftlib import attach
from graftlib.graft import Adapter, AdapterOptimizer, Link, LinkedMatrix
from graftlib_adapters import MergeNet

from .toy import CPU, GRAFT, Halves, build, perceptron

FOLDER = Path(__file__).parents[2] / "examples" / "paper"

PAIR = (("3", "3"),)
ALIGNED = Graft("R", "M", PAIR, method="pull", cycle=1, lr=0.1, aligned=True)


def networks() -> tuple[nn.Module, nn.Module]:
    """A source of width 12 and a target of width 8 with other weights, in training mode."""
    torch.manual_seed(0)
    return perceptron(12), perceptron(8)


def run_of(arm: Arm, seed: int = 0) -> dict:
    experiment = replace(build(Setup()), arms=(arm,))
    torch.manual_seed(1)
    return training.run(experiment, arm, seed, {"R": perceptron(12).eval()}, None, CPU)


def test_an_aligned_source_has_the_targets_shapes_and_the_sources_values():
    source, target = networks()
    example = Halves("M").example()
    before = target.state_dict()["3.weight"].clone()
    found = aligned(PAIR, source, target, example, example)
    assert torch.equal(target.get_parameter("3.weight"), before)
    taken, given = found.get_parameter("3.weight"), source.get_parameter("3.weight")
    assert taken.shape == (8, 8)
    assert set(taken.flatten().tolist()) <= set(given.flatten().tolist())
    assert not set(before.flatten().tolist()) & set(given.flatten().tolist())
    mapping = link(ALIGNED, found, target, example, example)
    (pair,) = mapping.pairs
    assert pair.source.fqn == pair.target.fqn == "3.weight"


def test_a_transplanted_start_changes_the_start_alone():
    plain = Arm("plain", ("M",))
    begun = replace(plain, start=Start("R", "M", PAIR))
    one, other = run_of(plain), run_of(begun)
    assert one["weights"] == other["weights"]  # what the maker drew: every arm shares it
    assert one["batches"] == other["batches"]
    assert one["loss"] != other["loss"]
    assert run_of(begun)["loss"] == other["loss"]
    experiment = build(Setup())
    keys = {run_files.RunFiles(experiment, Setup(), FOLDER).path(arm, 0) for arm in (plain, begun)}
    assert len(keys) == 2


def test_controls_begin_where_their_arm_begins():
    arm = Arm("begun", ("M",), GRAFT, start=Start("R", "M"))
    assert {each.start for each in controls(arm)} == {arm.start}
    assert len(controls(arm)) == 5


@pytest.mark.parametrize("spoil", [None, "random", "shuffled", "initial"])
def test_every_source_may_be_aligned(spoil):
    found = run_of(Arm("pull", ("M",), replace(ALIGNED, spoil=spoil)))
    assert found["transfers"] == 6
    assert list(found["said"]) == ["3.weight -> 3.weight"]
    if spoil is not None:
        assert found["loss"] != run_of(Arm("pull", ("M",), ALIGNED))["loss"]


def test_noise_stands_for_an_aligned_graft_too():
    arm = Arm("pull", ("M",), ALIGNED)
    noise = Arm("noise", ("M",), noise_of="pull")
    experiment = replace(build(Setup()), arms=(arm, noise))
    sizes = run_of(arm)["sizes"]
    found = training.run(experiment, noise, 0, {"R": perceptron(12)}, sizes, CPU)
    assert found["loss"] != run_of(Arm("plain", ("M",)))["loss"]


def matrices(rows: int = 3, columns: int = 2) -> list[LinkedMatrix]:
    return [
        LinkedMatrix("source:w", (rows, columns), None, written=False),
        LinkedMatrix("target:w", (3, 2), None, written=True),
    ]


def test_pull_begins_as_no_change_and_goes_where_the_loss_falls():
    module = Pull().build(matrices(), [Link(0, 1, "w")])
    source, target = torch.ones(3, 2), torch.zeros(3, 2)
    (answer,) = module([source, target])
    assert torch.equal(answer, target)
    signal = torch.tensor(
        [[-1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    )  # of the loss with respect to the answer
    answer.backward(signal)
    torch.optim.SGD(module.parameters(), lr=0.5).step()
    (answer,) = module([source, target])
    assert answer.tolist() == [[0.5, 0.5], [0.0, 0.0], [-1.0, -1.0]]
    assert module.facts()["w"] == [pytest.approx(-0.5 / 3)]


def test_pull_refuses_what_is_not_aligned():
    with pytest.raises(ValueError, match="pull is for aligned layers"):
        Pull().build(matrices(4), [Link(0, 1, "w")])
    with pytest.raises(ValueError, match="several sources"):
        Pull().build(matrices(), [Link(0, 1, "w"), Link(0, 1, "again")])


def test_an_overheard_graft_is_the_same_graft():
    probed = run_of(Arm("probed", ("M",), replace(GRAFT, method="mergenet, overheard")))
    plain = run_of(Arm("graft", ("M",), GRAFT))
    assert probed["loss"] == plain["loss"]
    assert probed["sizes"] == plain["sizes"]
    (shares,) = probed["said"].values()
    assert all(0 < share < 3 for share in shares)


class Deaf(Adapter):
    """Moves its target without a look at the source."""

    def build(self, matrices, links):
        return _Deaf()


class _Deaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(()))

    def forward(self, matrices):
        return [matrices[1] + self.shift]


def test_a_deaf_adapter_is_found_out():
    module = AskedTwice(Deaf()).build(matrices(), [Link(0, 1, "w")])
    module([torch.ones(3, 2), torch.zeros(3, 2)])
    assert module.facts() == {"w": [0.0, 0.0]}


def test_asking_twice_leaves_the_bases_alone():
    source, target = networks()
    example = Halves("M").example()
    kept = []
    for adapter in (
        MergeNet(heads=2, rank=3, width=8),
        AskedTwice(MergeNet(heads=2, rank=3, width=8)),
    ):
        graft = attach(
            adapter,
            link(GRAFT, source, target, example, example),
            optimizer=AdapterOptimizer(lr=0.1),
        )
        runner = graft._running()
        runner.run(runner.read())
        kept.append([buffer.clone() for buffer in runner.module.buffers()])
        graft.detach()
    assert len(kept[0]) >= 2
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


def test_the_strong_source_learns_from_more_and_sees_no_held_out_image():
    setup = Setup(split="validation")
    slim, strong = images.mobilenet_network(setup).task, images.strong_network(setup).task
    assert strong.size > 5 * slim.size
    assert torch.equal(strong.x[: slim.size], slim.x)
    assert torch.equal(strong.test_x, slim.test_x)
    whole = images.image_task(Setup(), "M")  # its last fifth is what is held out
    assert torch.equal(whole.x[slim.size :], slim.test_x)
    assert len(strong.x) == slim.size + len(images._read(setup)[-1])
    assert strong.augments
    assert not slim.augments


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_residual_links_end_where_a_shortcut_does(scale):
    form = {"classes": 10, "channels": 3, "stride": 2}
    with torch.device("meta"):
        source, slim = images.resnet(scale, **form), images.mobilenet(scale, **form)
    one, to = images.last_convolutions(scale)
    convolutions = [name for name, m in slim.named_modules() if isinstance(m, nn.Conv2d)]
    assert convolutions[-1] == to
    assert source.get_submodule(one).out_channels == source.fc.in_features
    links = images.residual_links(scale)
    shortcuts = {
        name for name, block in slim.named_modules() if getattr(block, "use_res_connect", False)
    }
    assert {to.rpartition(".conv.")[0] for _, to in links} == shortcuts
    assert shortcuts
    for one, to in links:
        assert isinstance(source.get_submodule(one), nn.Conv2d)
        assert slim.get_submodule(to).kernel_size == (1, 1)


@pytest.fixture
def few(monkeypatch):
    """The search with three settings, on the harness's toy."""

    def settings(setup: Setup) -> Experiment:
        toy = build(setup)
        arms = [Arm("plain", ("M",)), Arm("default", ("M",), GRAFT)]
        arms += [Arm("often", ("M",), replace(GRAFT, cycle=1)), Arm("kd", *kd()[1:])]
        arms += [replace(arms[-1], name="kd + graft", graft=GRAFT, versus=("kd",))]
        grafted = [arm for arm in arms if arm.graft is not None]
        arms += [search._changed(arm, "random source", spoil="random") for arm in grafted]
        arms += [search._changed(grafted[0], "overheard", method="mergenet, overheard")]
        return replace(toy, arms=tuple(arms), rounds=16)

    def kd():
        arm = build(Setup()).arm("kd")
        return arm.name, arm.trains, arm.graft, arm.distil

    monkeypatch.setattr(search, "experiment", settings)
    monkeypatch.setattr(search, "METRIC", "M right")
    monkeypatch.setattr(search, "OVERHEARD", ("default",))


STAGES = (search.Stage(0.5, 2, 2), search.Stage(1.0, 3, 1, controlled=True))


def test_the_better_half_goes_on_against_its_own_reference(few, tmp_path, monkeypatch):
    setup = Setup(split="validation")
    found = search.search(setup, tmp_path, STAGES)
    first, last = found["rungs"]
    assert (first["rounds"], last["rounds"], len(first["seeds"]), len(last["seeds"])) == (
        8,
        16,
        2,
        3,
    )
    gains = [row["difference"][0] for row in first["settings"].values()]
    assert gains == sorted(gains, reverse=True)
    assert set(first["settings"]) == set(found["tried"]) == {"default", "often", "kd + graft"}
    assert set(last["settings"]) == set(list(first["settings"])[:2])
    assert set(last["random sources"]) == {f"{name}, random source" for name in last["settings"]}
    assert first["settings"]["kd + graft"]["against"] == "kd"
    values, kd = first["settings"]["kd + graft"]["values"], first["references"]["kd"]["values"]
    gain = sum(a - b for a, b in zip(values, kd, strict=True)) / 2
    assert first["settings"]["kd + graft"]["difference"][0] == pytest.approx(gain)
    assert found["left"] == next(iter(last["settings"]))
    assert first["share of a transfer that comes from the source"]["default"]
    monkeypatch.setattr(run_files, "run", lambda *args: pytest.fail("trained again"))
    assert search.search(setup, tmp_path, STAGES) == found


def test_a_search_on_test_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="would choose by them"):
        search.search(Setup(split="test"), tmp_path)


@pytest.mark.parametrize("name", [search.CHOSEN, "start + graft", "kd + graft"])
def test_a_chosen_setting_comes_with_its_controls(name, monkeypatch):
    monkeypatch.setattr(search, "CHOSEN", name)
    arms = search.searched(Setup())
    (chosen,) = (arm for arm in arms if arm.name == f"S→M, {name}")
    names = {arm.name for arm in arms} | {"plain"}
    assert set(chosen.versus) <= names
    assert {f"{chosen.name}, {text}" for text in ("random source", "equal-norm noise")} <= names
    assert "plain" in chosen.versus


def test_every_setting_is_another_and_names_layers_that_are_there():
    made = search.experiment(Setup(split="validation"))
    facts = [search.facts_of((arm.graft, arm.distil, arm.start)) for arm in made.arms]
    assert all(one != other for i, one in enumerate(facts) for other in facts[:i])
    models = {name: training.made(name, network, 0, CPU) for name, network in made.networks.items()}
    for arm in made.arms:
        for one, other in arm.graft.links if arm.graft is not None else ():
            assert models["S"].get_submodule(one)
            assert models["M"].get_submodule(other)
