"""Parameter sharing (after Cai 2021): the overlapping leading block of two matrices is one shared value.

In: one matrix per slot. Out: one new matrix per receiving slot, averaged with its givers where they overlap and
untouched, to the bit, elsewhere. Always true: with links both ways the two blocks come out equal. There is nothing to
learn. It is a baseline: plain sharing is what the paper shows to hurt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from graftlib.graft import Adapter, Link, Slot

from ._matrices import receivers
from ._options import chosen

__all__ = ["ParameterSharing"]


class ParameterSharing(Adapter):
    """The mean of receiver and givers on their overlapping leading blocks.

    Args:
        write: see `Adapter`.

    Raises:
        GraftError: `write` is no choice.
    """

    def __init__(self, *, write: Literal["replace", "probe"] = "replace") -> None:
        chosen("write", write, ("replace", "probe"))
        self.write = write

    def build(self, slots: Sequence[Slot], links: Sequence[Link]) -> nn.Module:
        """See `Adapter.build`; the module has no parameters and no buffers."""
        return _Sharing(slots, links)

    def __repr__(self) -> str:
        return f"ParameterSharing(write={self.write!r})"


class _Sharing(nn.Module):
    def __init__(self, slots: Sequence[Slot], links: Sequence[Link]) -> None:
        super().__init__()
        self.givers = {
            i: [link.giver for link in links if link.receiver == i] for i in receivers(slots)
        }

    def forward(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """One (rows, columns) tensor per slot -> one per receiving slot, in the order of the slots."""
        return [
            shared(matrices[i], [matrices[giver] for giver in givers])
            for i, givers in self.givers.items()
        ]


def shared(receiver: Tensor, givers: Sequence[Tensor]) -> Tensor:
    """The mean, entry by entry, of `receiver` and those `givers` that reach the entry.

    >>> shared(torch.tensor([[1.0, 1.0]]), [torch.tensor([[3.0], [9.0]])])
    tensor([[2., 1.]])
    """
    total, count = receiver.clone(), torch.ones_like(receiver)
    for giver in givers:
        rows = min(len(receiver), len(giver))
        columns = min(receiver.shape[1], giver.shape[1])
        total[:rows, :columns] += giver[:rows, :columns].to(receiver.dtype)
        count[:rows, :columns] += 1
    return total / count
