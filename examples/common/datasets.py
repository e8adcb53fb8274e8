"""Real images as plain tensors, and reviews: scikit-learn's digits, and what lies in a folder. Nothing is downloaded.

In: the name of a data set and the folder that holds it. Out: images (n, channels, height, width) float32, 0.0 to 1.0,
or texts; and labels (n,) int64.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["NAMES", "halves", "normalised", "read", "reviews", "split", "stratified"]

NAMES = ("digits", "cifar10", "fashion-mnist", "mnist")
FILES = {
    "cifar10": ("cifar10/cifar10_10k.npz", "an npz of x (n, 32, 32, 3) uint8 and y (n,)"),
    "fashion-mnist": ("FashionMNIST/raw", "torchvision.datasets.FashionMNIST(root, download=True)"),
    "mnist": ("MNIST/raw", "torchvision.datasets.MNIST(root, download=True)"),
}
Halves = tuple[Tensor, Tensor, Tensor, Tensor]  # images and labels to learn from, and held out


def read(name: str, root: Path | str | None = None) -> tuple[Tensor, Tensor]:
    """All images and labels of a set that comes undivided: ``digits`` or ``cifar10``."""
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
        return x, torch.tensor(digits.target, dtype=torch.int64)
    import numpy as np

    # numpy leaves a damaged file open, unless it is ours to close.
    with _file(name, root).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"]).long()
    return x.permute(0, 3, 1, 2).float() / 255, y


def halves(name: str, root: Path | str | None) -> Halves:
    """A set that comes divided: ``fashion-mnist`` or ``mnist``, 60,000 and 10,000."""
    from torchvision import datasets

    _file(name, root)
    kind = {"fashion-mnist": datasets.FashionMNIST, "mnist": datasets.MNIST}[name]
    (x, y), (test_x, test_y) = (
        (half.data[:, None].float() / 255, half.targets)
        for half in (kind(root, train=train) for train in (True, False))
    )
    return x, y, test_x, test_y


def reviews(root: Path, half: str) -> tuple[list[str], Tensor]:
    """IMDb: the 25,000 texts of a half, ``train`` or ``test``, sorted by label; labels, 1 for a positive one."""
    with gzip.open(root / "imdb" / f"{half}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row["text"] for row in rows], torch.tensor([row["label"] for row in rows])


def split(name: str, root: Path | str | None = None) -> tuple[str, Halves]:
    """A sentence on the set, and its halves, normalised by the first; where it comes undivided, stratified by seed 0.

    Raises:
        SystemExit: it is unknown or absent, with the way to get it.
    """
    if name not in NAMES:
        raise SystemExit(f"there is no data set {name}; there are {', '.join(NAMES)}")
    if name.endswith("mnist"):
        return f"{name}, 28x28 grey; the original split 60,000 / 10,000", normalised(
            halves(name, root)
        )
    x, y = read(name, root)
    train = 1400 if name == "digits" else len(x) * 4 // 5
    chosen = stratified(y, 0, train)
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[chosen] = False
    about = (
        "scikit-learn's digits, 8x8 grey"
        if name == "digits"
        else f"{len(x):,} images of CIFAR-10 in one file, 32x32 colour"
    )
    about += f"; split {train:,} / {len(x) - train:,}, stratified, seed 0"
    return about, normalised((x[chosen], y[chosen], x[rest], y[rest]))


def normalised(parts: Halves) -> Halves:
    """`parts` with the channels of the first half at mean 0 and standard deviation 1."""
    x, y, test_x, test_y = parts
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return (x - mean) / std, y, (test_x - mean) / std, test_y


def stratified(labels: Tensor, seed: int, n: int | None = None) -> Tensor:
    """An order in which every prefix holds the classes in their shares; with `n`, that prefix in random order.

    A class of share s among c classes gets n s examples to 1/2 + c s / 2: to one where all are equally large.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[stratified(labels, 0, 3)].sort().values
    tensor([0, 0, 1])
    """
    generator = torch.Generator().manual_seed(seed)
    turn = torch.empty(len(labels), dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        own = (labels == label).nonzero().flatten()
        places = torch.randperm(len(own), generator=generator)
        # The k-th of m is due when (k + 1/2) / m of all have been taken: the classes take turns by their shares.
        turn[own] = (places + 0.5).double() / len(own)
    order = turn.argsort(stable=True)
    return order if n is None else order[:n][torch.randperm(n, generator=generator)]


def _file(name: str, root: Path | str | None) -> Path:
    path, made = FILES[name]
    if root is None or not (Path(root) / path).exists():
        raise SystemExit(f"{name} is not there: --root DIR with DIR/{path}, {made}")
    return Path(root) / path
