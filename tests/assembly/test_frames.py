"""The union frame: both ends are the originals, or it is refused with the reason."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from graftlib import trace
from graftlib_adapters.assembly.frames import union
from graftlib_adapters.assembly.matching import match
from graftlib_adapters.assembly.pairing import problem
from graftlib_adapters.assembly.permutation import AssemblyError

from .nets import IMAGE, TOKENS, Attention, Residual, flattened, lively, mlp

X = (torch.zeros(2, 5),)


def joined(base, source, example):
    graphs = trace(base, example), trace(source, example)
    task = problem(*graphs)
    return union(*graphs, match(task, base.state_dict(), source.state_dict(), score="inner"))


NINE = [(m, n) for m in (3, 4, 5) for n in (3, 4, 5)]
FAMILIES = {
    **{f"mlp {m} {n}": (lambda m=m, n=n: (mlp(5, 4, 4, 4), mlp(5, m, n, 4)), X) for m, n in NINE},
    **{
        f"conv {m} {n}": (lambda m=m, n=n: (flattened(4, 4), flattened(m, n)), IMAGE)
        for m, n in NINE
    },
    "residual": (lambda: (lively(Residual(6, 8)), lively(Residual(8, 5))), IMAGE),
    "inside a pre-norm stream": (
        lambda: (lively(Attention(hidden=12)), lively(Attention(hidden=17))),
        TOKENS,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_both_ends_compute_what_the_originals_do(name):
    make, example = FAMILIES[name]
    base, source = make()
    before = [copy.deepcopy(model.state_dict()) for model in (base, source)]
    found = joined(base, source, example)
    x = torch.randn_like(example[0])
    torch.testing.assert_close(found.at(0.0)(x), base(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.at(1.0)(x), source(x), rtol=1e-5, atol=1e-5)
    # One architecture, and a third model between the two.
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (found.base, found.source)]
    assert shapes[0] == shapes[1]
    assert not torch.allclose(found.at(0.5)(x), base(x), atol=1e-4)
    for model, state in zip((base, source), before, strict=True):
        assert all(torch.equal(tensor, state[fqn]) for fqn, tensor in model.state_dict().items())
    assert all((each.reads >= 0).sum() == each.sources for each in found.permutations.values())


def test_the_base_at_zero_is_the_wide_base_to_the_bit():
    found = joined(mlp(5, 3, 4), mlp(5, 6, 4), X)
    assert all(
        torch.equal(tensor, found.base.state_dict()[fqn])
        for fqn, tensor in found.merged(0.0).items()
    )
    with pytest.raises(AssemblyError, match="merging factor"):
        found.merged(2.0)


class AcrossUnits(nn.Module):
    """A norm over the very units that differ in number."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(5, width), nn.Linear(width, 4)
        self.norm = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[norm](width)

    def forward(self, x):
        return self.head(self.norm(self.up(x)))


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_norm_across_unequal_units_is_refused_with_the_reason(norm):
    with pytest.raises(AssemblyError, match="cannot keep the functions") as caught:
        joined(AcrossUnits(5, norm), AcrossUnits(7, norm), X)
    assert "'norm.weight' 5 and 7 units" in str(caught.value)
    assert "mean or variance over all units" in str(caught.value)
    joined(AcrossUnits(5, norm), AcrossUnits(5, norm), X)  # equal widths are fine


def test_a_difference_that_is_no_tensor_is_seen():
    """Another activation in the source: the wide source runs the base's code."""
    source = mlp(5, 3, 4)
    source[1] = nn.Tanh()
    with pytest.raises(AssemblyError, match="wide source does not compute"):
        joined(mlp(5, 3, 4), source, X)


def test_tensors_without_a_partner_are_refused():
    """Another depth has no common architecture."""
    with pytest.raises(AssemblyError, match="needs every tensor of both models") as caught:
        joined(lively(Residual(blocks=1)), lively(Residual(blocks=2)), IMAGE)
    assert "meets none" in str(caught.value)
    with pytest.raises(AssemblyError, match=r"kernels of '0\.weight'"):
        joined(flattened(3, 4, kernel=3), flattened(3, 4, kernel=1), IMAGE)
