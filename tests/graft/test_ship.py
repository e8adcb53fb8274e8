"""Exporting a grafted model ships the settled weights; a detached model exports like one that was never grafted."""

import pytest
import torch

from examples.common.onnx_graph import onnx_graph_signature
from graftlib import attach, export_onnx


@pytest.fixture
def example():
    return (torch.randn(2, 1, 6, 6),)


@pytest.mark.parametrize("write", ["replace", "probe"])
def test_export_with_a_live_graft_equals_export_after_detach_and_leaves_it_running(
    world, nudge, example, tmp_path, write
):
    optimizer = torch.optim.SGD(world.target.parameters(), lr=0.1)
    graft = attach(nudge(write, gate=0.5), world.mapping, cycle=1).follow(optimizer)
    world.train(optimizer, 2)
    pending = world.weights()
    assert graft.pending
    export_onnx(world.target, tmp_path / "live.onnx", example)
    assert graft.pending
    assert all(torch.equal(pending[k], v) for k, v in world.weights().items())
    graft.detach()
    assert any(not torch.equal(pending[k], v) for k, v in world.weights().items())
    export_onnx(world.target, tmp_path / "detached.onnx", example)
    live, detached = (
        onnx_graph_signature(tmp_path / f"{name}.onnx") for name in ("live", "detached")
    )
    assert live == detached


def test_a_detached_models_graph_is_that_of_a_never_grafted_one_node_for_node(
    make_world, nudge, example, tmp_path
):
    grafted, never = make_world(), make_world()
    optimizer = torch.optim.SGD(grafted.target.parameters(), lr=0.1)
    graft = attach(nudge(gate=0.3), grafted.mapping, cycle=2).follow(optimizer)
    grafted.train(optimizer, 5)
    graft.detach()
    never.target.load_state_dict(grafted.target.state_dict())
    export_onnx(grafted.target, tmp_path / "grafted.onnx", example)
    export_onnx(never.target, tmp_path / "never.onnx", example)
    one, other = (onnx_graph_signature(tmp_path / f"{name}.onnx") for name in ("grafted", "never"))
    assert one == other


def test_the_signature_sees_one_changed_weight(world, example, tmp_path):
    """The negative control of both laws above."""
    export_onnx(world.target, tmp_path / "before.onnx", example)
    with torch.no_grad():
        world.target.hidden.weight[0, 0] += 1
    export_onnx(world.target, tmp_path / "after.onnx", example)
    one, other = (onnx_graph_signature(tmp_path / f"{name}.onnx") for name in ("before", "after"))
    assert one != other
