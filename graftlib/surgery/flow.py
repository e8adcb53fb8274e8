"""How much of what the model computes flows through each unit: synaptic flow of squares, read from the graph.

In: a graph, the model that holds the values. Out: for each axis of a weight, the flow through its positions: the energy
of what is there (`energies`) times the gradient of what is read with respect to it (as in SynFlow, Tanaka et al. 2020).
So it multiplies whatever scales a channel between the weight that makes it and the weight that reads it: gains of norms
over their running deviations, layer scales, masks, gates, parametrizations.

Always true: a flow of 0 means that the channel reaches no output, or is 0. An op that is not known counts as reading
all of its inputs.
Not counted: the share of a channel in the statistics of a norm over channels.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph import LayerGraph
from ..graph.normal import named_tensors
from .energies import MOVES, SAME, Op, Value, Weight, anything, leaves, plain, rule_of
from .squares import Squares

__all__ = ["Flows", "flows_of"]


@dataclass(frozen=True)
class Flows:
    """What `flows_of` gives.

    Attributes:
        through: (FQN, axis) of a weight -> (size of the axis,) doubles: the flow through its positions there.
        unknown: FQNs of what an op reads that is not known here.
    """

    through: Mapping[tuple[str, int], Tensor]
    unknown: frozenset[str]


@torch.enable_grad()
def flows_of(graph: LayerGraph, model: nn.Module, squares: Squares | None = None) -> Flows:
    """The flow through every axis of every weight.

    Args:
        graph: from `graftlib.trace`.
        model: the traced one, or another of the same structure; not changed.
        squares: where sums over the model's weights are kept for others.
    """
    reader = _Reader(model, squares or Squares())
    reader.left.update(node for user in graph.ops.nodes for node in user.all_input_nodes)
    for node in graph.ops.nodes:
        reader.read(node)
        for used in node.all_input_nodes:
            reader.left[used] -= 1
            if not reader.left[used]:
                reader.values.pop(used, None)
    reader.backward()
    return Flows(reader.through, frozenset(reader.unknown))


@dataclass(eq=False)
class _Reader:
    """Goes through the graph once forward, op by op, and once backward."""

    model: nn.Module
    squares: Squares
    through: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    left: Counter[fx.Node] = field(default_factory=Counter)  # how often each is still read
    read_energy: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensors = named_tensors(self.model)

    def read(self, node: fx.Node) -> None:
        if node.op == "output":
            self.sink(self.arguments(node.args))
        elif node.op == "placeholder":
            self.values[node] = anything(node.meta.get("val"))
        elif node.op == "get_attr":
            fqn = str(node.target)
            tensor = node.meta.get("constant", self.tensors.get(fqn))
            if tensor is None or tensor.is_meta or tensor.layout is not torch.strided:
                self.values[node] = anything(node.meta.get("val"))
            else:
                names = frozenset([fqn]) if fqn in self.tensors else frozenset()
                self.values[node] = Weight(tensor.detach(), names)
        elif node.op == "call_function":
            self.values[node] = self.call(node)

    def call(self, node: fx.Node) -> Any:
        args, kwargs = self.arguments(node.args), self.arguments(node.kwargs)
        if node.target is operator.getitem:
            return args[0][args[1]] if isinstance(args[0], (list, tuple)) else args[0]
        op = Op(node, self.record, self.sums)
        if op.writes:
            self.overwritten(node)
        try:
            if not any(isinstance(x, Value) for x in leaves([args, kwargs])):
                return _computed(op, args, kwargs)
            rule = rule_of(op, args)
            value = None if rule is None else rule(op, *args, **kwargs)
            if value is not None:
                return value
        except (RuntimeError, TypeError, ValueError, LookupError, NotImplementedError):
            pass  # a form of the op that its rule does not know
        self.sink([args, kwargs])
        return anything(node.meta.get("val"))

    def overwritten(self, node: fx.Node) -> None:
        """What an op writes into may be seen under other names: nothing is known there any more."""
        root = node.args[0] if node.args else None
        while isinstance(root, fx.Node) and root.args and _is_move(root):
            root = root.args[0]
        names = [root] if isinstance(root, fx.Node) else []
        for name in names:
            names += [user for user in name.users if _is_move(user) and user.args[0] is name]
            later = self.left[name] - (name in node.all_input_nodes)
            if name in self.values and later:
                self.sink(self.values[name])
                self.values[name] = anything(name.meta.get("val"))

    def arguments(self, given: Any) -> Any:
        if isinstance(given, fx.Node):
            return self.values.get(given)
        if isinstance(given, (list, tuple)):
            return [self.arguments(item) for item in given]
        if isinstance(given, dict):
            return {key: self.arguments(item) for key, item in given.items()}
        return given

    def sink(self, given: Any) -> None:
        """All of these are read."""
        for value in leaves(given):
            if isinstance(value, Value):
                self.read_energy.append(value.energy.sum())
            elif isinstance(value, Weight):
                self.unknown |= value.names

    def backward(self) -> None:
        read = [energy for energy in self.read_energy if energy.requires_grad]
        if read:
            torch.autograd.backward(read)
        self.read_energy.clear()

    def sums(self, weight: Weight, groups: int) -> tuple[Tensor, Tensor]:
        """`sums_of_squares` of a weight; those of the model's own tensors are kept."""
        name = next(iter(weight.names), "")
        held = self.tensors.get(name)
        own = held is not None and held.data_ptr() == weight.tensor.data_ptr()
        if own and held is not None and held.shape == weight.tensor.shape:
            return self.squares.of(name, held, groups)
        return Squares().of("", weight.tensor, groups)

    def record(self, weight: Weight, axis: int, flow: Tensor) -> None:
        """Add the flow through the positions of an axis, for all tensors that have this axis of the weight."""
        size = weight.tensor.shape[axis]
        if len(flow) != size:
            flow = flow.view(-1, size).sum(0)  # group by group
        for name in weight.names:
            shape = self.tensors[name].shape
            if len(shape) == weight.tensor.ndim and shape[axis] == size:
                old = self.through.get((name, axis))
                self.through[name, axis] = flow if old is None else old + flow


def _is_move(node: fx.Node) -> bool:
    return node.target is operator.getitem or Op(node).name in MOVES | SAME


def _computed(op: Op, args: Any, kwargs: Any) -> Any:
    """An op on weights alone is run."""
    given = [x.names for x in leaves([args, kwargs]) if isinstance(x, Weight)]
    names = frozenset[str]().union(*given)
    with torch.no_grad(), torch.device("cpu"):
        result = op.function(*plain(args, op.writes), **plain(kwargs, op.writes))
    if isinstance(result, (list, tuple)):
        return [Weight(t, names) if isinstance(t, Tensor) else t for t in result]
    return Weight(result, names) if isinstance(result, Tensor) else result
