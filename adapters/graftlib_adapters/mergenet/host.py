"""How far the host's optimizer moved a matrix since the last transfer left it.

In: the matrix at each transfer. Out: a distance, which scales what the next transfer may write. Always true: a host
that does not move a matrix leaves a distance of exactly zero, and nothing is read from the device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["HostMovement"]


class HostMovement(nn.Module):
    """Remembers one matrix as the last transfer left it.

    Args:
        shape: (rows, columns).
        dtype: of the parameter: what is remembered is rounded to it, as what is written is.

    The buffers `last` (rows, columns) and `known` (0-D, whether there was a transfer) are set by `record`.
    """

    last: Tensor
    known: Tensor

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("last", torch.zeros(shape))
        self.register_buffer("known", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def forward(self, matrix: Tensor) -> Tensor:
        """|matrix - last|, the Frobenius norm, 0-D; zero before the first transfer."""
        distance = torch.linalg.vector_norm(matrix - self.last)
        return torch.where(self.known, distance, 0.0)

    @torch.no_grad()
    def record(self, matrix: Tensor) -> None:
        """The optimizer steps from `matrix` now."""
        self.last.copy_(matrix.to(self.dtype))
        self.known.fill_(True)
