"""Blocks that can be left out or repeated are found; without them, or with more, a model does what was proven."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SwinConfig,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import graftlib
from graftlib.graph import trace
from graftlib.surgery import SurgeryError, blocks, deepen, drop_blocks

IDS = {"input_ids": torch.randint(3, 40, (2, 8), generator=torch.Generator().manual_seed(0))}
IMAGES = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "use_cache": False}


def bert(layers=4):
    sizes = {"num_hidden_layers": layers, "intermediate_size": 48}
    return BertForSequenceClassification(BertConfig(**COMMON, **TOKENS, **sizes))


def gpt2(layers=4, **more):
    sizes = {"vocab_size": 40, "n_embd": 32, "n_head": 4, "n_layer": layers}
    return GPT2LMHeadModel(GPT2Config(**sizes, **TOKENS, **more))


def llama(layers=4, **more):
    sizes = {"num_hidden_layers": layers, "intermediate_size": 48, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**COMMON | more, **TOKENS, **sizes))


def qwen3(layers=4):
    sizes = {"num_hidden_layers": layers, "intermediate_size": 48, "num_key_value_heads": 2}
    return Qwen3ForCausalLM(Qwen3Config(**COMMON, **TOKENS, **sizes, head_dim=8))


def vit(layers=4):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    config = ViTConfig(**sizes, num_hidden_layers=layers, image_size=16, patch_size=4)
    return ViTForImageClassification(config)


def resnet():
    from torchvision.models import resnet18

    model = resnet18(num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return model


TEXT = {"bert": (bert, IDS), "gpt2": (gpt2, IDS), "llama": (llama, IDS), "qwen3": (qwen3, IDS)}
FAMILIES = {**TEXT, "vit": (vit, IMAGES)}


def made(make, inputs):
    torch.manual_seed(0)
    model = make().eval()
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    return model, trace(model, args, kwargs)


def results(model, inputs):
    model = copy.deepcopy(model).double()
    if isinstance(inputs, dict):
        return model(**inputs).logits
    out = model(*(x.double() for x in inputs))
    return getattr(out, "logits", out)


class Residual(nn.Module):
    """x + f(norm(x)), with the number of its place."""

    def __init__(self, place=0, width=6):
        super().__init__()
        self.layer_idx = place
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).tanh())


class Stack(nn.Module):
    """Blocks in a list that its forward runs over."""

    block = Residual

    def __init__(self, depth=4):
        super().__init__()
        self.depth = depth
        self.layers = nn.ModuleList(self.block(i) for i in range(depth))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class KnowsItsBlocksByNumber(Stack):
    def forward(self, x):
        for i in range(4):
            x = self.layers[i](x)
        return self.head(x)


class TakesTheThirdTwice(Stack):
    """Runs with fewer blocks, but as another model."""

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x) * (2 if i == 2 else 1)
        return self.head(x)


class CountsByAnAttribute(Stack):
    def forward(self, x):
        for i in range(self.depth):
            x = self.layers[i](x)
        return self.head(x)


class KeepsEveryState(Stack):
    """Gives a result of each block."""

    def forward(self, x):
        states = []
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        return self.head(x), states


class GivesItsStream(Stack):
    """A bare encoder: what the last block gives is the output."""

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class GivesItsStreamAndEveryState(GivesItsStream):
    def forward(self, x):
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states[-1], states


class Forgets(Stack):
    """The blocks run and do not count."""

    def forward(self, x):
        return super().forward(x) * 0 + self.head(x)


class Faint(Stack):
    """What the blocks do dies away, as before a training."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.full((6,), 1e-12))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(self.gain * x)


def built(kind, *args):
    torch.manual_seed(0)
    model = kind(*args).eval()
    return model, trace(model, torch.randn(2, 5, 6))


# --- which they are ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_transformers_are_blocks_of_one_form(name):
    _, graph = made(*FAMILIES[name])
    found = blocks(graph)
    assert len(found) == 4
    assert len({(each.form, each.container, each.shape) for each in found}) == 1
    assert [each.place for each in found] == [0, 1, 2, 3]


