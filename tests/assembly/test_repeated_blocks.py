"""Blocks are kept together: all that a target block takes comes from one source block, chosen by worth or by name."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models import MobileNetV2, VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from graftlib import Mapping, trace
from graftlib.surgery.blocks import repeated
from graftlib_adapters.assembly import AssemblyError, assemble, replay, transplant
from graftlib_adapters.assembly.layer_order import around
from graftlib_adapters.assembly.pairing import problem


class Layer(nn.Module):
    """Query, key, value, output, gate, up and down, and two norms."""

    def __init__(self, width, hidden, heads=2):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.gate, self.up, self.down = (
            nn.Linear(width, hidden),
            nn.Linear(width, hidden),
            nn.Linear(hidden, width),
        )

    def forward(self, x):
        h = self.first(x)
        q, k, v = (
            f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.second(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    def __init__(self, depth, width=8, hidden=12):
        super().__init__()
        self.embed, self.head = nn.Linear(3, width), nn.Linear(width, 4)
        self.layers = nn.ModuleList(Layer(width, hidden) for _ in range(depth))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def bert(depth):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
    return BertModel(
        BertConfig(vocab_size=40, num_hidden_layers=depth, **sizes), add_pooling_layer=False
    ).eval()


def gpt2(depth, width=16):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=40, n_embd=width, n_head=4, n_layer=depth, n_positions=16, use_cache=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def mixtral(depth):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(
        vocab_size=40, intermediate_size=24, num_hidden_layers=depth, num_local_experts=2,
        use_cache=False, **sizes,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def resnet(*stages, kind=BasicBlock):
    return ResNet(kind, list(stages), num_classes=5, width_per_group=64).eval()


def vit(depth, width=16):
    return VisionTransformer(16, 8, depth, 4, width, 24, num_classes=5).eval()


TOKENS, IMAGE = ((torch.zeros(2, 3, 3),), {}), ((torch.zeros(2, 3, 32, 32),), {})
IDS = ((), {"input_ids": torch.zeros(2, 5, dtype=torch.int64)})
PAIRS = {
    "bert, half of the layers": (lambda: bert(3), lambda: bert(6), IDS),
    "bert, one of the layers": (lambda: bert(1), lambda: bert(4), IDS),
    "bert, more layers": (lambda: bert(5), lambda: bert(2), IDS),
    "gpt-2, packed projections": (lambda: gpt2(2, 12), lambda: gpt2(5), IDS),
    "experts": (lambda: mixtral(2), lambda: mixtral(4), IDS),
    "vit": (lambda: vit(2), lambda: vit(5, 24), ((torch.zeros(2, 3, 16, 16),), {})),
    "stages of a resnet": (lambda: resnet(1, 2, 1, 1), lambda: resnet(3, 4, 2, 2), IMAGE),
    "other blocks": (lambda: resnet(1, 2, 1, 1), lambda: resnet(2, 2, 2, 2, kind=Bottleneck), IMAGE),
    "other families": (
        lambda: MobileNetV2(5, 0.5, [[1, 8, 1, 1], [4, 16, 2, 2], [4, 24, 2, 2]]).eval(),
        lambda: resnet(2, 2, 2, 2),
        IMAGE,
    ),
}  # fmt: skip


def seen(model, example):
    return trace(model, *example)


def origins(task, base, source):
    """Base block -> the source blocks that its weights and biases come from."""
    blocks, others = repeated(base.model), repeated(source.model)
    found: dict[str, set[tuple[str, ...]]] = {}
    for pair in task.pairs:
        known = (
            base.parameter(pair.base) if pair.base in dict(base.model.named_parameters()) else None
        )
        if known is not None and known.kind != "norm":
            for block in around(pair.base, blocks):
                found.setdefault(block, set()).add(around(pair.source, others)[-1:])
    return found


def places(found):
    """The source blocks in the order of the base's."""
    return [next(iter(each)) for each in found.values()]


@pytest.mark.parametrize("name", PAIRS)
def test_a_block_takes_from_one_block(name):
    make_base, make_source, example = PAIRS[name]
    base, source = seen(make_base(), example), seen(make_source(), example)
    found = origins(problem(base, source), base, source)
    assert found
    assert all(len(each) == 1 for each in found.values()), found
    taken = [each for each in places(found) if each]
    assert len(set(taken)) == len(taken) > 0
    order = [other for other in repeated(source.model) if (other,) in taken]
    assert taken == [(other,) for other in order]


def test_layers_for_themselves_take_blocks_apart():
    """The law above can fail: by layers, attention and MLP of one block come from two."""
    base, source = seen(bert(3), IDS), seen(bert(6), IDS)
    found = origins(problem(base, source, pairing="layers"), base, source)
    assert any(len(each) > 1 for each in found.values())


