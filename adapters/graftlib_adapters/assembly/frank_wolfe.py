"""Frank-Wolfe over all classes at once: relaxed permutations, one assignment a class a step, an exact line search.

After C2M3 (Crisostomi et al. 2024), with rectangular assignments. The relaxed objective never falls.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .assignment import assign
from .objective import Objective
from .permutation import Permutation

__all__ = ["frank_wolfe"]

_STEPS = 50
_LITTLE = 1e-4  # a relative rise that ends the search, as in C2M3


def frank_wolfe(
    objective: Objective, start: Mapping[int, Permutation], *, keep: set[int]
) -> dict[int, Permutation]:
    """Move the classes that are not kept towards a maximum of the objective.

    Args:
        objective: what is maximised.
        start: of every class pair.
        keep: class pairs that stay as they are.

    Returns:
        a permutation of every class pair, the nearest to where the search ended.
    """
    free = [i for i in range(len(objective.sizes)) if i not in keep]
    reads: dict[int, Tensor] = {
        i: start[i].reads if i in keep else _middle(start[i]).to(objective.dtype) for i in start
    }
    value = objective.value(reads)
    for _ in range(_STEPS):
        gains = {i: objective.gain(i, reads) for i in free}
        towards = {i: assign(gains[i]).matrix().to(objective.dtype) for i in free}
        step, reached = _search(objective, reads, towards, value)
        if step <= 0:
            break
        reads = _between(reads, towards, step)
        rise, value = reached - value, reached
        if rise <= _LITTLE * abs(value):
            break
    return {i: start[i] if i in keep else assign(reads[i].double()) for i in start}


def _middle(permutation: Permutation) -> Tensor:
    """Half way from the start to the matrix that prefers nothing."""
    m, p = permutation.bases, permutation.sources
    return 0.5 * permutation.matrix() + 0.5 / max(m, p)


def _between(
    reads: Mapping[int, Tensor], towards: Mapping[int, Tensor], step: float
) -> dict[int, Tensor]:
    return {
        i: torch.lerp(move, towards[i], step) if i in towards else move for i, move in reads.items()
    }


def _search(
    objective: Objective, reads: Mapping[int, Tensor], towards: Mapping[int, Tensor], value: float
) -> tuple[float, float]:
    """The best step in 0 … 1 and the objective there: along a line it is a polynomial, known from a few points."""
    degree = max(sum(each in towards for each in cell.classes) for cell in objective.cells)
    points = np.linspace(0.0, 1.0, degree + 1)
    values = [value] + [objective.value(_between(reads, towards, float(t))) for t in points[1:]]
    curve = np.polynomial.Polynomial.fit(
        points, values, degree, domain=(0.0, 1.0), window=(0.0, 1.0)
    )
    roots = [complex(root) for root in curve.deriv().roots()]
    turning = [root.real for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 1]
    best = max([*turning, 1.0], key=lambda t: float(curve(t)))
    reached = values[-1] if best == 1.0 else objective.value(_between(reads, towards, best))
    return (best, reached) if reached > value else (0.0, value)
