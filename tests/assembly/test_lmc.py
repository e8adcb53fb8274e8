"""Curves, their figures, the walks behind them with all controls, and the pictures of many."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftlib import Mapping, surgery, trace
from graftlib_adapters.assembly import (
    AssemblyError,
    Curve,
    HeatMap,
    Solver,
    ZooEntry,
    controls,
    lmc,
)
from graftlib_adapters.assembly.curve import grid

EXAMPLE = (torch.zeros(2, 6),)
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


def mlp(width=12):
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
    )


def cnn(width=6):
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * width, 3),
    )


def like(model):
    """Larger the nearer a model's outputs are to those of `model`."""
    with torch.no_grad():
        wanted = model(X)
    return lambda other: -float((other(X) - wanted).square().mean())


# ---------------------------------------------------------------------------------------- figures

scores = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def curve(values):
    return Curve(grid(len(values)), tuple(values))


@given(scores, st.floats(0, 50))
def test_the_threshold_is_the_last_factor_before_the_loss_leaves_the_tolerance(values, tolerance):
    found = curve(values)
    edge = found.threshold(tolerance)
    above = [i for i, loss in enumerate(found.losses) if loss > found.losses[0] + tolerance]
    if above:
        assert found.factors[above[0] - 1] <= edge <= found.factors[above[0]]
    else:
        assert edge == 1


@given(scores, st.floats(0, 50), st.floats(0, 50))
def test_a_larger_tolerance_never_lowers_the_threshold(values, one, more):
    assert curve(values).threshold(one + more) >= curve(values).threshold(one)


@given(scores, st.floats(-50, 50))
def test_a_shift_of_all_scores_changes_no_height(values, shift):
    one, other = curve(values), curve([value + shift for value in values])
    for figure in ("barrier", "excess", "mean_excess"):
        assert getattr(one, figure) == pytest.approx(getattr(other, figure), abs=1e-9)
    assert other.mean == pytest.approx(one.mean - shift)
    assert other.area == pytest.approx(one.area - shift)


@given(scores)
def test_heights_are_in_order(values):
    found = curve(values)
    assert 0 <= found.excess >= found.mean_excess - 1e-9
    assert found.barrier >= 0
    assert min(found.losses) - 1e-9 <= found.area <= max(found.losses) + 1e-9


def test_the_barrier_is_over_the_line_between_the_ends_and_the_excess_over_the_base():
    found = Curve((0.0, 0.5, 1.0), (90.0, 80.0, 86.0))
    assert (found.barrier, found.excess, found.mean_excess) == (8.0, 10.0, pytest.approx(14 / 3))
    assert found.area == -84.0
    assert found.threshold(5.0) == 0.25
    assert found.threshold(0.0) == 0.0
    assert found.threshold(10.0) == 1.0


def test_a_model_that_computes_nothing_sensible_is_the_worst_there_is():
    found = Curve((0.0, 0.5, 1.0), (1.0, math.nan, -math.inf))
    assert found.threshold(1e6) == 0.0
    assert found.excess == math.inf
    assert found.barrier == math.inf
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["scores"] == [1.0, None, None]


@given(scores)
def test_a_curve_comes_back_from_json(values):
    found = Curve(grid(len(values)), tuple(values), "random", "base", "keep", ("repair",))
    record = json.loads(json.dumps(found.to_json()))
    assert Curve.from_json(record) == found
    del record["data"]  # a record of a walk without data may lack the word
    assert Curve.from_json(record).data == ()


@pytest.mark.parametrize(
    ("factors", "values"), [((0.1, 1.0), (1, 2)), ((0.0, 0.0), (1, 2)), ((0.0,), ()), ((), ())]
)
def test_a_curve_begins_at_the_base_and_rises(factors, values):
    with pytest.raises(AssemblyError, match="rise from 0"):
        Curve(factors, values)


# ------------------------------------------------------------------------------------------ walks


