"""Every public path on every device that there is: what goes in on a device comes out on it, and is as right there.

The laws are stated where each part is tested; here they meet the device. Without an accelerator this file runs on the
CPU alone.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graftlib import Mapping, attach, export_onnx, matrix, surgery, trace, unmatrix
from graftlib_adapters import (
    AlignedPull,
    MergeNet,
    MLPAdapter,
    ParameterSharing,
    lmc,
    transplant,
)

ADAPTERS = {
    "mergenet": lambda **options: MergeNet(heads=2, rank=4, trust=0.2, **options),
    "mergenet paper": lambda **options: MergeNet(heads=2, init="paper", **options),
    "mlp": lambda **options: MLPAdapter(width=8, **options),
    "sharing": lambda **options: ParameterSharing(**options),
}


class NormBetweenConvs(nn.Module):
    """Two convolutions that share an axis class with a batch norm."""

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 12, 3, padding=1, bias=False)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        return self.fc(x.mean((2, 3)))


class World:
    """Two of them, a batch, a mapping of one link."""

    def __init__(self, device):
        torch.manual_seed(0)
        self.source, self.target = (NormBetweenConvs(n).to(device) for n in (16, 8))
        self.x = torch.randn(6, 3, 6, 6).to(device)
        self.y = torch.randint(5, (6,)).to(device)
        self.mapping = Mapping(trace(self.source, self.x), trace(self.target, self.x))
        self.mapping.link("fc", "second")

    def loss(self):
        return F.cross_entropy(self.target(self.x), self.y)

    def train(self, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()

    def written(self):
        return self.target.second.weight.detach().clone()


@pytest.fixture
def world(device):
    return World(device)


def close(one, other):
    """Two orders of the same sums, whatever kernels a device takes for them."""
    torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)  # convolutions in TF32, too


def inner(graph):
    """The class of the channels between the two convolutions."""
    return next(
        c for c in graph.axis_classes if ("first.weight", 0) in [(m.fqn, m.axis) for m in c.members]
    )


def test_tracing_sees_the_same_layers_as_on_the_cpu(world):
    here = trace(world.target, world.x)
    there = trace(copy.deepcopy(world.target).cpu(), world.x.cpu())
    assert [layer.name for layer in here.layers] == [layer.name for layer in there.layers]
    assert all(p.device == world.x.device for p in world.target.parameters())


def test_a_matrix_view_is_on_the_device_and_comes_back(world):
    parameter = trace(world.target, world.x).parameter("second.weight")
    weight = world.target.second.weight.detach()
    view = matrix(parameter, weight)
    assert view.device == weight.device
    assert torch.equal(unmatrix(parameter, view, into=weight.clone()), weight)


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_adapter_trains_and_detaches(world, name):
    graft = attach(ADAPTERS[name](), world.mapping, cycle=2)
    optimizer = torch.optim.AdamW(world.target.parameters(), 1e-2)
    graft.follow(optimizer)
    world.train(optimizer, 4)
    assert graft.skipped == 0
    assert [entry.step for entry in graft.history] == [0, 2, 4]
    with graft.settled():
        settled = world.written()
    assert not torch.equal(settled, world.written())
    graft.detach()
    assert torch.equal(settled, world.written())
    assert settled.device == world.x.device


@pytest.mark.parametrize("units", ["largest", "matched"])
def test_a_pull_of_the_whole_way_arrives_where_it_does_on_the_cpu(world, units):
    arrived = []
    for device in (world.x.device, torch.device("cpu")):
        source, target = (copy.deepcopy(m).to(device) for m in (world.source, world.target))
        x = world.x.to(device)
        mapping = Mapping(trace(source, x), trace(target, x))
        mapping.link("first", "first").link("second", "second")
        graft = attach(AlignedPull(mapping, share=1.0, units=units), mapping, cycle=1)
        optimizer = torch.optim.SGD(target.parameters(), lr=0.0)
        graft.follow(optimizer)
        target(x).sum().backward()
        optimizer.step()
        graft.detach()
        assert target.second.weight.device == device
        arrived.append(target.second.weight.detach().cpu())
    assert torch.equal(*arrived)
    assert not torch.equal(arrived[0], world.target.second.weight.detach().cpu())


@pytest.mark.parametrize("write", ["replace", "probe"])
@pytest.mark.parametrize("signal", ["trajectory", "gradient"])
@pytest.mark.parametrize("fused", [False, True])
def test_each_write_and_signal_under_each_kind_of_optimizer(world, write, signal, fused):
    graft = attach(ADAPTERS["mergenet"](write=write, signal=signal), world.mapping, cycle=1)
    optimizer = torch.optim.AdamW(world.target.parameters(), 1e-2, fused=fused)
    graft.follow(optimizer)
    world.train(optimizer, 3)
    assert min(n for e in graft.history[:3] for n in e.signal.values()) > 0
    assert graft.history[-1].changes["target:second.weight"].size > 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_not_counted(world, device, fused):
    graft = attach(ADAPTERS["mergenet"](), world.mapping, cycle=2)
    optimizer = torch.optim.AdamW(world.target.parameters(), 1e-3, fused=fused)
    graft.follow(optimizer)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**8)
    for t in range(6):
        optimizer.zero_grad()
        loss = world.loss()
        scaler.scale(loss * torch.inf if t in (1, 2) else loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert graft.step_count == 4


def test_under_autocast_in_half_precision(world, device):
    graft = attach(ADAPTERS["mergenet"](), world.mapping, cycle=1)
    optimizer = torch.optim.SGD(world.target.parameters(), 1e-2)
    graft.follow(optimizer)
    for _ in range(3):
        with torch.autocast(device, torch.bfloat16):
            loss = world.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert graft.skipped == 0
    assert world.target.second.weight.dtype == torch.float32


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_a_written_weight_stays(world, layout):
    world.target.to(memory_format=layout)
    strides = world.target.second.weight.stride()
    graft = attach(ADAPTERS["mergenet paper"](), world.mapping, cycle=1)
    before = world.written()
    graft.follow(torch.optim.SGD(world.target.parameters(), 1e-2))
    assert not torch.equal(world.written(), before)
    assert world.target.second.weight.stride() == strides
    graft.detach()
    assert torch.equal(world.written(), before)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_state_is_resumed_on_another_device(world, name):
    """Saved on the CPU as `torch.save` with map_location would leave it."""
    graft = attach(ADAPTERS[name](), world.mapping, cycle=2)
    optimizer = torch.optim.SGD(world.target.parameters(), 1e-2)
    graft.follow(optimizer)
    world.train(optimizer, 4)
    with graft.settled():
        saved = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: t.detach().cpu().clone(), graft.state_dict()
        )
    written = world.written()
    graft.detach()
    again = attach(ADAPTERS[name](), world.mapping, cycle=2)
    again.load_state_dict(saved)
    again.follow(optimizer)
    close(world.written(), written)
    world.train(optimizer, 3)
    assert again.step_count == 7


def test_the_joined_graph_runs(world):
    graft = attach(ADAPTERS["mergenet"](), world.mapping, cycle=1)
    world.target.eval()
    said = graft.to_fx()(world.x)
    said = said[0] if isinstance(said, tuple) else said
    close(said, world.target(world.x))
    assert said.device == world.x.device


def test_permuting_keeps_the_function(world):
    world.target.eval()
    graph = trace(world.target, world.x)
    moved = surgery.permute(graph, seed=1)
    assert not torch.equal(moved.first.weight, world.target.first.weight)
    close(moved(world.x), world.target(world.x))


def test_widening_keeps_the_function(world):
    world.target.eval()
    graph = trace(world.target, world.x)
    wide = surgery.widen(graph, {inner(graph): 12})
    assert wide.first.weight.shape[0] == 12
    close(wide(world.x), world.target(world.x))


@pytest.mark.parametrize("refit", ["least-squares", "rescale", None])
def test_pruning_on_data(world, refit):
    world.target.eval()
    with torch.no_grad():
        world.target.first.weight[4:] = world.target.first.weight[:4]
        world.target.first.bias[4:] = world.target.first.bias[:4]
    graph = trace(world.target, world.x)
    units = {inner(graph): range(4)}
    slim = surgery.prune(graph, units, data=[world.x], refit=refit)
    assert slim.first.weight.shape[0] == 4
    assert slim(world.x).device == world.x.device
    if refit == "least-squares":  # the other half says the same
        torch.testing.assert_close(slim(world.x), world.target(world.x), rtol=0.05, atol=0.02)


def test_transplanting(world):
    done = transplant(Mapping(trace(world.source, world.x), trace(world.target, world.x)))
    assert {p.device for p in done.model.parameters()} == {world.x.device}
    assert done.model(world.x).shape == (6, 5)


def test_a_merging_curve(world):
    other = copy.deepcopy(world.target)
    curve = lmc(
        world.target,
        other,
        evaluate=lambda model: float(F.cross_entropy(model(world.x), world.y)),
        args=(world.x,),
        factors=(0.0, 1.0),
    )
    assert curve is not None


def test_exporting_with_its_proof(world, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    world.target.eval()
    export_onnx(world.target, tmp_path / "m.onnx", world.x, measure=False, card=False)
    assert (tmp_path / "m.onnx").is_file()
    assert {p.device for p in world.target.parameters()} == {world.x.device}
