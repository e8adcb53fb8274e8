"""The module of one MergeNet transfer: encode once, let L layers act on the codes, decode once.

In: one matrix per matrix. Out: one new matrix per written matrix. Always true: within a layer all targets are written
at once from what the layer before produced (eq. 3), so that both directions of a link hear each other; several links
into one target are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from graftlib.graft import Link, LinkedMatrix

from .._matrices import averaged, rms, targets
from .encoding import Encoding
from .lpka import LPKA

__all__ = ["Transfer"]

MakeLPKA = Callable[[tuple[int, int], tuple[int, int]], LPKA]


class Transfer(nn.Module):
    """Maps the matrices' matrices to the targets' new ones.

    Args:
        matrices: the matrices, with their ranks.
        links: who gives to whom.
        layers: L, the number of knowledge-transfer layers.
        lpka: makes the adapter of one link and layer from the shapes of the target's and the source's code.
        relative: hand the codes over in units of their own root mean square, and take changes in that unit.
        residual: keep what the rank leaves out; without it the new matrix is B A_new.
        compress: see `Encoding`.
        trust: one transfer changes a code by less than this share of its norm; None for no bound.
        dropout: whether the layers drop anything in training mode.

    The buffer `draw`, there with `dropout` only, seeds the noise of the next transfer; it counts up in training mode.
    """

    draw: Tensor | None

    def __init__(
        self,
        matrices: Sequence[LinkedMatrix],
        links: Sequence[Link],
        *,
        layers: int,
        lpka: MakeLPKA,
        relative: bool,
        residual: bool,
        compress: Literal["longer", "rows"],
        trust: float | None,
        dropout: bool,
    ) -> None:
        super().__init__()
        self.links = tuple(links)
        self.targets = targets(matrices)
        self.relative = relative
        self.residual = residual
        self.trust = trust
        self.encodings = nn.ModuleList(
            Encoding(matrix.shape, matrix.rank, compress) for matrix in matrices
        )
        shapes = [cast(Encoding, encoding).shape for encoding in self.encodings]
        self.register_buffer("draw", torch.randint(2**62, ()) if dropout else None)
        self.layers = nn.ModuleList(
            nn.ModuleList(lpka(shapes[link.target], shapes[link.source]) for link in links)
            for _ in range(layers)
        )
        self.fact_names = [
            f"layer {number} {pairing}"
            for number, layer in enumerate(self.layers, start=1)
            for pairing in cast(LPKA, cast(nn.ModuleList, layer)[0]).pairings
        ]

    def forward(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """One (rows, columns) tensor per matrix -> one per written matrix, in the order of the matrices."""
        encodings = [cast(Encoding, encoding) for encoding in self.encodings]
        bases = [encoding(w) for encoding, w in zip(encodings, matrices, strict=True)]
        codes = [e.encode(w, b) for e, w, b in zip(encodings, matrices, bases, strict=True)]
        units = [rms(code) if self.relative else code.new_ones(()) for code in codes]
        changes = self._exchange([_divide(a, unit) for a, unit in zip(codes, units, strict=True)])
        new = []
        for i in self.targets:
            change = units[i] * _bounded(changes[i], self.trust).to(matrices[i].dtype)
            if self.residual or bases[i] is None:
                new.append(encodings[i].decode(matrices[i], bases[i], change))
            else:
                new.append(encodings[i].spread(codes[i] + change, bases[i]))
        return new

    def _exchange(self, codes: list[Tensor]) -> dict[int, Tensor]:
        """The L layers: target -> what all of them together change in its code."""
        dtype = next(self.layers.parameters()).dtype
        state = [code.to(dtype) for code in codes]
        noise = self._noise(state[0].device)
        total: dict[int, Tensor] = {}
        for layer in self.layers:
            each = [
                lpka(state[link.target], state[link.source], noise)
                for lpka, link in zip(cast(nn.ModuleList, layer), self.links, strict=True)
            ]
            for i, change in averaged(each, self.links).items():
                total[i] = total[i] + change if i in total else change
                state[i] = state[i] + change
        return total

    @torch.no_grad()
    def _noise(self, device: torch.device) -> torch.Generator | None:
        """What this transfer's dropout draws from (one host sync); None for no dropout."""
        if self.draw is None or not self.training:
            return None
        noise = torch.Generator(device).manual_seed(int(self.draw))
        self.draw += 1
        return noise

    @torch.no_grad()
    def facts(self) -> dict[str, list[float]]:
        """Link name -> its omegas, layer by layer, within a layer in the order of `pairings`."""
        return {
            link.name: [
                float(omega)
                for layer in self.layers
                for omega in cast(LPKA, cast(nn.ModuleList, layer)[i]).omega
            ]
            for i, link in enumerate(self.links)
        }


def _bounded(change: Tensor, trust: float | None) -> Tensor:
    """`change`, of a code with unit root mean square, smoothly kept below `trust` times that code's norm.

    A small change passes as it is; zero stays zero, and so does its derivative's value, one.
    """
    if trust is None:
        return change
    share = change.square().mean() / trust**2
    return change * torch.rsqrt(1 + share)


def _divide(code: Tensor, unit: Tensor) -> Tensor:
    """`code` in units of `unit`; a zero code stays zero."""
    return code / torch.where(unit > 0, unit, torch.ones_like(unit))
