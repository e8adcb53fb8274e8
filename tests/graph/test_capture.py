"""Every tracer gives one normal form, computes what the model computes, and leaves no trace."""

import random

import pytest
import torch
import torchvision
from torch import nn

from graftlib.errors import TraceError
from graftlib.graph import trace
from graftlib.graph.capture import TRACERS, capture
from graftlib.graph.normal import graph_root
from graftlib.graph.tensors import tensor_leaves

from . import traps

X = torch.linspace(-1, 1, 8).view(2, 4)
IDS = torch.tensor([[0, 3, 6], [1, 1, 2]])
CASES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), (X,)),
    "tied": (traps.TiedLinear, (IDS,)),
    "reused": (traps.ReusedConv, (torch.linspace(0, 1, 75).view(1, 3, 5, 5),)),
    "in place": (traps.InPlaceViews, (X,)),
    "lock": (traps.HoldsALock, (X,)),
    "fused": (lambda: traps.Fused("grouped", written_out=True), (torch.randn(2, 5, 12),)),
    "mha": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (torch.randn(2, 3, 4),)),
    "lstm": (lambda: nn.LSTM(4, 3, 2, bidirectional=True), (torch.randn(5, 2, 4),)),
    "resnet18": (lambda: torchvision.models.resnet18(), (torch.randn(1, 3, 32, 32),)),
}


def fingerprint(model):
    """Everything of a model that a trace might disturb."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {
        "tensors": [(n, id(t), t._version, t.requires_grad, t.grad) for n, t in tensors],
        "values": [hash(t.detach().numpy().tobytes()) for _, t in tensors if not t.is_meta],
        "keys": [*model.state_dict()],
        "modules": [(n, id(m), type(m), m.training) for n, m in model.named_modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "global hooks": len(nn.modules.module._global_forward_hooks),
        "random": (hash(torch.get_rng_state().numpy().tobytes()), hash(random.getstate())),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad": torch.is_grad_enabled(),
    }


def outputs(model, args):
    with torch.no_grad():
        return tensor_leaves(model.eval()(*args))


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("case", CASES)
def test_a_captured_graph_computes_what_the_model_computes(case, tracer):
    make, args = CASES[case]
    model = make()
    seen = capture(model, args, tracers=(tracer,))
    if any("constant" in n.meta and n.meta["constant"].is_meta for n in seen.graph.nodes):
        assert not seen.real
        return
    run = torch.fx.GraphModule(graph_root(model, seen.graph), seen.graph)
    with torch.no_grad():
        ours = run(*[a.clone() for a in tensor_leaves(args)])
    for our, own in zip(ours, outputs(model, args), strict=True):
        torch.testing.assert_close(our, own)


@pytest.mark.parametrize("case", CASES)
def test_tracer_agree_on_the_reads_of_parameters(case):
    make, args = CASES[case]
    model = make()
    reads = {}
    for tracer in ("meta", "fake", "real"):
        graph = capture(model, args, tracers=(tracer,)).graph
        reads[tracer] = [
            n.target for n in graph.nodes if n.op == "get_attr" and "constant" not in n.meta
        ]
    assert reads["meta"] == reads["fake"] == reads["real"] != []


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("case", [*CASES, "counts"])
def test_the_model_is_as_before(case, tracer):
    make, args = CASES.get(case, (traps.CountsItsCalls, (X,)))
    model = make().train()
    before = fingerprint(model)
    given = [a.clone() for a in args]
    capture(model, args, tracers=(tracer,))
    assert fingerprint(model) == before
    assert all(torch.equal(a, b) for a, b in zip(args, given, strict=True))


def test_the_fingerprint_sees_a_forward_pass():
    """The check above is able to fail."""
    model = traps.CountsItsCalls().train()
    before = fingerprint(model)
    model(X)
    after = fingerprint(model)
    assert {k for k in before if before[k] != after[k]} >= {"tensors", "values", "random"}


def test_a_failed_trace_leaves_the_model_as_before():
    model = traps.CountsItsCalls().train()
    before = fingerprint(model)
    with pytest.raises(TraceError):
        trace(model, torch.zeros(2, 5))
    assert fingerprint(model) == before


def test_the_answer_of_every_tracer_is_kept():
    graph = trace(traps.BranchesOnValues(), X)
    assert graph.tracer == "real"
    assert graph.real
    assert list(graph.answers) == ["meta", "fake", "export", "real"]
    assert graph.answers["real"] == "ok"
    assert graph.answers["fake"].startswith("DataDependentOutputException")
    assert graph.answers["export"].startswith("skipped: the forward pass depends on values")
    assert capture(graph.model, (X,), tracers=("export", "real")).answers["export"].count(": ")


def test_a_tracer_that_gives_up_is_silent(capfd):
    trace(traps.BranchesOnValues(), X)
    with pytest.raises(TraceError):
        capture(traps.BranchesOnValues(), (X,), tracers=("fake", "export"))
    assert capfd.readouterr() == ("", "")


def test_constants_of_numbers_in_a_list_are_known_to_fake_tensors():
    graph = trace(traps.BranchesOnConstants(), X)
    assert (graph.tracer, graph.real) == ("fake", False)


def _written():
    counts = torch.zeros(4, dtype=torch.long)
    view = counts[1:]
    view[1:] += 3
    counts[:2].copy_(torch.arange(2))
    return counts.sum() == 7


def _written_from(x):
    counts = torch.zeros(4, dtype=torch.long)
    counts[1:].copy_(x[0, 1:])
    return counts


def _moved(x):
    counts = torch.zeros(8, dtype=torch.long)
    counts.data = x.flatten().long()
    return counts


CONSTANT = {
    "compared": lambda m, x: (torch.arange(x.shape[1]) < 8).all(),
    "false": lambda m, x: (torch.arange(x.shape[1]) > 1).all(),
    "written through views": lambda m, x: _written(),
    "of its own item": lambda m, x: torch.full((2,), torch.arange(3)[2].item())[0] == 2,
    "places": lambda m, x: torch.ones(3, dtype=torch.bool).nonzero().shape[0] == 3,
    "after a write that is not known": lambda m, x: (
        _written_from(x).add(x.long()) is None or _written()
    ),
}
VALUES = {
    "an input": lambda m, x: (x > 0).any(),
    "a parameter": lambda m, x: (m.fc.weight > 0).any(),
    "a buffer": lambda m, x: m.steps > 0,
    "an input written into a constant": lambda m, x: _written_from(x).any(),
    "an input in the place of a constant": lambda m, x: _moved(x).any(),
    "a random number": lambda m, x: torch.randint(9, (2,)).any(),
    "memory as it was": lambda m, x: torch.empty(2, dtype=torch.long).any(),
    "a rounded number": lambda m, x: (torch.linspace(0, 1, 3) > 0.5).any(),
}


class Asks(nn.Module):
    """Takes one way or another by what a function of the model and its input answers."""

    def __init__(self, ask):
        super().__init__()
        self.fc, self.ask = nn.Linear(4, 2), ask
        self.register_buffer("steps", torch.ones((), dtype=torch.long))

    def forward(self, x):
        return self.fc(x) if self.ask(self, x) else self.fc(x).relu()


@pytest.mark.parametrize("what", CONSTANT)
def test_constants_are_known_without_values(what):
    """A recording on meta tensors goes the way of every run."""
    model = Asks(CONSTANT[what])
    meta, real = (capture(model, (X,), tracers=(tracer,)) for tracer in ("meta", "real"))
    assert [n.target for n in meta.graph.nodes] == [n.target for n in real.graph.nodes]


@pytest.mark.parametrize("what", VALUES)
def test_what_may_differ_from_run_to_run_is_no_constant(what):
    with pytest.raises(TraceError, match="meta"):
        capture(Asks(VALUES[what]), (X,), tracers=("meta",))


def test_a_model_that_branches_on_values_has_none_on_meta():
    with torch.device("meta"):
        model = traps.BranchesOnValues()
    with pytest.raises(TraceError, match="skipped: the model has no values") as error:
        trace(model, X)
    assert list(error.value.answers) == ["meta", "fake", "export", "real"]


def test_a_wrong_input_shape_is_recognisable():
    with pytest.raises(TraceError, match=r"args\[0\] \(2, 5\) torch.float32") as error:
        trace(nn.Linear(4, 3), torch.zeros(2, 5))
    assert error.value.__cause__ is not None
    assert "shapes cannot be multiplied" in str(error.value)


def test_missing_inputs_are_said_with_the_signature():
    with pytest.raises(TraceError, match=r"Linear.forward\(input") as error:
        trace(nn.Linear(4, 3))
    assert "missing a required argument" in str(error.value)


def test_a_parameter_is_never_written():
    """The tracer that runs for real refuses, and the user's weight stays."""
    model = traps.WritesIntoParameter()
    weight = model.fc.weight.detach().clone()
    with pytest.raises(TraceError, match=r"writes into parameter 'fc.weight'"):
        capture(model, (X,), tracers=("real",))
    assert torch.equal(model.fc.weight, weight)


