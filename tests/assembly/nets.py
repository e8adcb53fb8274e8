"""Small models named by their trap, shared by the tests of this room."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def lively(model: nn.Module) -> nn.Module:
    """Norms and running statistics as a training would leave them: not all alike. In eval mode."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.5 * torch.rand_like(tensor))
    return model.eval()


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return lively(nn.Sequential(*layers[:-1]))


def flattened(channels: int, hidden: int, kernel: int = 3) -> nn.Module:
    """A Linear that reads channels x positions."""
    return lively(
        nn.Sequential(
            nn.Conv2d(2, channels, kernel, padding=kernel // 2),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * 9, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 4),
        )
    )


IMAGE = (torch.zeros(2, 2, 3, 3),)


class Residual(nn.Module):
    """One stream that every block reads and writes, norms with running statistics."""

    def __init__(self, stream: int = 6, inner: int = 8, blocks: int = 2, square: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(2, stream, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(stream, inner, 3, padding=1),
                nn.BatchNorm2d(inner),
                nn.ReLU(),
                nn.Conv2d(inner, stream, 1),
                nn.BatchNorm2d(stream),
            )
            for _ in range(blocks)
        )
        # x + Wx: one class on two axes of a tensor.
        self.turn = nn.Conv2d(stream, stream, 1) if square else None
        self.head = nn.Linear(stream, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x.relu())
        if self.turn is not None:
            x = x + self.turn(x)
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Packed query, key and value; a pre-norm stream."""

    def __init__(self, dim: int = 8, heads: int = 2, hidden: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.norm = nn.Linear(3, dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.last = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        x = x + self.down(F.gelu(self.up(self.last(x))))
        return self.head(x.mean(1))


TOKENS = (torch.zeros(2, 3, 3),)