def test_blocks_that_change_the_size_are_none():
    _, graph = made(resnet, (torch.randn(2, 3, 32, 32),))
    names = [each.fqn for each in blocks(graph)]
    assert names == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    assert len({each.form for each in blocks(graph)}) == 4


def test_a_block_that_is_built_otherwise_has_another_form():
    class Mixed(Stack):
        def __init__(self):
            super().__init__()
            self.layers[2].down = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6))

    _, graph = built(Mixed)
    forms = [each.form for each in blocks(graph) if each.container == "layers"]
    assert forms == [0, 0, 1, 0]


def test_what_runs_twice_or_has_one_weight_is_no_block():
    class Twice(Stack):
        def forward(self, x):
            for layer in [*self.layers, self.layers[1]]:
                x = layer(x)
            return self.head(x)

    assert [each.place for each in blocks(built(Twice)[1])] == [0, 2, 3]
    plain = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()
    assert blocks(trace(plain, torch.randn(2, 6))) == ()


def test_importance_is_the_change_of_the_stream():
    model, graph = built(Stack)
    with torch.no_grad():
        model.layers[1].down.weight.mul_(0.01)
        model.layers[1].down.bias.mul_(0.01)
        model.layers[2].down.weight.mul_(20)
    data = [torch.randn(4, 5, 6) for _ in range(2)]
    found = blocks(graph, data=data)
    changes = torch.cat([1 - torch.cosine_similarity(*pair, -1) for pair in _streams(model, data)])
    expected = changes.view(2, 4, -1).mean((0, 2))
    torch.testing.assert_close(torch.tensor([b.importance for b in found]), expected)
    ranked = sorted(found, key=lambda each: each.importance)
    assert (ranked[0].place, ranked[-1].place) == (1, 2)
    assert all(each.importance is None for each in blocks(graph))
    assert not model.layers[0]._forward_hooks
    with pytest.raises(SurgeryError, match="does not run on data"):
        blocks(graph, data=[torch.randn(2, 7)])


@torch.no_grad()
def _streams(model, data):
    for x in data:
        for layer in model.layers:
            y = layer(x)
            yield x.reshape(-1, 6), y.reshape(-1, 6)
            x = y


def test_importance_of_images_is_over_channels():
    images = torch.randn(2, 3, 32, 32)
    model, graph = made(resnet, (images,))
    found = {each.fqn: each.importance for each in blocks(graph, data=[images])}
    streams = []
    model.layer1[0].register_forward_hook(lambda m, args, out: streams.append((args[0], out)))
    with torch.no_grad():
        model(images)
    over = [float((1 - torch.cosine_similarity(*streams[0], axis)).mean()) for axis in (1, -1)]
    assert abs(found["layer1.0"] - over[0]) < 1e-6
    assert abs(found["layer1.0"] - over[1]) > 1e-3  # the axis matters


# --- fewer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_without_blocks_a_model_is_the_one_in_which_they_do_nothing(name, tmp_path):
    make, inputs = FAMILIES[name]
    model, graph = made(make, inputs)
    _, first, second, _ = blocks(graph)
    slim = drop_blocks(graph, [first, second.fqn])
    container = model.get_submodule(first.container)
    idle = copy.deepcopy(model)
    for block in (first, second):
        idle.get_submodule(block.fqn).register_forward_hook(
            lambda m, args, out: (args[0], *out[1:]) if isinstance(out, tuple) else args[0]
        )
    expected = results(idle, inputs)
    torch.testing.assert_close(results(slim, inputs), expected, rtol=1e-9, atol=1e-9)
    assert (results(model, inputs) - expected).abs().max() > 1e-4
    assert len(container) == 4
    assert [*slim.get_submodule(first.container)._modules] == ["0", "1"]
    slim.save_pretrained(tmp_path)
    again = type(slim).from_pretrained(tmp_path).eval()
    assert again.state_dict().keys() == slim.state_dict().keys()
    torch.testing.assert_close(results(again, inputs), expected, rtol=1e-5, atol=1e-5)


