"""What a walk from a base to a merged model looks like: metrics at merging factors, and the figures read off them.

Losses here are metrics with the sign turned, whatever the metric is, so all figures are in its unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from msgspec import Struct

from graftlib.documents import Finite, convert
from graftlib.reports import Table

from .errors import AssemblyError

__all__ = ["Curve", "grid"]


def grid(points: int = 21) -> tuple[float, ...]:
    """Evenly spaced merging factors from 0 to 1.

    >>> grid(3)
    (0.0, 0.5, 1.0)
    """
    return tuple(i / (points - 1) for i in range(points))


@dataclass(frozen=True)
class Curve(Table):
    """Metrics along merging factors.

    Attributes:
        factors: increasing, from 0.
        scores: the metric at each factor, larger is better; not finite where a merged model computes nothing sensible.
        method: how the units were aligned, see `Solver`.
        frame: ``base`` or ``union``.
        pad: ``zero`` or ``keep``.
        data: what data were used for: ``activations``, ``repair``, both, or nothing.

    >>> curve = Curve((0.0, 0.5, 1.0), (90.0, 80.0, 86.0))
    >>> curve.barrier, curve.excess, curve.threshold(tolerance=5.0)
    (8.0, 10.0, 0.25)
    """

    factors: tuple[float, ...]
    scores: tuple[float, ...]
    method: str = ""
    frame: str = "base"
    pad: str = "zero"
    data: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rising = [*self.factors[:1]] == [0] and all(a < b for a, b in pairwise(self.factors))
        if len(self.factors) != len(self.scores) or not rising:
            raise AssemblyError(
                "a curve has one score for each factor, and factors that rise from 0.",
                where={"factors": self.factors, "scores": len(self.scores)},
            )

    @property
    def losses(self) -> tuple[float, ...]:
        """The metrics with their sign turned; infinite where one is not finite."""
        return tuple(-s if math.isfinite(s) else math.inf for s in self.scores)

    @property
    def barrier(self) -> float:
        """The largest height over the straight line between the ends: max [L(l) - ((1 - l) L(0) + l L(1))], at least 0.

        In the base frame the far end is no original model: read `excess` beside it.
        """
        first, last = self.losses[0], self.losses[-1]
        end = self.factors[-1]
        if not math.isfinite(last):
            return math.inf  # the line is endless, too: no height can be said
        heights = [
            loss - ((1 - factor / end) * first + factor / end * last) if end and factor else 0.0
            for factor, loss in zip(self.factors, self.losses, strict=True)
        ]
        return max((h for h in heights if not math.isnan(h)), default=math.inf)

    @property
    def excess(self) -> float:
        """The largest rise over the base: max [L(l) - L(0)]."""
        return max(self.losses) - self.losses[0]

    @property
    def mean_excess(self) -> float:
        """The mean of L(l) - L(0) over the factors, 0 included."""
        return self.mean - self.losses[0]

    @property
    def mean(self) -> float:
        """The mean loss over the factors: the cell of a heat map."""
        return sum(self.losses) / len(self.losses)

    @property
    def area(self) -> float:
        """The area under the losses by trapezoids, divided by the length of the walk; the loss itself for one point."""
        steps = list(zip(self.factors, self.losses, strict=True))
        length = self.factors[-1] - self.factors[0]
        if not length:
            return self.losses[0]
        halves = ((b - a) * (one + two) / 2 for (a, one), (b, two) in pairwise(steps))
        return sum(halves) / length

    def threshold(self, tolerance: float) -> float:
        """The merging-factor threshold: sup {l: for all l' <= l, L(l') - L(0) <= tolerance}.

        Between two factors the loss is taken as straight, so a finer grid moves the answer a little.

        Args:
            tolerance: in the unit of the metric, at least 0.

        Returns:
            0 to the last factor.
        """
        allowed = self.losses[0] + tolerance
        for i, loss in enumerate(self.losses):
            if loss > allowed:
                if i == 0:
                    return 0.0
                before, at, to = self.losses[i - 1], self.factors[i - 1], self.factors[i]
                share = (allowed - before) / (loss - before) if math.isfinite(loss) else 0.0
                return at + share * (to - at)
        return self.factors[-1]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes null."""
        return {
            "method": self.method,
            "frame": self.frame,
            "pad": self.pad,
            "data": list(self.data),
            "factors": list(self.factors),
            "scores": [_plain(score) for score in self.scores],
            "barrier": _plain(self.barrier),
            "excess": _plain(self.excess),
            "mean_excess": _plain(self.mean_excess),
            "mean_loss": _plain(self.mean),
            "area": _plain(self.area),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Curve:
        """The inverse of `to_json`; what follows from them is worked out anew.

        Raises:
            AssemblyError: `values` are not those of a curve.
        """
        record = convert(values, _Record, what="the curve", error=AssemblyError)
        scores = tuple(math.nan if score is None else score for score in record.scores)
        return cls(record.factors, scores, record.method, record.frame, record.pad, record.data)

    def table(self) -> tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]:
        """A row for each merging factor."""
        return ("factor", "score"), zip(self.factors, self.scores, strict=True)

    def __str__(self) -> str:
        head = f"{self.method or 'walk'}, {self.frame} frame, pad {self.pad}"
        if self.data:
            head += f", with data: {' and '.join(self.data)}"
        rows = [
            ("score", f"{self.scores[0]:.4g} at 0, {self.scores[-1]:.4g} at {self.factors[-1]:g}"),
            ("barrier", f"{self.barrier:.4g}"),
            ("excess", f"at most {self.excess:.4g}, {self.mean_excess:.4g} in the mean"),
        ]
        return "\n".join([head, *(f"  {label:<8} {text}" for label, text in rows)])


class _Record(Struct):
    """What `Curve.from_json` reads; the figures that follow from the scores are other fields."""

    factors: tuple[Finite, ...]
    scores: tuple[Finite | None, ...]
    method: str
    frame: str
    pad: str
    data: tuple[str, ...] = ()


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
