"""A zoo of 30 architectures in 5 families, trained here: what the laws of assembly are measured on.

    python -m examples.paper.zoo --scale small --root DIR --cache out/zoo --data mnist fashion-mnist cifar10

Families: `mlp`, `cnn` (plain, no norm, kernels of 3 and 5), `vgg` and `resnet` (batch norm), `vit` (a transformer); six
members each, in widths and depths. `smoke` trains one of each on scikit-learn's digits; `small` takes 20,000 images of
MNIST and of Fashion-MNIST, and 7,000 of the 10,000 CIFAR-10 images that `cifar10_10k.npz` holds; `paper` is
four times as wide, on all images, for longer. Each member is one `NAME.safetensors` with a `NAME.json` beside it; where
they are there it is not trained again. A member below its family's floor is reported and the command ends with 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from graftlib.disk import write_whole

from ..common import datasets
from ..common.training import loss_and_accuracy, save_weights

DATA = ("digits", "mnist", "fashion-mnist", "cifar10")
SCALES = ("smoke", "small", "paper")

# ----------------------------------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class Images:
    """Images (n, c, h, w) float32 and labels (n,) int64. λ is chosen on `val`, figures are read on `test`."""

    name: str
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train[0].shape[1:])


def load(name: str, root: Path, scale: str = "small") -> Images:
    """The images of one data set; the last part of its training half is kept back for validation."""
    few = scale != "paper"
    if name == "digits":
        x, y = datasets.read(name)
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        return _split(name, x[order], y[order], (1097, 300), x[order[1397:]], y[order[1397:]])
    if name == "cifar10":
        x, y = datasets.read(name, root)
        order = datasets.stratified(y, 0)
        x, y = x[order], y[order]
        return _split(name, x[:8000], y[:8000], (7000, 1000), x[8000:], y[8000:])
    x, y, test_x, test_y = datasets.halves(name, root)
    return _split(name, x, y, (20_000, 2_000) if few else (55_000, 5_000), test_x, test_y)


def _split(
    name: str, x: Tensor, y: Tensor, sizes: tuple[int, int], test_x: Tensor, test_y: Tensor
) -> Images:
    train, val = sizes
    mean, std = x[:train].mean((0, 2, 3), keepdim=True), x[:train].std((0, 2, 3), keepdim=True)
    x, test_x = (x - mean) / std, (test_x - mean) / std
    held = slice(train, train + val)
    return Images(name, (x[:train], y[:train]), (x[held], y[held]), (test_x, test_y))


# --------------------------------------------------------------------------------------------------------- the models


def mlp(shape: tuple[int, ...], width: int, depth: int) -> nn.Module:
    """`depth` hidden layers of `width` units."""
    sizes = [int(np.prod(shape)), *[width] * depth]
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def cnn(shape: tuple[int, ...], width: int, depth: int, kernel: int = 3) -> nn.Module:
    """Plain: strided convolutions without norms, then two linear layers."""
    layers: list[nn.Module] = []
    now, to = shape[0], width
    for i in range(depth):
        stride = 2 if i < 3 else 1
        layers += [nn.Conv2d(now, to, kernel, stride, kernel // 2), nn.ReLU()]
        now, to = to, min(2 * to, 2 * width)
    side = -(-shape[-1] // 8)
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(now * side * side, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def vgg(shape: tuple[int, ...], width: int, depth: int) -> nn.Module:
    """Convolution, batch norm, ReLU; `depth` of them in each of two stages behind a strided stem."""
    layers: list[nn.Module] = []
    now = shape[0]
    for stage, to in enumerate((width, 2 * width)):
        for i in range(depth):
            stride = 2 if stage == 0 and i == 0 else 1
            layers += [
                nn.Conv2d(now, to, 3, stride, 1, bias=False),
                nn.BatchNorm2d(to),
                nn.ReLU(),
            ]
            now = to
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(now, 10))


class Block(nn.Module):
    """Two convolutions and the way around them."""

    def __init__(self, now: int, to: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(now, to, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(to)
        self.conv2 = nn.Conv2d(to, to, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(to)
        self.around = (
            nn.Sequential(nn.Conv2d(now, to, 1, stride, bias=False), nn.BatchNorm2d(to))
            if now != to
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.around(x))


def resnet(shape: tuple[int, ...], width: int, depth: int) -> nn.Module:
    """A strided stem and `depth` basic blocks in each of two stages."""
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    now = width
    for to in (width, 2 * width):
        for i in range(depth):
            layers.append(Block(now, to, 2 if i == 0 else 1) if now != to else Block(now, to, 1))
            now = to
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(now, 10))


class Layer(nn.Module):
    """Attention and an MLP, each behind a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Three strided convolutions make 16 tokens (patches of pixels learn too slowly from few images)."""

    def __init__(self, shape: tuple[int, ...], width: int, depth: int, heads: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], width // 2, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1),
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, (-(-shape[-1] // 8)) ** 2, width))
        self.blocks = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@dataclass(frozen=True)
class Plan:
    """How one family is built and trained.

    Attributes:
        build: (shape, width, depth) -> model.
        widths, depths: of its members.
        rate: the peak of AdamW's one-cycle schedule.
        longer: how many times the epochs of its scale it trains; its steps are cheap, or it needs them.
        floors: data set -> test accuracy in percent that every member of `small` must reach, set from a first run.
    """

    build: Callable[..., nn.Module]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    rate: float
    longer: float
    floors: dict[str, float]


def _floors(mnist: float, fashion: float, cifar: float) -> dict[str, float]:
    return {"mnist": mnist, "fashion-mnist": fashion, "cifar10": cifar}


FAMILIES: dict[str, Plan] = {
    "mlp": Plan(mlp, (64, 128, 256), (2, 3), 3e-3, 3, _floors(96.5, 86.5, 47)),
    "cnn": Plan(cnn, (12, 16, 24), (3, 4), 4e-3, 1, _floors(97.5, 86, 52)),
    "vgg": Plan(vgg, (16, 24, 32), (1, 2), 1e-2, 1.5, _floors(96, 85.5, 56)),
    "resnet": Plan(resnet, (8, 12, 16), (1, 2), 1e-2, 1, _floors(97, 84, 55)),
    "vit": Plan(ViT, (32, 48, 64), (2, 3), 3e-3, 1, _floors(96.5, 85, 53)),
}
EPOCHS = {
    "smoke": {"digits": 20},
    "small": {"digits": 20, "mnist": 3, "fashion-mnist": 4, "cifar10": 16},
    "paper": {"digits": 60, "mnist": 15, "fashion-mnist": 30, "cifar10": 200},
}
BATCH = 64


@dataclass(frozen=True)
class Architecture:
    """One member's shape."""

    family: str
    width: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.family}-w{self.width}-d{self.depth}"

    def build(self, shape: tuple[int, ...]) -> nn.Module:
        options = {}
        if self.family == "cnn" and self.depth == 4:
            options["kernel"] = 5  # so that unequal kernels meet
        return FAMILIES[self.family].build(shape, self.width, self.depth, **options)


