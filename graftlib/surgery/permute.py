"""`permute`: put the units of axis classes in another order. The function stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..arguments import Seed
from ..graph import LayerGraph
from ..graph.axes import AxisClass, axis_classes
from ..graph.axes.check import draw
from ..graph.axes.check import permute as move
from ..graph.caches import drop_caches
from .config import config_state, refresh_config
from .edits import Request, editable, model_of, requested, tensor_of, whole_numbers
from .proof import must_stay
from .refusal import SurgeryError

__all__ = ["permute"]


def permute(
    graph: LayerGraph,
    *,
    permutations: Mapping[Request, Tensor | Sequence[int]] | None = None,
    seed: int | None = None,
    model: nn.Module | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Rename units; the model computes the same function.

    Args:
        graph: from `graftlib.trace`.
        permutations: class, its number, or a glob of layers -> order; entry i is the unit that comes to place
            i. Others stay.
        seed: where `permutations` is None: an order drawn for every free class.
        model: None is the traced one, else another of the same structure; wrappers of DataParallel, DDP and
            `torch.compile` are looked through, here and in all edits: what comes back is the module inside.
        inplace: write into the model itself; otherwise a copy is made.

    Returns:
        the edited model.

    Raises:
        SurgeryError: an argument is not what it should be, neither or both of `permutations` and `seed` are given, a
            class is frozen or unknown, an order is none, the model is another one, or run next to the old one on the
            traced input it gives something else. The model is as it was.

    Warns:
        SurgeryWarning: a buffer is permuted that a Hugging Face model does not save.
    """
    model = model_of(
        graph,
        model,
        inplace,
        permutations=(permutations, (Mapping, type(None))),
        seed=(seed, Seed | None),
    )
    if (permutations is None) == (seed is None):
        raise SurgeryError(
            "give either permutations or seed.", fix="surgery.permute(graph, seed=0)"
        )
    if permutations is None:
        orders = dict(draw([c for c in axis_classes(graph) if c.free], int(seed or 0)))
    else:
        orders = {
            each: _order(each.size, whole_numbers(order))
            for each, order in requested(graph, permutations).items()
        }
    before = config_state(model, graph)
    edited = editable(model, graph, orders, inplace=False)
    _move(edited, orders)
    must_stay(graph, model, edited)
    if inplace:
        drop_caches(model, graph, SurgeryError)
        _move(model, orders)
        edited = model
    refresh_config(edited, before, {each: each.size for each in orders})
    return edited


def _move(model: nn.Module, orders: Mapping[AxisClass, Tensor]) -> None:
    for each, order in orders.items():
        for member in each.members:
            move(tensor_of(model, member.fqn).detach(), member, order)


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