def test_a_language_model_without_blocks_generates_with_its_cache():
    model, graph = made(llama, IDS)
    slim = drop_blocks(graph, ["model.layers.1"])
    assert [layer.self_attn.layer_idx for layer in slim.model.layers] == [0, 1, 2]
    assert slim.config.num_hidden_layers == 3
    assert model.config.num_hidden_layers == 4
    with_cache, without = (
        slim.generate(**IDS, max_new_tokens=4, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_numbers_of_heads_are_not_taken_for_numbers_of_layers():
    """Both are four."""
    _, graph = made(llama, IDS)
    assert drop_blocks(graph, ["model.layers.3"]).config.num_attention_heads == 4


def test_lists_of_a_config_over_layers_lose_their_entry():
    def make():
        kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
        model = qwen3()
        config = copy.deepcopy(model.config)
        config.layer_types, config.sliding_window, config.use_sliding_window = kinds, 3, True
        return AutoModelForCausalLM.from_config(config)

    model, graph = made(make, IDS)
    assert model.config.layer_types[1] == "sliding_attention"
    slim = drop_blocks(graph, ["model.layers.0"])
    assert slim.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    deep = deepen(graph, {"model.layers.1": 1})
    assert deep.config.layer_types == [*model.config.layer_types[:2], *model.config.layer_types[1:]]


def test_blocks_of_a_stage_are_counted_by_stage():
    """The number of stages is two as well, and stays; in the other order no config says which windows are shifted."""

    def make():
        sizes = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
        return SwinModel(SwinConfig(image_size=32, patch_size=4, **sizes))

    _, graph = made(make, {"pixel_values": torch.randn(2, 3, 32, 32)})
    slim = drop_blocks(graph, ["encoder.layers.0.blocks.1"])
    assert slim.config.depths == [1, 2]
    assert slim.encoder.num_layers == 2
    with pytest.raises(SurgeryError, match="config cannot say"):
        drop_blocks(graph, ["encoder.layers.0.blocks.0"])


def test_the_last_stage_of_a_backbone_follows():
    def make():
        sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
        return Dinov2Model(Dinov2Config(image_size=16, patch_size=4, mlp_ratio=2, **sizes))

    _, graph = made(make, {"pixel_values": IMAGES[0]})
    config = drop_blocks(graph, ["encoder.layer.1"]).config
    assert (config.num_hidden_layers, config.out_features, config.out_indices) == (
        3,
        ["stage3"],
        [3],
    )
    assert config.num_attention_heads == 4


def test_experts_are_silenced_and_learn():
    def make():
        sizes = {"num_hidden_layers": 2, "intermediate_size": 24, "num_key_value_heads": 2}
        return MixtralForCausalLM(MixtralConfig(**COMMON, **TOKENS, **sizes, num_local_experts=3))

    model, graph = made(make, IDS)
    deep = deepen(graph, {"model.layers.0": 1})
    torch.testing.assert_close(deep(**IDS).logits, model(**IDS).logits)
    deep(**IDS).logits.square().sum().backward()
    experts = deep.model.layers[1].mlp.experts
    assert not experts.down_proj.any()
    assert experts.down_proj.grad.any()
    assert experts.gate_up_proj.any()


def test_a_resnet_without_a_block():
    images = (torch.randn(2, 3, 32, 32),)
    model, graph = made(resnet, images)
    slim = drop_blocks(graph, ["layer1.1", "layer3.1"])
    by_hand = copy.deepcopy(model)
    by_hand.layer1[1], by_hand.layer3[1] = nn.Identity(), nn.Identity()
    torch.testing.assert_close(slim(*images), by_hand(*images))
    assert [len(slim.layer1), len(slim.layer2), len(slim.layer3)] == [1, 2, 1]


def test_named_children_keep_their_names_or_are_counted():
    from collections import OrderedDict

    def stack(*names):
        layers = [(name, Residual()) for name in names]
        return nn.Sequential(OrderedDict([*layers, ("head", nn.Linear(6, 2))])).eval()

    def names(model):
        return [name for name, _ in model.named_children()]

    graph = trace(stack("a", "b", "c"), torch.randn(2, 6))
    assert names(drop_blocks(graph, ["b"])) == ["a", "c", "head"]
    assert names(deepen(graph, {"b": 2})) == ["a", "b", "b_1", "b_2", "c", "head"]

    class Numbered(Stack):
        def __init__(self):
            super().__init__()
            layers = [(f"encoder_layer_{i}", layer) for i, layer in enumerate(self.layers)]
            self.layers = nn.Sequential(OrderedDict(layers))

    slim = drop_blocks(built(Numbered)[1], ["layers.encoder_layer_1"])
    assert [*slim.layers._modules] == [f"encoder_layer_{i}" for i in range(3)]


def test_counts_and_places_follow():
    model, graph = built(CountsByAnAttribute)
    slim, deep = drop_blocks(graph, ["layers.2"]), deepen(graph, {"layers.0": 2})
    assert (slim.depth, deep.depth, model.depth) == (3, 6, 4)
    assert [layer.layer_idx for layer in slim.layers] == [0, 1, 2]
    assert [layer.layer_idx for layer in deep.layers] == [0, 1, 2, 3, 4, 5]


def test_results_of_single_blocks_go_and_come_with_them():
    model, graph = built(KeepsEveryState)
    x = torch.randn(2, 5, 6)
    states = model(x)[1]
    _, fewer = drop_blocks(graph, ["layers.3"])(x)
    assert all(map(torch.equal, fewer, states[:3]))
    _, more = deepen(graph, {"layers.1": 1})(x)
    torch.testing.assert_close(more, [states[0], states[1], states[1], *states[2:]])


@pytest.mark.parametrize("kind", [GivesItsStream, GivesItsStreamAndEveryState])
@pytest.mark.parametrize("gone", [(3,), (0, 3), (1, 2)])
def test_the_last_block_of_an_encoder_goes_and_comes(kind, gone):
    model, graph = built(kind)
    x = torch.randn(2, 5, 6)
    slim = drop_blocks(graph, [f"layers.{i}" for i in gone])
    due = x
    for layer in (layer for i, layer in enumerate(model.layers) if i not in gone):
        due = layer(due)
    one, other = (out if isinstance(out, torch.Tensor) else out[0] for out in (slim(x), model(x)))
    assert torch.equal(one, due)
    assert not torch.allclose(one, other)
    deep = deepen(graph, {f"layers.{i}": 1 for i in gone})(x)
    torch.testing.assert_close(deep if isinstance(deep, torch.Tensor) else deep[0], other)


@pytest.mark.parametrize("kind", [KnowsItsBlocksByNumber, TakesTheThirdTwice])
def test_code_that_knows_its_blocks_by_number_is_refused(kind):
    model, graph = built(kind)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match="by number"):
        drop_blocks(graph, ["layers.1"], inplace=True)
    assert len(model.layers) == 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if kind is TakesTheThirdTwice:
        with pytest.raises(SurgeryError, match="by number"):
            deepen(graph, {"layers.1": 1})
        drop_blocks(graph, ["layers.3"])  # in front of it the numbers stay


def test_scores_that_depend_on_the_place_are_refused():
    _, graph = made(lambda: gpt2(scale_attn_by_inverse_layer_idx=True), IDS)
    with pytest.raises(SurgeryError, match="config cannot say"):
        drop_blocks(graph, ["transformer.h.1"])
    assert drop_blocks(graph, ["transformer.h.3"]).config.n_layer == 3


def test_a_block_that_hands_on_more_than_the_stream_is_refused():
    def make():
        sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4, "num_layers": 3}
        config = T5Config(vocab_size=40, **sizes, decoder_start_token_id=0, use_cache=False)
        return T5ForConditionalGeneration(config)

    inputs = {**IDS, "decoder_input_ids": IDS["input_ids"][:, :4]}
    _, graph = made(make, inputs)
    slim = drop_blocks(graph, ["encoder.block.1", "decoder.block.2"])
    assert (slim.config.num_layers, slim.config.num_decoder_layers) == (2, 2)
    with pytest.raises(SurgeryError):  # its table of positions serves all
        drop_blocks(graph, ["encoder.block.0"])


