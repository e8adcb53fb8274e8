"""Merging: the base at 0, exact twins at every factor, pads, layers; nothing else is touched."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graftlib import surgery, trace
from graftlib_adapters.assembly.errors import AssemblyError
from graftlib_adapters.assembly.matching import align
from graftlib_adapters.assembly.merging import merged
from graftlib_adapters.assembly.pairing import problem

from .nets import IMAGE, TOKENS, Attention, Residual, flattened, lively, mlp

X = (torch.zeros(2, 5),)
FACTORS = st.floats(0, 1)


def aligned(base, source, example, **options):
    task = problem(trace(base, example), trace(source, example))
    return align(task, base.state_dict(), source.state_dict(), **options)


def at(base, source, found, factor, **options):
    made = copy.deepcopy(base)
    made.load_state_dict(
        merged(base.state_dict(), found, source.state_dict(), factor, **options), strict=False
    )
    return made


def widened(model, example, by=3):
    """The same function with more units in every class that allows it: silent ones, then all in another order."""
    graph = trace(model, example)
    sizes = {each: each.size + by for each in graph.axis_classes if each.free}
    wide = zero_widened(model, graph, sizes)
    return surgery.permute(trace(wide, example), seed=5)


def zero_widened(model, graph, sizes):
    """By hand: new units have no weights at all, a running variance of 1."""
    from graftlib.surgery.fit import fitted

    rows, new = {}, {}
    for each, size in sizes.items():
        for m in each.members:
            tensor = graph.model.state_dict()[m.fqn]
            axis = rows.setdefault((m.fqn, m.axis), torch.arange(tensor.shape[m.axis]))
            block = axis.view(m.factors)
            more = block.index_select(m.position, torch.zeros(size - each.size, dtype=torch.int64))
            rows[m.fqn, m.axis] = torch.cat([block, more * 0 - 1], m.position).flatten()
    new = {key: read < 0 for key, read in rows.items()}

    def finish(made):
        for (fqn, axis), fresh in new.items():
            tensor = made.state_dict()[fqn]
            tensor.index_fill_(
                axis, fresh.nonzero().flatten(), 1.0 if "running_var" in fqn else 0.0
            )

    clamped = {key: read.clamp(min=0) for key, read in rows.items()}
    return fitted(model, graph, clamped, sizes, inplace=False, finish=finish)


CASES = {
    "mlp": (lambda: mlp(5, 6, 7, 4), X),
    "flattened": (lambda: flattened(4, 5), IMAGE),
    "residual": (lambda: lively(Residual()), IMAGE),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pad", ["zero", "keep"])
def test_a_factor_of_zero_is_the_base_to_the_bit(name, pad):
    make, example = CASES[name]
    base, source = make(), widened(make(), example)
    with torch.no_grad():
        next(base.parameters()).flatten()[0] = -0.0  # a sign that arithmetic would lose
    made = merged(
        base.state_dict(), aligned(base, source, example), source.state_dict(), 0.0, pad=pad
    )
    for fqn, tensor in made.items():
        old = base.state_dict()[fqn]
        assert torch.equal(tensor.contiguous().view(torch.int32), old.view(torch.int32))
        assert tensor.data_ptr() != old.data_ptr()


@pytest.mark.parametrize("name", CASES)
@given(factor=FACTORS)
@settings(max_examples=5)
def test_a_base_hidden_in_a_wider_source_merges_to_itself(name, factor):
    """Embedded and shuffled: found again, so the merge is the base at every factor."""
    make, example = CASES[name]
    torch.manual_seed(1)
    base = make()
    source = widened(base, example)
    x = torch.randn_like(example[0])
    torch.testing.assert_close(source(x), base(x))
    made = at(base, source, aligned(base, source, example), factor)
    for fqn, tensor in made.state_dict().items():
        assert torch.equal(tensor, base.state_dict()[fqn]), fqn


@pytest.mark.parametrize("name", CASES)
def test_a_narrow_source_in_a_wide_base_keeps_its_function_at_one(name):
    """F1 with m >= p everywhere: at a factor of 1 the wide base computes what the narrow source does."""
    make, example = CASES[name]
    source = make()
    base = lively(widened(make(), example))
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_()
    x = torch.randn_like(example[0])
    found = aligned(base, source, example)
    torch.testing.assert_close(at(base, source, found, 1.0)(x), source(x))
    kept = at(base, source, found, 1.0, pad="keep")
    assert not torch.allclose(kept(x), source(x), atol=1e-3)


@given(st.integers(2, 9), st.integers(2, 9), FACTORS)
@settings(max_examples=15)
def test_pads_stay_finite_and_do_what_they_say(m, p, factor):
    torch.manual_seed(m)
    base, source = flattened(m, 4), flattened(p, 6)
    found = aligned(base, source, IMAGE)
    zero = at(base, source, found, factor)
    assert zero(torch.randn(2, 2, 3, 3)).isfinite().all()
    keep = merged(base.state_dict(), found, source.state_dict(), factor, pad="keep")
    for fqn, tensor in keep.items():
        mask = found.mask(fqn)
        old, moved = base.state_dict()[fqn], found.transported(source.state_dict())[fqn]
        assert torch.equal(tensor[~mask], old[~mask])
        torch.testing.assert_close(tensor[mask], torch.lerp(old, moved, factor)[mask])
        empty = 1.0 if fqn.endswith("running_var") else 0.0
        expected = old + factor * (empty - old)
        torch.testing.assert_close(zero.state_dict()[fqn][~mask], expected[~mask])
    if m > p:
        assert (~found.mask("1.running_var")).sum() == m - p


@pytest.mark.parametrize(("ours", "theirs"), [(5, 3), (3, 5), (4, 2)])
def test_kernels_of_other_sizes_meet_in_their_middle(ours, theirs):
    base, source = (
        flattened(3, 4, kernel=ours if ours % 2 else 3),
        flattened(3, 4, kernel=theirs if theirs % 2 else 1),
    )
    k, j = base[0].kernel_size[0], source[0].kernel_size[0]
    found = aligned(base, source, IMAGE)
    moved = found.transported(source.state_dict())["0.weight"]
    assert moved.shape[-2:] == (k, k)
    rows = found.permutations[0].reads
    shared, at_base, at_source = min(k, j), (k - min(k, j)) // 2, (j - min(k, j)) // 2
    middle = slice(at_base, at_base + shared)
    picked = slice(at_source, at_source + shared)
    assert torch.equal(moved[:, :, middle, middle], source[0].weight[rows][:, :, picked, picked])
    assert moved.abs().sum() == pytest.approx(float(moved[:, :, middle, middle].abs().sum()))
    if k > j:
        # The rim is a place that the source leaves empty: merged towards 0, and kept on request.
        assert found.region("0.weight").all()
        assert not found.mask("0.weight").all()


def test_what_takes_no_part_is_left_alone():
    """Only the queries meet: keys and values do not shrink, whatever the pad."""
    from graftlib.match import Mapping

    base, source = lively(Attention()), lively(Attention())
    ours, theirs = trace(base, TOKENS), trace(source, TOKENS)
    mapping = Mapping(theirs, ours).link("qkv.weight::query", "qkv.weight::query")
    found = align(problem(ours, theirs, mapping=mapping), base.state_dict(), source.state_dict())
    made = merged(base.state_dict(), found, source.state_dict(), 0.5)
    assert torch.equal(made["qkv.weight"][8:], base.state_dict()["qkv.weight"][8:])
    assert not torch.equal(made["qkv.weight"][:8], base.state_dict()["qkv.weight"][:8])
    assert found.region("qkv.weight")[:8].all()
    assert not found.region("qkv.weight")[8:].any()


def test_parts_of_one_base_tensor_are_read_from_several():
    from .test_pairing import Apart

    base, source = lively(Attention()), lively(Apart())
    found = aligned(base, source, TOKENS)
    made = at(base, source, found, 1.0)
    x = torch.randn_like(TOKENS[0])
    torch.testing.assert_close(made(x), source(x))
    assert found.mask("qkv.weight").all()


def test_only_chosen_layers_change():
    base, source = lively(Residual()), lively(Residual())
    found = aligned(base, source, IMAGE)
    made = merged(base.state_dict(), found, source.state_dict(), 0.5, layers=["blocks.0"])
    assert {fqn.split(".")[1] for fqn in made} == {"0"}
    assert "blocks.0.1.running_var" in made
    with pytest.raises(AssemblyError, match="no tensor of the base's 'block'"):
        merged(base.state_dict(), found, source.state_dict(), 0.5, layers=["block"])


@pytest.mark.parametrize("factor", [-0.1, 1.1])
def test_factors_beyond_the_ends_are_refused(factor):
    base = mlp(5, 6, 4)
    found = aligned(base, base, X)
    with pytest.raises(AssemblyError, match="merging factor"):
        merged(base.state_dict(), found, base.state_dict(), factor)


def test_half_precision_keeps_its_dtype_and_its_twin():
    base = mlp(5, 6, 4).to(torch.bfloat16)
    found = aligned(base, base, (torch.zeros(2, 5, dtype=torch.bfloat16),))
    made = merged(base.state_dict(), found, base.state_dict(), 0.3)
    assert all(torch.equal(tensor, base.state_dict()[fqn]) for fqn, tensor in made.items())
    assert all(tensor.dtype == torch.bfloat16 for tensor in made.values())
    assert isinstance(base, nn.Module)
