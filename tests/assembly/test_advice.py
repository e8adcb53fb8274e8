"""Every message of this package that gives advice: the advice is followed, and it works."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import graftlib_adapters.assembly as package
from graftlib import Mapping, trace
from graftlib.errors import GraftError
from graftlib_adapters.assembly import (
    Alignment,
    Permutation,
    Plan,
    Search,
    Solver,
    ZooEntry,
    align,
    assemble,
    folder,
    lmc,
    merged,
    problem,
    replay,
    transplant,
)
from graftlib_adapters.assembly.assignment import assign
from graftlib_adapters.assembly.recipe import function
from graftlib_adapters.assembly.union_frame import union

from .nets import IMAGE, flattened, mlp

X = (torch.zeros(2, 5),)
ELSEWHERE = {"activations.py", "repair.py", "recording.py"}
"""Their advice is followed where they are tested."""


def net(seed=0, width=6):
    torch.manual_seed(seed)
    return mlp(5, width, 4)


def conv():
    return (flattened(3, 4), IMAGE)


def constant(model):
    return 0.0


def merge(base=None, sources=None, **options):
    return assemble(base or net(), net(1) if sources is None else sources, args=X, **options)


def walk(source=None, **options):
    options = {"evaluate": constant, "args": X, "factors": (0.0, 1.0), **options}
    return lmc(net(), net(1) if source is None else source, **options)


class Case:
    """Models, graphs and files that a row may use, made when they are asked for."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.base, self.source = net(), net(1, 7)
        self.graphs = trace(self.base, X), trace(self.source, X)
        self.states = self.base.state_dict(), self.source.state_dict()

    def problem(self, **options):
        return problem(*self.graphs, **options)

    def alignment(self):
        return align(self.problem(), *self.states)

    def mapping(self, *links):
        mapping = Mapping(self.graphs[1], self.graphs[0])
        for link in links:
            mapping.link(*link)
        return mapping

    def file(self, name, content):
        (self.place / name).write_text(content)
        return self.place / name

    def checkpoint(self, model):
        save_file(model.state_dict(), self.place / "m.safetensors")
        return self.place / "m.safetensors"

    def log(self):
        return merge(log=self.place / "log")


def infinite():
    model = net(1)
    model[0].weight.data[0, 0] = torch.inf
    return model


def two_layers():
    return nn.Sequential(*(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)) for _ in range(2)))


def blocks(**options):
    graph = trace(two_layers(), X)
    return problem(graph, graph, **options)


def odd_name():
    model = nn.Module()
    model.register_parameter("\ud800", nn.Parameter(torch.zeros(5, 5)))
    model.forward = lambda x: x @ getattr(model, "\ud800")
    return model


def plan_of(made, base, *sources):
    return replay(made.plan, base, [*sources], args=X)


def linked_again(mapping):
    """A plan of one link, replayed with another one."""
    torch.manual_seed(0)
    base, source = mlp(5, 6, 6, 6, 4), mlp(5, 6, 6, 6, 4)
    made = assemble(base, source, args=X, merge_factor=0.5, mapping=[("2", "2")])
    return replay(made.plan, base, source, args=X, mapping=mapping)


