"""Assembling: planted sources are taken, noise is refused; logged, replayed, undone and resumed to the bit."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import joblib
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from graftlib import surgery, trace
from graftlib_adapters.assembly import (
    AssemblyError,
    Plan,
    Search,
    Solver,
    ZooEntry,
    assemble,
    replay,
)
from graftlib_adapters.assembly.layout import FILES
from graftlib_adapters.assembly.paired_source import pair_source
from graftlib_adapters.assembly.permutation_test import permutation_test
from graftlib_adapters.assembly.zoo import LoadedModel, fingerprint, state_of

EXAMPLE = (torch.zeros(2, 6),)
X = torch.randn(256, 6, generator=torch.Generator().manual_seed(5))


def mlp(width=12, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
    ).eval()


class Conv(nn.Module):
    """Convolutions with a norm, flattened into a linear layer: classes with positions."""

    def __init__(self, width=6, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.norm = nn.Conv2d(1, width, 2), nn.BatchNorm2d(width)
        self.b, self.head = nn.Conv2d(width, 5, 1), nn.Linear(10, 3)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)
        self.eval()

    def forward(self, x):
        x = self.norm(self.a(x.view(-1, 1, 2, 3))).relu()
        return self.head(self.b(x).relu().flatten(1))


MODELS = {"mlp": mlp, "conv": Conv}


def wanted(make):
    """The teacher, and a score: the nearer the outputs to the teacher's, the larger."""
    teacher = make(seed=1)
    with torch.no_grad():
        y = teacher(X)

    @torch.no_grad()
    def score(model):
        return -float((model(X) - y).square().mean())

    return teacher, score


def spoiled(model, by=0.5):
    """The same network with a worse last layer."""
    worse = copy.deepcopy(model)
    last = worse.head if isinstance(worse, Conv) else worse[-1]
    last.weight.data.mul_(by)
    return worse


def permuted(model, seed=3):
    return surgery.permute(trace(model, EXAMPLE), seed=seed)


def noise(make, seed):
    model = make(seed=seed)
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=random))
    return model


def bits(model):
    return fingerprint(state_of(model))


@pytest.fixture(params=MODELS)
def zoo(request):
    """(base, sources, score): noise, the base's teacher with its units renamed, noise."""
    make = MODELS[request.param]
    teacher, score = wanted(make)
    return spoiled(teacher), [noise(make, 7), permuted(teacher), noise(make, 8)], score


# ------------------------------------------------------------------------------- planted answers


def test_a_permuted_copy_with_a_better_head_is_taken_and_noise_is_refused(zoo):
    base, sources, score = zoo
    made = assemble(
        base, sources, args=EXAMPLE, evaluate=score, search=Search(tolerance=-0.9 * score(base))
    )
    assert [step["accepted"] for step in made.log] == [False, True, False]
    assert score(made.model) > -1e-10 > score(base)
    assert "not above" in made.log[0]["reason"]


def test_without_data_the_twin_is_taken_and_noise_is_refused(zoo):
    base, sources, score = zoo
    made = assemble(base, sources, args=EXAMPLE)
    assert [step["accepted"] for step in made.log] == [False, True, False]
    assert 0.2 < made.log[1]["factor"] <= 0.5
    assert score(made.model) > score(base)
    assert "no module is nearer than by chance" in made.log[0]["reason"]


def test_the_permutation_test_gives_half_to_a_twin_and_nothing_to_noise():
    base = mlp(24)
    state, solver = state_of(base), Solver()
    for source, factor in ((permuted(base), 0.5), (noise(lambda seed: mlp(24, seed), 9), 0.0)):
        paired = pair_source(trace(base, EXAMPLE), LoadedModel(source, EXAMPLE))
        result = permutation_test(paired, paired.align(state, solver), state, solver)
        assert result.factor == pytest.approx(factor, abs=1e-6)
        assert bool(result.layers) == bool(factor)


