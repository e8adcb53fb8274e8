"""How the values of a parameter lie: a histogram and four numbers.

In: a tensor. Out: a `Histogram`, or None where there are no values. Always true: a few megabytes are held beside the
tensor, whatever its size and dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Histogram", "histogram"]

BINS = 32
CHUNK = 1 << 20


@dataclass(frozen=True)
class Histogram:
    """Of one parameter.

    Attributes:
        counts: elements in `BINS` equal steps from `low` to `high`.
        low, high, mean, std: of the finite elements.
        zeros: the share of the elements that are exactly 0.
        odd: how many elements are not finite.
    """

    counts: tuple[int, ...]
    low: float
    high: float
    mean: float
    std: float
    zeros: float
    odd: int


def histogram(tensor: Tensor) -> Histogram | None:
    """The histogram of a floating point tensor that has finite values; None of any other.

    >>> print(histogram(torch.tensor([0.0, 1.0, 1.0, 4.0])).mean)
    1.5
    """
    if tensor.is_meta or not tensor.is_floating_point():
        return None
    count, total, squares, zeros = 0, 0.0, 0.0, 0
    low, high = float("inf"), float("-inf")
    for part in _finite(tensor):
        count += len(part)
        total += float(part.sum())
        squares += float(part.square().sum())
        zeros += int((part == 0).sum())
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    if not count:
        return None
    counts = torch.zeros(BINS, dtype=torch.int64, device="cpu")
    width = (high - low) / BINS or 1.0
    for part in _finite(tensor):
        places = ((part - low) / width).long().clamp_(0, BINS - 1)
        counts += torch.bincount(places, minlength=BINS).cpu()
    mean = total / count
    std = max(squares / count - mean * mean, 0.0) ** 0.5
    odd = tensor.numel() - count
    return Histogram(tuple(counts.tolist()), low, high, mean, std, zeros / tensor.numel(), odd)


def _finite(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), CHUNK):
        wide = flat[start : start + CHUNK].double()
        finite = wide[wide.isfinite()]
        if len(finite):
            yield finite