def test_the_walk_begins_at_the_base_and_leaves_both_models_alone():
    base, source = mlp(), mlp(20)
    before = [copy.deepcopy(m.state_dict()) for m in (base, source)]
    seen = lmc(base, source, evaluate=like(base), args=EXAMPLE, factors=(0.0, 0.3, 1.0))
    assert seen.scores[0] == 0.0  # the base itself, to the bit
    assert seen.scores[1] != 0.0
    for model, state in zip((base, source), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_permuted_twin_is_connected_and_the_controls_are_not():
    base = mlp()
    twin = surgery.permute(trace(base, EXAMPLE), seed=3)
    found = controls(base, twin, evaluate=like(base), args=EXAMPLE, factors=grid(5), seed=1)
    assert found["matched, zero"].excess < 1e-8
    for control in ("identity", "random", "shrink"):
        assert found[f"{control}, zero"].excess > 1e-3, control


def test_a_narrow_source_shrinks_what_it_does_not_reach_and_keep_does_not():
    """The source is the base less half of its units: it agrees with all that it reaches."""
    base = mlp()
    graph = trace(base, EXAMPLE)
    half = surgery.prune(graph, {each: 0.5 for each in graph.axis_classes if each.free})
    found = controls(base, half, evaluate=like(base), args=EXAMPLE, factors=grid(5))
    assert found["matched, keep"].excess < 1e-8
    assert found["matched, zero"].excess > 1e-3


def test_the_shrink_control_merges_a_source_that_holds_nothing():
    base, source = mlp(), mlp()
    found = lmc(
        base,
        source,
        evaluate=lambda m: float(m[2].weight.abs().sum() + m[2].bias.abs().sum()),
        args=EXAMPLE,
        solver=Solver("shrink"),
        factors=(0.0, 0.25, 1.0),
    )
    whole = sum(float(p.detach().abs().sum()) for p in base[2].parameters())
    assert found.scores == pytest.approx((whole, 0.75 * whole, 0.0), rel=1e-6)


def test_shrinking_a_norm_gives_it_the_statistics_of_a_unit_that_reads_nothing():
    base = cnn()
    base[1].running_var.fill_(3.0)
    base[1].running_mean.fill_(2.0)
    args = (torch.zeros(2, 1, 4, 4),)
    variance = lmc(
        base,
        cnn(),
        evaluate=lambda m: float(m[1].running_var[0]),
        args=args,
        solver=Solver("shrink"),
        factors=(0.0, 1.0),
    )
    assert variance.scores == (3.0, 1.0)


def test_layers_limit_what_is_merged():
    base, source = mlp(), mlp()
    touched = []

    def evaluate(model):
        touched.append(
            {n for n, p in model.named_parameters() if not torch.equal(p, base.get_parameter(n))}
        )
        return 0.0

    lmc(base, source, evaluate=evaluate, args=EXAMPLE, factors=(0.0, 0.5), layers=["2"])
    assert touched == [set(), {"2.weight", "2.bias"}]


def test_declared_links_decide_what_meets():
    base, source = mlp(), mlp()
    graphs = trace(source, EXAMPLE), trace(base, EXAMPLE)
    for mapping in (
        [("0", "0")],
        Mapping(*graphs).link("0", "0"),
        lambda one, other: Mapping(one, other).link("0", "0"),
    ):
        changed = []

        def evaluate(model, changed=changed):
            changed[:] = [
                n for n, p in model.named_parameters() if not torch.equal(p, base.get_parameter(n))
            ]
            return 0.0

        lmc(base, source, evaluate=evaluate, args=EXAMPLE, factors=(0.0, 0.5), mapping=mapping)
        assert changed == ["0.weight", "0.bias"]


def test_the_union_frame_has_both_originals_at_its_ends():
    base, source = mlp(8), mlp(12)
    for model, end in ((base, 0), (source, 1)):
        found = lmc(
            base, source, evaluate=like(model), args=EXAMPLE, frame="union", factors=(0.0, 0.5, 1.0)
        )
        assert found.scores[2 * end] > -1e-10
        assert found.scores[2 - 2 * end] < -1e-4
        assert found.frame == "union"


@pytest.mark.parametrize(
    "more", [{}, {"batches": [X], "match_on": "activations", "repair": True}], ids=["", "data"]
)
def test_a_checkpoint_gives_the_same_curve_as_the_model(tmp_path, more):
    from safetensors.torch import save_file

    base, source = mlp(), mlp(9)
    save_file(source.state_dict(), tmp_path / "s.safetensors")
    entry = ZooEntry(lambda: mlp(9), tmp_path / "s.safetensors")
    curves = [
        lmc(base, s, evaluate=like(base), args=EXAMPLE, factors=grid(3), **more)
        for s in (source, entry)
    ]
    assert curves[0] == curves[1]


def test_evaluate_sees_eval_mode_and_no_gradients_and_the_device(device):
    base = mlp().train().to(device)

    def evaluate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        return float(model(X.to(device)).sum())

    lmc(
        base, mlp().to(device), evaluate=evaluate, args=(EXAMPLE[0].to(device),), factors=(0.0, 1.0)
    )
    assert base.training


# ------------------------------------------------------------------------------------- with data


def test_activations_connect_a_twin_and_data_that_say_nothing_do_not():
    base = mlp()
    twin = surgery.permute(trace(base, EXAMPLE), seed=3)
    options = {"evaluate": like(base), "args": EXAMPLE, "factors": grid(3)}
    for batches, connected in (([X[:32], X[32:]], True), ([torch.zeros(32, 6)], False)):
        for frame in ("base", "union"):
            found = lmc(base, twin, **options, frame=frame, batches=batches, match_on="activations")
            assert (found.excess < 1e-8) == connected
            assert found.data == ("activations",)


def spread(model, layer=2):
    """(units,) the standard deviation of what a layer puts out."""
    recorded = []
    handle = model[layer].register_forward_hook(lambda m, i, o: recorded.append(o))
    with torch.no_grad():
        model(X)
    handle.remove()
    return recorded[0].std(0, correction=0)


@pytest.mark.parametrize("method", ["coordinate", "shrink"])
def test_repair_gives_merged_models_the_spread_of_their_parents(method):
    base, source = mlp(24), mlp(40)
    before = copy.deepcopy(base.state_dict())
    mean = {"coordinate": (spread(base).mean() + spread(source).mean()) / 2}
    wanted = float(mean.get(method, spread(base).mean()))
    options = {
        "evaluate": lambda model: -abs(float(spread(model).mean()) - wanted),
        "args": EXAMPLE,
        "factors": (0.0, 0.5),
        "solver": Solver(method),
    }
    repaired = lmc(base, source, **options, batches=[X], repair=True)
    plain = lmc(base, source, **options)
    assert repaired.scores[0] == plain.scores[0]  # the base itself
    # A narrow base reads some of a wide source's units, so the mean over all of them is only near.
    assert repaired.scores[1] > max(-0.1 * wanted, plain.scores[1] / 2)
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())


