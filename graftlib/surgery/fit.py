"""Give a model tensors of other sizes, and make it prove that it is still what it was.

In: for each (FQN, axis) the old places that the new tensor reads, and the new size of each class. Out: an edited
model that has run on the traced shapes (without values), and whose axis classes are the old ones in their new sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TraceError
from ..graph import LayerGraph
from ..graph.axes import AxisClass, Member, axis_classes
from ..graph.caches import drop_caches
from ..graph.capture import capture
from .edits import editable, owned, replace, tensor_of
from .refusal import SurgeryError
from .stale import (
    Set,
    refresh_heads,
    refresh_inner,
    refresh_layer,
    refresh_repeats,
    refresh_width,
)

__all__ = ["fitted"]

Rows = Mapping[tuple[str, int], Tensor]
_Block = tuple[str, int, int, tuple[int, ...]]


def fitted(
    model: nn.Module,
    graph: LayerGraph,
    rows: Rows,
    sizes: Mapping[AxisClass, int],
    *,
    inplace: bool,
    finish: Callable[[nn.Module], None] = lambda model: None,
) -> nn.Module:
    """The model with new sizes.

    Args:
        model: to be edited, or copied.
        graph: of the model.
        rows: (FQN, axis) -> for each place of the new axis, the old place that it reads.
        sizes: class -> how many units it will have.
        inplace: edit the model itself; otherwise a copy.
        finish: is given the edited model before it must prove itself; it raises SurgeryError to refuse it.

    Raises:
        SurgeryError: the modules do not run with these sizes. The model is as it was.
    """
    failure: SurgeryError | None = None
    # A size may be written down around the layer, or only far above it, or what is written around it is the size of
    # something else (GPT-2's width of an attention). The first reading that runs is the right one.
    for reach in (3, None, 1):
        edited = editable(model, graph, sizes, inplace=False)
        try:
            _resize(edited, graph, rows, sizes, reach)
            _must_run(edited, graph, sizes)
            finish(edited)
        except SurgeryError as error:
            failure = failure or error
            continue
        if not inplace:
            return edited
        drop_caches(model, graph, SurgeryError)
        _resize(model, graph, rows, sizes, reach)
        finish(model)
        return model
    assert failure is not None
    raise failure


def _resize(
    model: nn.Module,
    graph: LayerGraph,
    rows: Rows,
    sizes: Mapping[AxisClass, int],
    reach: int | None,
) -> None:
    around = dict(model.named_modules())
    groups = {_block(m) for each in axis_classes(graph) for m in each.members if m.position == 0}
    done: Set = set()
    for (fqn, axis), places in rows.items():
        tensor = tensor_of(model, fqn)
        replace(model, fqn, tensor.detach().index_select(axis, places.to(tensor.device)))
        refresh_width(_holders(around, fqn, reach), tensor.shape[axis], len(places), done)
    for each, size in sizes.items():
        for member in each.members:
            if len(member.factors) > 1:
                refresh = _refresh(member, groups)
                refresh(_holders(around, member.fqn, reach), each.size, size, done)
    for each, size in sizes.items():
        for member in each.members:
            for module, _, _ in owned(model, tensor_of(model, member.fqn)):
                name = member.fqn.rpartition(".")[0]
                refresh_layer(module, _groups(module, member, size), name=name)


def _refresh(
    member: Member, groups: Container[_Block]
) -> Callable[[list[object], int, int, Set], None]:
    """What sets the attributes that say the size of a factor: heads, those in a group of them, the inside of one."""
    if member.position == len(member.factors) - 1:
        return refresh_inner
    return refresh_repeats if member.position and _block(member) in groups else refresh_heads


def _block(member: Member) -> _Block:
    return member.fqn, member.axis, member.start, member.factors


def _groups(module: nn.Module, member: Member, count: int) -> int | None:
    """The new number of groups, where the class is the groups of this module."""
    old: Any = getattr(module, "groups", None) or getattr(module, "num_groups", None)
    first = member.axis == 0 and member.position == 0
    return count if first and old and old > 1 and member.factors[0] == old else None


def _holders(modules: Mapping[str, nn.Module], fqn: str, reach: int | None) -> list[object]:
    """What may hold the size of a tensor: the `reach` modules nearest to it; None: all above, and their configs."""
    path = fqn.split(".")[:-1]
    last = -1 if reach is None else max(len(path) - reach, -1 if reach > 1 else len(path) - 1)
    found: list[object] = [modules[".".join(path[:i])] for i in range(len(path), last, -1)]
    if reach is None:
        configs = [getattr(module, "config", None) for module in found]
        found += [config for config in configs if hasattr(config, "__dict__")]
    return found


def _must_run(model: nn.Module, graph: LayerGraph, sizes: Mapping[AxisClass, int]) -> None:
    args, kwargs = graph.example
    where = {
        f"{each.size} -> {size}{'' if i == 0 else f' ({i + 1})'}": ", ".join(
            map(str, each.members[:2])
        )
        for i, (each, size) in enumerate(sizes.items())
        if i < 6
    }
    fix = "leave these classes as they are, or take the sizes in the model's own code from its tensors"
    if not args and not kwargs:
        raise SurgeryError(
            "the edited model cannot be run: the graph keeps no example.", where=where, fix=fix
        )
    try:
        # What saw the model before sees it again; the other rungs would only take their time to refuse.
        with torch.device("cpu"):
            seen = capture(model, args, kwargs, rungs=(graph.rung,))
            after = LayerGraph(model, seen, args, kwargs)
    except TraceError as error:
        raise SurgeryError(
            "the modules do not run with these sizes.",
            where=where,
            why="; ".join(f"{rung}: {answer}" for rung, answer in error.answers.items())[:400],  # type: ignore[attr-defined]
            fix=fix,
        ) from error
    if after.outputs != graph.outputs:
        raise SurgeryError(
            "the outputs would change their shape.",
            where={"before": graph.outputs, "after": after.outputs, **where},
            fix=fix,
        )
    # A view with -1 in it runs with any size: two heads of four may pass for four heads of two.
    placed = min(sizes.values()) > 1  # a factor of one unit drops out, and the others move up
    if _outline(graph, sizes, placed) != _outline(after, {}, placed):
        raise SurgeryError(
            "the modules run with these sizes, but not as what they were.", where=where, fix=fix
        )


def _place(member: Member, placed: bool) -> tuple[str, int, int]:
    return member.fqn, member.axis, member.position if placed else 0


def _outline(graph: LayerGraph, sizes: Mapping[AxisClass, int], placed: bool) -> Counter[object]:
    """The free classes by their size and by where they lie, to the factor where `placed`; one unit is no class."""
    found: Counter[object] = Counter()
    for each in axis_classes(graph):
        size = sizes.get(each, each.size)
        if each.free and size > 1:
            found[size, frozenset(_place(m, placed) for m in each.members)] += 1
    return found
