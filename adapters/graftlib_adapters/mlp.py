"""The paper's first, simple adapter (eq. 2): two MLPs turn the source's matrix into the target's.

In: the linked matrices. Out: a new one for each that is written, W_new = f2(f1(W_source)^T), where f1 maps the
source's rows (M) to the target's number of rows (n) and f2 the source's number of rows (N) to the target's columns
(m). Always true: of the target's own values only their scale has a say in the change. A baseline of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from graftlib.graft import Adapter, Link, LinkedMatrix

from ._matrices import add, averaged, rms, targets
from ._options import chosen, whole_number

__all__ = ["MLPAdapter"]


class MLPAdapter(Adapter):
    """Two small MLPs per link, learned while the models train.

    Args:
        width: hidden width of both MLPs.
        init: ``"identity"``: the result is added to the target, in its own scale, by a last layer that starts at
            zero, so that a fresh adapter changes nothing, to the bit. ``"paper"``: the result replaces the target.
        write: see `Adapter`.
        signal: see `Adapter`.

    Raises:
        GraftError: an option out of its range.
    """

    def __init__(
        self,
        width: int = 128,
        *,
        init: Literal["identity", "paper"] = "identity",
        write: Literal["replace", "probe"] = "replace",
        signal: Literal["trajectory", "gradient"] = "trajectory",
    ) -> None:
        whole_number("width", width)
        chosen("init", init, ("identity", "paper"))
        chosen("write", write, ("replace", "probe"))
        chosen("signal", signal, ("trajectory", "gradient"))
        self.width = width
        self.init = init
        self.write = write
        self.signal = signal

    def build(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> nn.Module:
        """See `Adapter.build`; the initial values are drawn from torch's global random state."""
        return _MLPTransfer(matrices, links, self.width, identity=self.init == "identity")

    def __repr__(self) -> str:
        return (
            f"MLPAdapter(width={self.width}, init={self.init!r}, "
            f"write={self.write!r}, signal={self.signal!r})"
        )


class _MLPTransfer(nn.Module):
    def __init__(
        self, matrices: Sequence[LinkedMatrix], links: Sequence[Link], width: int, *, identity: bool
    ) -> None:
        super().__init__()
        self.links = tuple(links)
        self.targets = targets(matrices)
        self.identity = identity
        self.generators = nn.ModuleList(
            _Generator(
                matrices[link.source].shape, matrices[link.target].shape, width, zero=identity
            )
            for link in links
        )

    def forward(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """One (rows, columns) tensor per linked matrix -> one per matrix that is written, in order."""
        each = [
            self._change(cast(_Generator, generator), matrices[link.source], matrices[link.target])
            for generator, link in zip(self.generators, self.links, strict=True)
        ]
        changes = averaged(each, self.links)
        return [add(matrices[i], changes[i]) for i in self.targets]

    def _change(self, generator: _Generator, source: Tensor, target: Tensor) -> Tensor:
        dtype = next(generator.parameters()).dtype
        if not self.identity:
            return cast(Tensor, generator(source.to(dtype))).to(target.dtype) - target
        unit = rms(source)
        source = source / torch.where(unit > 0, unit, torch.ones_like(unit))
        return rms(target) * cast(Tensor, generator(source.to(dtype))).to(target.dtype)


class _Generator(nn.Module):
    """(N, M) -> (n, m); `zero`: it starts as the zero map."""

    def __init__(
        self, source: tuple[int, int], target: tuple[int, int], width: int, *, zero: bool
    ) -> None:
        super().__init__()
        self.rows = _mlp(source[1], width, target[0])
        self.columns = _mlp(source[0], width, target[1])
        if zero:
            for parameter in self.columns[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, source: Tensor) -> Tensor:
        return cast(Tensor, self.columns(self.rows(source).mT))


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))