def test_a_narrow_and_a_wide_source_are_aligned_by_classes():
    teacher, score = wanted(mlp)
    graph = trace(teacher, EXAMPLE)
    wide = permuted(surgery.widen(graph, {c: 15 for c in graph.axis_classes if c.free}))
    base = spoiled(teacher)
    made = assemble(base, wide, args=EXAMPLE, evaluate=score)
    assert made.log[0]["accepted"]
    assert score(made.model) > -1e-10
    assert [t.shape for t in made.model.parameters()] == [t.shape for t in base.parameters()]


def test_each_source_is_aligned_to_the_weights_of_that_moment():
    """The second source agrees with what the first one made of the base, and not with the base."""
    teacher, score = wanted(mlp)
    base = spoiled(teacher)
    base[0].weight.data.copy_(mlp(seed=4)[0].weight.data)
    sources = [permuted(teacher, 1), permuted(teacher, 2)]
    made = assemble(
        base, sources, args=EXAMPLE, evaluate=score, search=Search(parts=("all",), factors=(0.5,))
    )
    assert [step["accepted"] for step in made.log] == [True, True]
    assert made.log[1]["before"] == made.log[0]["after"] < made.log[1]["after"]


# ---------------------------------------------------------------------------------- what is promised


def test_the_base_and_the_sources_stay(zoo):
    base, sources, score = zoo
    base.train()
    before = [bits(model) for model in (base, *sources)]
    made = assemble(base, sources, args=EXAMPLE, evaluate=score)
    assert [bits(model) for model in (base, *sources)] == before
    assert type(made.model) is type(base)
    assert made.model.training
    assert all(p.requires_grad for p in made.model.parameters())


def test_replay_and_undo_are_the_same_bits(zoo):
    base, sources, score = zoo
    made = assemble(base, sources, args=EXAMPLE, evaluate=score, search=Search(rounds=2))
    plan = json.loads(json.dumps(made.plan, allow_nan=False))
    assert bits(replay(plan, base, sources, args=EXAMPLE).model) == bits(made.model)
    count = len(made.record.accepted)
    assert bits(made.undo(count).model) == bits(base)
    assert bits(made.undo(0).model) == bits(made.model)
    one_less = made.undo(1)
    assert len(one_less.record.accepted) == count - 1
    with pytest.raises(AssemblyError, match="cannot be undone"):
        made.undo(count + 1)


def test_undo_gives_each_earlier_state_back():
    teacher, _ = wanted(mlp)
    base, sources = spoiled(teacher), [permuted(teacher, seed) for seed in (1, 2, 3)]
    states = []
    for count in (1, 2, 3):
        made = assemble(base, sources[:count], args=EXAMPLE, merge_factor=0.3)
        states.append(bits(made.model))
    assert len(set(states)) == 3
    assert bits(made.undo(1).model) == states[1]
    assert bits(made.undo(2).model) == states[0]


def test_every_run_gives_the_same_plan_however_many_are_aligned_ahead(zoo):
    base, sources, score = zoo
    with joblib.parallel_config(backend="threading"):
        plans = [
            assemble(base, sources, args=EXAMPLE, evaluate=score, jobs=jobs).plan
            for jobs in (1, 1, 2, 3)
        ]
    assert all(plan == plans[0] for plan in plans)
    assert len({step["accepted"] for step in plans[0]["steps"]}) == 2


@pytest.mark.slow
def test_other_processes_give_the_same_bits(tmp_path):
    """Entries travel by their paths, problems and tensors by value; the rule without data runs there, too."""
    teacher, _ = wanted(mlp)
    sources = [permuted(teacher), noise(mlp, 2)]
    plans = [assemble(spoiled(teacher), sources, args=EXAMPLE, jobs=jobs).plan for jobs in (1, 2)]
    assert plans[0] == plans[1]


@pytest.mark.slow
def test_a_dask_cluster_in_other_processes_gives_the_same_bits(tmp_path):
    """`jobs` runs under whatever joblib backend is active: here two workers in processes of their own."""
    distributed = pytest.importorskip("distributed")
    teacher, _ = wanted(mlp)
    base, sources = spoiled(teacher), [permuted(teacher), noise(mlp, 2), permuted(teacher, 8)]
    alone = assemble(base, sources, args=EXAMPLE, jobs=1).plan
    local = {"processes": True, "dashboard_address": None, "local_directory": str(tmp_path)}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, **local) as cluster,
        distributed.Client(cluster) as client,
    ):
        with joblib.parallel_config(backend="dask"):
            shared = assemble(base, sources, args=EXAMPLE, jobs=2).plan
        worked = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
    assert shared == alone
    assert any("batch" in name or "solved" in name for name in worked), (
        worked
    )  # it was they who worked


