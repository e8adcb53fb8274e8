"""The one interface that a method implements.

In: the shapes and resolved ranks of the matrices that take part, and who gives to whom. Out: an `nn.Module` that maps
the matrices to new ones. An adapter owns no schedule, no writing, no learning and no undoing: `graftlib.graft` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

__all__ = ["Adapter", "Link", "Slot"]


@dataclass(frozen=True)
class Slot:
    """One matrix that takes part in a transfer.

    Attributes:
        name: ``source:ADDRESS`` or ``target:ADDRESS``.
        shape: (rows, columns) of its 2-D view.
        rank: the rank that re-encodes it, fixed when the adapter was attached; None for the whole matrix.
        receives: whether a link writes to it.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    receives: bool


@dataclass(frozen=True)
class Link:
    """Knowledge flows from slot `giver` to slot `receiver` (positions in the list of slots).

    A mapping's ``direction="both"`` is two links; several sources of one target are several links with one receiver.
    """

    giver: int
    receiver: int
    name: str


class Adapter(ABC):
    """A method that rewrites receiver matrices from giver matrices.

    Attributes:
        write: ``"replace"``: the host's optimizer steps from the rewritten weights. ``"probe"``: the rewritten
            weights serve one forward and backward pass, and the step is applied to the weights before them.
        signal: what the adapter learns from. ``"trajectory"``: the weights the optimizer stepped from minus the
            weights after. ``"gradient"``: the gradient of the loss with respect to the rewritten weights.
    """

    write: Literal["replace", "probe"] = "replace"
    signal: Literal["trajectory", "gradient"] = "trajectory"

    def rank(self, matrix: Tensor, limit: int) -> int | None:
        """The rank for one matrix, resolved once when the adapter is attached; None keeps the whole matrix.

        Args:
            matrix: (rows, columns), the values at that moment.
            limit: the largest useful rank, min(rows, columns).
        """
        return None

    @abstractmethod
    def build(self, slots: Sequence[Slot], links: Sequence[Link]) -> nn.Module:
        """The module that performs a transfer.

        Its ``forward(matrices)`` takes one (rows, columns) tensor per slot, in order, and returns one new matrix per
        slot that receives, in order of the slots; a receiver that it leaves alone comes back as *the same tensor
        object*, or as an equal one. It is differentiable with respect to its own parameters and its inputs. Buffers
        may carry state from one transfer to the next and change in training mode only. It draws from no global random
        state: what it draws is decided by its buffers, so that the same inputs and state give the same bits.
        An optional method ``facts() -> dict[str, list[float]]`` reports what it has learned, link name -> values; an
        optional attribute ``fact_names`` says what the values of one link are called, in order.
        """
