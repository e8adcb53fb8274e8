"""Importance: which units are worth keeping, as a number for each unit of a class; larger is better.

`IMPORTANCES` are the ones that `prune` knows by name. Of ``"magnitude"`` it is always true that units which are
switched off, proven by the weights, have exactly 0, and all others more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from ..errors import MatchError, nearest
from ..graph import LayerGraph
from ..graph.axes import AxisClass, Member
from ..graph.ops import does, name_of
from ..graph.parameter import Parameter
from .edits import tensor_of
from .flow import Flows, flows_of
from .refusal import SurgeryError
from .squares import Squares

__all__ = [
    "IMPORTANCES",
    "Importance",
    "Ranking",
    "magnitude",
    "norm_of",
    "parameter_of",
    "ranking",
    "reads",
    "uniform",
]

Importance = Callable[[LayerGraph, nn.Module, AxisClass], Tensor]
"""(graph, model, class) -> (size,): a number for each unit of the class; larger is kept."""
Ranking = Callable[[AxisClass], Tensor]
"""An importance bound to a graph and a model: class -> (size,)."""
_SUMS = frozenset(("add", "sub"))
_CANDIDATES = frozenset(("cell", "new"))  # parts of a recurrent weight


def magnitude(graph: LayerGraph, model: nn.Module, squares: Squares | None = None) -> Ranking:
    """The norm of what makes a unit, times all that scales it on its way, times the norm of what reads it.

    The root of the flow through the unit (`flow`), summed over the ways that lead through it. Where an op reads a
    weight that `flow` does not know (a recurrent layer), the norm of what makes the unit times that of what reads it.
    `squares` are the sums over the model's weights that are known already.
    """
    squares = squares or Squares()

    @functools.cache
    def flows() -> Flows:
        return flows_of(graph, model, squares)

    def rank(each: AxisClass) -> Tensor:
        through_all = flows().through
        known = [m for m in each.members if (m.fqn, m.axis) in through_all]
        if not known or any(m.fqn in flows().unknown for m in each.members):
            return _norms(graph, model, each, squares)
        through = torch.zeros(each.size, dtype=torch.float64, device="cpu")
        for member in known:
            through += _per_unit(through_all[member.fqn, member.axis], member)
        # Behind a head or a norm that starts at zero all are off; the weights still say which are worth training.
        return through.sqrt() if bool(through.any()) else _norms(graph, model, each, squares)

    return rank


def uniform(graph: LayerGraph, model: nn.Module) -> Ranking:
    """Evenly spaced units, whatever they weigh: low-discrepancy numbers by place."""

    def rank(each: AxisClass) -> Tensor:
        places = torch.arange(each.size, dtype=torch.float64, device="cpu")
        return -(places * 0.6180339887498949).frac()

    return rank


IMPORTANCES: Mapping[str, Callable[[LayerGraph, nn.Module], Ranking]] = {
    "magnitude": magnitude,
    "uniform": uniform,
}
"""Those that `prune` takes by name."""


def ranking(importance: str | Importance, graph: LayerGraph, model: nn.Module) -> Ranking:
    """An importance by name or as a function, for all classes of one model; its values are read once, here or later.

    Raises:
        SurgeryError: there is no importance of this name.
    """
    if not isinstance(importance, str):
        function = importance
        return lambda each: function(graph, model, each)
    if importance not in IMPORTANCES:
        raise SurgeryError(
            f"there is no importance {importance!r}.",
            near=nearest(importance, list(IMPORTANCES)),
            fix="use "
            + ", ".join(map(repr, IMPORTANCES))
            + ", or a function of (graph, model, class) that gives a number for each unit",
        )
    return IMPORTANCES[importance](graph, model)


def reads(graph: LayerGraph, member: Member) -> bool:
    """Whether the tensor reads the units, rather than makes them."""
    known = parameter_of(graph, member.fqn)
    return known is not None and known.axes[member.axis] == "in"


def parameter_of(graph: LayerGraph, fqn: str) -> Parameter | None:
    """What the graph knows of a parameter; None for a buffer, such as a running statistic."""
    try:
        return graph.parameter(fqn)
    except MatchError:
        return None


def _norms(graph: LayerGraph, model: nn.Module, each: AxisClass, squares: Squares) -> Tensor:
    product = torch.ones(each.size, dtype=torch.float64, device="cpu")
    for reading in (False, True):
        side = [m for m in each.members if reads(graph, m) is reading]
        if side:
            norm = norm_of(model, side, squares)
            added = 0 if reading else _added(graph, model, side, squares)
            product = product * (norm.square() + added).sqrt()
    made = [m for m in each.members if not reads(graph, m)]
    return torch.where(_never_on(graph, model, made, squares), 0.0, product)


def _never_on(
    graph: LayerGraph, model: nn.Module, members: Sequence[Member], squares: Squares
) -> Tensor:
    """(units,) bool: all that makes them is 0; of an LSTM or a GRU the candidate, as gates only scale it.

    What no parameter makes, as the features of an input, is on, and so is what an added buffer makes.
    """
    added = _added(graph, model, members, squares)
    weights = [(m, tensor_of(model, m.fqn)) for m in members]
    weights = [(m, tensor) for m, tensor in weights if isinstance(tensor, nn.Parameter)]
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    for member, tensor in weights:
        rows = member.units(squares.along(member.fqn, tensor, member.axis), 0)
        gates = [*graph.parameter(member.fqn).parts]
        if len(gates) == rows[0].numel() and not _CANDIDATES.isdisjoint(gates):
            rows = rows.reshape(len(rows), -1)[:, [g in _CANDIDATES for g in gates]]
        total = total + rows.reshape(len(rows), -1).sum(1)
    return total + added == 0 if weights else total > 0


def _added(
    graph: LayerGraph, model: nn.Module, members: Sequence[Member], squares: Squares
) -> Tensor:
    """(units,) doubles, or a zero: the squares of buffers that are added to the units, such as positions."""
    sums = {n.target for n in graph.fx.nodes if n.op == "get_attr" and _is_added(n)}
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    for member in members:
        tensor = tensor_of(model, member.fqn)
        if member.fqn in sums and not isinstance(tensor, nn.Parameter) and not tensor.is_meta:
            along = squares.along(member.fqn, tensor, member.axis)
            total = total + _per_unit(along, member)
    return total


def _is_added(node: fx.Node) -> bool:
    """Whether a sum takes a value, maybe in another shape or a part of it."""
    return any(
        name_of(user) in _SUMS or (does(user) == "moves" and _is_added(user)) for user in node.users
    )


def norm_of(model: nn.Module, members: Sequence[Member], squares: Squares | None = None) -> Tensor:
    """(units,) doubles: the norm of the parameters of some members of a class, unit by unit."""
    squares = squares or Squares()
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    for member in members:
        tensor = tensor_of(model, member.fqn)
        if tensor.is_meta:
            raise SurgeryError(
                f"'{member.fqn}' is on the meta device and has no values to rank units by.",
                fix="say which units stay: {0: [0, 2, 3]}; or rank them by place: importance='uniform'",
            )
        if isinstance(tensor, nn.Parameter):
            total = total + _per_unit(squares.along(member.fqn, tensor, member.axis), member)
    return total.sqrt()


def _per_unit(along: Tensor, member: Member) -> Tensor:
    """(size of the axis,) -> (units,): sums over all but the units of `member`."""
    if member.factors == along.shape:
        return along
    rows = member.units(along, 0)
    return rows.reshape(rows.shape[0], -1).sum(1)
