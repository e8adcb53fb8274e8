"""Small models, named by what is hard about their costs and widths."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Conv(nn.Module):
    """Depthwise, grouped and transposed convolutions, norms, a classifier."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, groups=width, padding=1)
        self.wide = nn.Conv2d(width, 2 * width, 1)
        self.grouped = nn.Conv2d(2 * width, 2 * width, 3, groups=4, stride=2)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.depthwise(self.norm(self.stem(x)).relu())
        x = self.up(self.grouped(self.wide(x).relu()).relu())
        return self.head(x.mean((2, 3)))


class GroupedHeads(nn.Module):
    """Four query heads share two of keys and values; an MLP with a gate; norms; a stream."""

    def __init__(self, width: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.heads, self.shared, self.inner = 4, 2, 8
        self.embed = nn.Linear(3, width)
        self.q = nn.Linear(width, self.heads * self.inner)
        self.k, self.v = (nn.Linear(width, self.shared * self.inner) for _ in range(2))
        self.o = nn.Linear(self.heads * self.inner, width)
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down, self.norm = nn.Linear(hidden, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        h = self.embed(x)
        b, n, _ = h.shape
        q = self.q(h).view(b, n, -1, self.inner).transpose(1, 2)
        k = self.k(h).view(b, n, -1, self.inner).transpose(1, 2)
        v = self.v(h).view(b, n, -1, self.inner).transpose(1, 2)
        k, v = (t.repeat_interleave(self.heads // self.shared, 1) for t in (k, v))
        h = h + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = h + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(self.norm(h))


class Packed(nn.Module):
    """Queries, keys and values in one weight; attention by two products."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.embed, self.qkv, self.out = nn.Linear(3, 16), nn.Linear(16, 96), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        b, n, _ = x.shape
        h = self.embed(x)
        q, k, v = self.qkv(h).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.head(h + self.out((weights @ v).transpose(1, 2).flatten(2)))


class Recurrent(nn.Module):
    """Two directions, two layers, and a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.lstm = nn.LSTM(8, 16, 1, batch_first=True)
        self.cell, self.head = nn.GRUCell(16, 12), nn.Linear(12, 5)

    def forward(self, x):
        y, _ = self.lstm(self.embed(x))
        return self.head(self.cell(y[:, -1]))


class Residual(nn.Module):
    """Two blocks on one stream of channels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, 2 * width, 3, padding=1),
                nn.BatchNorm2d(2 * width),
                nn.ReLU(),
                nn.Conv2d(2 * width, width, 3, padding=1),
                nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean((2, 3)))


class TiedToStream(nn.Module):
    """The code asks that the heads together are as wide as the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.prongs = 4
        self.start, self.qkv = nn.Linear(3, 16), nn.Linear(16, 48)
        self.out, self.end = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x):
        x = self.start(x)
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.prongs, c // self.prongs)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.end(x + self.out(y.reshape(x.shape)))


class Written(nn.Module):
    """A number in the code holds one size; another one is free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.z = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.z(self.b(self.a(x).view(*x.shape[:2], 16).relu()).relu())


INPUTS = {
    Conv: torch.randn(2, 3, 9, 9),
    GroupedHeads: torch.randn(2, 5, 3),
    Packed: torch.randn(2, 5, 3),
    Recurrent: torch.randn(2, 5, 3),
    Residual: torch.randn(2, 3, 8, 8),
    TiedToStream: torch.randn(2, 5, 3),
    Written: torch.randn(2, 5, 3),
}


def made(kind):
    torch.manual_seed(0)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model, INPUTS[kind]
