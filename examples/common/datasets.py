"""Real images, split into training and held-out, as plain tensors.

In: the name of a data set and, for all but the digits, the folder that holds it. Out: a `Images`.
Always true: nothing is downloaded; the split depends on nothing but the data set; no pickle is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from graftlib.errors import GraftError, nearest

__all__ = ["DATASETS", "Images", "find", "load", "stratified"]


@dataclass(frozen=True)
class Images:
    """A data set for classification, normalised by its training half.

    Attributes:
        name: of the data set.
        about: where it comes from and how it was split, one sentence.
        train_x: (n, channels, height, width) float32.
        train_y: (n,) int64, classes from 0.
        test_x, test_y: the same, held out.
    """

    name: str
    about: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.train_y.max()) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: (channels, height, width)."""
        return tuple(self.train_x.shape[1:])

    def few(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """`n` training images and their labels, the classes in their shares, drawn by `seed`.

        Raises:
            GraftError: `n` is not between two a class and all of them.
        """
        least, most = 2 * self.classes, len(self.train_y)
        if not least <= n <= most:
            raise GraftError(
                f"{n} training images are asked for, and {self.name} can give {least} to {most}.",
                fix=f"name a size between {least} and {most}",
            )
        chosen = stratified(self.train_y, n, seed)
        return self.train_x[chosen], self.train_y[chosen]


def find(name: str, root: Path | None) -> None:
    """Check that the data set `name` is there, without reading it.

    Raises:
        GraftError: there is no data set of that name, or `root` does not hold it; with the way to get it.
    """
    if name not in DATASETS:
        raise GraftError(
            f"there is no data set {name!r}.",
            near=nearest(name, list(DATASETS)),
            fix="use --data " + ", ".join(DATASETS),
        )
    if name == "digits":
        return
    if root is None:
        raise GraftError(
            f"the data set {name} is read from a folder, and none was named.",
            fix=f"graftlib demo --data {name} --root DIR",
        )
    if not _file(name, root).is_file():
        raise GraftError(
            f"the folder {str(root)!r} does not hold the data set {name}.",
            where={"looked for": str(_file(name, root))},
            why="nothing is downloaded here",
            fix=_HOW_TO_GET[name].format(root=str(root)),
        )


def load(name: str, root: Path | None = None) -> Images:
    """Read the data set `name` from `root`.

    Raises:
        GraftError: it is unknown, absent or damaged.
    """
    find(name, root)
    try:
        about, *tensors = DATASETS[name](root)
    except (RuntimeError, ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise GraftError(
            f"the data set {name} cannot be read.",
            where={"root": str(root)},
            why=f"{type(error).__name__}: {error}",
            fix="fetch it again: the files are damaged or of another kind",
        ) from error
    return _normalised(name, about, *tensors)


def stratified(labels: Tensor, n: int, seed: int) -> Tensor:
    """`n` positions in `labels`, the classes in their shares, in a random order drawn by `seed`.

    A class of share s among c classes gets n s examples to 1/2 + c s / 2: to one where all are equally large.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[stratified(labels, 3, seed=0)].sort().values
    tensor([0, 0, 1])
    """
    generator = torch.Generator().manual_seed(seed)
    turn = torch.empty(len(labels), dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        own = (labels == label).nonzero().flatten()
        places = torch.randperm(len(own), generator=generator)
        # The k-th of m is due when (k + 1/2) / m of all have been taken: the classes take turns by their shares.
        turn[own] = (places + 0.5).double() / len(own)
    chosen = turn.argsort(stable=True)[:n]
    return chosen[torch.randperm(n, generator=generator)]


def _digits(root: Path | None) -> tuple[str, Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target, dtype=torch.int64)
    about = "scikit-learn's digits, 8x8 grey; split 1,400 / 397, stratified, seed 0"
    return about, *_split(x, y, train=1400)


def _torchvision(name: str) -> Callable[[Path | None], Any]:
    def read(root: Path | None) -> tuple[str, Tensor, Tensor, Tensor, Tensor]:
        from torchvision import datasets

        halves = [
            getattr(datasets, name)(root, train=half, download=False) for half in (True, False)
        ]
        tensors = [
            t for half in halves for t in (half.data[:, None].float() / 255, half.targets.long())
        ]
        return f"{name}, 28x28 grey; the original split 60,000 / 10,000", *tensors

    return read


def _cifar10(root: Path | None) -> tuple[str, Tensor, Tensor, Tensor, Tensor]:
    import numpy as np

    assert root is not None
    # numpy leaves a damaged file open, unless it is ours to close.
    with (
        _file("cifar10-npz", root).open("rb") as stream,
        np.load(stream, allow_pickle=False) as file,
    ):
        x, y = file["x"], file["y"]
    if (
        x.ndim != 4
        or x.shape[-1] != 3
        or x.dtype != np.uint8
        or y.shape != x.shape[:1]
        or len(x) < 100
    ):
        raise ValueError(
            f"x {x.dtype} {x.shape} and y {y.dtype} {y.shape} are not (n, h, w, 3) bytes and (n,)"
        )
    images = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
    train = len(x) * 4 // 5
    about = (
        f"{len(x):,} images of CIFAR-10 in one file, {x.shape[1]}x{x.shape[2]} colour; "
        f"split {train:,} / {len(x) - train:,}, stratified, seed 0"
    )
    return about, *_split(images, torch.from_numpy(y).long(), train=train)


DATASETS: dict[str, Callable[[Path | None], Any]] = {
    "digits": _digits,
    "fashion-mnist": _torchvision("FashionMNIST"),
    "mnist": _torchvision("MNIST"),
    "cifar10-npz": _cifar10,
}

_FETCH = "python -c \"from torchvision.datasets import {0}; {0}('{{root}}', download=True)\""
_HOW_TO_GET = {
    "fashion-mnist": _FETCH.format("FashionMNIST"),
    "mnist": _FETCH.format("MNIST"),
    "cifar10-npz": "put cifar10_10k.npz there: x (n, 32, 32, 3) uint8 and y (n,) integers",
}


def _file(name: str, root: Path) -> Path:
    """The file whose presence says that the data set is there."""
    if name == "cifar10-npz":
        return root / "cifar10_10k.npz"
    folder = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST"}[name]
    return root / folder / "raw" / "train-images-idx3-ubyte"


def _split(x: Tensor, y: Tensor, *, train: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    order = stratified(y, train, seed=0)
    held_out = torch.ones(len(y), dtype=torch.bool)
    held_out[order] = False
    return x[order], y[order], x[held_out], y[held_out]


def _normalised(
    name: str, about: str, x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor
) -> Images:
    mean, sd = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return Images(name, about, (x - mean) / sd, y, (test_x - mean) / sd, test_y)