def test_a_lazy_module_says_that_it_must_run_first():
    with pytest.raises(TraceError, match="run the model once"):
        trace(nn.LazyLinear(3), X)


def test_only_modules_are_traced():
    with pytest.raises(TraceError, match="not a function"):
        trace(lambda x: x, X)


@pytest.mark.parametrize("model_on", ["cpu", "meta"])
@pytest.mark.parametrize("args_on", ["cpu", "meta"])
def test_devices_of_model_and_arguments_may_differ(model_on, args_on):
    with torch.device(model_on):
        model = traps.TiedLinear()
    graph = trace(model, IDS.to(args_on))
    assert graph.inputs == {"ids": (2, 3)}
    assert graph.outputs == ((2, 3, 7),)
    devices = [a for n in graph.fx.nodes for a in n.args if isinstance(a, torch.device)]
    assert torch.device("meta") not in devices


def test_graphs_with_constants_can_be_made_runnable():
    model = traps.HoldsALock()
    graph = trace(model, X.to("meta"))
    assert graph.tracer == "meta"
    runnable = graph._runnable()
    out = torch.fx.GraphModule(graph._root(runnable), runnable)(X)
    torch.testing.assert_close(out[0], model(X))


def test_a_graph_without_its_autocast_is_not_run():
    class Lowers(nn.Linear):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    graph = trace(Lowers(4, 3), X)
    assert graph.tracer == "meta"
    with pytest.raises(TraceError, match="switches autocast on"):
        graph._runnable()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrappers_are_looked_through(wrap):
    model = nn.Linear(4, 3)
    graph = trace(wrap(model), X)
    assert graph.model is model
    assert [p.fqn for p in graph.parameters()] == ["weight", "bias"]


def test_hooks_that_compute_take_part():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    nn.utils.parametrizations.weight_norm(model[0])
    graph = trace(model, X)
    reads = {n.target for n in graph.fx.nodes if n.op == "get_attr"}
    assert "0.parametrizations.weight.original1" in reads


def test_outer_modes_are_left_outside():
    model = nn.Linear(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        graph = trace(model, X)
    assert graph.fx.output_node().meta["val"][0].dtype is torch.float32
