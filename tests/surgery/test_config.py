"""What an edited Hugging Face model saves can be loaded, and gives the same answers; or a warning names what it is."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    HeliumConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MarianConfig,
    MarianMTModel,
    Phi3Config,
    Phi3ForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SiglipConfig,
    SiglipModel,
    T5Config,
    T5ForConditionalGeneration,
)

from graftlib.graph import trace
from graftlib.surgery import SurgeryWarning, permute, prune, widen
from graftlib.surgery.fields import numbers, set_field, shown
from graftlib.surgery.signature import signature

IDS = {"input_ids": torch.randint(3, 40, (2, 8), generator=torch.Generator().manual_seed(0))}
COMMON = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "use_cache": False}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def bert(**sizes):
    config = {"num_attention_heads": 4, "intermediate_size": 48, "num_labels": 5, **sizes}
    return BertForSequenceClassification(BertConfig(**COMMON | TOKENS | config))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_head=4, n_layer=2, **TOKENS))


def llama(**sizes):
    return LlamaForCausalLM(LlamaConfig(intermediate_size=48, **COMMON | HEADS | TOKENS | sizes))


def cousin():
    """A class that is built from another's config, as InternLM 3 takes that of Llama."""
    return LlamaForCausalLM(
        HeliumConfig(intermediate_size=48, head_dim=8, **COMMON | HEADS | TOKENS)
    )


def qwen2():
    """Its heads are as wide as hidden size by heads: shapes alone fit wrong numbers of heads, too."""
    return Qwen2ForCausalLM(Qwen2Config(intermediate_size=48, **COMMON | HEADS | TOKENS))


