"""What a slimmed model costs beside the original, and how far its outputs are from the original's.

In: costs, widths, both models, batches. Out: records that print themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.tensors import tensor_leaves
from ..progress import track
from ..reports import Table
from ..surgery.holdout import Holdout
from ..surgery.recording import Batch, Twin, alone
from .widths import Widths, in_words

__all__ = ["Fidelity", "SlimReport", "fidelity_of"]

_CLOSE = 0.02
_WORDS = {
    "params": "parameters",
    "macs": "MACs",
    "bytes": "bytes",
    "activations": "activations",
    "latency_ms": "latency, ms",
    "measured_ms": "measured, ms",
}


@dataclass(frozen=True)
class Fidelity:
    """How much the outputs on held-out samples are those of the original.

    Attributes:
        error: root of the squared difference over the squares of the original's outputs; 0.0 is equal.
        cosine: the mean cosine of the samples' outputs.
        top1: the share of rows with the same largest entry, of outputs with a last axis longer than one; None where
            there are none.
        samples: how many were held out; 0 where the data are one sample, whose last outputs were compared.
    """

    error: float
    cosine: float
    top1: float | None
    samples: int

    def __str__(self) -> str:
        words = f"error {self.error:.3f}, cosine {self.cosine:.3f}"
        if self.top1 is not None:
            words += f", same largest entry {100 * self.top1:.1f} %"
        return f"{words} ({self.samples} samples held out)"


@dataclass(frozen=True)
class SlimReport(Table):
    """Before and after.

    Attributes:
        model: the name of its class.
        before: each cost of the original, as in `Costs`.
        widths: sizes, costs and limits of the small model.
        rows: (layer that makes the units, how many there were, how many there are).
        fidelity: on held-out samples of the data; None without data.
        measured_ms: of a forward pass at the traced inputs, before and after, on this machine: the least of several
            runs, milliseconds; None where the model has no values.
        dropped: FQNs of the blocks that are left out, as the original calls them; layers in `rows` have the names of
            the small model.
    """

    model: str
    before: dict[str, float]
    widths: Widths
    rows: tuple[tuple[str, int, int], ...]
    fidelity: Fidelity | None
    measured_ms: tuple[float, float] | None = None
    dropped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": self.model,
            "before": self.before,
            "after": self.widths.costs,
            "limits": self.widths.limits,
            "widths": [{"layer": name, "before": old, "after": n} for name, old, n in self.rows],
            "measured_ms": self.measured_ms,
            "dropped": list(self.dropped),
            "fidelity": None if self.fidelity is None else asdict(self.fidelity),
        }

    def table(self) -> tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]:
        """A row for each layer, as in `rows`."""
        return ("layer", "before", "after"), self.rows

    def __str__(self) -> str:
        after, limits = self.widths.costs, self.widths.limits
        rows = [(name, old, after[name], limits.get(name)) for name, old in self.before.items()]
        rows += [("measured_ms", *self.measured_ms, None)] if self.measured_ms else []
        lines = [f"slim {self.model}", f"  {'':<12}{'before':>16}{'after':>16}{'share':>8}  budget"]
        for name, old, new, limit in rows:
            asked = "" if limit is None else in_words(limit)
            share = new / old if old else 1.0
            words = f"  {_WORDS[name]:<12}{in_words(old):>16}{in_words(new):>16}{share:>8.3f}"
            lines.append(f"{words}  {asked}".rstrip())
        if self.widths.slack > _CLOSE:
            lines.append(
                f"  the tightest budget is met with {100 * self.widths.slack:.1f} % to spare: no step of these widths "
                "comes nearer"
            )
        if self.fidelity is not None:
            lines.append(f"  fidelity    {self.fidelity}")
        if self.dropped:
            lines.append(f"  without     {', '.join(self.dropped)}")
        rows_alike = _alike(self.rows)
        width = max((len(name) for name, _, _ in rows_alike), default=0)
        lines.append("  widths")
        lines += [f"    {name:<{width}}  {old:>6} -> {new}" for name, old, new in rows_alike]
        return "\n".join(lines)


def _alike(rows: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Layers whose names differ in one number, and whose widths do not, as one row.

    >>> rows = [("0.mlp", 64, 48), ("0.head", 8, 6), ("1.mlp", 64, 48), ("2.mlp", 64, 40), ("3.mlp", 64, 48)]
    >>> _alike(rows)
    [('{0-1,3}.mlp', 64, 48), ('0.head', 8, 6), ('2.mlp', 64, 40)]
    """
    left, alike = dict.fromkeys(rows), list[tuple[str, int, int]]()
    while left:
        name, old, new = next(iter(left))
        words = re.split(r"(\d+)", name)
        best, label = [(name, old, new)], name
        for i in reversed(range(1, len(words), 2)):
            start, end = "".join(words[:i]), "".join(words[i + 1 :])
            pattern = re.compile(f"{re.escape(start)}(\\d+){re.escape(end)}")
            found = {r: n for r in left if r[1:] == (old, new) and (n := pattern.fullmatch(r[0]))}
            if len(found) > len(best):
                best = list(found)
                label = f"{start}{{{_in_ranges([int(n[1]) for n in found.values()])}}}{end}"
        alike.append((label, old, new))
        for row in best:
            left.pop(row)
    return alike


def _in_ranges(numbers: Sequence[int]) -> str:
    """Numbers as text.

    >>> _in_ranges([0, 1, 2, 5])
    '0-2,5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def fidelity_of(model: nn.Module, small: nn.Module, batches: Sequence[Batch]) -> Fidelity:
    """Compare the outputs of two models on the samples that `Holdout` holds out of the batches."""
    holdout, twins = Holdout(batches), (Twin(model), Twin(small))
    missing = squares = cosines = 0.0
    rows = agree = ranked = 0
    samples = 0
    with alone(), torch.no_grad():
        for number, (args, kwargs) in enumerate(track(batches)):
            if not holdout.concerns(number):
                continue
            before, after = (twin.model(*args, **kwargs) for twin in twins)
            pairs = zip(tensor_leaves(before), tensor_leaves(after), strict=True)
            counted = 0
            for wanted, given in pairs:
                if not wanted.is_floating_point():
                    continue
                w, g = (_held_out(t, holdout, number) for t in (wanted, given))
                counted = max(counted, len(w) if holdout.some else 0)
                missing += float((w - g).square().sum())
                squares += float(w.square().sum())
                flat, other = (t.reshape(len(t), -1) for t in (w, g))
                cosines += float(torch.cosine_similarity(flat, other, dim=1).sum())
                rows += len(w)
                if w.ndim > 1 and w.shape[-1] > 1:
                    same = w.argmax(-1) == g.argmax(-1)
                    agree, ranked = agree + int(same.sum()), ranked + same.numel()
            samples += counted
    error = (missing / squares) ** 0.5 if squares > 0 else float(missing > 0)
    return Fidelity(error, cosines / max(rows, 1), agree / ranked if ranked else None, samples)


def _held_out(result: Tensor, holdout: Holdout, number: int) -> Tensor:
    """(samples, ...) in doubles on the CPU; one sample where no dimension is that of samples."""
    result = result.detach().to("cpu", torch.float64)
    dim = holdout.dim(number, result)
    if dim is None:
        return result[None]
    result = result.movedim(dim, 0)
    return result[holdout.rows(number, len(result))]
