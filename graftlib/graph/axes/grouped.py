"""The product of mixtures of experts, in any precision: what `torch.nn.functional.grouped_mm` gives for low ones."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

__all__ = ["grouped_matmul"]


def grouped_matmul(
    x: Tensor,
    y: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: Any = None,
) -> Tensor:
    """z[t, j] = sum_k x[t, k] y[e, k, j] for the rows t of run e.

    Args:
        x: (t, k), or (e, t, k) where every expert has as many rows.
        y: (e, k, j); or (t, j) beside an x of (k, t), whose runs then lie along what is summed.
        offs: (e,) where each run ends; None where x and y have a dimension of experts.
        bias: (e, j), or None.
        out_dtype: of the result; the inputs' own by default.

    Raises:
        NotImplementedError: x has a dimension of experts, y has none.
    """
    if offs is None:
        out = x @ y if bias is None else x @ y + bias.unsqueeze(-2)
    elif x.ndim == 3:
        raise NotImplementedError("runs of columns")
    else:
        ends = [0, *offs.tolist()]
        runs = list(itertools.pairwise(ends))
        if y.ndim == 2:
            out = torch.stack([x[:, start:end] @ y[start:end] for start, end in runs])
        else:
            parts = [x[start:end] @ y[e] for e, (start, end) in enumerate(runs)]
            if bias is not None:
                parts = [part + bias[e] for e, part in enumerate(parts)]
            # Rows behind the last run belong to no expert.
            rest = x.new_zeros(x.shape[0] - ends[-1], y.shape[-1])
            out = torch.cat([*parts, rest])
    return out if out_dtype is None else out.to(out_dtype)