def test_repair_in_the_union_frame_keeps_both_ends_and_mends_the_middle():
    base, source = mlp(20), mlp(28)

    def halves(model):
        """How far the spread of the units is from that between the parents'."""
        return -float((spread(model) - wanted).abs().mean())

    wanted = torch.zeros(28)
    ends = []
    lmc(base, source, evaluate=lambda m: ends.append(spread(m)) or 0.0, args=EXAMPLE,
        frame="union", factors=(0.0, 1.0))  # fmt: skip
    wanted = (ends[0] + ends[1]) / 2
    options = {"args": EXAMPLE, "frame": "union"}
    mended = {"batches": [X], "repair": True}
    at_half = [
        lmc(base, source, evaluate=halves, factors=(0.0, 0.5), **options, **more).scores[1]
        for more in ({}, mended)
    ]
    assert at_half[1] > -1e-3 > 5 * at_half[0]
    last = lmc(base, source, evaluate=like(source), factors=(0.0, 1.0), **options, **mended)
    assert last.scores[1] > -1e-6


def test_repair_keeps_to_the_layers_that_are_merged():
    base, source = mlp(), mlp()
    touched = []

    def evaluate(model):
        touched[:] = [
            n for n, p in model.named_parameters() if not torch.equal(p, base.get_parameter(n))
        ]
        return 0.0

    options = {"args": EXAMPLE, "factors": (0.0, 0.5), "batches": [X], "repair": True}
    lmc(base, source, evaluate=evaluate, layers=["2"], **options)
    assert touched == ["2.weight", "2.bias"]


