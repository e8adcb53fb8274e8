"""The union frame: both ends are the originals, or it is refused with the reason."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graftlib import trace
from graftlib_adapters.assembly.errors import AssemblyError
from graftlib_adapters.assembly.matching import align
from graftlib_adapters.assembly.pairing import problem
from graftlib_adapters.assembly.union_frame import union

from .nets import IMAGE, TOKENS, Attention, Residual, flattened, lively, mlp

X = (torch.zeros(2, 5),)


def joined(base, source, example):
    graphs = trace(base, example), trace(source, example)
    task = problem(*graphs)
    return union(*graphs, align(task, base.state_dict(), source.state_dict(), objective="inner"))


RMS = partial(nn.RMSNorm, eps=0.1)  # a small number that matters


class Block(nn.Module):
    """Packed query, key and value; heads of any width, whose root is taken anew or kept."""

    def __init__(self, norm, dim, heads, width, hidden, kept) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5 if kept else None
        self.norm, self.last = norm(dim), norm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * heads * width), nn.Linear(heads * width, dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        x = x + self.out(read.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.last(x))))


def former(norm=RMS, dim=8, heads=2, width=4, hidden=9, *, kept=False):
    layers = (nn.Linear(3, dim), Block(norm, dim, heads, width, hidden, kept), norm(dim))
    return lively(nn.Sequential(*layers, nn.Linear(dim, 4)))


def vgg(*widths):
    """Convolutions with batch norms, pooled to one place, and a classifier of two layers."""
    layers, before = [], 2
    for width in widths[:-1]:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    head = (nn.Linear(before, widths[-1]), nn.ReLU(), nn.Linear(widths[-1], 4))
    return lively(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head))


def both_ways(name, make, *ways, example=TOKENS):
    """A pair of models and the same pair with base and source exchanged."""
    one, other = (partial(make, **way) for way in ways)
    return {
        name: (lambda: (one(), other()), example),
        f"{name}, exchanged": (lambda: (other(), one()), example),
    }


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
    "vgg": (lambda: (vgg(4, 7, 5), vgg(6, 5, 8)), IMAGE),
    **both_ways("rms stream", former, {"dim": 8, "heads": 3}, {"dim": 10, "hidden": 7}),
    **both_ways("head width", former, {"width": 4}, {"width": 6}),
    **both_ways(
        "head width that the code keeps",
        former,
        {"width": 4, "kept": True},
        {"width": 6, "heads": 3, "kept": True},
    ),
    "head width that one keeps": (lambda: (former(width=6, kept=True), former(width=4)), TOKENS),
    **both_ways(
        "inside of layer norms",
        partial(former, nn.LayerNorm),
        {"heads": 2, "hidden": 11},
        {"heads": 3, "width": 5},
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


def test_the_small_number_of_a_norm_goes_along():
    found = joined(former(dim=8), former(dim=10), TOKENS)
    eps = [found.at(factor)[2].eps for factor in (0.0, 0.5, 1.0)]
    assert eps == pytest.approx([0.08, 0.09, 0.1])


class AcrossUnits(nn.Module):
    """A norm over the very units that differ in number."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(5, width), nn.Linear(width, 4)
        self.norm = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[norm](width)

    def forward(self, x):
        return self.head(self.norm(self.up(x)))


@pytest.mark.parametrize(("widths", "word"), [((5, 7), "base"), ((7, 5), "source")])
def test_a_norm_across_unequal_units_is_refused_with_the_reason(widths, word):
    base, source = (AcrossUnits(width, "layer") for width in widths)
    with pytest.raises(AssemblyError, match=f"cannot keep the function of the {word}") as caught:
        joined(base, source, X)
    assert f"'norm.weight' {widths[0]} and {widths[1]} units" in str(caught.value)
    assert "mean or variance over all units" in str(caught.value)
    joined(AcrossUnits(5, "layer"), AcrossUnits(5, "layer"), X)  # equal widths are fine
    joined(*(AcrossUnits(width, "rms") for width in widths), X)  # and so are norms without a mean


@pytest.mark.parametrize("inside", [True, False])
def test_groups_of_channels_join_as_whole_groups_only(inside):
    def grouped(groups, size):
        norm = nn.GroupNorm(groups, groups * size)
        make = (nn.Conv2d(2, groups * size, 1), norm, nn.Conv2d(groups * size, 4, 1), nn.Flatten())
        return lively(nn.Sequential(*make))

    if inside:
        with pytest.raises(AssemblyError, match="cannot keep the function"):
            joined(grouped(3, 2), grouped(3, 4), IMAGE)
        return
    base, source = grouped(3, 2), grouped(5, 2)
    found, x = joined(base, source, IMAGE), torch.randn_like(IMAGE[0])
    torch.testing.assert_close(found.at(0.0)(x), base(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.at(1.0)(x), source(x), rtol=1e-5, atol=1e-5)


IDS = (torch.arange(6)[None],)


def hugging_face(name, **sizes):
    import transformers

    make = getattr(transformers, name)
    config = make.config_class(
        vocab_size=17, num_hidden_layers=1, num_labels=5, use_cache=False, **sizes
    )
    model = make(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.rand_like(parameter))
    return model


GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
HUGGING_FACE = {
    # A wider stream, more groups of keys, another width of the MLP.
    "LlamaForCausalLM": (
        {"hidden_size": 16, "intermediate_size": 24, **GROUPED},
        {
            "hidden_size": 24,
            "intermediate_size": 20,
            **GROUPED,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
        },
    ),
    # Another width of the heads, which its code keeps a root of, and another width of the MLP.
    "BertForSequenceClassification": (
        {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2},
        {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4},
    ),
}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_models_of_hugging_face(name):
    base, source = (hugging_face(name, **sizes) for sizes in HUGGING_FACE[name])
    found = joined(base, source, IDS)
    for model, factor in ((base, 0.0), (source, 1.0)):
        got, wanted = found.at(factor)(*IDS).logits, model(*IDS).logits
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_stream_between_layer_norms_is_refused():
    base, source = (
        hugging_face(
            "BertForSequenceClassification",
            hidden_size=size,
            intermediate_size=24,
            num_attention_heads=2,
        )
        for size in (16, 24)
    )
    with pytest.raises(AssemblyError, match="mean or variance over all units"):
        joined(base, source, IDS)


def test_a_difference_that_is_no_tensor_is_seen():
    """Another activation in the source: the wide source runs the base's code."""
    source = mlp(5, 3, 4)
    source[1] = nn.Tanh()
    with pytest.raises(AssemblyError, match="function of the source"):
        joined(mlp(5, 3, 4), source, X)


def test_tensors_without_a_partner_are_refused():
    """Another depth has no common architecture."""
    with pytest.raises(AssemblyError, match="needs every tensor of both models") as caught:
        joined(lively(Residual(blocks=1)), lively(Residual(blocks=2)), IMAGE)
    assert "has no partner" in str(caught.value)
    with pytest.raises(AssemblyError, match=r"kernels of '0\.weight'"):
        joined(flattened(3, 4, kernel=3), flattened(3, 4, kernel=1), IMAGE)
