"""Whatever comes in from outside is taken or refused: never a raw error, never a hang, never a changed model.

10,000 damaged inputs from fixed seeds; `corpus` makes them.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import graftlib
from graftlib import GraftError, Mapping, attach, surgery, trace
from graftlib.graph import select
from graftlib_adapters import MergeNet, ZooEntry, assemble, lmc, transplant
from graftlib_adapters.assembly import Curve, Plan, Search, Solver, controls, recipe, replay

sys.path.insert(0, str(Path(__file__).parent))
from corpus import VALUES, damaged_text, damaged_tree, pattern

pytestmark = pytest.mark.slow

SECONDS = 5.0
"""Of the processor, that any answer may take."""
X = torch.linspace(-1, 1, 12).view(2, 6)


def small(width: int = 8) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def score(model: nn.Module) -> float:
    return -float(model(X).square().mean())


class Hang(BaseException):
    """No answer in `SECONDS`."""


class Probe:
    """Counts what became of every input, and whose model changed."""

    def __init__(self, *models: nn.Module) -> None:
        self.tensors = [t for model in models for t in model.state_dict(keep_vars=True).values()]
        self.before = [t.detach().clone() for t in self.tensors]
        self.faults: Counter[str] = Counter()
        self.tries = self.taken = 0

    def __call__(self, what: str, call: Callable[[], Any]) -> None:
        self.tries += 1
        try:
            with _within(SECONDS):
                call()
            self.taken += 1
        except GraftError as error:
            if len(str(error)) > 20_000:
                self.faults[f"{what}: an error of {len(str(error))} letters"] += 1
        except Hang:
            self.faults[f"{what}: hangs"] += 1
        except Exception as error:
            here = _where(error)
            self.faults[f"{what}: {type(error).__name__}: {ascii(str(error))[:100]} at {here}"] += 1
        if not all(torch.equal(a, b) for a, b in zip(self.tensors, self.before, strict=True)):
            self.faults[f"{what}: the model changed"] += 1
            self.before = [t.detach().clone() for t in self.tensors]

    def check(self, tries: int) -> None:
        assert not self.faults, "\n".join(
            f"{n} x {text}" for text, n in self.faults.most_common(40)
        )
        assert self.tries >= tries
        assert self.taken < self.tries, "nothing was refused: the inputs are not damaged"


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    old = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    begin = time.process_time()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
    if time.process_time() - begin > seconds:  # in one call that no signal interrupts
        raise Hang


def _where(error: BaseException) -> str:
    frame, place = error.__traceback__, ""
    while frame is not None:
        place = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"
        frame = frame.tb_next
    return place


@pytest.mark.parametrize(
    "fault",
    [
        lambda model: 1 // 0,
        lambda model: model[0].weight.data.add_(1),
        lambda model: [None for _ in iter(int, 1)],
    ],
)
def test_the_probe_sees_raw_errors_changes_and_hangs(fault, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 0.2)
    model = small()
    probe = Probe(model)
    probe("fault", lambda: fault(model))
    with pytest.raises(AssertionError, match="1 x fault"):
        probe.check(1)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_mappings(tmp_path, seed):
    random, model, other = Random(seed), small(), small(5)
    source, target = trace(model, (X,)), trace(other, (X,))
    path = tmp_path / "map.yaml"
    Mapping(source, target).link("*", "*", pair="all", direction="both").save(path)
    text, probe = path.read_text(), Probe(model, other)
    values = yaml.safe_load(text)
    for i in range(800):
        if i % 2:
            path.write_bytes(damaged_text(random, text))
        else:
            path.write_text(yaml.dump(damaged_tree(random, values)))
        probe("mapping", lambda: Mapping.load(path, source, target))
    probe.check(800)


@pytest.fixture(scope="module")
def assembly():
    base, sources = small(), [small(9), small(11)]
    return base, sources, assemble(base, sources, args=(X,), merge_factor=0.5)


def test_plans(tmp_path, assembly):
    random, (base, sources, done) = Random(10), assembly
    path, probe = tmp_path / "plan.json", Probe(base, *sources, done.model)
    text = json.dumps(done.plan)

    def again() -> None:
        Plan.load(path)
        replay(path, base, sources, args=(X,))

    for i in range(700):
        if i % 2:
            path.write_bytes(damaged_text(random, text))
        else:
            path.write_text(json.dumps(damaged_tree(random, done.plan), skipkeys=True))
        probe("plan", again)
    probe.check(700)


def test_curves():
    random, base = Random(20), small()
    curve = Curve((0.0, 0.5, 1.0), (1.0, 0.5, 0.75), "coordinate").to_json()
    probe = Probe(base)
    for _ in range(300):
        values = damaged_tree(random, curve)
        probe("curve", lambda values=values: Curve.from_json(values))
    probe.check(300)


def test_recipes(tmp_path):
    from safetensors.torch import save_file

    random, base = Random(30), small()
    (tmp_path / "nets.py").write_text("raise SystemExit('a recipe that is read executes nothing')")
    (tmp_path / "zoo").mkdir()
    save_file(base.state_dict(), tmp_path / "zoo" / "a.safetensors")
    values = {
        "base": {"model": "nets.py:net", "weights": "zoo/a.safetensors", "input": ["2x6"]},
        "sources": [{"model": "nets.py:net", "folder": "zoo", "name": "a", "input": 3}],
        "evaluate": "nets.py:score",
        "links": [["0", "0"], ["2", "2"]],
        "settings": {
            "pad": "keep",
            "factors": [0.5, 1.0],
            "parts": ["all"],
            "rounds": 1,
            "seed": 3,
        },
    }
    path, probe = tmp_path / "recipe.yaml", Probe(base)
    for i in range(700):
        if i % 2:
            path.write_bytes(damaged_text(random, yaml.safe_dump(values)))
        else:
            path.write_text(yaml.dump(damaged_tree(random, values)))
        probe("recipe", lambda: recipe.read(path).facts(tmp_path / "out"))
    probe.check(700)


# --- a graft's state ------------------------------------------------------------------------------------------------


def test_states_of_a_graft():
    """A refused state leaves models and graft to the bit; an accepted one lets training go on."""
    random, target = Random(40), small()
    mapping = Mapping(trace(small(9), (X,)), trace(target, (X,))).link("2", "2")
    graft = attach(MergeNet(), mapping, cycle=2)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        with graft.step():
            target(X).square().mean().backward()
            optimizer.step()
    with graft.settled():
        state = graft.state_dict()
    scalars = [None, 0, -1, 10**9, 1.5, float("nan"), "x", [], {}, torch.zeros(3), X * float("nan")]
    probe = Probe(target, mapping.source.model)
    for _ in range(500):
        damaged = damaged_tree(random, state, scalars)
        before = graft.state_dict()

        def load(damaged: Any = damaged, before: Any = before) -> None:
            try:
                graft.load_state_dict(damaged)
            except GraftError:
                assert _same(graft.state_dict(), before), "a refused state changed the graft"
                raise
            graft.load_state_dict(before)

        probe("state", load)
    probe.check(500)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


# --- patterns -------------------------------------------------------------------------------------------------------

NAMES = [
    "0.weight", "0.bias", "layer1.0.conv1.weight", "layer1.0.conv1.bias", "a" * 60, "a" * 2000, "a.a.a.a.a.a.a.a.a.b",
    "a::b.weight", "\ud800.weight", "h.0.attn.c_attn.weight", "[a].weight", "{i}.weight", "",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_patterns(seed):
    random, probe = Random(50 + seed), Probe(small())
    for _ in range(700):
        text = pattern(random)
        probe("pattern", lambda text=text: select(text, NAMES))
    probe.check(700)


def test_links():
    random, model = Random(60), small()
    model.add_module("a" * 60, nn.Linear(3, 3))
    model.add_module("x::y", nn.Linear(3, 3))
    graph, probe = trace(model, (X,)), Probe(model)
    mapping = Mapping(graph, trace(small(9), (X,)))
    for _ in range(500):
        one, other = pattern(random), random.choice(["*", "0", pattern(random)])

        def link(one: str = one, other: str = other) -> None:
            before = len(mapping)
            try:
                mapping.link(one, other, pair="nearest")
            except GraftError:
                assert len(mapping) == before, "a refused link added pairs"
                raise
            mapping._rules.clear()

        probe("link", link)
    probe.check(500)


# --- arguments ------------------------------------------------------------------------------------------------------


def calls(tmp_path: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Public functions with arguments that work, or that are refused last of all."""
    model, other = small(), small(9)
    graph, other_graph = trace(model, (X,)), trace(other, (X,))
    mapping = Mapping(graph, other_graph).link("2", "2")
    mapping.save(tmp_path / "map.yaml")
    new = lambda: Mapping(graph, other_graph)  # noqa: E731
    cut = {"model": model, "graph": graph, "inplace": False}
    walk = {
        "base": model, "source": other, "evaluate": score, "args": (X,), "kwargs": None, "factors": (0.0, 1.0),
        "layers": None, "mapping": None, "seed": 0, "batches": None,
        "match_on": "weights", "repair": False,
    }  # fmt: skip
    return {
        "trace": (trace, {"model": model, "args": (X,), "kwargs": {}, "device": None}),
        "Mapping": (Mapping, {"source": graph, "target": other_graph}),
        "link": (
            lambda **k: new().link(**k),
            {"source": "2", "target": "2", "direction": "both", "role": None, "kind": None, "depth": None,
             "pair": None},
        ),
        "auto": (
            lambda **k: new().auto(**k),
            {"kind": None, "role": None, "limit": 1, "min_similarity": 0.1, "spectrum": False, "direction": "both",
             "weights": {}},
        ),
        "save": (mapping.save, {"path": tmp_path / "again.yaml"}),
        "load": (Mapping.load, {"path": tmp_path / "map.yaml", "source": graph, "target": other_graph}),
        "parameters": (graph.parameters, {"pattern": "*", "kind": None, "role": None}),
        "parameter": (graph.parameter, {"address": "0.weight"}),
        "to_graphml": (graph.to_graphml, {"path": tmp_path / "g.graphml"}),
        "view": (graftlib.view, {"source": graph, "target": other_graph, "mapping": None}),
        "view.save": (graftlib.view(graph).save, {"path": tmp_path / "v.html"}),
        "prune": (
            surgery.prune,
            {**cut, "keep": 0.5, "data": None, "refit": "least-squares", "ridge": 1e-3, "statistics": False},
        ),
        "prune a class": (lambda k, **o: surgery.prune(graph, {0: k}, **o), {"k": 3}),
        "widen": (surgery.widen, {**cut, "widths": {0: 10}, "fill": "like", "seed": 0}),
        "widen a class": (lambda k: surgery.widen(graph, {0: k}), {"k": 9}),
        "permute": (surgery.permute, {**cut, "permutations": None, "seed": 0}),
        "permute a class": (lambda k: surgery.permute(graph, permutations={0: k}), {"k": range(8)}),
        "export_onnx": (
            graftlib.export_onnx,
            {
                "model": model, "path": "", "args": (X,), "kwargs": {}, "dynamic_batch": True, "source": None,
                "source_args": None, "source_kwargs": None, "tolerance": None, "batch_sizes": (1,), "opset": None,
                "measure": False, "card": False, "seed": 0,
            },
        ),
        "assemble": (
            assemble,
            {
                "base": model, "sources": other, "args": (X,), "kwargs": None, "mapping": None, "merge_factor": 0.5,
                "evaluate": None, "search": Search(), "solver": Solver(), "pad": "zero", "pairing": "blocks", "seed": 0,
                "log": None, "resume": False, "show": False,
            },
        ),
        "Search": (
            Search,
            {
                "goal": "better", "tolerance": 0.0, "factors": (0.5,), "parts": ("all",), "rounds": 1,
                "max_refusals": None,
            },
        ),
        "Solver": (Solver, {"method": "coordinate", "objective": "l2", "restarts": 0}),
        "assembly.save": (assemble(model, other, args=(X,), merge_factor=0.5).save, {"folder": tmp_path / "out"}),
        "undo": (assemble(model, other, args=(X,), merge_factor=0.5).undo, {"steps": 1}),
        "lmc": (lmc, {**walk, "solver": None, "frame": "base", "pad": "zero"}),
        "controls": (controls, {**walk, "solver": None, "which": ["matched, zero"]}),
        "transplant": (transplant, {"mapping": mapping, "importance": "magnitude", "inplace": False}),
        "ZooEntry": (ZooEntry, {"factory": small, "checkpoint": "x", "name": "x"}),
    }  # fmt: skip


CALLED = {"evaluate", "factory", "mapping", "score", "importance"}
"""Arguments that may be functions of the user's: what they raise is the user's."""
ITERATED = {
    "args",
    "kwargs",
    "source_args",
    "source_kwargs",
    "sources",
    "source",
    "base",
    "data",
    "batches",
}
"""Arguments that a caller's object iterates over: what `Odd` raises there is its own."""


@pytest.mark.filterwarnings("ignore::graftlib.surgery.SurgeryWarning")  # an answer, not a fault
def test_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table, probe = calls(tmp_path), None
    probe = Probe(table["trace"][1]["model"], table["lmc"][1]["source"])
    for name, (function, good) in table.items():
        for argument in good:
            for value in VALUES:
                if argument in CALLED and callable(value):
                    continue
                if argument in ITERATED and type(value).__name__ == "Odd":
                    continue
                if argument == "inplace" and value is True:
                    continue
                if (name, argument) == ("export_onnx", "path") and str(value) == "x":
                    continue  # a path that works: the export takes seconds
                probe(
                    f"{name}({argument}={type(value).__name__})",
                    lambda f=function, a={**good, argument: value}: f(**a),
                )
    probe.check(3_000)
