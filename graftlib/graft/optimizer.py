"""How an adapter is trained: the options of its own optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from ..documents import Record, convert
from ..errors import AttachError

__all__ = ["AdapterOptimizer"]

NotNegative = Annotated[float, Meta(ge=0, le=1e30)]


@dataclass(frozen=True)
class AdapterOptimizer:
    """The AdamW that updates an adapter.

    Attributes:
        lr: learning rate; on a cosine over the transfers where `attach` knows the number of steps, else constant.
        weight_decay: of matrices; norms, biases and scalars do not decay.
        clip: largest norm of the gradient at one update; ``math.inf`` for none.

    Raises:
        AttachError: a value out of its range.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-2
    clip: float = 50.0

    def __post_init__(self) -> None:
        fix = "AdapterOptimizer(lr=1e-3, weight_decay=1e-2, clip=50.0)"
        convert(vars(self), _Values, what="the AdapterOptimizer", error=AttachError, fix=fix)


class _Values(Record):
    lr: NotNegative
    weight_decay: NotNegative
    clip: Annotated[float, Meta(gt=0)]
