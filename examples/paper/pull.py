"""The shortest way for a source's weights into a target: W~ = W + g (S - W), with one learned g for each unit.

In: a target and one source of the same shape, whose units were aligned with the target's before. Out: an adapter for
`graftlib.attach`. Always true: g begins at zero, so attaching changes nothing; what g learns is whether a step towards
the source lowers the loss. MergeNet has to learn such a step as a map through its attentions; this adapter begins with
it, so it says whether there is anything to be had in that direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from graftlib.graft import Adapter, Link, LinkedMatrix

__all__ = ["Pull"]


class Pull(Adapter):
    """Each unit of a target moves by a learned share of its distance to the source's unit of the same number."""

    def build(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> nn.Module:
        """See `Adapter.build`.

        Raises:
            ValueError: a source has another shape than its target, or a target has several sources.
        """
        return _Pull(matrices, links)


class _Pull(nn.Module):
    def __init__(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> None:
        super().__init__()
        self.links = sorted(links, key=lambda link: link.target)
        if len({link.target for link in links}) < len(links):
            raise ValueError("a target has several sources, and pull goes towards one")
        for link in links:
            shapes = matrices[link.source].shape, matrices[link.target].shape
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{link.name}: {shapes[0]} and {shapes[1]}; pull is for aligned layers"
                )
        self.shares = nn.ParameterList(
            torch.zeros(matrices[link.target].shape[0], 1) for link in self.links
        )

    def forward(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """One (rows, columns) tensor per matrix -> one per receiving matrix, in the order of the matrices."""
        return [
            torch.lerp(
                matrices[link.target], matrices[link.source], share.expand_as(matrices[link.source])
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
