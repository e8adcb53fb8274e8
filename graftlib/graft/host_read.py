"""Read numbers from a device: each read makes the host wait, so all that is needed at one time is read together."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

__all__ = ["read_together"]


def read_together(*tensors: Tensor) -> list[list[float]]:
    """The values of tensors of any shape, dtype and device, each flattened; one host read where they share a device.

    >>> read_together(torch.tensor(True), torch.tensor([1.5, 2.0]))
    [[1.0], [1.5, 2.0]]
    """
    if not tensors:
        return []
    device = tensors[0].device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    flat = [tensor.detach().reshape(-1).to(device, dtype) for tensor in tensors]
    numbers: list[float] = torch.cat(flat).tolist()
    ends = [0, *accumulate(map(len, flat))]
    return [numbers[start:end] for start, end in pairwise(ends)]