def test_a_config_that_cannot_say_it_is_refused():
    """The feed-forward of one T5 block alone."""

    def make():
        sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4, "num_layers": 3}
        config = T5Config(vocab_size=40, **sizes, decoder_start_token_id=0, use_cache=False)
        return T5ForConditionalGeneration(config)

    _, graph = made(make, {**IDS, "decoder_input_ids": IDS["input_ids"][:, :4]})
    with pytest.raises(SurgeryError, match="config cannot say"):
        drop_blocks(graph, ["encoder.block.1.layer.1"])


def test_what_dies_away_is_proven_with_other_norms():
    model, graph = built(Faint)
    assert len(drop_blocks(graph, ["layers.1"]).layers) == 3
    assert len(deepen(graph, {"layers.1": 1}).layers) == 5
    assert float(model.gain.detach().max()) < 1e-11


def test_what_does_not_show_is_refused():
    _, graph = built(Forgets)
    with pytest.raises(SurgeryError, match="would not show"):
        drop_blocks(graph, ["layers.1"])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["layers.9"], "no block"),
        (["head"], "no block"),
        ([], "no block is named"),
        ([f"layers.{i}" for i in range(4)], "nothing would be left"),
        (["layers.1", "layers.1"], "one holds the other"),
        (3, "not what"),
    ],
)
def test_requests_that_mean_nothing_are_refused(asked, words):
    with pytest.raises(SurgeryError, match=words):
        drop_blocks(built(Stack)[1], asked)


