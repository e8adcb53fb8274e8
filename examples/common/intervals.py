"""How sure a difference is: the mean of paired differences with its 95 % interval."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scipy import stats

__all__ = ["interval"]


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
