"""The module of one MergeNet transfer: encode once, let L layers act on the codes, decode once.

In: the linked matrices. Out: a new one for each that is written. Always true: within a layer all targets are written
at once from what the layer before produced (eq. 3), so that both directions of a link read each other; several links
into one target are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from graftlib.graft import Link, LinkedMatrix

from .._matrices import add, averaged, kept_row_norms, rms, targets
from .encoding import Encoding, LearnedEncoding
from .host import HostMovement
from .lpka import LPKA

__all__ = ["Transfer"]

MakeLPKA = Callable[[tuple[int, int], tuple[int, int]], LPKA]


class Transfer(nn.Module):
    """Maps the matrices' matrices to the targets' new ones.

    Args:
        matrices: the matrices, with their ranks.
        links: which is written from which.
        layers: L, the number of knowledge-transfer layers.
        lpka: makes the adapter of one link and layer from the shapes of the target's and the source's code.
        relative: hand the codes over in units of their own root mean square, and take changes in that unit.
        residual: keep what the rank leaves out; without it the new matrix is B A_new.
        compress: see `Encoding`.
        learned: whether the low-rank factors are learned, see `LearnedEncoding`.
        trust: one transfer changes a matrix by less than this share of its code's norm (of its own, where the factors
            are learned), or with ``"host"`` by less than `host_share` of how far the host moved it since the last
            transfer; None for no bound.
        host_share: see `trust`.
        keep_norms: whether each row of a written matrix keeps its norm.
        probe: whether the host's optimizer steps from the weights before the transfer.
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
        learned: bool,
        trust: float | Literal["host"] | None,
        host_share: float,
        keep_norms: bool,
        probe: bool,
        dropout: bool,
    ) -> None:
        super().__init__()
        self.links = tuple(links)
        self.targets = targets(matrices)
        self.relative = relative
        self.residual = residual
        self.learned, self.trust, self.host_share = learned, trust, host_share
        self.keep_norms, self.probe = keep_norms, probe
        self.encodings = nn.ModuleList(
            LearnedEncoding(one.shape, one.rank, compress, written=one.written)
            if learned
            else Encoding(one.shape, one.rank, compress)
            for one in matrices
        )
        written = [matrices[i] for i in self.targets] if trust == "host" else []
        self.hosts = nn.ModuleList(HostMovement(one.shape, one.dtype) for one in written)
        shapes = [cast(Encoding, encoding).shape for encoding in self.encodings]
        self.register_buffer("draw", torch.randint(2**62, ()) if dropout else None)
        self._next_draw: int | None = None  # of the buffer: read once, and again after loading
        self.register_load_state_dict_post_hook(_forget_draw)  # type: ignore[no-untyped-call]
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
        """One (rows, columns) tensor per linked matrix -> one per matrix that is written, in order."""
        encodings = [cast(Encoding, encoding) for encoding in self.encodings]
        bases = [encoding(w) for encoding, w in zip(encodings, matrices, strict=True)]
        codes = [e.encode(w, b) for e, w, b in zip(encodings, matrices, bases, strict=True)]
        units = [rms(code) if self.relative else code.new_ones(()) for code in codes]
        changes = self._exchange([_divide(a, unit) for a, unit in zip(codes, units, strict=True)])
        new = []
        for k, i in enumerate(self.targets):
            change = changes[i]
            if isinstance(self.trust, float) and not self.learned:
                change = _bounded(change, self.trust)
            change = units[i] * change.to(matrices[i].dtype)
            if not self.residual and bases[i] is not None:
                new.append(encodings[i].spread(codes[i] + change, bases[i]))
                continue
            change = self._limited(k, matrices[i], encodings[i].spread(change, bases[i]))
            written = (kept_row_norms if self.keep_norms else add)(matrices[i], change)
            if self.trust == "host" and self.training:
                cast(HostMovement, self.hosts[k]).record(matrices[i] if self.probe else written)
            new.append(written)
        return new

    def _limited(self, k: int, matrix: Tensor, change: Tensor) -> Tensor:
        """The change of the target number `k`, where its bound is one of the matrix and not of the code."""
        if self.trust == "host":
            return limited(change, self.host_share * cast(HostMovement, self.hosts[k])(matrix))
        if isinstance(self.trust, float) and self.learned:
            return limited(change, self.trust * torch.linalg.vector_norm(matrix.detach()))
        return change

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
        """What this transfer's dropout draws from; None for no dropout."""
        if self.draw is None or not self.training:
            return None
        if self._next_draw is None:
            self._next_draw = int(self.draw)
        noise = torch.Generator(device).manual_seed(self._next_draw)
        self.draw += 1
        self._next_draw += 1
        return noise

    @torch.no_grad()
    def facts(self) -> dict[str, Tensor]:
        """Link name -> its omegas, 1-D, layer by layer, within a layer in the order of `pairings`."""
        return {
            link.name: torch.cat(
                [cast(LPKA, cast(nn.ModuleList, layer)[i]).omega for layer in self.layers]
            )
            for i, link in enumerate(self.links)
        }


def _forget_draw(transfer: Any, keys: object) -> None:
    transfer._next_draw = None


def limited(change: Tensor, limit: Tensor) -> Tensor:
    """`change`, smoothly kept below the Frobenius norm `limit`, 0-D: change / sqrt(1 + (|change| / limit)^2).

    With a limit of zero the result is zero; zero changes stay zero, and so does their derivative's value, one.
    """
    limit = limit.detach()
    some = limit > torch.finfo(limit.dtype).tiny ** 0.5
    share = (change / torch.where(some, limit, torch.ones_like(limit))).square().sum()
    scale = torch.where(some, torch.rsqrt(1 + share), (share == 0).to(share.dtype))
    return change * scale


def _bounded(change: Tensor, trust: float) -> Tensor:
    """`change`, of a code with unit root mean square, smoothly kept below `trust` times that code's norm.

    A small change passes as it is; zero stays zero, and so does its derivative's value, one.
    """
    share = change.square().mean() / trust**2
    return change * torch.rsqrt(1 + share)


def _divide(code: Tensor, unit: Tensor) -> Tensor:
    """`code` in units of `unit`; a zero code stays zero."""
    return code / torch.where(unit > 0, unit, torch.ones_like(unit))