def test_another_model_must_be_of_the_same_structure():
    _, graph = built(Stack)
    other = Stack().eval()
    slim = drop_blocks(graph, ["layers.1"], model=other)
    assert torch.equal(slim.layers[1].up.weight, other.layers[2].up.weight)
    with pytest.raises(SurgeryError, match="not the one that was traced"):
        drop_blocks(graph, ["layers.1"], model=Stack(5).eval())


def test_in_place_the_model_itself_is_edited():
    model, graph = built(Stack)
    third = model.layers[2]
    assert drop_blocks(graph, ["layers.1"], inplace=True) is model
    assert model.layers[1] is third
    assert len(model.layers) == 3


# --- more -------------------------------------------------------------------------------------------------------------

PRE_NORM = {name: case for name, case in FAMILIES.items() if name != "bert"}


@pytest.mark.parametrize("name", PRE_NORM)
def test_copies_change_nothing_at_the_start_and_learn(name, tmp_path):
    make, inputs = PRE_NORM[name]
    model, graph = made(make, inputs)
    first, *_, last = blocks(graph)
    deep = deepen(graph, {first: 2, last.fqn: 1})
    expected = results(model, inputs)
    assert (results(deep, inputs) - expected).abs().max() <= 1e-12 * expected.abs().max()
    layers = deep.get_submodule(first.container)
    assert len(layers) == 7
    assert sum(p.numel() for p in deep.parameters()) == (
        sum(p.numel() for p in model.parameters()) + 3 * first.elements
    )
    results_of = deep(**inputs) if isinstance(inputs, dict) else deep(*inputs)
    results_of.logits.square().sum().backward()
    zeros = {n: p for n, p in layers.named_parameters() if not p.any() and p.ndim > 1}
    assert {name.partition(".")[0] for name in zeros} == {"1", "2", "6"}
    assert len(zeros) == 6  # the last projections of two branches
    assert all(p.grad.any() for p in zeros.values())
    deep.save_pretrained(tmp_path)
    again = type(deep).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(results(again, inputs), results(deep, inputs), rtol=1e-5, atol=1e-5)


def test_a_copy_that_is_not_silent_is_seen():
    model, graph = made(gpt2, IDS)
    deep = deepen(graph, {"transformer.h.1": 1})
    with torch.no_grad():
        deep.transformer.h[2].mlp.c_proj.weight.add_(0.1 * torch.randn(128, 32))
    assert (results(model, IDS) - results(deep, IDS)).abs().max() > 1e-4


def test_a_post_norm_block_cannot_do_nothing():
    _, graph = made(bert, IDS)
    with pytest.raises(SurgeryError, match="post-norm"):
        deepen(graph, {"bert.encoder.layer.1": 1})


