"""Real architectures at tiny sizes: each is seen, on cpu and on the meta device, with its attention named."""

import pytest
import timm
import torch
import torchvision
import transformers as hf

from graftlib.graph import trace
from graftlib.graph.capture import capture
from graftlib.graph.normal import graph_root
from graftlib.graph.tensors import tensor_leaves

IDS = torch.tensor([[3, 5, 7, 11, 2], [4, 4, 1, 0, 9]])
SIZE = {
    "vocab_size": 17,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
GPT = {"vocab_size": 17, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 8}
Q, K, V, OUT = ("attention.query", "attention.key", "attention.value", "attention.output")
SEPARATE = {Q: 2, K: 2, V: 2, OUT: 2}
FUSED = {"attention.fused": 2, OUT: 2}
EAGER = {"attn_implementation": "eager"}

MODELS = {
    "bert": (lambda: hf.BertModel(hf.BertConfig(**SIZE)), {}, SEPARATE),
    "bert eager": (lambda: hf.BertModel(hf.BertConfig(**SIZE, **EAGER)), {}, SEPARATE),
    "bert mask": (
        lambda: hf.BertModel(hf.BertConfig(**SIZE)),
        {"attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])},
        SEPARATE,
    ),
    "distilbert": (
        lambda: hf.DistilBertModel(
            hf.DistilBertConfig(vocab_size=17, dim=16, n_layers=2, n_heads=4, hidden_dim=24)
        ),
        {},
        SEPARATE,
    ),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)), {}, FUSED),
    "gpt2 no cache": (
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)),
        {"use_cache": False},
        FUSED,
    ),
    "llama": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, num_key_value_heads=2)),
        {},
        SEPARATE,
    ),
    "llama eager": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, **EAGER, num_key_value_heads=2)),
        {},
        SEPARATE,
    ),
    "t5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=17, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
        ),
        {"decoder_input_ids": IDS},
        {Q: 6, K: 6, V: 6, OUT: 6},
    ),
    "neox": (lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZE)), {}, FUSED),
    "bloom": (
        lambda: hf.BloomForCausalLM(
            hf.BloomConfig(vocab_size=17, hidden_size=16, n_layer=2, n_head=4)
        ),
        {},
        FUSED,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_language_models(name):
    make, more, roles = MODELS[name]
    kwargs = {"input_ids": IDS, **more}
    model = make().eval()
    graph = trace(model, (), kwargs)
    found = [p.role for p in graph.parameters(kind="linear") if p.role.startswith("attention")]
    assert {role: found.count(role) for role in found} == roles
    assert all(p.parts for p in graph.parameters() if p.role.startswith("attention"))
    with torch.device("meta"):
        empty = make()
    assert trace(empty, (), kwargs).outputs == graph.outputs

    seen = capture(model, (), kwargs, tracers=("real",))
    run = torch.fx.GraphModule(graph_root(model, seen.graph), seen.graph)
    with torch.no_grad():
        ours, own = run(*tensor_leaves(kwargs)), tensor_leaves(model(**kwargs))
    for our, theirs in zip(ours, own, strict=True):
        torch.testing.assert_close(our, theirs)


def test_fewer_key_heads_are_counted():
    graph = trace(MODELS["llama"][0](), (), {"input_ids": IDS})
    heads = {p.role: p.heads for p in graph.parameters("model.layers.0.*") if p.heads}
    assert heads == {Q: 4, K: 2, V: 2, OUT: 4}


def test_gpt2_is_stored_turned():
    graph = trace(MODELS["gpt2"][0](), (), {"input_ids": IDS})
    fused = graph.parameter("transformer.h.0.attn.c_attn.weight")
    assert fused.axes == ("in", "out")
    assert [(part.axis, part.units) for part in fused.parts.values()] == [
        (1, range(16)),
        (1, range(16, 32)),
        (1, range(32, 48)),
    ]
    assert graph.parameter("transformer.h.0.attn.c_proj.weight").parts["heads"].axis == 0
    assert graph.parameter("lm_head").tied_to == "transformer.wte.weight"


@pytest.mark.parametrize("name", ["swin_t", "vit_b_16"])
def test_torchvision_attentions_are_exact(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    graph = trace(model, torch.empty(1, 3, 224, 224))
    fused, output = graph.parameters(role="attention.fused"), graph.parameters(role=OUT)
    assert len(fused) == len(output) > 0
    assert all([*p.parts] == ["query", "key", "value"] for p in fused)
    assert all(p.parts["heads"].heads == p.heads for p in output)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "levit_128s"])
def test_timm_attentions_are_exact(name):
    graph = trace(timm.create_model(name), torch.empty(2, 3, 224, 224))
    fused = graph.parameters(role="attention.fused")
    assert len(fused) > 0
    assert all(p.parts for p in fused)


class KeepsSomeBoxes(torch.nn.Module):
    """Non-maximum suppression keeps as many boxes as the values say, as in every detection model."""

    def __init__(self):
        super().__init__()
        self.boxes, self.scores = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)

    def forward(self, x):
        boxes, scores = self.boxes(x).cumsum(-1), self.scores(x).flatten()
        keep = torchvision.ops.nms(boxes, scores, 0.5)
        return [{"boxes": boxes[keep[scores[keep] > 0]]}]


def test_what_detection_models_do_runs_for_real():
    model, x = KeepsSomeBoxes(), torch.rand(9, 4)
    graph = trace(model, x)
    assert graph.real
    assert "torchvision.nms" in str(graph)
    out = torch.fx.GraphModule(graph._root(), graph.fx)(x)
    torch.testing.assert_close(out[0], model(x)[0]["boxes"])
