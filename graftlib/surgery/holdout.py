"""What is held out of the inputs of a fit, and how far two models are from each other there.

In: batches; the results of two models. Out: which rows of a layer or of a result belong to held-out samples; distances.
Always true: about every fifth sample is held out, whole; of two, one; of one, a fifth of the rows of each layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .listen import Batch, tensors

__all__ = ["Distance", "Holdout"]

_EVERY = 5


class Holdout:
    """Every fifth sample of some batches. Samples lie along the first dimension of a batch's first tensor.

    Attributes:
        some: whole samples are held out; otherwise there is only one.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._sizes = [next((len(t) for t in tensors(batch) if t.ndim), 1) for batch in batches]
        self._starts = [sum(self._sizes[:i]) for i in range(len(self._sizes))]
        self._total = sum(self._sizes)
        self.some = self._total > 1

    def rows(self, number: int, count: int) -> Tensor:
        """(count,) bool: which of `count` rows, that lie sample by sample, are held out of batch `number`."""
        places = torch.arange(count, device="cpu")
        if not self.some:
            return places * _EVERY // max(count, 1) == _EVERY - 1
        samples = self._starts[number] + places * self._sizes[number] // max(count, 1)
        every = min(_EVERY, self._total)
        return samples % every == every - 1

    def concerns(self, number: int) -> bool:
        """Whether a sample of batch `number` is held out."""
        return not self.some or bool(self.rows(number, self._sizes[number]).any())


class Distance:
    """How far the results of one model are from another's: squared error and cosine, relative, over all rows."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def add(self, place: int, wanted: Tensor, given: Tensor, rows: Tensor) -> None:
        """Add some rows of the result tensor at `place`; what is not floating is left out."""
        if not wanted.is_floating_point() or wanted.shape != given.shape:
            return
        if wanted.ndim:
            at = rows.nonzero().flatten().to(wanted.device)
            wanted, given = wanted.index_select(0, at), given.index_select(0, at)
        wanted, given = (t.detach().to("cpu", torch.float64) for t in (wanted, given))
        last = (-1,) if wanted.ndim else ()
        lengths = (wanted.square().sum(last) * given.square().sum(last)).sqrt()
        cosine = (wanted * given).sum(last) / lengths.clamp_min(1e-300)
        known = wanted.isfinite() & given.isfinite()
        missing = float((~known & wanted.isfinite()).sum())
        sums = torch.tensor(
            [
                float((wanted - given)[known].square().sum()) + (torch.inf if missing else 0.0),
                float(wanted[known].square().sum()),
                float(cosine.nan_to_num(0.0).sum()),
                cosine.numel(),
            ],
            dtype=torch.float64,
            device="cpu",
        )
        self._sums[place] = self._sums.get(place, 0) + sums

    @property
    def error(self) -> float:
        """The squared error relative to the squared results, a mean over the result tensors."""
        parts = [float(s[0] / s[1].clamp_min(1e-300)) for s in self._sums.values()]
        return sum(parts) / max(len(parts), 1)

    @property
    def cosine(self) -> float:
        """The mean cosine of rows along the last dimension."""
        parts = [float(s[2] / s[3].clamp_min(1)) for s in self._sums.values()]
        return sum(parts) / max(len(parts), 1)

    def beyond(self, other: Distance) -> bool:
        """Whether this is further than another one by either measure, or is not a number."""
        return not (
            self.error <= other.error * (1 + 1e-9) + 1e-24 and self.cosine >= other.cosine - 1e-9
        )
