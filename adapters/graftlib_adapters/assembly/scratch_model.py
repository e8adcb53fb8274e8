"""A copy of a base whose weights are tried on and off: where merges are written and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graftlib.errors import shown
from graftlib.graph import LayerGraph, copy_to_edit, shell
from graftlib.surgery.edits import tensor_of

from .alignment import Alignment
from .errors import AssemblyError
from .merging import merged
from .options import Pad
from .zoo import state_of

__all__ = ["Evaluate", "ScratchModel", "measured"]


class ScratchModel:
    """A copy of a base whose weights can be put on and off; what a merge does not write has its base value.

    Args:
        base: graph of the base, which is never changed.

    Attributes:
        model: the copy, in eval mode. It is never run: some models keep what they computed from their weights.
        state: FQN -> the weights that a merge begins with; those of the base until `commit`.
    """

    def __init__(self, base: LayerGraph) -> None:
        self.model = copy_to_edit(base.model, base, AssemblyError)
        self.model.eval()
        self._committed: dict[str, Tensor] = {}

    @property
    def state(self) -> dict[str, Tensor]:
        """The committed tensors."""
        return {**state_of(self.model), **self._committed}

    @torch.no_grad()
    def show(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The model with these tensors, and the committed values everywhere else."""
        for name in [name for name in self._committed if name not in tensors]:
            tensor_of(self.model, name).copy_(self._committed.pop(name))
        for name, values in tensors.items():
            tensor = tensor_of(self.model, name)
            if name not in self._committed:
                self._committed[name] = tensor.detach().clone()
            tensor.copy_(values)
        return self.model

    def commit(self, tensors: Mapping[str, Tensor]) -> None:
        """Make these tensors the ones that the next merge begins with."""
        self.show(tensors)
        self._committed.clear()

    def merge(
        self,
        alignment: Alignment,
        source_state: Mapping[str, Tensor],
        factor: float,
        *,
        pad: Pad = "zero",
        layers: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """What `merged` makes of the committed weights."""
        return merged(self.state, alignment, source_state, factor, pad=pad, layers=layers)


Evaluate = Callable[[nn.Module], float]


@torch.no_grad()
def measured(evaluate: Callable[[nn.Module], Any], model: nn.Module) -> float:
    """What `evaluate` says of a model, without gradients; not a number counts as the worst there is."""
    answer = evaluate(shell(model))
    try:
        value = float(answer)
    except Exception as error:
        raise AssemblyError(
            f"evaluate gave {shown(answer)}, which is no number.",
            why=str(error).partition("\n")[0],
            fix="give a function: model -> metric, larger is better",
        ) from None
    return value if value == value else float("-inf")