# The advice -> what fails, and what the advice says.
ADVICE = {
    "look at print(alignment.problem)": (
        lambda c: c.alignment().reads("9.weight", 0),
        lambda c: print(c.alignment().problem),
    ),
    "use Solver(method='coordinate') or 'frank-wolfe'": (
        lambda c: merge(solver=Solver("random")),
        lambda c: [merge(solver=Solver(method)) for method in ("coordinate", "frank-wolfe")],
    ),
    "use rounds=1, or pass a list of sources": (
        lambda c: merge(sources=iter([net(1)]), search=Search(rounds=2)),
        lambda c: [
            merge(sources=iter([net(1)]), search=Search(rounds=1)),
            merge(sources=[net(1)], search=Search(rounds=2)),
        ],
    ),
    "pass log=FOLDER, too": (
        lambda c: merge(resume=True),
        lambda c: merge(resume=True, log=c.place / "log"),
    ),
    "pass resume=True to go on with it, or another folder": (
        lambda c: (c.log(), c.log()),
        lambda c: (c.log(), merge(log=c.place / "log", resume=True), merge(log=c.place / "other")),
    ),
    "resume with the same base and arguments, or use another folder": (
        lambda c: (c.log(), merge(log=c.place / "log", resume=True, pad="keep")),
        lambda c: (c.log(), merge(log=c.place / "log", resume=True)),
    ),
    "replay it on the very base that it was made with": (
        lambda c: plan_of(merge(merge_factor=0.5), net(3), net(1)),
        lambda c: plan_of(merge(merge_factor=0.5), net(), net(1)),
    ),
    "pass the sources in the order and state that they had": (
        lambda c: plan_of(merge(merge_factor=0.5), net(), net(2)),
        lambda c: plan_of(merge(merge_factor=0.5), net(), net(1)),
    ),
    "pass the sources that the plan names, in their order": (
        lambda c: plan_of(merge(merge_factor=0.5), net()),
        lambda c: plan_of(merge(merge_factor=0.5), net(), net(1)),
    ),
    "align models whose weights are finite": (
        lambda c: assign(torch.tensor([[torch.nan]])),
        lambda c: assign(torch.tensor([[0.0]])),
    ),
    "give its module another name": (
        lambda c: merge(odd_name(), odd_name(), merge_factor=0.5).save(c.place / "a"),
        lambda c: merge(merge_factor=0.5).save(c.place / "a"),
    ),
    "leave layers out and use a method that aligns, or frame='base'": (
        lambda c: walk(frame="union", layers=["0"]),
        lambda c: (walk(frame="union"), walk(layers=["0"])),
    ),
    "use 'weights' or 'activations'": (
        lambda c: walk(match_on="names"),
        lambda c: (walk(match_on="weights"), walk(match_on="activations", batches=[X])),
    ),
    "pass batches=[...], a list of inputs or a loader, no generator": (
        lambda c: walk(repair=True, batches=iter([X])),
        lambda c: walk(repair=True, batches=[X]),
    ),
    "pass match_on='activations' or repair=True, or leave batches out": (
        lambda c: walk(batches=[X]),
        lambda c: (walk(batches=[X], match_on="activations"), walk(batches=[X], repair=True)),
    ),
    "give a model, (model, args, kwargs) or a ZooEntry": (
        lambda c: walk(source=[]),
        lambda c: (walk(net(1)), walk((net(1), X)), walk(ZooEntry(net, c.checkpoint(net(1)), X))),
    ),
    "number the class pairs as in problem.classes": (
        lambda c: align(c.problem(), *c.states, start={7: Permutation.identity(6, 7)}),
        lambda c: align(c.problem(), *c.states, start={0: Permutation.identity(6, 7)}),
    ),
    "use one from 0.0 to 1.0": (
        lambda c: merged(c.states[0], c.alignment(), c.states[1], 1.5),
        lambda c: [merged(c.states[0], c.alignment(), c.states[1], each) for each in (0.0, 1.0)],
    ),
    "name modules of tensors in print(alignment.problem)": (
        lambda c: merged(c.states[0], c.alignment(), c.states[1], 0.5, layers=["9"]),
        lambda c: [
            merged(c.states[0], c.alignment(), c.states[1], 0.5, layers=[pair.layer])
            for pair in c.problem().pairs
        ],
    ),
    "pass the state dicts of the models whose graphs made the problem": (
        lambda c: align(c.problem(), *reversed(c.states)),
        lambda c: align(c.problem(), *c.states),
    ),
    "name them from the smallest to the largest": (
        lambda c: Search(factors=(0.5, 0.4)),
        lambda c: Search(factors=(0.4, 0.5)),
    ),
    "declare links: mapping=[('source pattern', 'base pattern')]": (
        lambda c: walk(source=(nn.Conv2d(2, 3, 3), IMAGE)),
        lambda c: walk(mapping=[("0", "0")]),
    ),
    "leave this source out, or mend its weights": (
        lambda c: walk(infinite()),
        lambda c: walk(net(1)),
    ),
    "return a graftlib.Mapping": (
        lambda c: walk(mapping=lambda source, base: None),
        lambda c: walk(mapping=lambda source, base: Mapping(source, base).link("0", "0")),
    ),
    "make it with Mapping(source, base) of the very graphs that are aligned": (
        lambda c: c.problem(mapping=Mapping(*c.graphs)),
        lambda c: c.problem(mapping=c.mapping(("0", "0"))),
    ),
    "give blocks with a mapping that has no links, or link the layers of the blocks": (
        lambda c: c.problem(mapping=c.mapping(("0", "0")), blocks={"0": "0"}),
        lambda c: (
            transplant(c.mapping(), blocks={"0": "0"}),
            c.problem(mapping=c.mapping(("0", "0"))),
        ),
    ),
    "name modules of the base -> modules of the source": (
        lambda c: blocks(blocks={"9": "0"}),
        lambda c: blocks(blocks={"1": "0"}),
    ),
    "name each block once": (
        lambda c: blocks(blocks={"1": "0", "1.0": "1"}),
        lambda c: blocks(blocks={"1": "0", "0": "1"}),
    ),
    "use the plan as it was saved": (
        lambda c: Plan.from_json({**merge().plan, "version": 7}),
        lambda c: Plan.from_json(merge().plan),
    ),
    "replay it with the base, sources and mapping that it was made with": (
        lambda c: linked_again([("2", "4")]),
        lambda c: linked_again([("2", "2")]),
    ),
    "name a function: model -> metric": (
        lambda c: function(f"{c.file('m.py', 'number = 3')}:number"),
        lambda c: function(f"{c.file('n.py', 'def number(model): return 3.0')}:number"),
    ),
    "give a function: model -> metric, larger is better": (
        lambda c: walk(evaluate=lambda model: "good"),
        lambda c: walk(evaluate=lambda model: 1.0),
    ),
    "pass sources= anew, or a list of ZooEntry in place of the generator": (
        lambda c: merge(sources=iter([net(1), net(2)]), merge_factor=0.5).undo(1),
        lambda c: (
            merge(sources=iter([net(1), net(2)]), merge_factor=0.5).undo(
                1, sources=[net(1), net(2)]
            ),
            merge(sources=[ZooEntry(net, c.checkpoint(net(1)))] * 2, merge_factor=0.5).undo(1),
        ),
    ),
    "declare links: Mapping(source, target).link('source pattern', 'target pattern')": (
        lambda c: transplant(Mapping(trace(nn.Conv2d(2, 3, 3), IMAGE), c.graphs[0])),
        lambda c: transplant(c.mapping(("0", "0"))),
    ),
    "trace the model on the CPU": (
        lambda c: transplant(Mapping(trace(net().to("meta"), (X[0].to("meta"),)), c.graphs[0])),
        lambda c: transplant(Mapping(trace(net(), X), c.graphs[0])),
    ),
    "merge in the base frame, with merged(...)": (
        lambda c: union(*c.graphs, Alignment(problem(*c.graphs, mapping=c.mapping(("0", "0"))), {}, 0.0, ())),
        lambda c: merged(c.states[0], c.alignment(), c.states[1], 0.5),
    ),
    "give an nn.Module, (model, args) or (model, args, kwargs)": (
        lambda c: ZooEntry(dict, c.checkpoint(net()), X).graph(),
        lambda c: [
            ZooEntry(factory, c.checkpoint(net()), X).graph()
            for factory in (net, lambda: (net(), X), lambda: (net(), X, {}))
        ],
    ),
    "save each model with safetensors.torch.save_file(model.state_dict(), path)": (
        lambda c: folder(c.place, lambda path: net()),
        lambda c: (c.checkpoint(net()), folder(c.place, lambda path: net())),
    ),
    "give a model, (model, args, kwargs), a ZooEntry, or a list of these": (
        lambda c: merge(sources=3),
        lambda c: (merge(sources=net(1)), merge(sources=[net(1), (net(2), X)])),
    ),
    "give a model, (model, args, kwargs) or ZooEntry(factory, checkpoint)": (
        lambda c: merge(sources=["m"]),
        lambda c: merge(sources=[net(1), (net(2), X, {}), ZooEntry(net, c.checkpoint(net(1)))]),
    ),
    "save it with safetensors.torch.save_file(model.state_dict(), path)": (
        lambda c: ZooEntry(net, c.file("m.safetensors", "x"), X).state(),
        lambda c: ZooEntry(net, c.checkpoint(net()), X).state(),
    ),
    "give the factory of the model that was saved": (
        lambda c: ZooEntry(lambda: net(0, 9), c.checkpoint(net()), X).model(),
        lambda c: ZooEntry(net, c.checkpoint(net()), X).model(),
    ),
}  # fmt: skip
POINTS_ELSEWHERE = {
    "see help(Search)",
    "see help(Solver)",
    "see graftlib assemble --help for an example",
}


