"""What every adapter does to a matrix, whatever it learns: measure its scale, add a change, average over links.

In and out: plain (rows, columns) tensors. Always true: a change that is all zero gives the matrix back to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftlib.graft import Link, LinkedMatrix

__all__ = ["add", "averaged", "kept_row_norms", "rms", "targets"]


def add(matrix: Tensor, change: Tensor) -> Tensor:
    """`matrix` + `change`, with the bits of `matrix` wherever `change` is zero of either sign.

    The plain sum turns -0.0 + 0.0 into 0.0. Subtracting a positive zero keeps both zeros, and ``0 - change`` turns
    either zero into a positive one. Gradients flow to both, also where the change is zero.

    >>> add(torch.tensor([-0.0, 2.0]), torch.tensor([0.0, 1.0]))
    tensor([-0., 3.])
    """
    return matrix - (0.0 - change)


def kept_row_norms(matrix: Tensor, change: Tensor) -> Tensor:
    """`matrix` + `change`, each row turned along the sphere on which it lies: its Euclidean norm stays what it was.

    Of a row's change only the part at right angles to the row counts: w' = |w| (w + t) / |w + t|. So no row moves by
    more than its change is long, a row of zeros stays, and rows whose change is zero keep their bits.

    >>> kept_row_norms(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[5.0, 4.0], [0.0, 9.0]]))
    tensor([[1.8000, 2.4000],
            [0.0000, 2.0000]])
    """
    peak = matrix.detach().abs().amax(1, keepdim=True)
    some = peak > 0
    peak = torch.where(some, peak, 1.0)
    rows, change = matrix / peak, change / peak  # so that squares neither under- nor overflow
    square = torch.where(some, rows.square().sum(1, keepdim=True), 1.0)
    tangent = change - rows * ((rows * change).sum(1, keepdim=True) / square)
    scale = torch.rsqrt(1 + tangent.square().sum(1, keepdim=True) / square)
    return add(matrix, tangent * peak) * torch.where(some, scale, 0.0)


def rms(matrix: Tensor) -> Tensor:
    """The root mean square of the entries, a 0-D tensor without gradient; safe from under- and overflow."""
    matrix = matrix.detach()
    peak = matrix.abs().amax().clamp(min=torch.finfo(matrix.dtype).tiny)
    return peak * (matrix / peak).square().mean().sqrt()


def targets(matrices: Sequence[LinkedMatrix]) -> list[int]:
    """Positions of the matrices that are written, in order."""
    return [i for i, matrix in enumerate(matrices) if matrix.written]


def averaged(changes: Sequence[Tensor], links: Sequence[Link]) -> dict[int, Tensor]:
    """One change per link -> one per target: the mean over the links that write to it.

    >>> links = [Link(0, 2, "a"), Link(1, 2, "b")]
    >>> averaged([torch.tensor(1.0), torch.tensor(3.0)], links)
    {2: tensor(2.)}
    """
    by_target: dict[int, list[Tensor]] = {}
    for link, change in zip(links, changes, strict=True):
        by_target.setdefault(link.target, []).append(change)
    return {
        i: torch.stack(each).mean(0) if len(each) > 1 else each[0] for i, each in by_target.items()
    }