@settings(max_examples=8)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 1000))
def test_fewer_layers_are_the_source_without_the_others(depth, more, seed):
    """With equal widths the transplant is, to the bit, the source whose other layers were deleted."""
    torch.manual_seed(seed)
    source, target = Decoder(depth + more), Decoder(depth)
    graphs = [seen(model, TOKENS) for model in (source, target)]
    done = transplant(Mapping(*graphs))
    blocks = origins(problem(graphs[1], graphs[0]), graphs[1], graphs[0])
    kept = [int(each[-1].split(".")[1]) for each in places(blocks)]
    assert kept == sorted(set(kept))
    assert len(kept) == depth
    source.layers = nn.ModuleList(source.layers[i] for i in kept)
    x = torch.randn(2, 3, 3)
    assert torch.equal(done.model(x), source(x))
    assert done.share == 1.0


@given(st.permutations(range(4)))
@settings(max_examples=8)
def test_blocks_are_the_callers_to_choose(order):
    """In any order, norms too; nothing else is written there."""
    torch.manual_seed(0)
    source, target = Decoder(4), Decoder(3)
    blocks = {f"layers.{i}": f"layers.{order[i]}" for i in range(3)}
    mapping = Mapping(seen(source, TOKENS), seen(target, TOKENS))
    done = transplant(mapping, blocks=blocks)
    source.layers = nn.ModuleList(source.layers[i] for i in order[:3])
    x = torch.randn(2, 3, 3)
    assert torch.equal(done.model(x), source(x))


def test_blocks_that_are_not_named_are_chosen():
    torch.manual_seed(0)
    source, target = Decoder(4), Decoder(2)
    mapping = Mapping(seen(source, TOKENS), seen(target, TOKENS))
    done = transplant(mapping, blocks={"layers.0": "layers.3"}).model
    assert torch.equal(done.layers[0].up.weight, source.layers[3].up.weight)
    other = [
        i for i in range(3) if torch.equal(done.layers[1].up.weight, source.layers[i].up.weight)
    ]
    assert len(other) == 1
    assert torch.equal(done.layers[1].query.weight, source.layers[other[0]].query.weight)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"layers.9": "layers.0"}, "no module 'layers.9'"),
        ({"layers.0": "layer.0"}, "'layers.0'"),
        ({"layers.0": "layers.1", "layers.1": "layers.1"}, "named twice"),
        ({"layers": "layers", "layers.1": "layers.0"}, "named twice"),
    ],
)
def test_wrong_blocks_are_refused(blocks, message):
    target = Decoder(2)
    before = [parameter.clone() for parameter in target.parameters()]
    mapping = Mapping(seen(Decoder(3), TOKENS), seen(target, TOKENS))
    with pytest.raises(AssemblyError, match=message):
        transplant(mapping, blocks=blocks, inplace=True)
    assert all(map(torch.equal, before, target.parameters()))


def test_links_and_blocks_exclude_each_other():
    mapping = Mapping(seen(Decoder(3), TOKENS), seen(Decoder(2), TOKENS)).link("head", "head")
    with pytest.raises(AssemblyError, match="both links and blocks"):
        transplant(mapping, blocks={"layers.0": "layers.0"})


def test_what_a_block_is():
    """Layers, residual blocks; no stage of a ResNet, no layer of one weight, nothing in a plain chain."""
    assert repeated(bert(2)) == ("encoder.layer.0", "encoder.layer.1")
    assert repeated(gpt2(1)) == ("transformer.h.0",)
    assert repeated(resnet(1, 2, 1, 1))[:3] == ("layer1.0", "layer2.0", "layer2.1")
    assert repeated(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))) == ()
    chains = nn.ModuleList(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)) for _ in range(2))
    assert repeated(chains) == ("0", "1")
    assert repeated(nn.Sequential(*chains)) == ()


def test_a_plan_of_before_replays_as_it_was():
    """Such a plan says nothing of blocks: layers are paired each for itself, and the bits are the same."""
    torch.manual_seed(0)
    base, source, (args, kwargs) = bert(3), bert(6), IDS
    made = assemble(
        base, [(source, args, kwargs)], args=args, kwargs=kwargs, merge_factor=0.5, pairing="layers"
    )
    plan = copy.deepcopy(made.plan)
    assert plan["settings"].pop("pairing") == "layers"
    again = replay(plan, base, [(source, args, kwargs)], args=args, kwargs=kwargs)
    state = made.model.state_dict()
    assert all(torch.equal(state[name], each) for name, each in again.model.state_dict().items())
    plan["settings"]["pairing"] = "blocks"
    with pytest.raises(AssemblyError):
        replay(plan, base, [(source, args, kwargs)], args=args, kwargs=kwargs)
    plan["settings"]["pairing"] = "heads"
    with pytest.raises(AssemblyError, match="damaged"):
        replay(plan, base, [(source, args, kwargs)], args=args, kwargs=kwargs)
