"""Small models, named by the trap that they set for an exporter."""

import torch
from torch import nn


class TinyConv(nn.Module):
    """A BatchNorm with statistics to fold."""

    def __init__(self, width=8, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.norm.weight, 1, 0.2)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class TinyTransformer(nn.Module):
    """Attention whose reshapes must keep the batch open."""

    def __init__(self, width=16):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 11)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)))


class TwoInputs(nn.Module):
    """A picture, a table without a batch, and a nested keyword with a flag in it."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, x, table, *, extra):
        y = self.left(x) + self.right(extra["y"])
        return {"out": y @ table if extra["mix"] else y, "index": y.argmax(-1)}


class ReadsKeywordsOutOfOrder(nn.Module):
    """Two keyword inputs of one shape, which a mix-up would not crash."""

    def forward(self, *, first, second):
        return first - 2 * second


class FixedBatch(nn.Module):
    """A reshape that spells the batch size out."""

    def forward(self, x):
        return x.reshape(2, 12).sin()


class DrawsNoise(nn.Module):
    """Random in eval mode: no file can answer alike."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x) + torch.rand(x.shape[0], 3)


class BranchesOnValues(nn.Module):
    """Untraceable: a Python branch on a tensor's value."""

    def forward(self, x):
        return x.sin() if x.sum().item() > 0 else x.cos()


class NanAnswer(nn.Module):
    """An answer that proves nothing."""

    def forward(self, x):
        return (x - x).log() - (x - x).log()
