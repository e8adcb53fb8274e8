"""How sure a difference is: the mean of paired differences with its 95 % interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import stats

__all__ = ["interval"]


def interval(differences: Sequence[float]) -> list[float]:
    """[mean, low, high] of paired differences, 95 % by Student's t; the ends are NaN where there is but one."""
    n, mean = len(differences), statistics.mean(differences)
    if n < 2:
        return [mean, math.nan, math.nan]
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return [mean, mean - half, mean + half]
