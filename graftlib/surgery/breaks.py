"""The control of widen's proof: is a wrong widening seen?

In: a layer graph of a small model in double precision. Out: reports of single breaks, each of which runs the model: for
tests and benchmarks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..graph import LayerGraph
from ..graph.axes import axis_classes
from ..graph.axes.breaks import Break
from .edits import tensor_of
from .fill import Fill, grown
from .proof import TOLERANCE, change
from .refusal import SurgeryError
from .widen import units_like, widen

__all__ = ["wrong_widenings"]


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
