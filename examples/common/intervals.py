"""How sure a figure is: paired differences with their 95 % interval, repetitions with their quartiles."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scipy import stats

__all__ = ["interval", "spread"]


def interval(differences: Sequence[float]) -> list[float | None]:
    """[mean, low, high]: Student's t, 95 %, two-sided; without at least two differences no bounds.

    >>> [round(x, 3) for x in interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return [mean, None, None]
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return [mean, mean - half, mean + half]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    {'median': 3.0, 'q1': 2.0, 'q3': 4.0}
    """
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high}