def architectures(scale: str = "small") -> list[Architecture]:
    """The members of a zoo, family by family, narrow and shallow first."""
    grow = 4 if scale == "paper" else 1
    found = [
        Architecture(family, grow * width, depth)
        for family, plan in FAMILIES.items()
        for width in plan.widths
        for depth in plan.depths
    ]
    return [each for each in found if scale != "smoke" or each.depth == min(_depths(each))][
        :: 3 if scale == "smoke" else 1
    ]


def _depths(each: Architecture) -> tuple[int, ...]:
    return FAMILIES[each.family].depths


# ------------------------------------------------------------------------------------------------------- the training


def shifted(x: Tensor, most: int) -> Tensor:
    """A batch moved by up to `most` pixels, half of it mirrored: the augmentation of CIFAR-10."""
    padded = F.pad(x, (most,) * 4)
    dy, dx = (int(n) for n in torch.randint(2 * most + 1, (2,)))
    moved = padded[..., dy : dy + x.shape[-2], dx : dx + x.shape[-1]]
    flip = torch.rand(len(x)) < 0.5
    return torch.where(flip[:, None, None, None], moved.flip(-1), moved)


def train(model: nn.Module, data: Images, epochs: int, rate: float, seed: int) -> nn.Module:
    """AdamW with a one-cycle schedule; the same seed gives the same batches."""
    x, y = data.train
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    torch.manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            images = shifted(x[batch], 3) if data.name == "cifar10" else x[batch]
            optimizer.zero_grad()
            F.cross_entropy(model(images), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


# ------------------------------------------------------------------------------------------------------------ the zoo


@dataclass(frozen=True)
class Member:
    """A trained network on disk."""

    architecture: Architecture
    data: str
    path: Path

    @property
    def name(self) -> str:
        return self.architecture.name

    @property
    def facts(self) -> dict:
        return json.loads(self.path.with_suffix(".json").read_text())

    def model(self, shape: tuple[int, ...]) -> nn.Module:
        model = self.architecture.build(shape)
        model.load_state_dict(load_file(self.path))
        return model.eval()


def member(each: Architecture, data: str, cache: Path, seed: int = 0) -> Member:
    name = each.name if seed == 0 else f"{each.name}-seed{seed}"
    return Member(each, data, cache / data / f"{name}.safetensors")


def ensure(each: Architecture, data: Images, scale: str, cache: Path, seed: int = 0) -> Member:
    """The member, trained where it is not there yet."""
    wanted = member(each, data.name, cache, seed)
    if wanted.path.exists() and wanted.path.with_suffix(".json").exists():
        return wanted
    began = time.process_time()
    torch.manual_seed(seed)
    model = each.build(data.shape)
    epochs = round(EPOCHS[scale][data.name] * FAMILIES[each.family].longer)
    train(model, data, epochs, FAMILIES[each.family].rate, seed)
    seconds = time.process_time() - began
    loss, accuracy = loss_and_accuracy(model, *data.test)
    facts = {
        "name": each.name,
        "data": data.name,
        "scale": scale,
        "seed": seed,
        "epochs": epochs,
        "train_images": len(data.train[1]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_loss": loss,
        "test_accuracy": accuracy,
        "val_accuracy": loss_and_accuracy(model, *data.val)[1],
        "cpu_seconds": seconds,
    }
    save_weights(model, wanted.path)
    write_whole(wanted.path.with_suffix(".json"), json.dumps(facts, indent=1))
    return wanted


def floor(family: str, data: str) -> float:
    """The stated floor of a family on a data set, in percent; 0 where none is stated."""
    return FAMILIES[family].floors.get(data, 0.0)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all scripts over the zoo share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--scale", choices=SCALES, default="smoke")
    made.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets")
    made.add_argument("--cache", type=Path, default=Path("out/zoo"))
    made.add_argument("--data", nargs="+", choices=DATA, default=None)
    return made


def data_of(args: argparse.Namespace) -> list[str]:
    """The data sets asked for, or those of the scale."""
    return args.data or (["digits"] if args.scale == "smoke" else list(DATA[1:]))


def main() -> int:
    torch.set_num_threads(1)
    args = parser(__doc__.partition("\n")[0]).parse_args()
    below = []
    for name in data_of(args):
        data = load(name, args.root, args.scale)
        for each in architectures(args.scale):
            facts = ensure(each, data, args.scale, args.cache / args.scale).facts
            text = f"{name:14s} {each.name:14s} {facts['parameters']:9,d} parameters {facts['test_accuracy']:6.2f} %"
            print(f"{text} {facts['cpu_seconds']:6.1f} CPU s", flush=True)
            if args.scale == "small" and facts["test_accuracy"] < floor(each.family, name):
                below.append(text)
    for text in below:
        print("BELOW ITS FLOOR", text)
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
