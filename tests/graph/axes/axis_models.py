"""Small models, each named by its trap, and the sizes of the free classes that they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Case:
    """A model, its inputs, and the sizes of its free classes, sorted."""

    make: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    sizes: list[int]


class Fn(nn.Module):
    """Layers by name, and a forward pass over them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._forward(self, *inputs)


def case(sizes: list[int], inputs: Any, forward: Callable[..., Any], **layers: Any) -> Case:
    made = inputs if isinstance(inputs, tuple) else (inputs,)
    return Case(lambda: Fn(forward, **{k: v() for k, v in layers.items()}), made, sizes)


def lin(i: int, o: int, bias: bool = True) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(i, o, bias)


def conv(i: int, o: int, **kw: Any) -> Callable[[], nn.Module]:
    kernel = kw.pop("kernel", 3)
    return lambda: nn.Conv2d(i, o, kernel, padding=kernel // 2, **kw)


def weight(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape))


def rows(n: int = 3) -> Tensor:
    return torch.randn(4, n)


def image(c: int = 3) -> Tensor:
    return torch.randn(2, c, 8, 8)


def heads(x: Tensor, h: int) -> Tensor:
    return x.unflatten(-1, (h, -1)).transpose(1, 2)


def attended(q: Tensor, k: Tensor, v: Tensor, **kw: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, **kw).transpose(1, 2).flatten(-2)


def written_where(m: Any, x: Tensor) -> Tensor:
    """Only some rows go through a layer (an adapter of one language, an expert): units stay units."""
    h, some = m.a(x), x[:, 0] > x[:, 0].mean()
    h[some] = m.b(h[some]).relu()
    return m.z(h)


def written_where_units(m: Any, x: Tensor) -> Tensor:
    """The mask covers the units: it knows them by their places."""
    h = m.a(x)
    h[:, torch.tensor([True, False, True, True, False, False])] = 0.5
    return m.z(h)


