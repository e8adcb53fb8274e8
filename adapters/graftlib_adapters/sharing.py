"""Parameter sharing (after Cai 2021): the overlapping leading block of two matrices is one shared value.

In: the linked matrices. Out: a new one for each that is written, averaged with its sources where they overlap and
untouched, to the bit, elsewhere. Always true: with links both ways the two blocks come out equal. There is nothing to
learn. It is a baseline: plain sharing is what the paper shows to hurt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from graftlib.graft import Adapter, Link, LinkedMatrix

from ._matrices import targets
from ._options import chosen

__all__ = ["ParameterSharing"]


class ParameterSharing(Adapter):
    """The mean of target and sources on their overlapping leading blocks.

    Args:
        write: see `Adapter`.

    Raises:
        GraftError: `write` is no choice.
    """

    def __init__(self, *, write: Literal["replace", "probe"] = "replace") -> None:
        chosen("write", write, ("replace", "probe"))
        self.write = write

    def build(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> nn.Module:
        """See `Adapter.build`; the module has no parameters and no buffers."""
        return _Sharing(matrices, links)

    def __repr__(self) -> str:
        return f"ParameterSharing(write={self.write!r})"


class _Sharing(nn.Module):
    def __init__(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> None:
        super().__init__()
        self.sources = {
            i: [link.source for link in links if link.target == i] for i in targets(matrices)
        }

    def forward(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """One (rows, columns) tensor per linked matrix -> one per matrix that is written, in order."""
        return [
            shared(matrices[i], [matrices[source] for source in sources])
            for i, sources in self.sources.items()
        ]


def shared(target: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """The mean, entry by entry, of `target` and those `sources` that reach the entry.

    >>> shared(torch.tensor([[1.0, 1.0]]), [torch.tensor([[3.0], [9.0]])])
    tensor([[2., 1.]])
    """
    total, count = target.clone(), torch.ones_like(target)
    for source in sources:
        rows = min(len(target), len(source))
        columns = min(target.shape[1], source.shape[1])
        total[:rows, :columns] += source[:rows, :columns].to(target.dtype)
        count[:rows, :columns] += 1
    return total / count
