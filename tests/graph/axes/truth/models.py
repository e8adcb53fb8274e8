"""The models that the tables of this folder are about, small, with the parameter names of the tables.

Git Re-Basin's are flax modules: rebuilt here with layers of the same names and the same wiring. mergekit's are Hugging
Face classes, but for two: Solar is not in transformers 5 and is the same as Llama in names and wiring; EXAONE 3 is not
either, and is built with its published names.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[nn.Module, dict[str, Tensor]]


class Named(nn.Module):
    """Layers by name, in the order in which they are given."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class ChannelNorm(nn.LayerNorm):
    """A layer norm over channels, as flax has it: its images hold them last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def conv(i: int, o: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=bias)


class MLP(Named):
    def __init__(self, hidden: int = 3) -> None:
        sizes = [7, *range(5, 5 + hidden), 3]
        super().__init__(**{f"Dense_{i}": nn.Linear(*sizes[i : i + 2]) for i in range(hidden + 1)})

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.children()
        for layer in hidden:
            x = layer(x).relu()
        return F.log_softmax(last(x), -1)


class VGG16(Named):
    PLAN = (1, 1, "m", 2, 2, "m", 4, 4, 4, "m", 8, 8, 8, "m", 8, 8, 8, "m")

    def __init__(self, width: int = 2) -> None:
        widths = [3, *(width * w for w in self.PLAN if isinstance(w, int))]
        layers: dict[str, nn.Module] = {}
        for n, (i, o) in enumerate(pairwise(widths)):
            layers |= {f"Conv_{n}": conv(i, o, bias=True), f"LayerNorm_{n}": ChannelNorm(o)}
        head = [widths[-1], 6, 5, 3]
        layers |= {f"Dense_{n}": nn.Linear(*head[n : n + 2]) for n in range(3)}
        super().__init__(**layers)

    def forward(self, x: Tensor) -> Tensor:
        n = 0
        for step in self.PLAN:
            if step == "m":
                x = F.max_pool2d(x, 2)
            else:
                x = getattr(self, f"LayerNorm_{n}")(getattr(self, f"Conv_{n}")(x)).relu()
                n += 1
        x = self.Dense_1(self.Dense_0(x.flatten(1)).relu()).relu()
        return F.log_softmax(self.Dense_2(x), -1)


class Shortcut(Named):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class BasicBlock(Named):
    def __init__(self, i: int, o: int, stride: int) -> None:
        layers = {
            "conv1": conv(i, o, stride=stride),
            "norm1": ChannelNorm(o),
            "conv2": conv(o, o),
            "norm2": ChannelNorm(o),
        }
        if stride != 1:
            short = Shortcut(layers_0=conv(i, o, stride=stride), layers_1=ChannelNorm(o))
            layers["shortcut"] = short
        super().__init__(**layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + (self.shortcut(x) if hasattr(self, "shortcut") else x)).relu()


class ResNet20(Named):
    def __init__(self, width: int = 4) -> None:
        layers: dict[str, nn.Module] = {"conv1": conv(3, width), "norm1": ChannelNorm(width)}
        before = width
        for group in range(3):
            after = width * 2**group
            blocks = {}
            for n in range(3):
                blocks[f"blocks_{n}"] = BasicBlock(before, after, 2 if group and not n else 1)
                before = after
            layers[f"blockgroups_{group}"] = Named(**blocks)
        super().__init__(**layers, dense=nn.Linear(before, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        for group in range(3):
            for block in getattr(self, f"blockgroups_{group}").children():
                x = block(x)
        return F.log_softmax(self.dense(x.mean((2, 3))), -1)


class ConvBlock(Named):
    def __init__(self, i: int, o: int, kernel: int, stride: int = 1) -> None:
        super().__init__(Conv_0=conv(i, o, kernel, stride), BatchNorm_0=nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        return self.BatchNorm_0(self.Conv_0(x))


class Bottleneck(Named):
    def __init__(self, i: int, inner: int, o: int, stride: int) -> None:
        layers: dict[str, nn.Module] = {
            "ConvBlock_0": ConvBlock(i, inner, 1),
            "ConvBlock_1": ConvBlock(inner, inner, 3, stride),
            "ConvBlock_2": ConvBlock(inner, o, 1),
        }
        if i != o:
            layers["ResNetSkipConnection_0"] = Shortcut(ConvBlock_0=ConvBlock(i, o, 1, stride))
        super().__init__(**layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ConvBlock_2(self.ConvBlock_1(self.ConvBlock_0(x).relu()).relu())
        skip = getattr(self, "ResNetSkipConnection_0", None)
        return (y + (x if skip is None else skip(x))).relu()


class ResNet50(Named):
    def __init__(self, width: int = 2) -> None:
        layers: dict[str, nn.Module] = {"layers_0": Shortcut(ConvBlock_0=ConvBlock(3, width, 7, 2))}
        before = width
        for group, count in enumerate((3, 4, 6, 3)):
            inner = width * 2**group
            blocks = {}
            for n in range(count):
                stride = 2 if group and not n else 1
                blocks[f"blocks_{n}"] = Bottleneck(before, inner, 4 * inner, stride)
                before = 4 * inner
            layers[f"blockgroups_{group}"] = Named(**blocks)
        super().__init__(**layers, dense=nn.Linear(before, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.layers_0(x).relu(), 3, 2, 1)
        for group in range(4):
            for block in getattr(self, f"blockgroups_{group}").children():
                x = block(x)
        return self.dense(x.mean((2, 3)))


def rotated(x: Tensor) -> Tensor:
    """Rotary positions over halves of the last dimension; (…, positions, units)."""
    n, d = x.shape[-2:]
    angles = torch.arange(n)[:, None] / 10 ** torch.arange(d // 2).repeat(2)
    swapped = torch.cat([-x[..., d // 2 :], x[..., : d // 2]], -1)
    return x * angles.cos() + swapped * angles.sin()


class ExaoneAttention(Named):
    def __init__(self, width: int, heads: int, groups: int, units: int) -> None:
        super().__init__(
            q_proj=nn.Linear(width, heads * units, bias=False),
            k_proj=nn.Linear(width, groups * units, bias=False),
            v_proj=nn.Linear(width, groups * units, bias=False),
            out_proj=nn.Linear(heads * units, width, bias=False),
        )
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.units)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(
            rotated(q), rotated(k), v, is_causal=True, enable_gqa=True
        )
        return self.out_proj(y.transpose(1, 2).flatten(-2))


class ExaoneBlock(Named):
    def __init__(self, width: int, inner: int) -> None:
        attention = ExaoneAttention(width, heads=6, groups=2, units=4)
        mlp = Named(
            c_fc_0=nn.Linear(width, inner, bias=False),
            c_fc_1=nn.Linear(width, inner, bias=False),
            c_proj=nn.Linear(inner, width, bias=False),
        )
        super().__init__(
            ln_1=nn.RMSNorm(width), attn=Named(attention=attention), ln_2=nn.RMSNorm(width), mlp=mlp
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn.attention(self.ln_1(x))
        y = self.ln_2(x)
        return x + self.mlp.c_proj(F.silu(self.mlp.c_fc_0(y)) * self.mlp.c_fc_1(y))


class Exaone(Named):
    def __init__(self, width: int = 18, inner: int = 14, layers: int = 2) -> None:
        blocks = nn.ModuleList(ExaoneBlock(width, inner) for _ in range(layers))
        body = Named(wte=nn.Embedding(11, width), h=blocks, ln_f=nn.RMSNorm(width))
        super().__init__(transformer=body, lm_head=nn.Linear(width, 11, bias=False))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.transformer.wte(input_ids)
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


def _words() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 11, (2, 6))}


def _language(name: str, **settings: Any) -> Callable[[], Built]:
    def make() -> Built:
        import transformers

        common: dict[str, Any] = {
            "vocab_size": 11,
            "hidden_size": 18,
            "intermediate_size": 14,
            "num_hidden_layers": 2,
            "use_cache": False,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        config = getattr(transformers, f"{name}Config")(**(common | settings))
        return getattr(transformers, f"{name}ForCausalLM")(config), _words()

    return make


def _image(side: int) -> dict[str, Tensor]:
    return {"x": torch.randn(2, 3, side, side)}


GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}

MODELS: dict[str, Callable[[], Built]] = {
    "mlp": lambda: (MLP(), {"x": torch.randn(4, 7)}),
    "vgg16": lambda: (VGG16(), _image(32)),
    "resnet20": lambda: (ResNet20(), _image(12)),
    "resnet50": lambda: (ResNet50(), _image(64)),
    "llama": _language("Llama", **GROUPED),
    "solar": _language("Llama", **GROUPED, tie_word_embeddings=False, rope_theta=10000.0),
    "exaone": lambda: (Exaone(), _words()),
    "gemma": _language("Gemma", num_attention_heads=6, num_key_value_heads=1, head_dim=4),
    "stablelm": _language(
        "StableLm",
        hidden_size=48,
        num_attention_heads=3,
        num_key_value_heads=3,
        partial_rotary_factor=0.25,
    ),
}