@pytest.mark.parametrize("advice", ADVICE)
def test_advice_is_right(advice, tmp_path):
    fails, follows = ADVICE[advice]
    for name in ("fails", "follows"):
        (tmp_path / name).mkdir()
    with pytest.raises(GraftError) as error:
        fails(Case(tmp_path / "fails"))
    assert error.value.fix == advice
    follows(Case(tmp_path / "follows"))


def advice_in(folder: Path) -> set[str]:
    """Every text that is given as `fix`."""
    texts = set()
    for file in folder.glob("*.py"):
        if file.name in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            fix = [node.value] if isinstance(node, ast.keyword) and node.arg == "fix" else []
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_FIX":
                fix = [node.value]
            texts |= {each.value for each in fix if isinstance(each, ast.Constant)}
    return texts


def test_all_advice_is_followed_here():
    assert advice_in(Path(package.__file__).parent) == {*ADVICE, *POINTS_ELSEWHERE}


def test_choices_that_a_message_lists_can_be_made():
    """Advice that is put together from the choices there are."""
    base, source = net(), net(1)
    task = problem(trace(base, X), trace(source, X))
    states = base.state_dict(), source.state_dict()
    with pytest.raises(GraftError) as error:
        align(task, *states, method="guess")
    for method in error.value.fix.removeprefix("use one of ").split(", "):
        align(task, *states, method=method)
    alignment = align(task, *states)
    with pytest.raises(GraftError) as error:
        merged(states[0], alignment, states[1], 0.5, pad="one")
    for pad in error.value.fix.removeprefix("use one of ").split(", "):
        merged(states[0], alignment, states[1], 0.5, pad=pad)
    mapping = Mapping(trace(source, X), trace(base, X))
    with pytest.raises(GraftError) as error:
        transplant(mapping, importance="best")
    for importance in error.value.fix.removeprefix("use ").split(", "):
        transplant(mapping, importance=json.loads(importance.replace("'", '"')))
