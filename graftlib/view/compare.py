"""What became of a model: two layer graphs compared by structure and by weights.

In: two layer graphs. Out: a `Diff`: for every parameter how its shape relates to the other's and how far its weights
moved, and the edit that explains it in a word. Parameters are paired by name.
Before weights are compared, the units of every free axis class of the first model are put in the order of the second
(weight matching by axis classes, Ainsworth et al. 2023, "Git Re-Basin", section 3.2, with as many units as the second
has): a permuted network is then the same, and a pruned one is a part of the other. Classes are solved in the model's
order, each first by the axes that are known already, then all again until nothing changes.
Always true: neither model is changed or run; weights on the meta device are compared by structure alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..graph.axes.tree import Sum
from ..reports import Table

if TYPE_CHECKING:
    from ..graph.axes import AxisClass, Member

__all__ = ["Change", "Diff", "diff"]

SAME = 1e-5
"""A relative change below this is rounding."""
FINE_TUNED, RELATED = 0.95, 0.5
"""Cosines of all weights: above the first nothing but training happened, below the second nothing is common."""
MOST_SWEEPS = 20
MOST_LINES = 12


@dataclass(frozen=True)
class Change:
    """One parameter.

    Attributes:
        fqn: its name in both models.
        structure: ``"same"``, ``"narrower"`` or ``"wider"`` (the second by the first, on every axis that differs),
            ``"reshaped"``, ``"missing"`` (in the second) or ``"added"``.
        source_shape, target_shape: None where it is not there.
        change: the Frobenius norm of the difference of aligned weights by that of the first model's; None where they
            cannot be compared.
    """

    fqn: str
    structure: str
    source_shape: tuple[int, ...] | None
    target_shape: tuple[int, ...] | None
    change: float | None = None


@dataclass(frozen=True)
class Diff(Table):
    """How a second model differs from a first. ``print`` it.

    Attributes:
        source, target: the models' names.
        edit: what explains the difference: ``"identical"``, ``"permuted"``, ``"fine-tuned"``, ``"merged"`` (with
            weights that are no training of the first), ``"pruned"``, ``"widened"``, ``"layers dropped"``, ``"layers
            added"``, joined by ``" and "`` where several hold; ``"unrelated"``; ``"same structure"`` or
            ``"other structure"`` where there are no weights to compare. It is an inference from shapes and one cosine,
            not a record of what was done.
        cosine: of all aligned weights, -1.0 to 1.0; None where none can be compared.
        changes: one a parameter, in the first model's order, then what was added.
    """

    source: str
    target: str
    edit: str
    cosine: float | None
    changes: tuple[Change, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """The report, a line each: the edit, the counts, the largest changes."""
        counts: dict[str, int] = {}
        for each in self.changes:
            counts[each.structure] = counts.get(each.structure, 0) + 1
        lines = [f"{self.target} by {self.source}: {self.edit}"]
        lines.append(", ".join(f"{count} {name}" for name, count in counts.items()) + " parameters")
        if self.cosine is not None:
            compared = sum(each.change is not None for each in self.changes)
            lines.append(f"cosine of the aligned weights of {compared} of them {self.cosine:.4f}")
        told = [each for each in self.changes if each.structure != "same"]
        lines += [
            f"{each.structure:<9} {each.fqn}  {_size(each.source_shape)} -> {_size(each.target_shape)}"
            for each in told[:MOST_LINES]
        ]
        if len(told) > MOST_LINES:
            lines.append(f"and {len(told) - MOST_LINES} more of other shapes")
        moved = [each for each in self.changes if (each.change or 0.0) > SAME]
        moved.sort(key=lambda each: -(each.change or 0.0))
        lines += [f"changed   {each.fqn}  by {each.change:.2%}" for each in moved[:MOST_LINES]]
        if len(moved) > MOST_LINES:
            lines.append(f"and {len(moved) - MOST_LINES} more changed less")
        return tuple(lines)

    @property
    def overlay(self) -> dict[str, dict[str, float]]:
        """For `view`: how far the weights of each layer moved, the most moved parameter of it, in both models."""
        moved: dict[str, float] = {}
        for each in self.changes:
            if each.change is not None:
                layer = each.fqn.rpartition(".")[0]
                moved[each.fqn] = moved[layer] = max(each.change, moved.get(layer, 0.0))
        return (
            {"change": {each.fqn: moved[each.fqn] for each in self.changes if each.fqn in moved}}
            if moved
            else {}
        )

    def table(self) -> tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]:
        """A row for each parameter, as in `Change`."""
        columns = ("fqn", "structure", "source_shape", "target_shape", "change")
        return columns, (tuple(getattr(each, name) for name in columns) for each in self.changes)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def diff(source: Any, target: Any) -> Diff:
    """Compare two layer graphs.

    Args:
        source: the first, the one that the words of the result start from.
        target: the second.

    >>> import torch
    >>> from torch import nn
    >>> from graftlib.graph import trace
    >>> first, second = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
    >>> order = [2, 0, 3, 1]
    >>> _ = second.load_state_dict(
    ...     {
    ...         "0.weight": first[0].weight[order],
    ...         "0.bias": first[0].bias[order],
    ...         "2.weight": first[2].weight[:, order],
    ...         "2.bias": first[2].bias,
    ...     }
    ... )
    >>> diff(trace(first, torch.zeros(1, 3)), trace(second, torch.zeros(1, 3))).edit
    'permuted'
    """
    ours = {each.fqn: each for each in source.parameters()}
    theirs = {each.fqn: each for each in target.parameters()}
    common = [fqn for fqn in ours if fqn in theirs]
    weights = [(fqn, source.tensor(fqn).detach(), target.tensor(fqn).detach()) for fqn in common]
    comparable = bool(weights) and not any(a.is_meta or b.is_meta for _, a, b in weights)
    pairs, permuted = _aligned(source, target, weights) if comparable else ({}, False)
    changes = []
    for fqn in [*ours, *(fqn for fqn in theirs if fqn not in ours)]:
        before, after = (tuple(side[fqn].shape) if fqn in side else None for side in (ours, theirs))
        moved = None
        if fqn in pairs:
            a, b = pairs[fqn]
            norm = float(a.norm())
            moved = float((b - a).norm()) / norm if norm else float(bool(b.any()))
        changes.append(Change(fqn, _structure(before, after), before, after, moved))
    cosine = _cosine([pair for pair in pairs.values() if pair[0].ndim > 1] or [*pairs.values()])
    return Diff(source.name, target.name, _edit(changes, cosine, permuted), cosine, tuple(changes))


def _structure(ours: tuple[int, ...] | None, theirs: tuple[int, ...] | None) -> str:
    if ours is None or theirs is None:
        return "added" if ours is None else "missing"
    if ours == theirs:
        return "same"
    if len(ours) == len(theirs):
        if all(b <= a for a, b in zip(ours, theirs, strict=True)):
            return "narrower"
        if all(b >= a for a, b in zip(ours, theirs, strict=True)):
            return "wider"
    return "reshaped"


def _edit(changes: list[Change], cosine: float | None, permuted: bool) -> str:
    structures = {each.structure for each in changes}
    if cosine is None:
        return "same structure" if structures <= {"same"} else "other structure"
    if cosine < RELATED:
        return "unrelated"
    words = {
        "narrower": "pruned",
        "wider": "widened",
        "reshaped": "reshaped",
        "missing": "layers dropped",
        "added": "layers added",
    }
    edits = [word for structure, word in words.items() if structure in structures]
    if permuted and not {"narrower", "wider"} & structures:
        edits.append("permuted")
    if any((each.change or 0.0) > SAME for each in changes):
        edits.append("fine-tuned" if cosine >= FINE_TUNED else "merged")
    return " and ".join(edits) or "identical"


def _cosine(pairs: list[tuple[Tensor, Tensor]]) -> float | None:
    if not pairs:
        return None
    dot = sum(float((a * b).sum()) for a, b in pairs)
    norms = [sum(float((pair[i] * pair[i]).sum()) for pair in pairs) ** 0.5 for i in (0, 1)]
    return dot / (norms[0] * norms[1]) if all(norms) else float(norms[0] == norms[1])


Pairs = dict[str, tuple[Tensor, Tensor]]


def _aligned(
    source: Any, target: Any, weights: list[tuple[str, Tensor, Tensor]]
) -> tuple[Pairs, bool]:
    """Fqn -> (the first's weights in the second's order, the second's), and whether that order was another."""
    plain = {fqn: (a.double(), b.double()) for fqn, a, b in weights}
    raw = {fqn: pair for fqn, pair in plain.items() if pair[0].shape == pair[1].shape}
    as_it_is = _cosine([*raw.values()]) or 0.0
    if len(raw) == len(plain) and as_it_is >= FINE_TUNED:
        return raw, False
    matching = _Matching(source, target, plain)
    carried = matching.solved()
    moved = {fqn: (a, plain[fqn][1]) for fqn, a in carried if a.shape == plain[fqn][1].shape}
    aligned = _cosine([*moved.values()]) or 0.0
    # What is related as it stands is in that order, unless another explains all of it.
    better = aligned > as_it_is and (as_it_is < RELATED or aligned >= FINE_TUNED)
    if len(moved) > len(raw) or (len(moved) == len(raw) and better):
        return moved, matching.permuted
    return raw, False


class _Matching:
    """Which unit of the first model each unit of the second is, class by class."""

    def __init__(self, source: Any, target: Any, weights: Pairs) -> None:
        self.weights = weights
        self.axes = {fqn: source.axes(fqn) for fqn in weights if _has_axes(source, fqn)}
        here, there = _members(source), _members(target)
        # A class of the first -> its members beside those of the second.
        self.members: dict[AxisClass, list[tuple[Member, Member]]] = {}
        self.sizes: dict[AxisClass, int] = {}
        beside: dict[AxisClass, list[tuple[Member, AxisClass, Member]]] = {}
        for place, (each, member) in here.items():
            if each.free and place in there and member.fqn in self.axes:
                beside.setdefault(each, []).append((member, *there[place]))
        for each, pairs in beside.items():
            if len({id(other) for _, other, _ in pairs}) == 1:
                self.members[each] = [(member, other) for member, _, other in pairs]
                self.sizes[each] = pairs[0][1].size
        self.units: dict[AxisClass, Tensor] = {}

    @property
    def permuted(self) -> bool:
        """Whether some class that kept its size is in another order."""
        return any(
            len(units) == each.size and not torch.equal(units, torch.arange(each.size))
            for each, units in self.units.items()
        )

    def solved(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter of the first in the order of the second."""
        for _ in range(MOST_SWEEPS):
            before = dict(self.units)
            for each in self.members:
                self.units[each] = self._assigned(each)
            if before and all(torch.equal(before[each], self.units[each]) for each in before):
                break
        for fqn in self.axes:
            yield fqn, self._carried(fqn)

    def _assigned(self, each: AxisClass) -> Tensor:
        from scipy.optimize import linear_sum_assignment

        size = self.sizes[each]
        known, rest = torch.zeros(2, each.size, size, dtype=torch.float64)
        for member, other in self.members[each]:
            ours = _by_unit(self._carried(member.fqn, each, member.axis), member)
            theirs = _by_unit(self.weights[member.fqn][1], other)
            if ours.shape[1] != theirs.shape[1]:
                continue
            settled = all(
                leaf.axis_class is None
                or leaf.axis_class is each
                or leaf.axis_class.frozen_by
                or leaf.axis_class in self.units
                for number, axis in enumerate(self.axes[member.fqn])
                if number != member.axis or not isinstance(axis, Sum)
                for leaf in axis.leaves()
            )
            # Half of what the squared distance falls by: where units were dropped, norms count too.
            gain = ours @ theirs.T - ours.square().sum(1, keepdim=True) / 2
            (known if settled else rest).add_(gain)
        gains = known if bool(known.any()) else rest
        rows, columns = linear_sum_assignment(gains.numpy(), maximize=True)
        units = torch.arange(size) % each.size
        units[torch.as_tensor(columns)] = torch.as_tensor(rows)
        return units

    def _carried(self, fqn: str, without: AxisClass | None = None, on: int | None = None) -> Tensor:
        """The first's weights with the units of every solved class but one as the second has them.

        On axis `on`, where that class stands, a concatenation of which terms got other sizes stays as it is.
        """
        tensor = self.weights[fqn][0]
        units = {each: order for each, order in self.units.items() if each is not without}
        for number, axis in enumerate(self.axes[fqn]):
            if (
                number == on
                and isinstance(axis, Sum)
                and any(
                    leaf.axis_class in units and len(units[leaf.axis_class]) != leaf.size
                    for leaf in axis.leaves()
                    if leaf.axis_class
                )
            ):
                continue
            if any(leaf.axis_class in units for leaf in axis.leaves() if leaf.axis_class):
                tensor = tensor.index_select(number, axis.positions(units))
        return tensor


def _has_axes(graph: Any, fqn: str) -> bool:
    try:
        graph.axes(fqn)
    except LookupError:
        return False
    return True


def _members(graph: Any) -> dict[tuple[str, int, int], tuple[AxisClass, Member]]:
    """(parameter, axis, number on that axis from left to right) -> what stands there, whatever its size."""
    on_axis: dict[tuple[str, int], list[tuple[AxisClass, Member]]] = {}
    for each in graph.axis_classes:
        for member in each.members:
            on_axis.setdefault((member.fqn, member.axis), []).append((each, member))
    return {
        (*axis, number): there
        for axis, members in on_axis.items()
        for number, there in enumerate(
            sorted(members, key=lambda it: (it[1].start, it[1].position))
        )
    }


def _by_unit(tensor: Tensor, member: Member) -> Tensor:
    """(units, all else): what each unit of the member holds; nothing where it lies behind the end."""
    if tensor.shape[member.axis] < member.start + len(member.places):
        return tensor.new_zeros(member.factors[member.position], 0)
    units = member.units(tensor)
    return units.reshape(len(units), -1)


def _size(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else "×".join(map(str, shape)) or "scalar"
