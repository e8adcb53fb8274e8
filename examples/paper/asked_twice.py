"""How much of a transfer comes from its source: the same adapter, asked again with noise in the source's place.

In: an adapter. Out: one that writes the same bits, and reports how far its answer moves when the source is exchanged.
Always true: the second question changes nothing, neither the adapter's state nor the host's random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graftlib.graft import Adapter, Link, LinkedMatrix

__all__ = ["AskedTwice"]


class AskedTwice(Adapter):
    """`inner`, overheard.

    Of each transfer the share |W~ - W~'| / |W~ - W| is kept, where W~' is the answer to noise of the source's root mean
    square: 0 for an adapter that does not listen, about 1.4 for one whose answer has nothing in common with the other.
    The first fact of a link is the mean share of all transfers that changed something, the second that of the last.
    """

    def __init__(self, inner: Adapter) -> None:
        self.inner = inner
        self.write, self.signal = inner.write, inner.signal

    def rank(self, matrix: Tensor, limit: int) -> int | None:
        """See `Adapter.rank`."""
        return self.inner.rank(matrix, limit)

    def build(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> nn.Module:
        """See `Adapter.build`."""
        return _AskedTwice(self.inner.build(matrices, links), matrices, links)


class _AskedTwice(nn.Module):
    def __init__(
        self, inner: nn.Module, matrices: Sequence[LinkedMatrix], links: Sequence[Link]
    ) -> None:
        super().__init__()
        self.inner, self.links = inner, tuple(links)
        self.targets = [i for i, matrix in enumerate(matrices) if matrix.written]
        self.shares: dict[str, list[float]] = {link.name: [] for link in links}

    def forward(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """What `inner` answers."""
        with torch.no_grad():
            self.inner.eval()  # it remembers nothing of being asked
            others = []
            for link in self.links:
                asked = list(matrices)
                asked[link.source] = _noise(matrices[link.source])
                others.append(self.inner(asked))
            self.inner.train(self.training)
        answer: list[Tensor] = list(self.inner(matrices))
        with torch.no_grad():
            for link, other in zip(self.links, others, strict=True):
                place = self.targets.index(link.target)
                change = (answer[place] - matrices[link.target]).norm()
                if change > 0:
                    moved = (answer[place] - other[place]).norm() / change
                    self.shares[link.name].append(float(moved))
        return answer

    def facts(self) -> dict[str, list[float]]:
        """Link name -> [mean share, last share]; empty before the adapter has learned."""
        return {name: [sum(s) / len(s), s[-1]] for name, s in self.shares.items() if s}


def _noise(matrix: Tensor) -> Tensor:
    """Of the root mean square of `matrix`, from a generator of its own."""
    numbers = torch.Generator().manual_seed(0)
    noise = torch.randn(matrix.shape, generator=numbers).to(matrix)
    return noise * (matrix.norm() / noise.norm())
