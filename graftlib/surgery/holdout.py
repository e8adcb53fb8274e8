"""What is held out of the inputs of a fit, and how far two models are from each other there.

In: batches; the results of two models. Out: which rows of a layer or of a result belong to held-out samples; distances.
Always true: samples are held out whole: every second of fewer than 20, every third of fewer than 40, else every fifth;
of one sample, a fifth of the rows of each layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..graph.tensors import tensor_leaves
from .recording import Batch

__all__ = ["Distance", "Holdout"]

_EVERY = 5


class Holdout:
    """Some samples of some batches. Samples lie along the first dimension of a batch's first tensor.

    Attributes:
        some: whole samples are held out; otherwise there is only one.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._sizes = [
            next((len(t) for t in tensor_leaves(batch) if t.ndim), 1) for batch in batches
        ]
        self._starts = [sum(self._sizes[:i]) for i in range(len(self._sizes))]
        self._total = sum(self._sizes)
        self.some = self._total > 1
        self._every = 2 if self._total < 20 else 3 if self._total < 40 else _EVERY

    def rows(self, number: int, count: int) -> Tensor:
        """(count,) bool: which of `count` rows, that lie sample by sample, are held out of batch `number`.

        Where rows are no whole number for each sample, the last fifth of them.
        """
        places, size = torch.arange(count, device="cpu"), max(self._sizes[number], 1)
        if not self.some or count % size:
            return places * _EVERY // max(count, 1) == _EVERY - 1
        samples = self._starts[number] + places * size // max(count, 1)
        return samples % self._every == self._every - 1

    def dim(self, number: int, result: Tensor) -> int | None:
        """The first dimension of a result that has as many places as batch `number` has samples; None: no samples."""
        if not self.some or self._sizes[number] not in result.shape:
            return None
        return result.shape.index(self._sizes[number])

    def concerns(self, number: int) -> bool:
        """Whether a sample of batch `number` is held out."""
        return not self.some or bool(self.rows(number, self._sizes[number]).any())


class Distance:
    """How far the results of one model are from another's, sample by sample: squared error, and 1 - cosine."""

    def __init__(self) -> None:
        # (place of the result tensor, number of the batch) -> (samples, 3): squared error, squares, 1 - cosine
        self._parts: dict[tuple[int, int], Tensor] = {}

    def add(self, place: int, wanted: Tensor, given: Tensor, holdout: Holdout, number: int) -> None:
        """Add what is held out of the result at `place` for batch `number`; all of it where no dimension is samples.

        What is not floating is left out.
        """
        if not wanted.is_floating_point() or wanted.shape != given.shape or not wanted.numel():
            return
        dim = holdout.dim(number, wanted)
        if dim is None:
            wanted, given = wanted[None], given[None]
        else:
            rows = holdout.rows(number, wanted.shape[dim]).nonzero().flatten().to(wanted.device)
            wanted, given = (t.index_select(dim, rows).movedim(dim, 0) for t in (wanted, given))
        if not len(wanted):
            return
        wanted, given = (t.detach().to("cpu", torch.float64).nan_to_num() for t in (wanted, given))
        wanted, given = (t.reshape(*t.shape, 1) if t.ndim < 2 else t for t in (wanted, given))
        lengths = (wanted.square().sum(-1) * given.square().sum(-1)).sqrt()
        cosine = (wanted * given).sum(-1) / lengths.clamp_min(1e-300)
        parts = ((wanted - given).square(), wanted.square(), 1 - cosine)
        self._parts[place, number] = torch.stack(
            [part.reshape(len(part), -1).mean(1) for part in parts], 1
        )

    def clearly_below(self, other: Distance) -> bool:
        """Whether this is less than another one by both measures, whichever one sample is left out.

        And by more the fewer samples there are to tell by: one has to say that half of what is missing is gone, ten
        that a twentieth is.
        """
        return all(self._below(other, measure) for measure in (0, 2))

    def _below(self, other: Distance, measure: int) -> bool:
        both = [each._by_sample(measure, other) for each in (other, self)]
        before, after = ((part.sum() - part) if len(part) > 1 else part for part in both)
        return bool((after <= (1 - 0.5 / len(after)) * before).all())

    def _by_sample(self, measure: int, other: Distance) -> Tensor:
        """(samples,) sums over the result tensors, of squared errors relative to what is right."""
        sums: list[Tensor] = []
        for place in sorted({place for place, _ in other._parts}):
            mine, theirs = (
                torch.cat([part for (p, _), part in sorted(each._parts.items()) if p == place])
                for each in (self, other)
            )
            scale = theirs[:, 1].mean().clamp_min(1e-300) if measure == 0 else 1.0
            sums.append(mine[:, measure] / scale / len(mine))
        most = max(map(len, sums), default=1)
        total = torch.zeros(most, dtype=torch.float64, device="cpu")
        for part in sums:
            total[: len(part)] += part
        return total
