"""What units are worth, from weights or from one pass over data.

In: a graph, its model, classes, and batches where the measure asks for them. Out: (size,) doubles for each class,
larger is better. Always true: the model, its gradients and the random states are as they were; data are streamed once,
and only sums over them are held.

A unit is judged where it is read: by the values x_i that arrive there, and by the weights w_oi that read them, summed
over all that read it. That takes in whatever scales it on its way, and every reader of a stream.

    activation    mean |x_i|                                  Minitron (Muralidharan et al. 2024, eq. 1)
    wanda         (sum_o w_oi^2 E[x_i^2])^1/2                  Wanda (Sun et al. 2023, eq. 1), over a whole column
    fluctuation   sum_o w_oi^2 Var[x_i]                       FLAP (An et al. 2024, eq. 4)
    taylor        E |sum_o w_oi dL/dw_oi|                     Molchanov et al. 2019, eq. 8: the gate of a unit
    fisher        E (sum_o w_oi dL/dw_oi)^2                   Liu et al. 2021, eq. 5: Group Fisher pruning
Elsewhere: ``"magnitude"`` and ``"uniform"``, which need no data (`surgery.importance`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import nearest, shown
from ..graph import LayerGraph, structure
from ..graph.axes import AxisClass, Member
from ..graph.tensors import tensor_leaves
from ..progress import track
from ..random_state import preserved
from ..surgery import SurgeryError, SurgeryWarning
from ..surgery.consumers import use_of
from ..surgery.edits import tensor_of
from ..surgery.importance import Importance, ranking, reads
from ..surgery.recording import Batch, Op, Twin
from .names import FROM_DATA, IMPORTANCES

__all__ = ["Losses", "importances"]

# Given a model, yields a loss for each batch of labelled data.
Losses = Callable[[nn.Module], Iterable[Tensor]]


def importances(
    graph: LayerGraph,
    model: nn.Module,
    classes: Sequence[AxisClass],
    importance: str | Importance,
    batches: Sequence[Batch] | None,
    losses: Losses | None = None,
) -> dict[AxisClass, Tensor]:
    """A number for each unit of each class.

    Args:
        graph: of the model.
        model: the traced one, or another of the same structure.
        classes: that are asked for.
        importance: a name of the table above, ``"magnitude"``, ``"uniform"``, or a function of (graph, model, class).
        batches: inputs, for what is measured on data.
        losses: for ``"taylor"`` and ``"fisher"``: given the model, it yields a loss for each batch. None: the outputs
            on `batches`, each element with a random sign, so that what is measured is how far the outputs move.

    Returns:
        class -> (size,) doubles on the CPU; a class that nothing measurable reads is not among them.

    Raises:
        SurgeryError: there is no such measure, it needs data, or it gives other numbers than one for each unit.

    Warns:
        SurgeryWarning: classes that could not be measured.
    """
    if isinstance(importance, str) and importance not in IMPORTANCES:
        raise SurgeryError(
            f"there is no importance {shown(importance)}.",
            near=nearest(importance, IMPORTANCES),
            fix=f"use one of {', '.join(IMPORTANCES)}, or a function of (graph, model, class)",
        )
    if importance not in FROM_DATA:
        rank = ranking(importance, graph, model)
        return {each: _checked(rank(each), each) for each in classes}
    by_gradient = importance in ("taylor", "fisher")
    if batches is None and not (by_gradient and losses is not None):
        raise SurgeryError(
            f"importance {importance!r} is measured on data, and there are none.",
            fix="give data=[batch, ...], or importance='magnitude'",
        )
    if by_gradient:
        source = _outputs_moved(batches or ()) if losses is None else losses
        values = _by_gates(graph, model, classes, source, 1 if importance == "taylor" else 2)
    else:
        values = _by_inputs(graph, model, classes, str(importance), batches or ())
    missing = [each for each in classes if each not in values]
    if missing:
        warnings.warn(
            f"{len(missing)} of {len(classes)} classes are left as they are, as nothing that reads them can be "
            "measured: " + "; ".join(str(each.members[0]) for each in missing[:8]),
            SurgeryWarning,
            stacklevel=4,
        )
    return {each: _checked(value, each) for each, value in values.items()}


def _checked(values: object, each: AxisClass) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if numbers.shape != (each.size,) or not bool(numbers.isfinite().all()):
        raise SurgeryError(
            f"the importance of {each.size} units is no finite number for each.",
            where={"class": str(each.members[0]), "given": f"a tensor {tuple(numbers.shape)}"},
            fix="give (size,) finite numbers; non-finite ones come from a model or data that hold some",
        )
    return numbers


def _readers(graph: LayerGraph, each: AxisClass) -> Iterator[Member]:
    return (member for member in each.members if reads(graph, member))


def _per_unit(along: Tensor, member: Member) -> Tensor:
    """(length of the axis,) -> (units,): sums over all but the units of `member`."""
    part = along.narrow(0, member.start, prod(member.factors))
    rows = part.reshape(member.factors).movedim(member.position, 0)
    return rows.reshape(rows.shape[0], -1).sum(1)


# By what arrives -------------------------------------------------------------------------------------------------


class _Inputs:
    """Sums over all that arrived at a weight, feature by feature: how many rows, |x|, x, x^2."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums: Tensor = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """(rows, features)."""
        x = x.detach()
        x = x.to("cpu", torch.float64) if x.device.type == "mps" else x.double()
        sums = torch.stack([x.abs().sum(0), x.sum(0), x.square().sum(0)])
        self.rows += len(x)
        self.sums = self.sums + sums.cpu()


def _by_inputs(
    graph: LayerGraph,
    model: nn.Module,
    classes: Sequence[AxisClass],
    how: str,
    batches: Iterable[Batch],
) -> dict[AxisClass, Tensor]:
    inputs: dict[str, _Inputs] = {}
    twin = Twin(model)

    def see(op: Op) -> None:
        use = use_of(op)
        fqn = None if use is None else twin.names.get(id(use.weight))
        if use is not None and fqn is not None and use.groups == 1:
            dim = 1 if use.stored == "conv" else -1
            rows = use.input.movedim(dim, -1).reshape(-1, use.input.shape[dim])
            inputs.setdefault(fqn, _Inputs()).add(rows)

    for batch in track(batches):
        twin.run(batch, see)
    values: dict[AxisClass, Tensor] = {}
    for each in classes:
        parts = [
            _per_unit(_MEASURES[how](tensor_of(model, m.fqn), m.axis, inputs[m.fqn]), m)
            / (prod(m.factors) // each.size if how == "activation" else 1)
            for m in _readers(graph, each)
            if m.fqn in inputs and inputs[m.fqn].sums.shape[1] == _length(model, m)
        ]
        if parts:
            total = torch.stack(parts).sum(0)
            values[each] = {"activation": total / len(parts), "wanda": total.sqrt()}.get(how, total)
    return values


def _length(model: nn.Module, member: Member) -> int:
    return tensor_of(model, member.fqn).shape[member.axis]


def _columns(weight: Tensor, axis: int) -> Tensor:
    """(features,): the square of the norm of what reads each."""
    squares = weight.detach().to("cpu", torch.float64).square()
    return squares.movedim(axis, 0).reshape(weight.shape[axis], -1).sum(1)


def _activation(weight: Tensor, axis: int, x: _Inputs) -> Tensor:
    return x.sums[0] / x.rows


def _wanda(weight: Tensor, axis: int, x: _Inputs) -> Tensor:
    return _columns(weight, axis) * x.sums[2] / x.rows


def _fluctuation(weight: Tensor, axis: int, x: _Inputs) -> Tensor:
    variance = x.sums[2] / x.rows - (x.sums[1] / x.rows).square()
    return _columns(weight, axis) * variance.clamp_min(0)


_MEASURES: Mapping[str, Callable[[Tensor, int, _Inputs], Tensor]] = {
    "activation": _activation,
    "wanda": _wanda,
    "fluctuation": _fluctuation,
}


# By what the output would feel -----------------------------------------------------------------------------------


def _outputs_moved(batches: Sequence[Batch]) -> Losses:
    def losses(model: nn.Module) -> Iterator[Tensor]:
        with preserved(0):
            for args, kwargs in track(batches):
                outputs = [
                    t for t in tensor_leaves(model(*args, **kwargs)) if t.is_floating_point()
                ]
                yield sum(
                    (
                        (t * torch.randint(0, 2, t.shape, device=t.device).mul(2).sub(1)).sum()
                        for t in outputs
                    ),
                    torch.zeros(()),
                )

    return losses


def _by_gates(
    graph: LayerGraph,
    model: nn.Module,
    classes: Sequence[AxisClass],
    losses: Losses,
    power: int,
) -> dict[AxisClass, Tensor]:
    """E |dL/dgate|^power, where the gate of a unit multiplies it wherever it is read, and is 1."""
    twin = structure.rebuild(model, structure.alias)
    readers = {each: list(_readers(graph, each)) for each in classes}
    wanted = dict.fromkeys(m.fqn for members in readers.values() for m in members)
    weights: dict[str, Any] = {fqn: tensor_of(twin, fqn) for fqn in wanted}
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    totals: Counter[AxisClass] = Counter()
    count = 0
    with torch.enable_grad():
        for loss in losses(twin):
            count += 1
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            felt = {
                fqn: (weight.detach() * gradient).to("cpu", torch.float64)
                for (fqn, weight), gradient in zip(weights.items(), gradients, strict=True)
                if gradient is not None
            }
            for each, members in readers.items():
                gates = [_gate(felt[m.fqn], m) for m in members if m.fqn in felt]
                if gates:
                    totals[each] += torch.stack(gates).sum(0).abs() ** power  # type: ignore[assignment]
    if not count:
        raise SurgeryError("there is no loss to measure by.", fix="yield at least one")
    return {each: torch.as_tensor(total) / count for each, total in totals.items()}


def _gate(felt: Tensor, member: Member) -> Tensor:
    along = felt.movedim(member.axis, 0).reshape(felt.shape[member.axis], -1).sum(1)
    return _per_unit(along, member)
