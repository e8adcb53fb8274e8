"""The paper's first, simple adapter (eq. 2): two MLPs turn the giver's matrix into the receiver's.

In: one matrix per slot. Out: one new matrix per receiving slot, from W_new = f2(f1(W_giver)^T), where f1 maps the
giver's rows (M) to the receiver's number of rows (n) and f2 the giver's number of rows (N) to the receiver's columns
(m). Always true: of the receiver's own values only their scale has a say in the change. A baseline of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from graftlib.graft import Adapter, Link, Slot

from ._matrices import add, averaged, receivers, rms
from ._options import chosen, whole_number

__all__ = ["MLPAdapter"]


class MLPAdapter(Adapter):
    """Two small MLPs per link, learned while the models train.

    Args:
        width: hidden width of both MLPs.
        init: ``"identity"``: the result is added to the receiver, in its own scale, by a last layer that starts at
            zero, so that a fresh adapter changes nothing, to the bit. ``"paper"``: the result replaces the receiver.
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

    def build(self, slots: Sequence[Slot], links: Sequence[Link]) -> nn.Module:
        """See `Adapter.build`; the initial values are drawn from torch's global random state."""
        return _MLPTransfer(slots, links, self.width, identity=self.init == "identity")

    def __repr__(self) -> str:
        return (
            f"MLPAdapter(width={self.width}, init={self.init!r}, "
            f"write={self.write!r}, signal={self.signal!r})"
        )


class _MLPTransfer(nn.Module):
    def __init__(
        self, slots: Sequence[Slot], links: Sequence[Link], width: int, *, identity: bool
    ) -> None:
        super().__init__()
        self.links = tuple(links)
        self.receivers = receivers(slots)
        self.identity = identity
        self.generators = nn.ModuleList(
            _Generator(slots[link.giver].shape, slots[link.receiver].shape, width, silent=identity)
            for link in links
        )

    def forward(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """One (rows, columns) tensor per slot -> one per receiving slot, in the order of the slots."""
        said = [
            self._change(cast(_Generator, generator), matrices[link.giver], matrices[link.receiver])
            for generator, link in zip(self.generators, self.links, strict=True)
        ]
        changes = averaged(said, self.links)
        return [add(matrices[i], changes[i]) for i in self.receivers]

    def _change(self, generator: _Generator, giver: Tensor, receiver: Tensor) -> Tensor:
        dtype = next(generator.parameters()).dtype
        if not self.identity:
            return cast(Tensor, generator(giver.to(dtype))).to(receiver.dtype) - receiver
        unit = rms(giver)
        giver = giver / torch.where(unit > 0, unit, torch.ones_like(unit))
        return rms(receiver) * cast(Tensor, generator(giver.to(dtype))).to(receiver.dtype)


class _Generator(nn.Module):
    """(N, M) -> (n, m); `silent`: it starts as the zero map."""

    def __init__(
        self, giver: tuple[int, int], receiver: tuple[int, int], width: int, *, silent: bool
    ) -> None:
        super().__init__()
        self.rows = _mlp(giver[1], width, receiver[0])
        self.columns = _mlp(giver[0], width, receiver[1])
        if silent:
            for parameter in self.columns[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, giver: Tensor) -> Tensor:
        return cast(Tensor, self.columns(self.rows(giver).mT))


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))
