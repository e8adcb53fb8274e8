"""A pilot: does the shape of a trained attention help another transformer, and does a trained encoder have it?

    python -m examples.paper.mimetic --root DIR --encoder DIR/minilm-l6 --out docs/benchmarks/mimetic.json

Mimetic initialisation (Trockman and Kolter 2023): in trained vision transformers W_q^T W_k of a head is about noise and
the identity, W_o W_v noise less the identity; a target of any width and depth can begin so, by a truncated singular
value decomposition of either. Here with their constants, at the smallest size that learns: 2,000 images of CIFAR-10 (of
the 8,000; 2,000 others held out), 8 epochs, 16 patches, width 64, 4 layers of 2 heads, AdamW 2e-3 on a cosine.
Controls: noise of the same norms in the same four matrices of each layer, and the identity's sign turned.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..common import datasets, results
from ..common.training import accuracy
from .zoo import Layer

STARTS = ("plain", "mimetic", "equal norms", "sign turned")
QUERY_KEY, VALUE_OUT = (0.7, 0.7), (0.4, -0.4)
"""Of noise and of the identity."""
IMAGES, EPOCHS, BATCH, RATE = 2000, 8, 64, 2e-3
WIDTH, DEPTH, HEADS, PATCH = 64, 4, 2, 8


class ViT(nn.Module):
    """Patches of pixels, fixed sinusoidal places, the mean token."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, WIDTH, PATCH, PATCH)
        self.layers = nn.Sequential(*(Layer(WIDTH, HEADS) for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)
        self.register_buffer("place", _places(side // PATCH))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.layers(tokens)).mean(1))


def _places(n: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    rates = 1 / 10000 ** (torch.arange(WIDTH // 4) / (WIDTH // 4))
    angles = [axis.flatten()[:, None] * rates for axis in (columns, rows)]
    return torch.cat([turn(angle) for angle in angles for turn in (torch.sin, torch.cos)], 1)[None]


@torch.no_grad()
def impose(model: ViT, random: torch.Generator, sign: int = 1) -> None:
    """Write the products, in place, head by head."""
    for layer in model.layers:
        n = layer.query.weight.shape[1]
        for rows in torch.arange(n).split(n // HEADS):
            left, right = _factors(n, len(rows), *QUERY_KEY, sign, random)
            layer.query.weight[rows], layer.key.weight[rows] = left.T, right
            left, right = _factors(n, len(rows), *VALUE_OUT, sign, random)
            layer.out.weight[:, rows], layer.value.weight[rows] = left, right


def _factors(
    n: int, rank: int, noise: float, identity: float, sign: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(n, rank) and (rank, n), whose product is the best of that rank."""
    whole = noise * torch.randn(n, n, generator=random) / math.sqrt(n)
    u, values, v = torch.linalg.svd(whole + sign * identity * torch.eye(n))
    root = values[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


@torch.no_grad()
def equal_norms(model: ViT, like: ViT, random: torch.Generator) -> None:
    """Noise in the place of each of the four matrices of a layer, of the norms that they have in `like`."""
    for layer, other in zip(model.layers, like.layers, strict=True):
        for name in ("query", "key", "value", "out"):
            weight = getattr(layer, name).weight.normal_(generator=random)
            weight.mul_(getattr(other, name).weight.norm() / weight.norm())


def begun(start: str, seed: int, channels: int, side: int) -> ViT:
    """A model before its training; fresh weights are the same in every start of a seed."""
    torch.manual_seed(seed)
    model, random = ViT(channels, side), torch.Generator().manual_seed(seed + 1)
    if start == "equal norms":
        like = ViT(channels, side)
        impose(like, random)
        equal_norms(model, like, random)
    elif start != "plain":
        impose(model, random, -1 if start == "sign turned" else 1)
    return model


def train(model: ViT, x: Tensor, y: Tensor, seed: int) -> None:
    """Flips, and shifts of a batch by up to two pixels."""
    random, steps = torch.Generator().manual_seed(seed + 7), EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: min(1, (t + 1) / (0.05 * steps)) * (1 + math.cos(math.pi * t / steps)) / 2,
    )
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=random).split(BATCH)[: len(x) // BATCH]:
            flipped = torch.rand(len(rows), generator=random)[:, None, None, None] < 0.5
            images = torch.where(flipped, x[rows].flip(3), x[rows])
            down, right = torch.randint(0, 5, (2,), generator=random).tolist()
            side = images.shape[-1]
            images = F.pad(images, (2, 2, 2, 2))[:, :, down : down + side, right : right + side]
            optimizer.zero_grad()
            F.cross_entropy(model(images), y[rows]).backward()
            optimizer.step()
            schedule.step()


def run(start: str, seed: int, data: datasets.Halves) -> dict[str, Any]:
    """Train once, on the same batches in every start of a seed."""
    x, y, test_x, test_y = data
    model = begun(start, seed, x.shape[1], x.shape[-1])
    train(model, x[:IMAGES], y[:IMAGES], seed)
    return {"start": start, "seed": seed, "accuracy": accuracy(model, test_x, test_y)}


def identity(product: Tensor, rank: int) -> float:
    """The share of the identity in a product of that rank: the cosine between them over the largest there can be.

    >>> identity(torch.diag(torch.tensor([2.0, 2.0, 0.0])), 2)
    1.0
    """
    return float(product.trace() / (math.sqrt(rank) * product.norm()))


def structure(folder: Path, heads: int = 12) -> dict[str, Any]:
    """The share of the identity in the products of a text encoder's heads, and the spread of noise's."""
    state = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    found: dict[str, list[float]] = {"query, key": [], "value, out": []}
    for name in [name for name in state if name.endswith("self.query.weight")]:
        q, k, v = (state[name.replace("query", part)] for part in ("query", "key", "value"))
        out = state[name.replace("self.query", "output.dense")]
        for rows in torch.arange(len(q)).split(len(q) // heads):
            found["query, key"].append(identity(q[rows].T @ k[rows], len(rows)))
            found["value, out"].append(identity(out[:, rows] @ v[rows], len(rows)))
    spread = {k: {"mean": statistics.mean(v), "sd": statistics.stdev(v)} for k, v in found.items()}
    return {"heads": len(found["query, key"]), "sd of noise": len(q) ** -0.5, **spread}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="holds cifar10/cifar10_10k.npz")
    parser.add_argument("--encoder", type=Path, help="a folder with all-MiniLM-L6-v2")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path(".cache/mimetic"), help="one file a run")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    about, data = datasets.split("cifar10", args.root)
    runs = [
        results.cached(args.cache / f"{start}-{seed}.json", lambda s=start, n=seed: run(s, n, data))
        for seed in range(args.seeds)
        for start in STARTS
    ]
    found = {(each["start"], each["seed"]): each["accuracy"] for each in runs}
    report: dict[str, Any] = {"data": about, "images": IMAGES, "epochs": EPOCHS, "runs": runs}
    report["mimetic minus"] = {
        other: statistics.mean(
            found["mimetic", seed] - found[other, seed] for seed in range(args.seeds)
        )
        for other in STARTS
        if other != "mimetic"
    }
    if args.encoder:
        report["encoder"] = structure(args.encoder)
    report["versions"] = results.versions()
    print(report)
    if args.out:
        results.save(args.out, report)


if __name__ == "__main__":
    main()
