"""A wish for a whole model: which classes it means, and which of them can have it.

In: a graph. Out: the free classes, of nested ones (heads x head_dim, groups x group size) only the outer; and the
largest part of a list of classes that an edit takes. Always true: what is left out of the second is named.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from math import prod

from torch import Tensor, nn

from ..graph import LayerGraph
from ..graph.axes import AxisClass, Member, axis_classes
from .refusal import SurgeryError, SurgeryWarning

__all__ = ["outer_classes", "where_possible"]

Kept = Mapping[AxisClass, Tensor]
Attempt = Callable[[Kept], nn.Module]


def outer_classes(graph: LayerGraph) -> list[AxisClass]:
    """The free classes, without those that lie inside another free one.

    Where an axis is heads x head_dim, half of the heads is half of the axis, and half of both would be a quarter. Whole
    heads and whole groups go, as what is computed inside of them stays as it was.
    """
    free = [each for each in axis_classes(graph) if each.free]
    by_axis: dict[tuple[str, int], list[tuple[Member, AxisClass]]] = {}
    for each in free:
        for member in each.members:
            by_axis.setdefault((member.fqn, member.axis), []).append((member, each))
    inner: set[AxisClass] = set()
    for held in by_axis.values():
        for member, each in held:
            if any(other is not each and _inside(member, around) for around, other in held):
                inner.add(each)
    return [each for each in free if each not in inner]


def _inside(member: Member, around: Member) -> bool:
    """Whether a unit of `around` holds all units of `member` that lie beside each other."""
    if member.start >= around.start + prod(around.factors):
        return False
    if around.start >= member.start + prod(member.factors):
        return False
    return _stride(member) < _stride(around)


def _stride(member: Member) -> int:
    return prod(member.factors[member.position + 1 :])


def where_possible(wishes: Kept, attempt: Attempt) -> tuple[nn.Module, Kept]:
    """The edited model with as many of the wishes as go together, and those wishes.

    Args:
        wishes: class -> the units that it shall keep.
        attempt: makes the edited model for some of them, or raises SurgeryError.

    Raises:
        SurgeryError: none of the classes can be edited.

    Warns:
        SurgeryWarning: some were left as they are.
    """
    refusals: dict[AxisClass, SurgeryError] = {}
    made, done = _most(wishes, attempt, refusals)
    if made is None:
        first = next(iter(refusals.values()), None)
        raise SurgeryError(
            f"none of the {len(wishes)} free classes can be edited.",
            why=first.what if first else "all axes are frozen",
            fix="look at graph.axis_classes, and give the classes that are meant",
        ) from first
    if refusals:
        _name(refusals, len(wishes))
    return made, done


def _name(refusals: Mapping[AxisClass, SurgeryError], count: int) -> None:
    named = "; ".join(f"{each.size} units of {each.members[0]}" for each in list(refusals)[:8])
    more = f"; and {len(refusals) - 8} more" if len(refusals) > 8 else ""
    why = " ".join(dict.fromkeys(error.what for error in refusals.values()))
    warnings.warn(
        f"{len(refusals)} of {count} classes were left as they are: {named}{more}. {why}",
        SurgeryWarning,
        stacklevel=4,
    )


def _most(
    wishes: Kept, attempt: Attempt, refusals: dict[AxisClass, SurgeryError]
) -> tuple[nn.Module | None, Kept]:
    """By halves: one bad class among n costs about 2 log n attempts. What shares an axis stays together longest."""
    if not wishes:
        return None, {}
    try:
        return attempt(wishes), wishes
    except SurgeryError as error:
        if len(wishes) == 1:
            refusals.update(dict.fromkeys(wishes, error))
            return None, {}
    first_half, second_half = _halves(wishes)
    one, some = _most(first_half, attempt, refusals)
    other, others = _most(second_half, attempt, refusals)
    if one is None or other is None:
        return (other, others) if one is None else (one, some)
    both = {**some, **others}
    try:
        return attempt(both), both
    except SurgeryError as error:
        first = len(some) >= len(others)
        refusals.update(dict.fromkeys(others if first else some, error))
        return (one, some) if first else (other, others)


def _halves(wishes: Kept) -> tuple[Kept, Kept]:
    parts: list[list[AxisClass]] = []
    for each in wishes:
        axes = {(m.fqn, m.axis) for m in each.members}
        near = [
            part for part in parts if any(axes & {(m.fqn, m.axis) for m in c.members} for c in part)
        ]
        parts = [part for part in parts if part not in near] + [
            [*(c for p in near for c in p), each]
        ]
    if len(parts) == 1:
        parts = [[each] for each in parts[0]]
    first = [each for part in parts[: len(parts) // 2] for each in part]
    return {c: wishes[c] for c in first}, {c: wishes[c] for c in wishes if c not in first}