class Killed(BaseException):
    """What a test raises in the middle of the work."""


def test_a_killed_run_goes_on_where_it_stopped(zoo, tmp_path):
    base, sources, score = zoo
    sources = [*sources, permuted(sources[1], 9)]
    few = {"args": EXAMPLE, "search": Search(rounds=2, factors=(0.5, 1.0), parts=("all",))}
    whole = assemble(base, sources, evaluate=score, **few)
    plans = set()
    for after in (0, 5, 11):
        folder, calls = tmp_path / str(after), []

        def failing(model, calls=calls, after=after):
            calls.append(1)
            if len(calls) > after:
                raise Killed
            return score(model)

        options = {**few, "log": folder}
        with contextlib.suppress(Killed):
            assemble(base, sources, evaluate=failing, **options)
        held = folder / "plan.json"
        plans.add(len(json.loads(held.read_text())["steps"]) if held.exists() else 0)
        again = assemble(base, sources, evaluate=score, resume=True, **options)
        assert again.plan == whole.plan
        assert bits(again.model) == bits(whole.model)
    assert len(plans) > 2  # it was killed at several places


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_assemble import EXAMPLE, Search, assemble, mlp, noise, permuted, spoiled, wanted
teacher, score = wanted(mlp)
calls = []
def failing(model):
    calls.append(1)
    if len(calls) > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return score(model)
