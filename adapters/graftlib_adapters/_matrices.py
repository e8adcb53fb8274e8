"""What every adapter does to a matrix, whatever it learns: measure its scale, add a change, average over links.

In and out: plain (rows, columns) tensors. Always true: a change that is all zero gives the matrix back to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftlib.graft import Link, Slot

__all__ = ["add", "averaged", "receivers", "rms"]


def add(matrix: Tensor, change: Tensor) -> Tensor:
    """`matrix` + `change`, with the bits of `matrix` wherever `change` is zero of either sign.

    The plain sum turns -0.0 + 0.0 into 0.0. Subtracting a positive zero keeps both zeros, and ``0 - change`` turns
    either zero into a positive one. Gradients flow to both, also where the change is zero.

    >>> add(torch.tensor([-0.0, 2.0]), torch.tensor([0.0, 1.0]))
    tensor([-0., 3.])
    """
    return matrix - (0.0 - change)


def rms(matrix: Tensor) -> Tensor:
    """The root mean square of the entries, a 0-D tensor without gradient; safe from under- and overflow."""
    matrix = matrix.detach()
    peak = matrix.abs().amax().clamp(min=torch.finfo(matrix.dtype).tiny)
    return peak * (matrix / peak).square().mean().sqrt()


def receivers(slots: Sequence[Slot]) -> list[int]:
    """Positions of the slots that a link writes to, in order."""
    return [i for i, slot in enumerate(slots) if slot.receives]


def averaged(changes: Sequence[Tensor], links: Sequence[Link]) -> dict[int, Tensor]:
    """One change per link -> one per receiver: the mean over the links that write to it.

    >>> links = [Link(0, 2, "a"), Link(1, 2, "b")]
    >>> averaged([torch.tensor(1.0), torch.tensor(3.0)], links)
    {2: tensor(2.)}
    """
    heard: dict[int, list[Tensor]] = {}
    for link, change in zip(links, changes, strict=True):
        heard.setdefault(link.receiver, []).append(change)
    return {i: torch.stack(said).mean(0) if len(said) > 1 else said[0] for i, said in heard.items()}
