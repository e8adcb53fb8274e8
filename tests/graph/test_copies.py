"""One way to copy a model, at every verb: what deepcopy refuses, what is wrapped, what cannot be seen."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from graftlib import Mapping, export_onnx, surgery, trace
from graftlib.errors import GraftError
from graftlib.graph import structure
from graftlib_adapters.assembly import assemble, lmc, transplant


def small(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


class WithLock(nn.Module):
    """A lock, an open file and a generator, in attributes and in an object in a list."""

    def __init__(self):
        super().__init__()
        self.body, self.lock = small(), threading.Lock()
        self.numbers, self.file = (i for i in range(3)), Path(__file__).open()  # noqa: SIM115
        self.helpers = [Helper()]

    def forward(self, x):
        return self.body(x)

    def close(self):
        self.file.close()


class Helper:
    """A plain object with a lock beside a list."""

    def __init__(self):
        self.lock, self.seen = threading.Lock(), [1]


class WithHistory(nn.Module):
    """Old-style weight norm: after a forward pass its weight has a history."""

    def __init__(self):
        super().__init__()
        with pytest.warns(FutureWarning):
            self.body = nn.Sequential(
                nn.utils.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)
            )

    def forward(self, x):
        return self.body(x)


class WithLoss(nn.Module):
    """Keeps a loss, with its graph, for the log."""

    def __init__(self):
        super().__init__()
        self.body, self.log = small(), {}

    def forward(self, x):
        out = self.body(x)
        self.log["loss"] = out.square().mean()
        return out


class ReturnsNothing(nn.Module):
    """Its `train` forgets to return the module, as some do."""

    def __init__(self):
        super().__init__()
        self.body = small()

    def train(self, mode=True):
        super().train(mode)

    def forward(self, x):
        return self.body(x)


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
REFUSED = [WithLock, WithHistory, WithLoss]


@contextmanager
def made(kind):
    model = kind()
    model(X)
    try:
        yield model
    finally:
        getattr(model, "close", lambda: None)()


def widened(model, graph):
    (each,) = [each for each in graph.axis_classes if each.free]
    return surgery.widen(graph, {each: 16})


def assembled(model, graph):
    """With a score that nothing makes better."""
    return assemble(
        model, small(), args=(X,), evaluate=lambda made: 0.0 * made(X).sum(), show=False
    ).model


EDITS = {
    "permute": lambda model, graph: surgery.permute(graph, seed=1),
    "widen": widened,
    "transplant": lambda model, graph: transplant(Mapping(graph, graph)).model,
    "assemble": assembled,
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", [*REFUSED, ReturnsNothing])
def test_what_deepcopy_refuses_is_edited_on_a_copy(kind, edit):
    """The function stays, and nothing but what cannot be copied is shared."""
    with made(kind) as model:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        edited = EDITS[edit](model, trace(model, (X,)))
        torch.testing.assert_close(edited(X), model(X))
        with torch.no_grad():
            for parameter in edited.parameters():
                parameter.zero_()
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:The tensor attribute")  # torch.export: a forward pass assigns
@pytest.mark.parametrize("kind", REFUSED)
def test_they_are_pruned_and_exported(kind, tmp_path):
    with made(kind) as model:
        slim = surgery.prune(trace(model, (X,)), 0.5)
        assert slim(X).isfinite().all()
        assert sum(p.numel() for p in slim.parameters()) < sum(
            p.numel() for p in model.parameters()
        )
        report = export_onnx(model, tmp_path / "m.onnx", (X,), measure=False)
        assert report.comparison.max_rel < 1e-4


@pytest.mark.parametrize("kind", REFUSED)
def test_deepcopy_does_refuse_them(kind):
    """The control: the models above are what they are meant to be."""
    import copy

    with made(kind) as model, pytest.raises((TypeError, RuntimeError)):
        copy.deepcopy(model)


def test_no_more_is_shared_than_refuses():
    with made(WithLock) as model:
        twin = structure.duplicate(model, structure.own)
        assert twin.lock is model.lock
        assert twin.file is model.file
        assert twin.helpers is not model.helpers
        assert twin.helpers[0] is not model.helpers[0]
        assert twin.helpers[0].lock is model.helpers[0].lock
        assert twin.helpers[0].seen == [1]
        assert twin.helpers[0].seen is not model.helpers[0].seen


def test_a_copy_keeps_training_flags_ties_and_gradient_flags():
    model = small()
    model.append(nn.Linear(6, 8))
    model[3].weight = model[0].weight
    model[1].eval()
    model[2].weight.requires_grad_(False)
    twin = structure.duplicate(model, structure.own)
    assert [m.training for m in twin.modules()] == [m.training for m in model.modules()]
    assert twin[3].weight is twin[0].weight
    assert twin[0].weight is not model[0].weight
    assert not twin[2].weight.requires_grad
    assert twin[0].weight.requires_grad


# --- wrappers -----------------------------------------------------------------------------------------------------


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compile": torch.compile,
    "both": lambda model: nn.DataParallel(torch.compile(nn.DataParallel(model))),
}


@pytest.fixture
def distributed():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def every_verb(wrap, folder):
    model, other = wrap(small()), wrap(small(12))
    plain = small()
    graph = trace(model, (X,))
    assert graph.model is structure.unwrap(model)
    assert graph.check().passed
    assert surgery.prune(graph, 0.5)[0].out_features == 4
    assert surgery.widen(graph, {0: 16})[0].out_features == 16
    torch.testing.assert_close(surgery.permute(graph, seed=1)(X), plain(X))
    torch.testing.assert_close(EDITS["transplant"](model, graph)(X), plain(X))
    assembly = assemble(model, [other], args=(X,), evaluate=lambda made: 0.0, show=False)
    assert type(assembly.model) is nn.Sequential
    assert "OptimizedModule" not in str(assembly)
    assert "DataParallel" not in str(assembly)
    curve = lmc(model, other, args=(X,), evaluate=lambda m: -float(m(X).sum()), factors=(0.0, 1.0))
    assert len(curve.scores) == 2
    report = export_onnx(model, folder / "m.onnx", (X,), measure=False)
    assert report.comparison.max_rel < 1e-4
    with pytest.raises(GraftError) as error:
        surgery.permute(graph, seed=1, model=wrap(small(12)))
    assert "'0.weight'" in str(error.value)
    edited = surgery.permute(graph, seed=1, inplace=True)
    assert edited is structure.unwrap(model)
    torch.testing.assert_close(structure.unwrap(model)(X), plain(X))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_are_looked_through_by_every_verb(wrap, tmp_path):
    every_verb(WRAPPERS[wrap], tmp_path)


def test_distributed_data_parallel_is_looked_through_by_every_verb(distributed, tmp_path):
    every_verb(nn.parallel.DistributedDataParallel, tmp_path)


# --- what cannot be seen ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_models_are_refused_in_one_sentence_by_every_verb(tmp_path):
    eager = small()
    graph = trace(eager, (X,))
    inside = nn.Sequential(nn.Linear(6, 6), torch.jit.script(small()))
    for scripted, name in (
        (torch.jit.script(eager), "the model"),
        (torch.jit.trace(eager, (X,)), "the model"),
        (nn.DataParallel(inside), "'1'"),
    ):
        for verb in (
            lambda m: trace(m, (X,)),
            lambda m: surgery.prune(graph, 0.5, model=m),
            lambda m: surgery.widen(graph, {0: 16}, model=m),
            lambda m: surgery.permute(graph, seed=1, model=m),
            lambda m: assemble(m, eager, args=(X,), merge_factor=0.5, show=False),
            lambda m: assemble(eager, m, args=(X,), merge_factor=0.5, show=False),
            lambda m: lmc(eager, m, args=(X,), evaluate=lambda model: 0.0),
            lambda m: export_onnx(m, tmp_path / "m.onnx", (X,), measure=False),
        ):
            with pytest.raises(GraftError, match="ScriptModule") as error:
                verb(scripted)
            assert str(error.value) == (
                f"{name} is a ScriptModule, whose code cannot be seen: pass the eager module that it was made from."
            )
    assert not list(tmp_path.iterdir())


class QuantisedLSTM(nn.Module):
    """Its packed weights are no parameters of any name."""

    def __init__(self):
        super().__init__()
        self.into, self.rnn, self.head = nn.Linear(6, 8), nn.LSTM(8, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.rnn(self.into(x)[None])[0][0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("model", "kinds", "named"),
    [(small, {nn.Linear}, "'0', '2'"), (QuantisedLSTM, {nn.LSTM}, "'rnn'")],
)
def test_quantised_modules_are_traced_and_a_check_names_them(model, kinds, named):
    model = torch.ao.quantization.quantize_dynamic(model(), kinds)
    graph = trace(model, (X,))
    assert graph.outputs == ((2, 3),)
    with pytest.raises(GraftError, match="of its modules are quantised") as error:
        graph.check()
    assert f"modules  {named}" in str(error.value)
    torch.testing.assert_close(surgery.permute(graph, seed=1)(X), model(X))


def test_float_functional_is_not_quantised():
    """The control: it lives among the quantised modules, and is in many models that are not."""
    model = nn.Sequential(nn.Linear(6, 3))
    model.add = torch.ao.nn.quantized.FloatFunctional()
    structure.refuse_quantised(model)


# --- copies that share a module with the original ---------------------------------------------------------------------


class GivesItself(nn.Module):
    """Its deep copy is itself."""

    def __init__(self):
        super().__init__()
        self.body = small()

    def forward(self, x):
        return self.body(x)

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize("inside", [False, True])
def test_a_module_whose_deep_copy_is_itself_is_copied_all_the_same(inside):
    model = nn.Sequential(GivesItself(), nn.Tanh()) if inside else GivesItself()
    x, before = torch.randn(2, 6), {k: v.clone() for k, v in model.state_dict().items()}
    graph = trace(model, (x,))
    assert graph.check().passed
    assert torch.allclose(surgery.permute(graph, seed=0)(x), model(x), atol=1e-6)
    surgery.prune(graph, 0.5)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.parametrize("whole", [False, True])
def test_compiled_modules_inside_of_a_model_are_seen_and_edited(whole):
    model, x = small(), torch.randn(2, 6)
    if whole:
        model.compile(backend="eager")
    else:
        model[0] = torch.compile(model[0], backend="eager")
    due = model(x)
    graph = trace(model, (x,))
    assert sum(each.free for each in graph.axis_classes) == 1
    assert graph.check().passed
    assert torch.allclose(surgery.permute(graph, seed=0)(x), due, atol=1e-6)
    assert surgery.prune(graph, 0.5)[2].in_features == 4


def test_weights_made_in_inference_mode_are_aliased():
    with torch.inference_mode():
        model = small()
    twin = structure.rebuild(model, structure.alias)
    assert not twin[0].weight.requires_grad
    assert twin[0].weight.data_ptr() == model[0].weight.data_ptr()
