"""The joined graph: one adapter node a link, and a runnable form that gives what the written weights give."""

import pytest
import torch

from graftlib import GraftError, attach
from graftlib_adapters import MergeNet


def trained(world, adapter, cycle=2, steps=5):
    optimizer = torch.optim.SGD(world.target.parameters(), lr=0.1)
    graft = attach(adapter, world.mapping, cycle=cycle).follow(optimizer)
    world.train(optimizer, steps)
    world.target.eval()
    return graft


def test_one_adapter_node_a_link_between_the_layers_it_joins(make_world, nudge):
    world = make_world(source=("conv2", "fc"), target=("hidden", "head"), direction="both")
    graft = attach(nudge(), world.mapping)
    joined = graft.graph
    assert len(joined.adapters) == 4
    assert {(u, v) for u, v in joined.nx.edges("adapter:0")} == {("adapter:0", "target:hidden")}
    assert set(joined.nx.predecessors("adapter:0")) == {"source:conv2", "target:hidden"}
    assert set(joined.nx.predecessors("adapter:1")) == {"source:conv2", "target:hidden"}
    plain = len(world.mapping.source.nx) + len(world.mapping.target.nx)
    assert len(joined.nx) == plain + 4
    assert "conv2.weight -> hidden.weight" in str(joined)
    graft.detach()
    with pytest.raises(GraftError, match="detached"):
        graft.graph  # noqa: B018


@pytest.mark.parametrize("write", ["replace", "probe"])
@pytest.mark.parametrize("adapter", ["nudge", "mergenet"])
def test_the_runnable_form_gives_what_the_written_weights_give(world, nudge, adapter, write):
    adapter = nudge(write, gate=0.4) if adapter == "nudge" else MergeNet(rank=3, write=write)
    graft = trained(world, adapter, steps=4)
    assert graft.pending
    x = world.x[0][:2]
    written = world.target(x)
    with graft.settled():
        settled = world.target(x)
    module = graft.to_fx()
    (out,) = module(x)
    torch.testing.assert_close(out, written)
    assert not torch.allclose(settled, written), (
        "the transfer does something, so the law above can fail"
    )
    assert graft.pending


def test_it_is_differentiable_end_to_end(world):
    graft = trained(world, MergeNet(rank=3))
    module = graft.to_fx()
    (out,) = module(world.x[0][:2])
    out.square().sum().backward()
    adapter = [p for name, p in module.named_parameters() if name.startswith("graft.adapter")]
    assert adapter
    assert all(p.grad is not None for p in adapter)
    assert any(p.grad.abs().sum() > 0 for p in adapter)


def test_its_gradient_is_the_adapters_vector_jacobian_product(world, nudge):
    """d loss / d gate through the graph = <d loss / d W~, d W~ / d gate>."""
    graft = attach(nudge(gate=0.4), world.mapping, cycle=1)
    world.target.eval()
    module = graft.to_fx()
    (out,) = module(world.x[0][:2])
    out.square().sum().backward()
    with graft.step():
        world.target(world.x[0][:2]).square().sum().backward()
        block = world.source.conv2.weight.detach().reshape(12, -1)[:7, :6]
        expected = (world.target.hidden.weight.grad * block).sum()
    torch.testing.assert_close(module.graft.adapter.gates.grad, expected[None])


def test_looking_changes_nothing(world):
    graft = trained(world, MergeNet(rank=3))
    before, state = world.weights(), graft.state_dict()
    graft.to_fx()(world.x[0][:2])
    assert all(torch.equal(before[k], v) for k, v in world.weights().items())
    after = graft.state_dict()
    assert all(torch.equal(state["module"][k], v) for k, v in after["module"].items())