def rotated(x: Tensor) -> Tensor:
    """Rotary positions, halves."""
    n, d = x.shape[-2:]
    angles = torch.arange(n)[:, None] * torch.arange(1.0, d // 2 + 1)
    angles = torch.cat([angles, angles], -1)
    half = torch.cat([-x[..., d // 2 :], x[..., : d // 2]], -1)
    return x * angles.cos() + half * angles.sin()


def interleaved_rotated(x: Tensor) -> Tensor:
    n, d = x.shape[-2:]
    angles = torch.arange(n)[:, None] * torch.arange(1.0, d // 2 + 1)
    a, b = x[..., ::2], x[..., 1::2]
    pair = torch.stack(
        [a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1
    )
    return pair.flatten(-2)


def window(x: Tensor, w: int) -> Tensor:
    b, h, wide, c = x.shape
    return x.view(b, h // w, w, wide // w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, c)


def unwindow(x: Tensor, w: int, h: int) -> Tensor:
    b = x.shape[0] // (h // w) ** 2
    return x.view(b, h // w, h // w, w, w, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, h, -1)


def shuffled(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def packed_attention(m: Any, x: Tensor) -> Tensor:
    """(3 h d): query, key and value one after the other."""
    b, n, _ = x.shape
    q, k, v = m.qkv(m.a(x)).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return m.z(m.o(attended(q, k, v)).relu())


def interleaved_attention(m: Any, x: Tensor) -> Tensor:
    """(h 3 d): query, key and value head by head."""
    b, n, _ = x.shape
    qkv = m.qkv(m.a(x)).view(b, n, 2, 3, 4)
    q, k, v = (qkv[..., i, :].transpose(1, 2) for i in range(3))
    return m.z(m.o(attended(q, k, v)).relu())


def grouped_query_attention(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    q, k, v = heads(m.q(x), 6), heads(m.k(x), 2), heads(m.v(x), 2)
    k, v = (t[:, :, None].expand(-1, -1, 3, -1, -1).reshape(4, 6, 5, 4) for t in (k, v))
    return m.z(m.o(attended(q, k, v)).relu())


def rope_attention(rotate: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        q, k, v = (heads(layer(x), 2) for layer in (m.q, m.k, m.v))
        return m.z(m.o(attended(rotate(q), rotate(k), v)).relu())

    return forward


def window_attention(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    win = window(torch.roll(x, (-1, -1), (1, 2)), 2)
    q, k, v = (heads(layer(win), 2) for layer in (m.q, m.k, m.v))
    return m.z(torch.roll(unwindow(attended(q, k, v), 2, 4), (1, 1), (1, 2)).relu())


def experts(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    share = m.router(x).softmax(-1)
    inner = torch.einsum("bi,eih->beh", x, m.up).relu()
    return m.z(torch.einsum("beh,eho,be->bo", inner, m.down, share).relu())


def written_out_norm(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.z(h * (h.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * m.g)


def zeros_filled(m: Any, x: Tensor) -> Tensor:
    """Zeros are alike everywhere until somebody writes into them."""
    h = m.a(x)
    out = torch.zeros(4, 10)
    out[:, :6] = h
    out[:, 6:] = h[:, :4]
    return m.z(out)


def zeros_added(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    out = torch.zeros(2, 6).index_add(0, torch.tensor([0, 1, 1, 0]), h)
    return m.z(out + m.c(x)[:2])


def running_ones(m: Any, x: Tensor) -> Tensor:
    """A running sum of ones is not ones."""
    return m.z(m.a(x) * torch.ones(6).cumsum(0))


seq = torch.randn(4, 5, 3)
ids = torch.randint(0, 7, (2, 5))
ATTENTION = {"a": lin(3, 6), "qkv": lin(6, 24), "o": lin(8, 5), "z": lin(5, 2)}
SPLIT = {
    "a": lin(3, 6),
    "q": lin(6, 8),
    "k": lin(6, 8),
    "v": lin(6, 8),
    "o": lin(8, 5),
    "z": lin(5, 2),
}

CASES: dict[str, Case] = {
    "linear": case([6], rows(), lambda m, x: m.z(m.a(x).relu()), a=lin(3, 6), z=lin(6, 2)),
    "residual": case(
        [6, 8],
        rows(),
        lambda m, x: m.z((h := m.a(x)) + m.c(m.b(h).relu())),
        a=lin(3, 6),
        b=lin(6, 8),
        c=lin(8, 6),
        z=lin(6, 2),
    ),
    "reused": case(
        [6],
        rows(),
        lambda m, x: m.z(m.b(m.b(m.a(x)).relu()).relu()),
        a=lin(3, 6),
        b=lin(6, 6),
        z=lin(6, 2),
    ),
    "tied_embedding": case(
        [6], (ids,), lambda m, x: F.linear(m.a(x).relu(), m.a.weight), a=lambda: nn.Embedding(7, 6)
    ),
    "concat": case(
        [4, 6],
        rows(),
        lambda m, x: m.z(torch.cat([m.a(x), m.b(x)], -1)),
        a=lin(3, 6),
        b=lin(3, 4),
        z=lin(10, 2),
    ),
    "concat_added": case(
        [4, 6],
        rows(),
        lambda m, x: m.z(torch.cat([m.a(x), m.b(x)], -1) + m.c(x)),
        a=lin(3, 6),
        b=lin(3, 4),
        c=lin(3, 10),
        z=lin(10, 2),
    ),
    "chunk_gate": case(
        [6],
        rows(),
        lambda m, x: m.z((p := m.a(x).chunk(2, -1))[0] * p[1].sigmoid()),
        a=lin(3, 12),
        z=lin(6, 2),
    ),
    "glu": case([6], rows(), lambda m, x: m.z(F.glu(m.a(x))), a=lin(3, 12), z=lin(6, 2)),
    "conv_norm": case(
        [6],
        image(),
        lambda m, x: m.z(m.n(m.a(x)).relu()).mean((2, 3)),
        a=conv(3, 6),
        n=lambda: nn.BatchNorm2d(6),
        z=conv(6, 2),
    ),
    "grouped_conv": case(
        [2, 3, 3],
        image(),
        lambda m, x: m.z(m.b(m.a(x))),
        a=conv(3, 6),
        b=conv(6, 6, groups=2),
        z=conv(6, 2),
    ),
    "depthwise": case(
        [2, 6],
        image(),
        lambda m, x: m.z(m.b(m.a(x)).relu()),
        a=conv(3, 6),
        b=conv(6, 12, groups=6),
        z=conv(12, 2),
    ),
    "transposed": case(
        [5, 6],
        image(),
        lambda m, x: m.z(m.b(m.a(x))),
        a=conv(3, 6),
        b=lambda: nn.ConvTranspose2d(6, 5, 2, 2),
        z=conv(5, 2),
    ),
    "transposed_grouped": case(
        [2, 3, 4],
        image(),
        lambda m, x: m.z(m.b(m.a(x))),
        a=conv(3, 6),
        b=lambda: nn.ConvTranspose2d(6, 8, 2, 2, groups=2),
        z=conv(8, 2),
    ),
    "conv1d": case(
        [6],
        torch.randn(2, 3, 9),
        lambda m, x: m.z(m.a(x)).sum(-1),
        a=lambda: nn.Conv1d(3, 6, 3),
        z=lambda: nn.Conv1d(6, 2, 3),
    ),
    "conv3d": case(
        [6],
        torch.randn(2, 3, 5, 5, 5),
        lambda m, x: m.z(m.a(x)),
        a=lambda: nn.Conv3d(3, 6, 3),
        z=lambda: nn.Conv3d(6, 2, 3),
    ),
    "conv_over_tokens": case(
        [4, 6],
        torch.randn(2, 3, 5),
        lambda m, x: m.z(m.c(m.a(x.transpose(1, 2)))),
        a=lin(3, 6),
        c=lambda: nn.Conv1d(5, 4, 1),
        z=lambda: nn.Sequential(nn.Conv1d(4, 1, 1), nn.Linear(6, 2)),
    ),
    "flattened": case(
        [6],
        image(),
        lambda m, x: m.z(F.adaptive_avg_pool2d(m.a(x), 2).flatten(1)),
        a=conv(3, 6),
        z=lin(24, 2),
    ),
    "channel_shuffle": case(
        [2, 2],
        image(),
        lambda m, x: m.z(shuffled(m.b(m.a(x)), 2)),
        a=conv(3, 8),
        b=conv(8, 8, groups=8),
        z=conv(8, 2, groups=2),
    ),
    "pixel_shuffle": case(
        [5, 6],
        image(),
        lambda m, x: m.z(F.pixel_shuffle(m.b(m.a(x)), 2)),
        a=conv(3, 6),
        b=conv(6, 20),
        z=conv(5, 2),
    ),
    "pixel_unshuffle": case(
        [6], image(), lambda m, x: m.z(F.pixel_unshuffle(m.a(x), 2)), a=conv(3, 6), z=conv(24, 2)
    ),
    "unfold": case(
        [6],
        image(),
        lambda m, x: m.z(F.unfold(m.a(x), 2).transpose(1, 2)),
        a=conv(3, 6),
        z=lin(24, 2),
    ),
    "strided_windows": case(  # that overlap by half; the features of a place stay apart
        [6],
        (torch.randn(2, 8, 3),),
        lambda m, x: m.z(m.a(x).as_strided((2, 3, 4, 6), (48, 12, 6, 1)).relu()),
        a=lin(3, 6),
        z=lin(6, 2),
    ),
    "strided_heads": case(  # a view of the features as heads, the places in front
        [2, 3],
        (torch.randn(8, 1, 3),),
        lambda m, x: m.z(
            m.a(x)
            .view(8, 2, 3)
            .transpose(0, 1)
            .as_strided((2, 3, 4, 3), (3, 12, 6, 1))
            .permute(1, 2, 0, 3)
            .flatten(2)
        ),
        a=lin(3, 6),
        z=lin(6, 2),
    ),
    "strided_across": case(  # the control: a step of five puts another feature at every place
        [],
        (torch.randn(2, 8, 3),),
        lambda m, x: m.z(m.a(x).as_strided((2, 8, 6), (48, 5, 1)).relu()),
        a=lin(3, 6),
        z=lin(6, 2),
    ),
    "squeeze_excite": case(
        [4, 6],
        image(),
        lambda m, x: m.z((h := m.a(x)) * m.e(m.s(h.mean((2, 3), keepdim=True)).relu()).sigmoid()),
        a=conv(3, 6),
        s=conv(6, 4, kernel=1),
        e=conv(4, 6, kernel=1),
        z=conv(6, 2),
    ),
    "group_norm": case(
        [2, 3],
        image(),
        lambda m, x: m.z(m.n(m.a(x)).relu()),
        a=conv(3, 6),
        n=lambda: nn.GroupNorm(2, 6),
        z=conv(6, 2),
    ),
    "instance_norm": case(
        [6],
        image(),
        lambda m, x: m.z(m.n(m.a(x)).relu()),
        a=conv(3, 6),
        n=lambda: nn.InstanceNorm2d(6, affine=True),
        z=conv(6, 2),
    ),
    "layer_norm": case(
        [6],
        rows(),
        lambda m, x: m.z(m.n(m.a(x))),
        a=lin(3, 6),
        n=lambda: nn.LayerNorm(6),
        z=lin(6, 2),
    ),
    "rms_norm": case(
        [6],
        rows(),
        lambda m, x: m.z(m.n(m.a(x))),
        a=lin(3, 6),
        n=lambda: nn.RMSNorm(6),
        z=lin(6, 2),
    ),
    "written_out_norm": case([6], rows(), written_out_norm, a=lin(3, 6), g=weight(6), z=lin(6, 2)),
    "prelu": case(
        [6],
        image(),
        lambda m, x: m.z(m.p(m.a(x))),
        a=conv(3, 6),
        p=lambda: nn.PReLU(6),
        z=conv(6, 2),
    ),
    "upsampled": case(
        [6],
        image(),
        lambda m, x: m.z(F.interpolate(m.a(x), scale_factor=2.0, mode="bilinear")),
        a=conv(3, 6),
        z=conv(6, 2),
    ),
    "padded_channels": case(
        [2, 6], rows(), lambda m, x: F.pad(m.a(x), (1, 2)) @ m.w, a=lin(3, 6), w=weight(9, 2)
    ),
    "packed_attention": case([2, 4, 4, 5, 6], seq, packed_attention, **ATTENTION),
    "interleaved_attention": case([2, 4, 4, 5, 6], seq, interleaved_attention, **ATTENTION),
    "grouped_query": case(
        [2, 3, 4, 4, 5, 6],
        seq,
        grouped_query_attention,
        a=lin(3, 6),
        q=lin(6, 24),
        k=lin(6, 8),
        v=lin(6, 8),
        o=lin(24, 5),
        z=lin(5, 2),
    ),
    "grouped_query_fused": case(
        [2, 3, 4, 4],
        seq,
        lambda m, x: m.z(
            attended(heads(m.q(x), 6), heads(m.k(x), 2), heads(m.v(x), 2), enable_gqa=True)
        ),
        q=lin(3, 24),
        k=lin(3, 8),
        v=lin(3, 8),
        z=lin(24, 2),
    ),
    "rope": case([2, 4, 5, 6], seq, rope_attention(rotated), **SPLIT),
    "rope_interleaved": case([2, 4, 5, 6], seq, rope_attention(interleaved_rotated), **SPLIT),
    "window_attention": case(
        [2, 4, 4, 6],
        torch.randn(2, 4, 4, 3),
        window_attention,
        a=lin(3, 6),
        q=lin(6, 8),
        k=lin(6, 8),
        v=lin(6, 8),
        z=lin(8, 2),
    ),
    "multihead": case(
        [2, 3, 3, 6, 6],
        seq,
        lambda m, x: m.z(m.t((h := m.a(x)), h, h)[0]),
        a=lin(3, 6),
        t=lambda: nn.MultiheadAttention(6, 2, batch_first=True),
        z=lin(6, 2),
    ),
    "encoder_layer": case(
        [2, 3, 3, 6, 7],
        seq,
        lambda m, x: m.z(m.t(m.a(x))),
        a=lin(3, 6),
        t=lambda: nn.TransformerEncoderLayer(6, 2, 7, batch_first=True),
        z=lin(6, 2),
    ),
    "einsum": case(
        [5, 6],
        rows(),
        lambda m, x: torch.einsum("bi,ij,jo->bo", m.a(x), m.w, m.v),
        a=lin(3, 6),
        w=weight(6, 5),
        v=weight(5, 2),
    ),
    "experts": case(
        [3, 5, 6, 7],
        rows(),
        experts,
        a=lin(3, 6),
        router=lin(6, 3),
        up=weight(3, 6, 7),
        down=weight(3, 7, 5),
        z=lin(5, 2),
    ),
    "lstm": case(
        [5, 6, 7, 7],
        seq,
        lambda m, x: m.z(m.t(m.a(x))[0]),
        a=lin(3, 6),
        t=lambda: nn.LSTM(6, 7, 1, batch_first=True, bidirectional=True),
        z=lambda: nn.Sequential(nn.Linear(14, 5), nn.ReLU(), nn.Linear(5, 2)),
    ),
    "gru": case(
        [6, 7, 7],
        seq,
        lambda m, x: m.z(m.t(m.a(x))[1][-1]),
        a=lin(3, 6),
        t=lambda: nn.GRU(6, 7, 2, batch_first=True),
        z=lin(7, 2),
    ),
    "lstm_projected": case(
        [4, 6, 7],
        seq,
        lambda m, x: m.z(m.t(m.a(x))[0]),
        a=lin(3, 6),
        t=lambda: nn.LSTM(6, 7, proj_size=4),
        z=lin(4, 2),
    ),
    "flip": case([], rows(), lambda m, x: m.z(m.a(x).flip(-1)), a=lin(3, 6), z=lin(6, 2)),
    "repeat_interleave": case(
        [2, 3], rows(), lambda m, x: m.z(m.a(x).repeat_interleave(2, -1)), a=lin(3, 3), z=lin(6, 2)
    ),
    "repeat": case([2, 3], rows(), lambda m, x: m.z(m.a(x).repeat(1, 2)), a=lin(3, 3), z=lin(6, 2)),
    "indexed": case(
        [2],
        rows(),
        lambda m, x: m.z(m.a(x)[:, [0, 2, 1]] * m.b(x)[:, :1]),
        a=lin(3, 3),
        b=lin(3, 3),
        z=lin(3, 2),
    ),
    "selected": case(
        [2, 3], rows(), lambda m, x: m.z(m.a(x)) * m.a(x)[:, 2:3], a=lin(3, 6), z=lin(6, 2)
    ),
    "gather": case(
        [6],
        rows(),
        lambda m, x: m.z(m.a(x).gather(0, torch.tensor([[1], [0]]).expand(2, 6))),
        a=lin(3, 6),
        z=lin(6, 2),
    ),
    "masked": case(
        [6],
        rows(),
        lambda m, x: m.z(m.a(x).masked_fill(m.b(x) > 0, 0.0)),
        a=lin(3, 6),
        b=lin(3, 6),
        z=lin(6, 2),
    ),
    "written_where": case([6], rows(), written_where, a=lin(3, 6), b=lin(6, 6), z=lin(6, 2)),
    "written_where_units": case([], rows(), written_where_units, a=lin(3, 6), z=lin(6, 2)),
    "sorted": case([], rows(), lambda m, x: m.z(m.a(x).sort(-1).values), a=lin(3, 6), z=lin(6, 2)),
    "in_place": case(
        [6],
        rows(),
        lambda m, x: m.z(m.a(x).mul_(2).add_(m.b(x)).relu_()),
        a=lin(3, 6),
        b=lin(3, 6),
        z=lin(6, 2),
    ),
    "zeros_filled": case([2, 4], rows(), zeros_filled, a=lin(3, 6), z=lin(10, 2)),
    "zeros_added": case([6], rows(), zeros_added, a=lin(3, 6), c=lin(3, 6), z=lin(6, 2)),
    "running_ones": case([], rows(), running_ones, a=lin(3, 6), z=lin(6, 2)),
    "embedding_bag": case(
        [6], (ids,), lambda m, x: m.z(m.a(x)), a=lambda: nn.EmbeddingBag(7, 6), z=lin(6, 2)
    ),
    "bilinear": case(
        [4, 5, 6],
        rows(),
        lambda m, x: m.z(m.t(m.a(x), m.b(x))),
        a=lin(3, 5),
        b=lin(3, 6),
        t=lambda: nn.Bilinear(5, 6, 4),
        z=lin(4, 2),
    ),
    "weight_norm": case(
        [6],
        rows(),
        lambda m, x: m.z(m.a(x)),
        z=lin(6, 2),
        a=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 6)),
    ),
    "stacked_mean": case(
        [6],
        rows(),
        lambda m, x: m.z(torch.stack([m.a(x), m.b(x)]).mean(0)),
        a=lin(3, 6),
        b=lin(3, 6),
        z=lin(6, 2),
    ),
    "entropy": case(
        [6],
        rows(),
        lambda m, x: m.z(torch.special.entr(m.a(x).sigmoid()) + torch.special.ndtr(m.a(x))),
        a=lin(3, 6),
        z=lin(6, 2),
    ),
    "running_logsumexp": case(
        [6], seq, lambda m, x: m.z(m.a(x).logcumsumexp(1)), a=lin(3, 6), z=lin(6, 2)
    ),
    "cumsum_of_rows": case([6], seq, lambda m, x: m.z(m.a(x).cumsum(1)), a=lin(3, 6), z=lin(6, 2)),
    "fft": case(
        [6], seq, lambda m, x: m.z(torch.fft.rfft(m.a(x), dim=1).real), a=lin(3, 6), z=lin(6, 2)
    ),
}