def test_a_resnet_gets_blocks():
    images = (torch.randn(2, 3, 32, 32),)
    model, graph = made(resnet, images)
    deep = deepen(graph, {"layer1.1": 2, "layer4.1": 1})
    torch.testing.assert_close(deep(*images), model(*images))
    assert (results(deep, images) - results(model, images)).abs().max() <= 1e-12
    copied = deep.layer1[2]
    assert not copied.bn2.weight.any()
    assert not copied.bn2.bias.any()
    assert copied.conv2.weight.any()
    deep(*images).square().sum().backward()
    assert copied.bn2.weight.grad.any()


def test_a_layer_scale_alone_is_zero():
    class Scaled(Residual):
        def __init__(self, place=0):
            super().__init__(place)
            self.gamma = nn.Parameter(torch.full((6,), 0.1))

        def forward(self, x):
            return x + self.gamma * self.down(self.up(self.norm(x)).tanh())

    class ScaledStack(Stack):
        block = Scaled

    _, graph = built(ScaledStack)
    copied = deepen(graph, {"layers.1": 1}).layers[2]
    assert not copied.gamma.any()
    assert copied.down.weight.any()


class PostNorm(Residual):
    def forward(self, x):
        return self.norm(x + self.down(self.up(x).tanh()))


class Plain(Residual):
    def forward(self, x):
        return self.down(self.up(self.norm(x)).tanh())


class ClippedBranch(Residual):
    """Zero behind a ReLU has no gradient."""

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).tanh()).relu()


class ReluOnTheStream(Residual):
    """And more behind it, that may be negative."""

    def forward(self, x):
        return x.relu() + self.down(self.up(self.norm(x)).tanh())


class PackedGate(Residual):
    """Zeros in both factors have no gradient."""

    def __init__(self, place=0):
        super().__init__(place)
        self.down = nn.Linear(8, 12)

    def forward(self, x):
        one, other = self.down(self.up(self.norm(x)).tanh()).chunk(2, -1)
        return x + one * other


class AttentionWithoutProjection(Residual):
    """Nor have those of queries and keys, which lie beside the values."""

    def __init__(self, place=0):
        super().__init__(place)
        self.up = nn.Linear(6, 18)

    def forward(self, x):
        query, key, value = self.up(self.norm(x)).chunk(3, -1)
        return x + (query @ key.transpose(-1, -2)).softmax(-1) @ value


class Constant(Residual):
    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).tanh()) + 1


class Sigmoid(Residual):
    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).tanh()).sigmoid()


@pytest.mark.parametrize(
    "kind",
    [
        PostNorm,
        Plain,
        ClippedBranch,
        ReluOnTheStream,
        PackedGate,
        AttentionWithoutProjection,
        Constant,
        Sigmoid,
    ],
)
def test_blocks_that_cannot_do_nothing_are_refused(kind):
    stack = type("Of", (Stack,), {"block": kind})
    _, graph = built(stack)
    assert len(blocks(graph)) == 4
    with pytest.raises(SurgeryError, match=r"can do nothing at the start"):
        deepen(graph, {"layers.1": 1})
    drop_blocks(graph, ["layers.1"])  # but left out they can be


def test_deepening_in_place_and_out_again():
    model, graph = built(Stack)
    x = torch.randn(2, 5, 6)
    before = model(x)
    assert deepen(graph, {"layers.1": 1}, inplace=True) is model
    torch.testing.assert_close(model(x), before)
    again = drop_blocks(trace(model, x), ["layers.2"])
    torch.testing.assert_close(again(x), before)
    assert len(again.layers) == 4


def test_parameters_that_are_zero_do_not_hide_the_blocks():
    """A classifier before its training."""
    model, _ = built(Stack)
    nn.init.zeros_(model.head.weight)
    graph = trace(model, torch.randn(2, 5, 6))
    assert len(drop_blocks(graph, ["layers.1"]).layers) == 3
    assert len(deepen(graph, {"layers.1": 1}).layers) == 5


def test_without_values_blocks_can_be_dropped():
    with torch.device("meta"):
        model = Stack().eval()
        graph = graftlib.trace(model, torch.randn(2, 5, 6))
    slim = drop_blocks(graph, ["layers.1"])
    assert len(slim.layers) == 3
    assert all(p.is_meta for p in slim.parameters())
    with pytest.raises(SurgeryError, match="meta"):
        deepen(graph, {"layers.1": 1})
