"""The permutation check: it passes where it should, fails where it should, and says when it could not."""

from __future__ import annotations

import copy

import pytest
import torch
from axis_models import CASES
from torch import nn

from examples.benchmarks.single_breaks import left_out_members, undone_ties
from graftlib.graph import LayerGraph, trace
from graftlib.graph.axes import axis_classes, check
from graftlib.graph.axes.check import _shuffle, changed, draw
from graftlib.graph.axes.trial import Trial, compared, difference, without_numbers
from graftlib.graph.capture import capture

CONTROLLED = [
    "residual",
    "concat_added",
    "conv_norm",
    "grouped_conv",
    "squeeze_excite",
    "packed_attention",
    "rope",
    "grouped_query",
    "window_attention",
    "lstm_projected",
    "encoder_layer",
    "transposed_grouped",
]


def seen(name):
    model = CASES[name].make().eval()
    return LayerGraph(
        model, capture(model, CASES[name].inputs, tracers=("fake",)), CASES[name].inputs
    )


@pytest.mark.parametrize("name", CONTROLLED)
def test_a_member_left_out_is_seen(name):
    """Of every class, every member but the blind ones matters."""
    breaks = list(left_out_members(seen(name), example=(CASES[name].inputs, {})))
    assert breaks
    assert [b for b in breaks if not b.seen and not b.blind] == []
    assert [b for b in breaks if b.seen and b.blind] == []


@pytest.mark.parametrize("name", CONTROLLED)
def test_no_tie_is_too_many(name):
    """Without any one tie the classes are finer, and do not hold: they were minimal."""
    breaks = list(undone_ties(seen(name), example=(CASES[name].inputs, {})))
    assert breaks
    assert [b for b in breaks if not b.seen and not b.blind] == []


def test_the_model_is_not_touched():
    model = CASES["conv_norm"].make()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    check(trace(model, CASES["conv_norm"].inputs))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() is torch.float32


def test_default_statistics_would_hide_a_wrong_axis():
    """Norms start at ones and zeros, which look alike in any order; the trial draws them."""
    trial = Trial(seen("conv_norm"))
    for name in ("n.weight", "n.bias", "n.running_mean", "n.running_var"):
        assert trial.tensor(name).std() > 0


def test_an_output_that_cannot_change_is_said():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2), nn.Softmax(0))
    result = check(trace(model, torch.randn(1, 3)))  # a softmax over one row is one
    assert not result.passed
    assert "cannot fail" in (result.warning or "")
    assert "cannot fail" in str(result)


def test_nothing_free_is_said():
    result = check(trace(nn.Linear(3, 2), torch.randn(1, 3)))
    assert result.passed
    assert result.classes == 0
    assert "nothing is free" in (result.warning or "")


def test_a_model_on_the_meta_device_is_checked_with_drawn_weights():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    assert check(trace(model, torch.empty(4, 3, device="meta"))).passed


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.small, self.z = nn.Embedding(9, 6), nn.Embedding(2, 6), nn.Linear(6, 3)

    def forward(self, ids, kinds, mask):
        h = self.table(ids) + self.small(kinds)
        return self.z((h * mask[..., None]).sum(1))


def test_integer_inputs_stay_within_their_tables():
    meta = [torch.empty(2, 5, dtype=torch.long, device="meta") for _ in range(3)]
    result = check(trace(Lookup(), meta))
    assert result.passed
    assert result.classes == 1


class Remembers(nn.Module):
    """Keeps what it computed from its weights the first time it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.z, self.kept = nn.Linear(3, 6), nn.Linear(6, 2), {}

    def forward(self, x):
        if "w" not in self.kept:
            self.kept["w"] = self.a.weight * 2
        return self.z(torch.nn.functional.linear(x, self.kept["w"]))


def test_a_model_that_remembers_is_asked_afresh():
    result = check(trace(Remembers().eval(), torch.randn(4, 3)))
    assert result.passed
    assert result.classes == 1


class AsksForSingle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.z = nn.Linear(3, 64), nn.Linear(64, 2)

    def forward(self, x):
        h = self.a(x).to(torch.float32).float()
        return self.z(h.softmax(-1, dtype=torch.float32).to(x.dtype))


def test_single_precision_is_run_as_double():
    result = check(trace(AsksForSingle().eval(), torch.randn(4, 3)))
    assert result.max_rel_error < 1e-14
    assert result.passed


def test_differences_are_relative_and_see_shapes_and_infinities():
    one, inf = torch.ones(2), torch.tensor([1.0, float("inf")])
    assert difference([one * 100], [one * 101]) == pytest.approx(0.01)
    assert difference([one], [torch.ones(3)]) == float("inf")
    assert difference([one], [inf]) == float("inf")
    assert difference([inf], [inf]) == 0.0
    assert difference([inf], [-inf]) == float("inf")
    assert difference([], []) == 0.0
    assert difference([torch.empty(0)], [torch.empty(0)]) == 0.0


def test_what_is_not_a_number_is_never_equal():
    """Two tensors of NaN say nothing of each other; beside finite numbers their places are compared."""
    nan, some = torch.full((3,), float("nan")), torch.tensor([1.0, float("nan"), 2.0])
    assert difference([nan], [nan]) == float("inf")
    assert difference([torch.ones(2), nan], [torch.ones(2), nan]) == float("inf")
    assert difference([some], [some]) == 0.0
    assert difference([some], [some.flip(0) * 2]) > 0
    assert difference([some], [torch.tensor([1.0, float("inf"), 2.0])]) == float("inf")
    assert without_numbers([some, nan, torch.empty(0)]) == [1]
    assert compared([some, nan]) == pytest.approx(2 / 6)
    assert compared([]) == 0.0


class GivesNaN(nn.Module):
    """One of its outputs is never a number: nothing that leads to it alone can be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.z, self.lost = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        h = self.a(x).relu()
        return self.z(h), (self.lost(h).square() + 1).neg().log()


