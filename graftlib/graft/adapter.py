"""The one interface that a method implements.

In: the shapes and resolved ranks of the matrices that take part, and which is written from which. Out: an `nn.Module`
that maps the matrices to new ones. An adapter owns no schedule, no writing, no optimizer and no undoing:
`graftlib.graft` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Adapter", "Link", "LinkedMatrix"]


@dataclass(frozen=True)
class LinkedMatrix:
    """One matrix that takes part in a transfer.

    Attributes:
        name: ``source:ADDRESS`` or ``target:ADDRESS``, by the model of the mapping that holds it.
        shape: (rows, columns) of its 2-D view.
        rank: the rank that re-encodes it, fixed when the adapter was attached; None for the whole matrix.
        written: whether a link writes to it.
        dtype: of the parameter; an adapter computes in single or double precision, and what it writes is rounded to
            this.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    written: bool
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Link:
    """Matrix `target` is written from matrix `source` (positions in the list of linked matrices).

    Source and target are roles in this link. A link of a mapping that runs backward reads the mapping's target model
    and writes its source model: its `source` is then the matrix named ``target:…``. ``direction="both"`` is two links;
    several sources of one target are several links with one target.
    """

    source: int
    target: int
    name: str


class Adapter(ABC):
    """A method that rewrites target matrices from source matrices.

    Attributes:
        write: ``"replace"``: the host's optimizer steps from the rewritten weights. ``"probe"``: the rewritten
            weights serve one forward and backward pass, and the step is applied to the weights before them.
        signal: what the adapter is updated from. ``"trajectory"``: the weights the optimizer stepped from minus the
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
    def build(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> nn.Module:
        """The module that performs a transfer.

        Its ``forward(values)`` takes one (rows, columns) tensor per linked matrix, in order, and returns one new tensor
        per matrix that is written, in the same order; one that it leaves alone comes back as *the same tensor object*,
        or as an equal one. It is differentiable with respect to its own parameters and its inputs. Buffers
        may carry state from one transfer to the next and change in training mode only; where a transfer is undone they
        are set through ``load_state_dict``, so a module may cache on the host what it reads from them. It draws from no
        global random state: what it draws is decided by its buffers, so that the same inputs and state give the same
        bits.

        An optional method ``facts() -> dict[str, Tensor | list[float]]`` reports what it has learned, link name ->
        values, 1-D; an optional attribute ``fact_names`` says what the values of one link are called, in order.
        """
