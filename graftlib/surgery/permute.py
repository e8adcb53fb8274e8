"""`permute`: put the units of axis classes in another order. The function stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..graph import LayerGraph
from ..graph.axes import axis_classes
from ..graph.axes.check import draw
from ..graph.axes.check import permute as move
from .config import config_state, refresh_config
from .edits import Request, editable, requested, tensor_of
from .refusal import SurgeryError

__all__ = ["permute"]


def permute(
    model: nn.Module,
    graph: LayerGraph,
    *,
    permutations: Mapping[Request, Tensor | Sequence[int]] | None = None,
    seed: int | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Rename units; the model computes the same function.

    Args:
        model: the traced one, or another of the same structure.
        graph: from `graftlib.trace`.
        permutations: class (or its number) -> order; entry i is the unit that comes to place i. Others stay.
        seed: where `permutations` is None: an order drawn for every free class.
        inplace: write into `model` itself; otherwise a copy is made.

    Returns:
        the edited model.

    Raises:
        SurgeryError: a class is frozen or unknown, an order is none, the model is another one.
        ValueError: neither or both of `permutations` and `seed` are given.

    Warns:
        SurgeryWarning: a buffer is permuted that a Hugging Face model does not save.
    """
    if (permutations is None) == (seed is None):
        raise ValueError("give either permutations or seed")
    if permutations is None:
        orders = dict(draw([c for c in axis_classes(graph) if c.free], seed or 0))
    else:
        orders = {
            each: _order(each.size, torch.as_tensor(order, device="cpu"))
            for each, order in requested(graph, permutations).items()
        }
    before = config_state(model, graph)
    model = editable(model, graph, orders, inplace)
    for each, order in orders.items():
        for member in each.members:
            move(tensor_of(model, member.fqn).detach(), member, order)
    refresh_config(model, before, {each: each.size for each in orders})
    return model


def _order(size: int, order: Tensor) -> Tensor:
    if order.dtype != torch.int64 or not torch.equal(
        order.sort().values, torch.arange(size, device="cpu")
    ):
        raise SurgeryError(
            f"an order of {size} units names each of 0 … {size - 1} once.",
            where={"given": order.tolist() if order.numel() < 12 else f"{order.numel()} entries"},
            fix=f"pass torch.randperm({size}), for example",
        )
    return order
