"""The controls of widen's proof and of the importance of units: is a wrong widening seen, is a wrong choice?

In: a layer graph of a small model in double precision. Out: reports of single breaks, each of which runs the model: for
tests and benchmarks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import LayerGraph
from ..graph.axes import AxisClass, Member, axis_classes
from ..graph.axes.breaks import Break
from .edits import rows_of, tensor_of
from .fill import Fill, grown
from .importance import norm_of, reads
from .proof import TOLERANCE, change
from .prune import prune
from .refusal import SurgeryError
from .whole_model import outer_classes
from .widen import units_like, widen

__all__ = ["forgetful_importances", "wrong_widenings"]


def wrong_widenings(graph: LayerGraph, *, seed: int = 0) -> Iterator[Break]:
    """Widen every class that may be widened to twice its width, and break one member after the other.

    A member that reads new units reads them as it reads the old ones, instead of with zeros; in any other member the
    old units are changed: what its new ones are is free, as nothing reads them.
    """
    for each in axis_classes(graph):
        if not each.free:
            continue
        try:
            wide = widen(graph, {each: 2 * each.size}, seed=seed)
        except SurgeryError:
            continue
        fill = grown(graph, {each: units_like(each.size, 2 * each.size, seed)})
        if change(graph, graph.model, wide) > TOLERANCE:
            raise AssertionError(f"widening {each.members[0]} was wrongly accepted")
        for member in each.members:
            broken = copy.deepcopy(wide)
            what = _broken(broken, graph.model, fill, (member.fqn, member.axis))
            yield Break(f"{member}: {what}", change(graph, graph.model, broken), member.blind)


def _broken(wide: nn.Module, model: nn.Module, fill: Fill, key: tuple[str, int]) -> str:
    fqn, axis = key
    tensor = tensor_of(wide, fqn).detach()
    silent = fill.silent.get(key)
    if silent is not None and len(silent):
        read: Tensor = tensor_of(model, fqn).detach().index_select(axis, fill.rows[key][silent])
        tensor.index_copy_(axis, silent, read)
        return "new units are read"
    # Not one number for all: inputs with a mean of zero do not show that. Not one unit: it may be switched off.
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(tensor.shape, dtype=tensor.dtype, generator=random, device="cpu")
    tensor.add_(noise.index_fill_(axis, fill.new[key], 0.0))
    return "old units are changed"


def forgetful_importances(graph: LayerGraph) -> Iterator[Break]:
    """Switch half of the units of every class off, and prune as many by an importance that does not see it.

    They are off by what makes them, or by what reads them, and large on the other side, which is all that the
    importance looks at. Where the units that are left alone give the function, ``"magnitude"`` must choose them.
    """
    for each in outer_classes(graph):
        off = torch.arange(each.size // 2, device="cpu")
        on = torch.arange(len(off), each.size, device="cpu")
        makers, readers = (
            [m for m in each.members if reads(graph, m) is side] for side in (False, True)
        )
        if not (len(off) and makers and readers):
            continue
        for zero, large, word in ((makers, readers, "makes"), (readers, makers, "reads")):
            model = copy.deepcopy(graph.model)
            _scale(graph, model, each, zero, on, 0.0)
            _scale(graph, model, each, large, on, 50.0)

            def changed(keep: Tensor | int, **options: Any) -> float:
                slim = prune(graph, {each: keep}, model=model, **options)  # noqa: B023
                return change(graph, model, slim)  # noqa: B023

            def forgets(graph: LayerGraph, model: nn.Module, each: AxisClass) -> Tensor:
                return norm_of(model, large)  # noqa: B023

            try:
                if changed(on) > TOLERANCE:
                    continue  # a norm over all units, or what comes after 0, still reads them
            except SurgeryError:
                continue  # the code holds the size
            if changed(len(on)) > TOLERANCE:
                raise AssertionError(f"units of {each.members[0]} that are off were kept")
            what = f"{each.members[0]}: an importance that forgets what {word} a unit"
            yield Break(what, changed(len(on), importance=forgets))


@torch.no_grad()
def _scale(
    graph: LayerGraph,
    model: nn.Module,
    each: AxisClass,
    members: list[Member],
    on: Tensor,
    factor: float,
) -> None:
    """Parameters times a factor, in place, where units are not `on`."""
    named = {(m.fqn, m.axis) for m in members}
    for (fqn, axis), left in rows_of(graph, {each: on}).items():
        tensor = tensor_of(model, fqn)
        if (fqn, axis) in named and isinstance(tensor, nn.Parameter):
            scale = torch.full(
                (tensor.shape[axis],), factor, dtype=tensor.dtype, device=tensor.device
            )
            scale[left] = 1.0
            tensor.mul_(scale.view([-1 if i == axis else 1 for i in range(tensor.ndim)]))