def experts():
    config = Qwen3MoeConfig(
        intermediate_size=128, moe_intermediate_size=48, head_dim=16, num_experts=8,
        num_experts_per_tok=2, **COMMON | HEADS | TOKENS,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


def phi3():
    """The width of a head is a field that its config has not, and its class asks for."""
    return Phi3ForCausalLM(Phi3Config(intermediate_size=48, **COMMON | HEADS | TOKENS))


def mamba2():
    """What is inside stays as it is, so the expansion of the stream grows."""
    config = Mamba2Config(
        num_heads=8, head_dim=8, n_groups=1, expand=2, state_size=8, chunk_size=4, **COMMON | TOKENS
    )
    return Mamba2ForCausalLM(config)


def t5(tied=False):
    """Its encoder and its decoder hold configs of their own."""
    config = T5Config(
        vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, use_cache=False,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def siglip():
    """Configs in a config."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2} | {
        "num_attention_heads": 4
    }
    config = SiglipConfig(
        text_config=text | {"vocab_size": 40, "max_position_embeddings": 8, "projection_size": 32},
        vision_config=text | {"intermediate_size": 40, "image_size": 16, "patch_size": 8},
    )
    return SiglipModel(config)


MODELS = {
    "bert": (bert, IDS),
    "gpt-2": (gpt2, IDS),
    "llama": (llama, IDS),
    "another's config": (cousin, IDS),
    "qwen 2": (qwen2, IDS),
    "experts": (experts, IDS),
    "phi 3": (phi3, IDS),
    "mamba 2": (mamba2, IDS),
    "t5": (t5, IDS | {"decoder_input_ids": IDS["input_ids"][:, :5]}),
    "two towers": (siglip, IDS | {"pixel_values": torch.ones(2, 3, 16, 16)}),
}


class Answers(nn.Module):
    """A model of the user's around one of Hugging Face's; hidden states are no answer."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, **inputs):
        out = self.inner(**inputs)
        return out.logits if hasattr(out, "logits") else out.logits_per_image


def wrapped(make):
    torch.manual_seed(0)
    return Answers(make()).eval()


def answers(inner, inputs):
    with torch.no_grad():
        return Answers(inner)(**inputs)


def reloaded(inner, folder):
    inner.save_pretrained(folder)
    return type(inner).from_pretrained(folder).eval()


@pytest.mark.filterwarnings("ignore:.*classes were left as they are")
@pytest.mark.parametrize("name", MODELS)
def test_half_of_a_model_is_saved_and_loaded(name, tmp_path):
    make, inputs = MODELS[name]
    model = wrapped(make)
    before = model.inner.config.to_dict()
    slim = prune(trace(model, (), inputs), 0.5).inner
    again = reloaded(slim, tmp_path)
    torch.testing.assert_close(answers(again, inputs), answers(slim, inputs), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    assert model.inner.config.to_dict() == before


def test_only_what_must_change_does():
    """Layers and tokens that have the number of the heads keep it; inside of a model, too."""
    model = bert(num_hidden_layers=4, num_attention_heads=4, eos_token_id=4, pad_token_id=2)
    slim = prune(trace(model, (), IDS), 0.5)
    was, now = model.config.to_dict(), slim.config.to_dict()
    changed = {key: now[key] for key in now if now[key] != was[key]}
    assert changed == {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    assert slim.bert.encoder.config is slim.config or slim.bert.encoder.config.hidden_size == 16


def heads_of(graph, layer):
    name = f"layer.{layer}.attention"
    return next(c for c in graph.axis_classes if c.free and name in c.members[0].fqn)


def test_a_config_that_cannot_say_the_sizes_stays():
    """Heads of one layer alone: no config makes such a model."""
    config = BertConfig(**COMMON, num_attention_heads=4, intermediate_size=48)
    model = BertModel(config).eval()
    graph = trace(model, (), IDS)
    with pytest.warns(
        SurgeryWarning, match=r"cannot say .*layer\.0\.attention.*num_attention_heads"
    ):
        slim = prune(graph, {heads_of(graph, 0): 2})
    assert slim.config.num_attention_heads == 4
    assert slim.encoder.layer[0].attention.self.num_attention_heads == 2


def test_attributes_must_agree_and_not_only_shapes(monkeypatch, tmp_path):
    """The control: by shapes alone a wrong number of heads is taken, and the answers are others."""
    monkeypatch.setattr(
        "graftlib.surgery.search.signature",
        lambda module: {
            k: v for k, v in signature(module).items() if not k[1] and "freq" not in k[0]
        },
    )
    monkeypatch.setattr("graftlib.surgery.config._remade", lambda *arguments: None)
    monkeypatch.setattr(
        "graftlib.surgery.config.signature",
        lambda module: {
            k: v for k, v in signature(module).items() if not k[1] and "freq" not in k[0]
        },
    )
    monkeypatch.setattr("graftlib.surgery.search._of_classes", lambda sizes: ())
    model = wrapped(bert)
    for parameter in model.parameters():
        parameter.data.mul_(20)  # attentions that are not uniform
    slim = prune(trace(model, (), IDS), 0.5).inner
    again = reloaded(slim, tmp_path)
    assert again.config.num_attention_heads == 4
    assert not torch.allclose(answers(again, IDS), answers(slim, IDS), rtol=1e-4, atol=1e-5)


def stream_of(graph, size=32):
    return next(c for c in graph.axis_classes if c.free and c.size == size)


def test_widened_rms_norms_keep_their_eps(tmp_path):
    model = llama(rms_norm_eps=0.1).eval()
    graph = trace(model, (), IDS)
    wide = widen(graph, {stream_of(graph): 40}, fill="zero")
    assert wide.config.rms_norm_eps == pytest.approx(0.08)
    again = reloaded(wide, tmp_path)
    torch.testing.assert_close(answers(again, IDS), answers(model, IDS), rtol=1e-4, atol=1e-5)


def test_norms_that_do_not_agree_on_eps_are_named():
    """Norms over a head keep theirs, and the config has one number for both."""
    model = Qwen3ForCausalLM(
        Qwen3Config(intermediate_size=48, head_dim=8, **COMMON | HEADS | TOKENS)
    )
    graph = trace(model, (), IDS)
    with pytest.warns(SurgeryWarning, match=r"norm\.variance_epsilon.*rms_norm_eps"):
        widen(graph, {stream_of(graph): 40}, fill="zero")


def test_a_buffer_that_is_made_of_a_size_and_not_saved_is_named():
    """Gemma scales its embeddings by the root of their width: the edited model by the old one, a loaded by the new."""
    model = GemmaForCausalLM(
        GemmaConfig(intermediate_size=48, head_dim=8, **COMMON | HEADS | TOKENS)
    )
    with pytest.warns(SurgeryWarning, match="not saved are computed anew.*embed_scale"):
        prune(trace(model, (), IDS), 0.5)


@pytest.mark.parametrize("left_out", [True, False])
def test_a_parameter_that_no_file_holds_is_named(left_out, monkeypatch, recwarn):
    """Marian's tables of positions are computed from the width; where they are saved nothing is lost."""
    config = MarianConfig(
        vocab_size=40,
        d_model=32,
        **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
        max_position_embeddings=64,
        pad_token_id=0,
        use_cache=False,
    )
    if not left_out:
        monkeypatch.setattr(MarianMTModel, "_keys_to_ignore_on_save", None)
    model, ids = wrapped(lambda: MarianMTModel(config)), torch.randint(1, 40, (2, 6))
    prune(trace(model, (), {"input_ids": ids, "decoder_input_ids": ids}), 0.5)
    said = [str(each.message) for each in recwarn if each.category is SurgeryWarning]
    assert any("not saved are computed anew" in text for text in said) is left_out


def test_a_scale_that_is_made_of_a_size_is_named():
    """T5 with a tied table divides its outputs by the root of a width that the edited model keeps."""
    model, (_, inputs) = wrapped(lambda: t5(tied=True)), MODELS["t5"]
    with pytest.warns(SurgeryWarning, match="'model_dim' is 32 and would be 16"):
        prune(trace(model, (), inputs), 0.5)


class Shifted(LlamaForCausalLM):
    """Its embeddings are moved by a buffer: one that is saved, one that no file holds, or one under both names."""

    saved, unsaved = True, True

    def __init__(self, config):
        super().__init__(config)
        shift = torch.linspace(-1, 1, config.hidden_size)
        self.held = nn.Module()
        if self.saved:
            self.register_buffer("shift", shift)
        if self.unsaved:
            self.held.register_buffer("shift", shift, persistent=False)

    def forward(self, input_ids):
        shift = self.held.shift if self.unsaved else self.shift
        embeds = self.model.embed_tokens(input_ids) + shift
        return self.lm_head(self.model(inputs_embeds=embeds, use_cache=False).last_hidden_state)


@pytest.mark.parametrize(("saved", "unsaved"), [(True, True), (True, False), (False, True)])
def test_a_permuted_buffer_that_no_file_holds_is_named(saved, unsaved, recwarn):
    """A model that is built anew has it in the old order. One that is saved alone moves, one that is not is fixed."""

    class Model(Shifted):
        pass

    Model.saved, Model.unsaved = saved, unsaved
    torch.manual_seed(0)
    model = Model(llama().config).eval()
    moved = permute(trace(model, (IDS["input_ids"],)), seed=0)
    torch.testing.assert_close(
        moved(IDS["input_ids"]), model(IDS["input_ids"]), rtol=1e-4, atol=1e-5
    )
    if saved:
        assert not torch.equal(moved.shift, model.shift)
    else:
        assert torch.equal(moved.held.shift, model.held.shift)
    said = [str(each.message) for each in recwarn if each.category is SurgeryWarning]
    assert len(said) == (saved and unsaved)
    assert all("not saved are computed anew" in text and "held.shift" in text for text in said)


def test_rotary_frequencies_stay_where_they_are():
    """The order inside of a rotary head is fixed, so nothing that is not saved moves, and nothing is said."""
    model = llama(head_dim=8).eval()
    graph = trace(model, (), IDS)
    assert not [
        c for c in graph.axis_classes if c.free and any("inv_freq" in m.fqn for m in c.members)
    ]
    moved = permute(graph, seed=0)  # a warning would be an error
    before, after = dict(model.named_buffers()), dict(moved.named_buffers())
    assert before
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_no_random_state_is_touched():
    model = bert()
    graph = trace(model, (), IDS)
    state = torch.random.get_rng_state()
    prune(graph, 0.5)
    assert torch.equal(torch.random.get_rng_state(), state)


class LayersConfig(PretrainedConfig):
    model_type = "layers"
    width: int = 8
    inner: int | list[int] = 6
    num_hidden_layers: int = 3


class Layers(PreTrainedModel):
    """Layers that have widths of their own, in a list or as what single layers have instead."""

    config_class = LayersConfig

    def __init__(self, config):
        super().__init__(config)
        count = config.num_hidden_layers
        self.first = nn.Linear(3, config.width)
        inner = self.sizes(config)
        self.ups = nn.ModuleList(nn.Linear(config.width, inner[i]) for i in range(count))
        self.downs = nn.ModuleList(nn.Linear(inner[i], config.width) for i in range(count))
        self.head = nn.Linear(config.width, 2)
        self.post_init()

    @staticmethod
    def sizes(config):
        inner, count = config.inner, config.num_hidden_layers
        return inner if isinstance(inner, list) else [inner] * count

    def forward(self, x):
        x = self.first(x)
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(F.gelu(up(x)))
        return self.head(x)


class SingleLayers(Layers):
    @staticmethod
    def sizes(config):
        return [config.per_layer_config[i].inner for i in range(config.num_hidden_layers)]


@pytest.mark.parametrize("kind", [Layers, SingleLayers])
def test_layers_that_differ_are_said_where_the_class_honours_it(kind, tmp_path):
    torch.manual_seed(0)
    model, x = kind(LayersConfig()).eval(), torch.randn(4, 3)
    graph = trace(model, (x,))
    inner = [c for c in graph.axis_classes if c.free and c.size == 6]
    slim = prune(graph, {inner[0]: 2, inner[2]: 4})
    saved = json.loads(slim.config.to_json_string())
    if kind is Layers:
        assert saved["inner"] == [2, 6, 4]
    else:
        assert saved["per_layer_config"] == {"0": {"inner": 2}, "2": {"inner": 4}}
    torch.testing.assert_close(reloaded(slim, tmp_path)(x), slim(x))


def test_numbers_of_a_config_are_found_and_set_by_path():
    config = SiglipConfig(vision_config={"hidden_size": 24, "num_attention_heads": 2})
    paths = {shown(path): path for path, _ in numbers(config)}
    set_field(config, paths["vision_config.hidden_size"], 12)
    assert config.vision_config.hidden_size == 12
    nested = {"a": (1, (2, 3)), "b": [True, 4]}
    assert {shown(path): n for path, n in numbers(nested)} == {
        "a[0]": 1, "a[1][0]": 2, "a[1][1]": 3, "b[1]": 4,
    }  # fmt: skip
    assert set_field(copy.deepcopy(nested), ("a", 1, 0), 7)["a"] == (1, (7, 3))


@pytest.mark.parametrize("layers", [2, 1])
def test_ranks_of_adapters_stay_or_are_said(layers, tmp_path):
    """A share of the model leaves them; asked for by hand, what the library saves follows."""
    library = pytest.importorskip("peft", reason="pip install peft")
    settings = library.LoraConfig(r=8, lora_alpha=12, target_modules=["q_proj", "down_proj"])
    model = library.get_peft_model(llama(), settings).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    graph = trace(model, (), IDS)
    slim = prune(graph, 0.5)
    assert slim.peft_config["default"].r == 8
    assert all(p.shape[0] == 8 for n, p in slim.named_parameters() if "lora_A" in n)
    merged = copy.deepcopy(slim).merge_and_unload()
    again = reloaded(merged, tmp_path / "merged")
    torch.testing.assert_close(answers(again, IDS), answers(slim, IDS), rtol=1e-4, atol=1e-5)

    ranks = [c for c in graph.axis_classes if c.free and all("lora_" in m.fqn for m in c.members)]
    lower = prune(graph, dict.fromkeys(ranks[: 2 * layers], 4))
    lower.save_pretrained(tmp_path / "adapter")
    base = copy.deepcopy(model).unload()
    again = library.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(answers(again, IDS), answers(lower, IDS))
