"""After an edit the modules of every family run, train and say their own sizes; the ONNX file of some is proven."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import MobileNetV2, ShuffleNetV2, VisionTransformer
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.swin_transformer import SwinTransformer

from graftlib.export import export_onnx
from graftlib.graph import trace
from graftlib.surgery import SurgeryWarning, prune, widen
from graftlib.surgery.whole_model import outer_classes


class Residual(nn.Module):
    """Convolutions and batch norms beside an identity."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.norm1 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.b, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm0(self.stem(x)).relu()
        return self.head((x + self.b(self.norm1(self.a(x)).relu())).mean((2, 3)))


class Encoder(nn.Module):
    """torch's own encoder layer, and a bare MultiheadAttention behind it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        h = self.layer(self.embed(x))
        return self.head(self.attention(h, h, h, need_weights=False)[0].mean(1))


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40, num_hidden_layers=1, max_position_embeddings=16, num_labels=5, **sizes
        )
    )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_head": 4, "n_layer": 1, "n_positions": 16}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=40, bos_token_id=1, eos_token_id=2, use_cache=False, **sizes)
    )


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            intermediate_size=24,
            num_hidden_layers=1,
            max_position_embeddings=16,
            use_cache=False,
            **sizes,
        )
    )


def image():
    return {"x": torch.randn(4, 3, 32, 32)}


def tokens():
    return {"input_ids": torch.randint(3, 40, (4, 7))}


FAMILIES = {
    "residual": (Residual, image),
    "resnet": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, width_per_group=8), image),
    "resnext": (
        lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=4, width_per_group=4),
        image,
    ),
    "mobilenet": (lambda: MobileNetV2(5, 0.25, [[1, 8, 1, 1], [4, 16, 1, 2]], dropout=0.0), image),
    "shufflenet": (lambda: ShuffleNetV2([1, 1, 1], [8, 16, 24, 32, 40], num_classes=5), image),
    "vit": (lambda: VisionTransformer(32, 8, 1, 4, 16, 24, num_classes=5), image),
    "swin": (lambda: SwinTransformer([4, 4], 16, [2], [2], [2, 2], num_classes=5), image),
    "torch attention": (Encoder, lambda: {"x": torch.randn(4, 5, 3)}),
    "bert": (bert, tokens),
    "gpt2": (gpt2, tokens),
    "llama": (llama, tokens),
}
FAMILY = pytest.mark.parametrize("name", FAMILIES)


def made(name):
    torch.manual_seed(0)
    make, inputs = FAMILIES[name]
    model, given = make().eval(), inputs()
    args, kwargs = ((given["x"],), {}) if "x" in given else ((), given)
    return model, args, kwargs, trace(model, args, kwargs)


def answer(model, args, kwargs):
    out = model(*args, **kwargs)
    return out if isinstance(out, torch.Tensor) else out.logits


def learns(model, args, kwargs):
    """A few steps of SGD lower the loss, and a gradient reaches every parameter."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    losses = []
    for _ in range(4):
        logits = answer(model, args, kwargs).flatten(0, -2)
        loss = F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    assert losses[-1] < losses[0]


def says_its_sizes(model):
    """What torch's layers write down is what their tensors are."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        elif isinstance(module, nn.Conv2d):
            inputs = module.weight.shape[1] * module.groups
            assert (module.out_channels, module.in_channels) == (module.weight.shape[0], inputs)
        elif isinstance(module, nn.LayerNorm):
            assert module.normalized_shape == tuple(module.weight.shape)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_var)
        elif isinstance(module, nn.Embedding):
            assert (module.num_embeddings, module.embedding_dim) == module.weight.shape
        elif isinstance(module, nn.MultiheadAttention):
            assert (
                module.embed_dim
                == module.num_heads * module.head_dim
                == module.out_proj.in_features
            )


@FAMILY
def test_half_of_everything_is_one_call(name):
    """Nothing is left out (a warning is an error here), and the outcome is a model of its own."""
    model, args, kwargs, graph = made(name)
    slim = prune(graph, 0.5)
    free, after = outer_classes(graph), trace(slim, args, kwargs)
    assert sum(p.numel() for p in slim.parameters()) < 0.6 * sum(
        p.numel() for p in model.parameters()
    )
    wanted = sorted(math.ceil(c.size / 2) for c in free if c.size > 2)
    assert sorted(c.size for c in outer_classes(after) if c.size > 1)[-len(wanted) :] == wanted
    assert answer(slim, args, kwargs).shape == answer(model, args, kwargs).shape
    says_its_sizes(slim)
    learns(slim, args, kwargs)


@pytest.mark.filterwarnings("ignore:the config of 'GPT2LMHeadModel' cannot say")  # heads alone
@FAMILY
def test_twice_everything_is_the_same_function(name):
    """Layer norms and RMS norms included; GPT-2's residual stream is left out, as its table makes and reads it."""
    model, args, kwargs, graph = made(name)
    tied = [c for c in graph.axis_classes if any("wte" in m.fqn for m in c.members)]
    wide = widen(graph, {c: 2 * c.size for c in outer_classes(graph) if c not in tied})
    torch.testing.assert_close(
        answer(wide, args, kwargs), answer(model, args, kwargs), rtol=1e-4, atol=1e-5
    )
    says_its_sizes(wide)
    learns(wide, args, kwargs)


def test_heads_say_their_number():
    *_, graph = made("torch attention")
    slim = prune(graph, 0.5)
    for attention in (slim.attention, slim.layer.self_attn):
        assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (8, 2, 4)
    slim = prune(made("bert")[3], 0.5).bert.encoder.layer[0].attention.self
    assert (slim.num_attention_heads, slim.all_head_size, slim.attention_head_size) == (2, 8, 4)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_width_of_a_head_in_both_of_its_classes(name):
    model, args, kwargs, graph = made(name)
    inner = [c for c in graph.axis_classes if c.free and c not in outer_classes(graph)]
    # Their configs have no field for it, and say so.
    with pytest.warns(SurgeryWarning, match="cannot say"):
        slim = prune(graph, dict.fromkeys(inner, 2))
    with pytest.warns(SurgeryWarning, match="cannot say"):
        wide = widen(graph, dict.fromkeys(inner, 6))
    expected = answer(model, args, kwargs)
    torch.testing.assert_close(answer(wide, args, kwargs), expected, rtol=1e-4, atol=1e-5)
    assert answer(slim, args, kwargs).shape == expected.shape
    assert not torch.allclose(answer(slim, args, kwargs), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ["residual", "torch attention", "bert", "llama"])
def test_an_edited_model_ships(name, tmp_path):
    pytest.importorskip("onnxscript", reason='pip install "graftlib[onnx]"')
    _, args, kwargs, graph = made(name)
    edited = prune(graph, 0.5)
    path = tmp_path / "slim.onnx"
    export_onnx(edited, path, args, kwargs, measure=False, card=False, batch_sizes=(1,))
    assert path.stat().st_size > sum(p.numel() for p in edited.parameters())