def test_an_output_without_a_finite_number_is_inconclusive():
    result = check(trace(GivesNaN().eval(), torch.randn(4, 3)))
    assert not result.passed
    assert "no finite number" in (result.warning or "")
    assert result.compared == 0.5
    assert "50.0% of the outputs' numbers are finite" in str(result)


class Chaotic(nn.Module):
    """With gains as they are drawn each step enlarges a rounding error; its own keep it small."""

    def __init__(self, places: int = 0) -> None:
        super().__init__()
        self.a, self.b, self.z = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.places = places
        self.gain = nn.Parameter(torch.full((6,), 1 / 40))

    def forward(self, x):
        h = self.a(x).roll(self.places, -1) if self.places else self.a(x)
        h = self.b(h)  # sums over units, whose order rounds
        for _ in range(40):
            h = torch.sin(40 * self.gain * h)
        return self.z(h)


def test_an_ill_conditioned_model_is_checked_with_its_own_norms():
    result = check(trace(Chaotic().eval(), torch.randn(4, 3)))
    assert result.passed
    assert result.own_weights
    assert result.max_rel_error < 1e-9
    assert "model's own norms" in str(result)
    assert not check(trace(CASES["conv_norm"].make(), CASES["conv_norm"].inputs)).own_weights


def test_with_its_own_norms_a_wrong_class_is_seen():
    """The rule says that a roll is nothing."""
    from graftlib.graph import ops

    right = ops._rules["aten.roll"]
    try:
        ops.rule("aten.roll")(lambda x, *args: x)
        result = check(trace(Chaotic(1).eval(), torch.randn(4, 3)))
    finally:
        ops._rules["aten.roll"] = right
    assert not result.passed
    assert result.own_weights
    assert result.warning is None


def test_a_model_without_values_has_no_norms_of_its_own():
    with torch.device("meta"):
        model = Chaotic()
    result = check(trace(model, torch.randn(4, 3)))
    assert not result.own_weights


def test_the_result_prints_as_a_report():
    text = str(check(trace(CASES["linear"].make().eval(), CASES["linear"].inputs)))
    assert text.startswith("permutation check passed: 1 free classes")
    assert "freedom 0.5" in text


def test_every_seed_passes():
    graph = seen("packed_attention")
    assert all(check(graph, seed=seed).passed for seed in range(3))
    assert len([each for each in axis_classes(graph) if each.free]) == 5


class SortsTies(nn.Module):
    """Gives back the places of the largest of equal scores: rounding decides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.z = nn.Linear(3, 64), nn.Linear(64, 1)

    def forward(self, x):
        scale = torch.arange(1.0, 65.0)[:, None]
        scores = self.z(self.a(x).tanh() * scale) - self.z.bias
        return (scores / scale).flatten().argsort()


def test_outputs_that_jump_on_rounding_are_said():
    """The classes are right, and equal scores sort by their last bit: that is no wrong class."""
    model, x = SortsTies().eval(), torch.randn(1, 3)
    result = check(trace(model, x), example=((x,), {}))
    assert result.max_rel_error > 1e-3
    assert not result.passed
    assert "rounding" in (result.warning or "")
    assert "inconclusive" in str(result)


def test_a_trial_is_as_before_after_each_change():
    """Permuted and shuffled weights are put back by the inverse orders, to the bit."""
    graph = seen("packed_attention")
    trial = Trial(graph, example=(CASES["packed_attention"].inputs, {}))
    free = [each for each in axis_classes(graph) if each.free]
    names = sorted({member.fqn for each in free for member in each.members})
    kept = {fqn: trial.tensor(fqn).clone() for fqn in names}

    def same():
        return all(torch.equal(trial.tensor(fqn), kept[fqn]) for fqn in names)

    orders = {m: order for each, order in draw(free, 0) for m in each.members}
    with changed(trial, orders):
        assert not same()
    assert same()
    _shuffle(trial, names, 3)
    assert not same()
    _shuffle(trial, names, 3, back=True)
    assert same()
