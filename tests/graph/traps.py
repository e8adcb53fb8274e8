"""Small models, each named by what makes it hard to trace."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class TiedLinear(nn.Module):
    """One tensor under two names; an embedding and a linear layer read it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mid = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.relu(self.mid(self.embed(ids))))


class ReusedConv(nn.Module):
    """One module is called three times, and one activation module with it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x):
        for _ in range(3):
            x = self.act(self.conv(x))
        return x


class InPlaceViews(nn.Module):
    """Writes through views and in place."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x):
        y = self.fc(x)
        y[:, :2] = y[:, 2:4] * 2
        y.add_(1).relu_()
        return y.chunk(2, dim=1)[1], {"all": y}


class BranchesOnValues(nn.Module):
    """Only a run on values can say which way it goes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.a(x) if self.a(x).sum().item() > self.b(x).sum().item() else self.b(x)


class BranchesOnConstants(nn.Module):
    """Of a list: it has no value on the meta device, and one on fake tensors."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        steps = int(torch.tensor([2]).item())
        for _ in range(steps):
            x = x + 1
        return self.fc(x)


class CountsItsCalls(nn.Module):
    """A forward pass that writes into buffers, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        x = F.dropout(self.norm(self.fc(x)), 0.5, training=True)
        return x + torch.rand(4) + self.calls


class WritesIntoParameter(nn.Module):
    """Cannot run for real without changing the user's model."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        with torch.no_grad():
            self.fc.weight.mul_(2)
        return self.fc(x) if x.sum().item() < 1e9 else x


class HoldsALock(nn.Module):
    """Cannot be deep-copied, and keeps a tensor that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        import threading

        self.lock = threading.Lock()
        self.scale = torch.full((4,), 3.0)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        with self.lock:
            return self.fc(x * self.scale)


class Fused(nn.Module):
    """Attention from one linear layer, in one of several layouts of its units.

    `layout`: ``concatenated`` (torch, GPT-2, timm), ``interleaved`` (GPT-NeoX, BLOOM: q, k, v of head 0, then
    of head 1), ``grouped`` (each group: its queries, one key, one value).
    """

    def __init__(self, layout, heads=4, size=3, groups=2, written_out=False, rotary=False):
        super().__init__()
        self.layout, self.heads, self.size, self.groups = layout, heads, size, groups
        self.written_out, self.rotary = written_out, rotary
        width = heads * size
        out = 3 * width if layout != "grouped" else width + 2 * groups * size
        self.qkv = nn.Linear(width, out)
        self.proj = nn.Linear(width, width)

    def split(self, x):
        b, s, _ = x.shape
        h, d, g = self.heads, self.size, self.groups
        if self.layout == "concatenated":
            q, k, v = self.qkv(x).view(b, s, 3, h, d).permute(2, 0, 3, 1, 4)
        elif self.layout == "interleaved":
            q, k, v = self.qkv(x).view(b, s, h, 3 * d).transpose(1, 2).chunk(3, dim=-1)
        else:
            per = self.qkv(x).view(b, s, g, h // g + 2, d)
            q = per[:, :, :, :-2].reshape(b, s, h, d).transpose(1, 2)
            k, v = (per[:, :, :, i].transpose(1, 2) for i in (-2, -1))
            k, v = (t[:, :, None].expand(b, g, h // g, s, d).reshape(b, h, s, d) for t in (k, v))
        return q, k, v

    def units(self):
        """role -> the units of `qkv`, head by head, as the layout defines them."""
        h, d, g = self.heads, self.size, self.groups
        if self.layout == "concatenated":
            return {r: [i * h * d + u for u in range(h * d)] for i, r in enumerate("qkv")}
        if self.layout == "interleaved":
            return {
                r: [n * 3 * d + i * d + u for n in range(h) for u in range(d)]
                for i, r in enumerate("qkv")
            }
        n = h // g
        at = lambda group, slot, u: (group * (n + 2) + slot) * d + u  # noqa: E731
        return {
            "q": [at(i, j, u) for i in range(g) for j in range(n) for u in range(d)],
            "k": [at(i, n, u) for i in range(g) for u in range(d)],
            "v": [at(i, n + 1, u) for i in range(g) for u in range(d)],
        }

    def forward(self, x):
        q, k, v = self.split(x)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        if self.written_out:
            scores = q @ k.transpose(-1, -2) / math.sqrt(self.size)
            y = F.dropout(scores.softmax(-1), 0.1, self.training) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


def rotate(x):
    """Rotary positions: pairs of units of one head mix."""
    angle = torch.arange(x.shape[-2]).float()[:, None] / 7
    one, two = x.chunk(2, dim=-1) if x.shape[-1] % 2 == 0 else (x, x)
    turned = torch.cat([-two, one], -1) if one is not x else x
    return x * angle.cos() + turned * angle.sin()


class SeparateProjections(nn.Module):
    """Query, key and value from layers of their own, with fewer key heads than query heads."""

    def __init__(self, heads=4, groups=2, size=3):
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, size
        width = heads * size
        self.q = nn.Linear(width, width)
        self.k, self.v = nn.Linear(width, groups * size), nn.Linear(width, groups * size)
        self.o = nn.Linear(width, width)

    def forward(self, x, context):
        cut = lambda t: t.unflatten(-1, (-1, self.size)).transpose(1, 2)  # noqa: E731
        q, k, v = cut(self.q(x)), cut(self.k(context)), cut(self.v(context))
        k, v = (t.repeat_interleave(self.heads // self.groups, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(x.shape))


class NotAttention(nn.Module):
    """A softmax gate, and a sum of two linear layers before an attention: nothing to name."""

    def __init__(self):
        super().__init__()
        self.gate, self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = x * self.gate(x).softmax(-1)
        x = self.a(x) + self.b(x)
        return F.scaled_dot_product_attention(x, x, x)
