"""The shortest way for a source's weights into a target: W~ = W + g (S - W), with one learned g for each unit.

In: a receiver and one giver of the same shape, whose units were aligned with the receiver's before. Out: an adapter for
`graftlib.attach`. Always true: g begins at zero, so attaching changes nothing; what g learns is whether a step towards
the source lowers the loss. MergeNet has to learn such a step as a map through its attentions; this adapter begins with
it, so it says whether there is anything to be had in that direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from graftlib.graft.adapter import Adapter, Link, Slot

__all__ = ["Pull"]


class Pull(Adapter):
    """Each unit of a receiver moves by a learned share of its distance to the giver's unit of the same number."""

    def build(self, slots: Sequence[Slot], links: Sequence[Link]) -> nn.Module:
        """See `Adapter.build`.

        Raises:
            ValueError: a giver has another shape than its receiver, or a receiver has several givers.
        """
        return _Pull(slots, links)


class _Pull(nn.Module):
    def __init__(self, slots: Sequence[Slot], links: Sequence[Link]) -> None:
        super().__init__()
        self.links = sorted(links, key=lambda link: link.receiver)
        if len({link.receiver for link in links}) < len(links):
            raise ValueError("a receiver has several givers, and pull goes towards one")
        for link in links:
            shapes = slots[link.giver].shape, slots[link.receiver].shape
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{link.name}: {shapes[0]} and {shapes[1]}; pull is for aligned layers"
                )
        self.shares = nn.ParameterList(
            torch.zeros(slots[link.receiver].shape[0], 1) for link in self.links
        )

    def forward(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """One (rows, columns) tensor per slot -> one per receiving slot, in the order of the slots."""
        return [
            torch.lerp(
                matrices[link.receiver], matrices[link.giver], share.expand_as(matrices[link.giver])
            )
            for link, share in zip(self.links, self.shares, strict=True)
        ]

    @torch.no_grad()
    def facts(self) -> dict[str, list[float]]:
        """Link name -> the mean share of its units."""
        return {
            link.name: [float(cast(Tensor, share).mean())]
            for link, share in zip(self.links, self.shares, strict=True)
        }
