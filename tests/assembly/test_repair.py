"""What data add: units matched by what they do, statistics of a merged model set between those of its parents."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from graftlib import surgery, trace
from graftlib_adapters.assembly.activations import costs
from graftlib_adapters.assembly.errors import AssemblyError
from graftlib_adapters.assembly.matching import align
from graftlib_adapters.assembly.merging import merged
from graftlib_adapters.assembly.pairing import problem
from graftlib_adapters.assembly.permutation import Permutation
from graftlib_adapters.assembly.recording import evaluating
from graftlib_adapters.assembly.repair import repair

from .nets import IMAGE, Residual, flattened, lively, mlp

X = (torch.zeros(2, 5),)


def batches(example, count=4, size=32):
    random = torch.Generator().manual_seed(0)
    shape = (size, *example[0].shape[1:])
    return [torch.randn(shape, generator=random) for _ in range(count)]


def merge(base, source, found, factor):
    made = copy.deepcopy(base)
    made.load_state_dict(
        merged(base.state_dict(), found, source.state_dict(), factor), strict=False
    )
    return made


@pytest.mark.parametrize(
    ("make", "example"),
    [
        (lambda: mlp(5, 6, 7, 4), X),
        (lambda: flattened(4, 5), IMAGE),
        (lambda: lively(Residual()), IMAGE),
    ],
)
def test_activations_find_a_planted_renaming(make, example):
    base = make()
    graph = trace(base, example)
    source = surgery.permute(graph, seed=2)
    task = problem(graph, trace(source, example))
    before = {k: v.clone() for k, v in base.state_dict().items()}
    similar = costs(task, base, source, batches(example))
    assert set(similar) == set(range(len(task.classes)))
    found = align(task, base.state_dict(), source.state_dict(), costs=similar)
    moved = found.transported(source.state_dict())
    assert all(torch.equal(tensor, base.state_dict()[fqn]) for fqn, tensor in moved.items())
    assert all(torch.equal(tensor, before[fqn]) for fqn, tensor in base.state_dict().items())
    assert not any(module._forward_hooks for module in base.modules())


def test_correlations_are_pearsons_also_for_unequal_widths():
    base, source = mlp(5, 3, 4), mlp(5, 6, 4)
    task = problem(trace(base, X), trace(source, X))
    data = batches(X)
    both = torch.cat([torch.cat([base[0](x), source[0](x)], 1) for x in data]).detach().double()
    torch.testing.assert_close(costs(task, base, source, data)[0], torch.corrcoef(both.T)[:3, 3:])


def test_a_silent_unit_correlates_with_none():
    base, source = mlp(5, 3, 4), mlp(5, 3, 4)
    with torch.no_grad():
        base[0].weight[1] = 0
    similar = costs(problem(trace(base, X), trace(source, X)), base, source, batches(X))[0]
    assert torch.equal(similar[1], torch.zeros(3, dtype=torch.float64))
    assert similar.isfinite().all()


def test_no_data_is_refused():
    base = mlp(5, 3, 4)
    task = problem(trace(base, X), trace(base, X))
    found = align(task, base.state_dict(), base.state_dict())
    with pytest.raises(AssemblyError, match="no batch"):
        costs(task, base, base, [])
    with pytest.raises(AssemblyError, match="several times"):
        repair(base, base, base, found, iter(batches(X)), 0.5)


def deviations(model, layer, data):
    recorded = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda m, i, o: recorded.append(o.detach())
    )
    with evaluating(model):
        for x in data:
            model(x)
    handle.remove()
    values = torch.cat(recorded)
    return values.mean(0), values.std(0, correction=0)


def test_units_get_the_statistics_between_their_parents():
    """A merge of unrelated nets has less spread than either; afterwards mean and spread are those asked for."""
    base, source = mlp(5, 24, 24, 4), mlp(5, 30, 24, 4)
    task = problem(trace(base, X), trace(source, X))
    found = align(task, base.state_dict(), source.state_dict())
    data = batches(X, count=1, size=256)
    made = merge(base, source, found, 0.5)
    set_ = repair(made, base, source, found, data, 0.5)
    assert set_ == ("0", "2")
    for layer, number in (("0", 0), ("2", 1)):
        reads = found.permutations[number].reads
        for goal, mine, theirs in zip(
            deviations(made, layer, data),
            deviations(base, layer, data),
            deviations(source, layer, data),
            strict=True,
        ):
            torch.testing.assert_close(goal, (mine + theirs[reads]) / 2, rtol=1e-3, atol=1e-4)
    shrunk = deviations(merge(base, source, found, 0.5), "2", data)[1]
    assert shrunk.mean() < deviations(made, "2", data)[1].mean()


def test_a_base_merged_with_itself_needs_no_repair():
    base = mlp(5, 8, 8, 4)
    graph = trace(base, X)
    found = align(problem(graph, graph), base.state_dict(), base.state_dict())
    made = copy.deepcopy(base)
    repair(made, base, base, found, batches(X, count=1, size=256), 0.5)
    x = torch.randn(4, 5)
    torch.testing.assert_close(made(x), base(x), rtol=1e-2, atol=1e-3)


def test_units_without_a_partner_get_the_bases_statistics():
    base, source = mlp(5, 9, 4), mlp(5, 3, 4)
    task = problem(trace(base, X), trace(source, X))
    found = align(task, base.state_dict(), source.state_dict())
    data = batches(X, count=1, size=256)
    made = merge(base, source, found, 0.5)
    repair(made, base, source, found, data, 0.5)
    alone = found.permutations[0].reads < 0
    assert alone.sum() == 6
    for now, then in zip(deviations(made, "0", data), deviations(base, "0", data), strict=True):
        torch.testing.assert_close(now[alone], then[alone], rtol=1e-3, atol=1e-4)


def test_running_statistics_are_measured_anew():
    base, source = lively(Residual()), lively(Residual())
    task = problem(trace(base, IMAGE), trace(source, IMAGE))
    found = align(task, base.state_dict(), source.state_dict(), method="identity")
    data = batches(IMAGE)
    made = merge(base, source, found, 0.5)
    made.blocks[0][1].momentum = 0.3
    set_ = repair(made, base, source, found, data, 0.5)
    assert "blocks.0.1" in set_
    assert made.blocks[0][1].momentum == 0.3
    assert not made.training
    inputs = []
    handle = made.blocks[0][1].register_forward_hook(lambda m, i, o: inputs.append(i[0].detach()))
    for x in data:
        made(x)
    handle.remove()
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(made.blocks[0][1].running_mean, means, rtol=1e-3, atol=1e-5)
    assert isinstance(found.permutations[0], Permutation)
    assert isinstance(made, nn.Module)