sources = [noise(mlp, 2), permuted(teacher), permuted(teacher, 9)]
assemble(spoiled(teacher), sources, args=EXAMPLE, search=Search(parts=("all",)), evaluate=failing, log=sys.argv[2])
"""


def test_a_process_that_dies_on_the_spot_leaves_a_log_to_go_on_from(tmp_path):
    """Not even `finally` runs then."""
    teacher, score = wanted(mlp)
    sources = [noise(mlp, 2), permuted(teacher), permuted(teacher, 9)]
    options = {"args": EXAMPLE, "search": Search(parts=("all",)), "evaluate": score}
    whole = assemble(spoiled(teacher), sources, **options)
    tried = [step["tried"] for step in whole.plan["steps"]]
    after = tried[0] + tried[1] + 2  # in the third source; the base is scored once before
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path), str(after)]
    dead = subprocess.run(command, capture_output=True, text=True, check=False)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert len(json.loads((tmp_path / "plan.json").read_text())["steps"]) == 2
    again = assemble(spoiled(teacher), sources, **options, log=tmp_path, resume=True)
    assert again.plan == whole.plan
    assert bits(again.model) == bits(whole.model)


def test_a_bar_says_how_many_sources_are_done(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # or rich would see no terminal here
    teacher, score = wanted(mlp)
    sources = [permuted(teacher), permuted(teacher, 9)]
    assemble(spoiled(teacher), sources, args=EXAMPLE, evaluate=score, show=True)
    assert "100%" in capsys.readouterr().err
    assemble(spoiled(teacher), sources, args=EXAMPLE, evaluate=score, show=False)
    assert capsys.readouterr().err == ""


def test_a_finished_log_is_not_worked_on_again(tmp_path):
    teacher, score = wanted(mlp)
    options = {"args": EXAMPLE, "log": tmp_path}
    made = assemble(spoiled(teacher), [permuted(teacher)], evaluate=score, **options)

    def never(model):
        raise AssertionError

    again = assemble(spoiled(teacher), [permuted(teacher)], evaluate=never, resume=True, **options)
    assert bits(again.model) == bits(made.model)


def test_a_log_is_not_overwritten_and_not_taken_for_another(tmp_path):
    teacher, score = wanted(mlp)
    base, sources = spoiled(teacher), [permuted(teacher)]
    options = {"args": EXAMPLE, "evaluate": score, "log": tmp_path}
    assemble(base, sources, **options)
    with pytest.raises(AssemblyError, match="holds the log"):
        assemble(base, sources, **options)
    with pytest.raises(AssemblyError, match="of another assembly") as error:
        assemble(spoiled(teacher, 0.3), sources, resume=True, pad="keep", **options)
    assert "pad" in str(error.value)
    assert "other weights" in str(error.value)


# ---------------------------------------------------------------------------------------- choosing


def test_a_given_factor_is_applied_to_everything_always():
    base, source = mlp(), noise(mlp, 3)
    made = assemble(base, source, args=EXAMPLE, merge_factor=1.0, evaluate=lambda m: 0.0)
    assert made.log[0]["accepted"]
    assert made.log[0]["reason"] == "the factor was given"
    # Everything of the source stands in the base, in some order.
    for mine, theirs in zip(made.model.parameters(), source.parameters(), strict=True):
        torch.testing.assert_close(mine.flatten().sort().values, theirs.flatten().sort().values)


def test_within_never_falls_below_the_best_by_more_than_the_tolerance():
    teacher, score = wanted(mlp)
    sources = [noise(mlp, seed) for seed in range(6)]
    made = assemble(
        teacher,
        sources,
        args=EXAMPLE,
        evaluate=score,
        search=Search("within", tolerance=1e-3, factors=(0.01, 0.02, 0.3)),
    )
    taken = [step for step in made.log if step["accepted"]]
    assert len(taken) > 1
    assert score(made.model) >= score(teacher) - 1e-3
    assert all(step["factor"] < 0.3 for step in taken)


def test_within_takes_the_largest_factor():
    teacher, score = wanted(mlp)
    made = assemble(
        spoiled(teacher),
        permuted(teacher),
        args=EXAMPLE,
        evaluate=score,
        search=Search("within", tolerance=1e-6),
    )
    assert made.log[0]["factor"] == 1.0


def test_better_asks_for_more_than_the_tolerance():
    teacher, score = wanted(mlp)
    gain = score(teacher) - score(spoiled(teacher))
    for tolerance, taken in ((0.9 * gain, True), (1.1 * gain, False)):
        made = assemble(
            spoiled(teacher),
            permuted(teacher),
            args=EXAMPLE,
            evaluate=score,
            search=Search(tolerance=tolerance),
        )
        assert made.log[0]["accepted"] is taken


def test_only_the_layers_that_help_are_merged():
    """The source has the better head and a spoiled first layer."""
    teacher, score = wanted(mlp)
    source = copy.deepcopy(teacher)
    source[0].bias.data.add_(3.0)
    made = assemble(
        spoiled(teacher),
        source,
        args=EXAMPLE,
        evaluate=score,
        search=Search(parts=("all", "layers")),
    )
    assert made.log[0]["layers"] == ["4"]
    assert torch.equal(made.model[0].weight, teacher[0].weight)


def test_links_decide_what_meets():
    base, source = mlp(), mlp(seed=2)
    made = assemble(base, source, args=EXAMPLE, merge_factor=0.5, mapping=[("0", "0")])
    changed = {
        n for n, p in made.model.named_parameters() if not torch.equal(p, base.get_parameter(n))
    }
    assert changed == {"0.weight", "0.bias"}


# ------------------------------------------------------------------------------------ the open zoo


def test_a_source_that_fits_nothing_is_refused_and_the_others_go_on():
    teacher, score = wanted(mlp)
    unrelated = (nn.Sequential(nn.Conv2d(1, 2, 3)), (torch.zeros(2, 1, 4, 4),))
    made = assemble(spoiled(teacher), [unrelated, permuted(teacher)], args=EXAMPLE, evaluate=score)
    assert [step["accepted"] for step in made.log] == [False, True]
    assert "fits any" in made.log[0]["reason"]


def test_an_endless_zoo_stops_by_its_limit_and_keeps_no_model():
    teacher, score = wanted(mlp)
    alive = []

    def endless():
        while True:
            model = noise(mlp, len(alive))
            alive.append(weakref.ref(model))
            yield model
            del model
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 2

    made = assemble(teacher, endless(), args=EXAMPLE, evaluate=score, search=Search(max_refusals=4))
    assert len(made.log) == 4
    assert made.plan["stopped"] == "4 sources in a row were refused"


def test_a_used_generator_cannot_be_undone_without_its_sources():
    teacher, _ = wanted(mlp)
    sources = [permuted(teacher, 1), permuted(teacher, 2)]
    base = spoiled(teacher)
    made = assemble(base, iter(sources), args=EXAMPLE, merge_factor=0.5)
    with pytest.raises(AssemblyError, match="cannot be had again"):
        made.undo(1)
    assert bits(made.undo(2).model) == bits(base)
    assert len(made.undo(1, sources=sources).record.accepted) == 1


def test_rounds_end_when_nothing_is_merged():
    teacher, score = wanted(mlp)
    made = assemble(
        spoiled(teacher),
        [permuted(teacher)],
        args=EXAMPLE,
        evaluate=score,
        search=Search(rounds=9, factors=(0.5, 1.0)),
    )
    assert [step["accepted"] for step in made.log] == [True, False]
    assert made.plan["stopped"] == "nothing was merged in round 2"


def test_checkpoints_are_read_one_at_a_time(tmp_path, monkeypatch):
    teacher, score = wanted(mlp)
    entries = []
    for i, model in enumerate((noise(mlp, 1), permuted(teacher), noise(mlp, 2))):
        save_file(model.state_dict(), tmp_path / f"{i}.safetensors")
        entries.append(ZooEntry(mlp, tmp_path / f"{i}.safetensors"))
    alive = []
    whole = ZooEntry.state

    def state(self, names=None):
        gc.collect()
        assert sum(ref() is not None for ref in alive) == 0  # what came before is gone
        read = whole(self, names)
        alive.extend(weakref.ref(tensor) for tensor in read.values())
        return read

    monkeypatch.setattr(ZooEntry, "state", state)
    made = assemble(spoiled(teacher), entries, args=EXAMPLE, evaluate=score)
    assert made.log[1]["accepted"]
    assert len(alive) > 10
    assert [step["source"] for step in made.log] == ["0", "1", "2"]


# --------------------------------------------------------------------------------------- refusals


def test_a_plan_is_replayed_only_on_what_it_was_made_with():
    teacher, score = wanted(mlp)
    base, source = spoiled(teacher), permuted(teacher)
    made = assemble(base, source, args=EXAMPLE, evaluate=score)
    with pytest.raises(AssemblyError, match="other weights of"):
        replay(made.plan, teacher, source, args=EXAMPLE)
    with pytest.raises(AssemblyError, match="has other weights"):
        replay(made.plan, base, permuted(teacher, 8), args=EXAMPLE)
    with pytest.raises(AssemblyError, match="there is none"):
        replay(made.plan, base, [], args=EXAMPLE)


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        (assemble, {"merge_factor": 1.5}),
        (assemble, {"pad": "one"}),
        (assemble, {"search": {"goal": "better"}}),
        (Search, {"goal": "best"}),
        (Search, {"tolerance": -1.0}),
        (Search, {"factors": ()}),
        (Search, {"factors": (0.5, 0.4)}),
        (Search, {"parts": ("half",)}),
        (Search, {"rounds": 0}),
        (Search, {"max_refusals": 0}),
        (Solver, {"method": "best"}),
        (Solver, {"restarts": -1}),
    ],
)
def test_arguments_out_of_range_are_named(function, wrong):
    models = {"base": mlp(), "sources": mlp(), "args": EXAMPLE} if function is assemble else {}
    with pytest.raises(AssemblyError) as error:
        function(**models, **wrong)
    assert next(iter(wrong)) in str(error.value)


def test_numbers_of_torch_are_numbers():
    search = Search(tolerance=torch.tensor(0.5), factors=torch.tensor([0.25, 0.5]).tolist())
    assert json.loads(json.dumps([search.tolerance, search.factors])) == [0.5, [0.25, 0.5]]
    assert search == Search(tolerance=0.5, factors=(0.25, 0.5))
    assert json.dumps(Solver(restarts=torch.tensor(2)).restarts) == "2"


def test_a_control_assembles_nothing():
    with pytest.raises(AssemblyError, match="method='random' is a control of lmc"):
        assemble(mlp(), mlp(), args=EXAMPLE, solver=Solver("random"))
    assemble(mlp(), mlp(), args=EXAMPLE, solver=Solver("frank-wolfe"))  # as the message says


def test_a_log_of_before_settings_were_renamed_is_resumed(tmp_path):
    teacher, score = wanted(mlp)
    options = {"args": EXAMPLE, "evaluate": score, "log": tmp_path}
    made = assemble(spoiled(teacher), [permuted(teacher)], **options)
    path = tmp_path / "plan.json"
    plan = json.loads(path.read_text())
    for new, old in (
        ("objective", "score"),
        ("max_refusals", "patience"),
        ("chosen_by", "judged_by"),
    ):
        plan["settings"][old] = plan["settings"].pop(new)
    path.write_text(json.dumps(plan))
    assert Plan.load(path) == made.record
    again = assemble(spoiled(teacher), [permuted(teacher)], resume=True, **options)
    assert bits(again.model) == bits(made.model)


def test_a_generator_is_gone_through_once():
    with pytest.raises(AssemblyError, match="gone through once"):
        assemble(mlp(), iter([mlp()]), args=EXAMPLE, search=Search(rounds=2))


def test_resuming_needs_a_log():
    with pytest.raises(AssemblyError, match="nothing to resume"):
        assemble(mlp(), mlp(), args=EXAMPLE, resume=True)


def test_declared_links_that_hit_nothing_are_an_error_and_no_refusal():
    with pytest.raises(Exception, match="matches nothing"):
        assemble(mlp(), mlp(), args=EXAMPLE, mapping=[("7", "0")])


# ------------------------------------------------------------------------------------- the folder


def test_the_folder_holds_the_model_its_plan_and_its_card(zoo, tmp_path):
    base, sources, score = zoo
    made = assemble(base, sources, args=EXAMPLE, evaluate=score)
    folder = made.save(tmp_path / "out")
    assert {file.name for file in folder.iterdir()} == set(FILES)
    held = load_file(folder / "model.safetensors")
    assert fingerprint(held) == bits(made.model)
    assert bits(replay(folder / "plan.json", base, sources, args=EXAMPLE).model) == bits(made.model)
    report = json.loads((folder / "report.json").read_text())
    assert report["metric_before"] == score(base)
    assert report["metric_after"] == score(made.model)
    assert json.loads((folder / "config.json").read_text())["class"].endswith(type(base).__name__)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_names_in_the_card_are_text(tmp_path):
    teacher, score = wanted(mlp)
    name = "x](javascript:alert)|<script>alert(1)</script>\n# Free\x1b[31m `code` ![i](u)"
    made = assemble(
        spoiled(teacher),
        LoadedModel(permuted(teacher), EXAMPLE, name=name),
        args=EXAMPLE,
        evaluate=score,
    )
    text = (made.save(tmp_path) / "README.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| 1 |")]
    assert row.count("|") == 8
    assert not set("<>[]()!`#\x1b") & set(row.split("|")[2].replace("&#", ""))
    assert "# Free" not in text


def test_a_tied_tensor_is_saved_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x).relu())

    made = assemble(Tied(), Tied(), args=EXAMPLE, merge_factor=0.5)
    folder = made.save(tmp_path)
    assert set(load_file(folder / "model.safetensors")) == {"a.weight"}
    assert made.model.a.weight is made.model.b.weight
    again = ZooEntry(Tied, folder / "model.safetensors", EXAMPLE).model()
    assert torch.equal(again.b.weight, made.model.a.weight)


def test_an_assembly_prints_what_was_done():
    teacher, score = wanted(mlp)
    sources = [permuted(teacher), noise(mlp, 4)]
    text = str(assemble(spoiled(teacher), sources, args=EXAMPLE, evaluate=score))
    assert text.startswith("1 of 2 steps merged into Sequential")
    assert "refused; the best of" in text