def test_controls_with_data_are_measured_alike():
    base = mlp()
    twin = surgery.permute(trace(base, EXAMPLE), seed=3)
    found = controls(
        base,
        twin,
        evaluate=like(base),
        args=EXAMPLE,
        factors=grid(3),
        which=("matched, zero", "random, zero", "shrink, zero"),
        batches=[X],
        match_on="activations",
        repair=True,
    )
    assert found["matched, zero"].excess < 1e-4
    assert found["random, zero"].excess > 1e-3
    assert {curve.data for curve in found.values()} == {("activations", "repair")}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"repair": True}, "repair go through data"),
        ({"match_on": "activations", "batches": iter([X])}, "no generator"),
        ({"batches": [X]}, "nothing uses them"),
        ({"match_on": "names"}, "use 'weights' or 'activations'"),
    ],
)
def test_data_and_what_they_are_for_go_together(options, word):
    with pytest.raises(AssemblyError, match=word):
        lmc(mlp(), mlp(), evaluate=lambda m: 0.0, args=EXAMPLE, **options)


@pytest.mark.parametrize("options", [{"solver": "best"}, {"frame": "union", "layers": ["0"]}])
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(AssemblyError):
        lmc(mlp(), mlp(), evaluate=lambda m: 0.0, args=EXAMPLE, **options)


def test_models_that_share_nothing_are_refused_with_the_way_out():
    other = (nn.Sequential(nn.Conv2d(1, 2, 3)), (torch.zeros(2, 1, 4, 4),))
    with pytest.raises(AssemblyError, match="fits any of the base") as error:
        lmc(mlp(), other, evaluate=lambda m: 0.0, args=EXAMPLE)
    assert "declare links" in str(error.value)


# --------------------------------------------------------------------------------------- pictures


def test_a_heat_map_says_the_same_in_both_files(tmp_path):
    cells = {("a", "a"): 0.1, ("a", "b"): math.inf, ("b", "a"): 0.3}
    heat = HeatMap("mean loss", "nats", ("a", "b"), ("a", "b"), cells, facts={"seed": 0})
    picture, record = heat.save(tmp_path / "heat.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    held = json.loads(record.read_text())
    assert held["rows"] == [[0.1, None], [0.3, None]]
    assert (held["missing"], held["facts"]) == (1, {"seed": 0})


def test_names_in_a_picture_are_text(tmp_path):
    name = "$\\frac{a}{0}$\x1b[31m\n</svg>"
    heat = HeatMap(name, name, (name,), (name,), {(name, name): 1.0})
    picture, record = heat.save(tmp_path / "x.png")
    assert picture.stat().st_size > 1000
    assert json.loads(record.read_text())["bases"] == [name]


def test_a_picture_is_the_same_bytes_again(tmp_path):
    heat = HeatMap("t", "m", ("a",), ("b",), {("a", "b"): 1.0})
    one, two = heat.save(tmp_path / "1.png")[0], heat.save(tmp_path / "2.png")[0]
    assert one.read_bytes() == two.read_bytes()


def test_a_cell_belongs_to_a_row_and_a_column():
    with pytest.raises(AssemblyError, match="no row and column"):
        HeatMap("t", "m", ("a",), ("b",), {("b", "a"): 1.0})
