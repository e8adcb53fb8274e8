"""The one form of every captured graph, and the builder that writes it.

A `torch.fx.Graph` of placeholders (the user's input tensors, flattened), ``get_attr`` nodes (parameters and buffers by
the first FQN of the user's model; other tensors as constants), ``call_function`` nodes (ATen overloads, and
`operator.getitem` for ops with several results) and one output node that holds a flat tuple.
``node.meta["val"]`` is a meta tensor, or a tuple of them; ``meta["call"]`` is the id of the module call that the node
belongs to and ``meta["module"]`` the FQN of that module; a constant's tensor is ``meta["constant"]``.
"""

from __future__ import annotations

import functools
import inspect
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._torch_private import DisableTorchFunction
from .call_stack import Call
from .skeleton import modules_of
from .tensors import tensor_leaves

__all__ = [
    "PLAIN_TENSORS",
    "Builder",
    "first_names",
    "graph_root",
    "input_names",
    "named_tensors",
    "snapshot",
]


# Tensors whose class says nothing of how they compute.
PLAIN_TENSORS = frozenset((Tensor, nn.Parameter, nn.Buffer))


def named_tensors(
    model: nn.Module, modules: Sequence[tuple[str, nn.Module]] | None = None
) -> dict[str, Tensor]:
    """FQN -> tensor of each parameter, then of each buffer, under its first name alone; `modules` if known already."""
    modules = list(modules_of(model)) if modules is None else modules
    seen: set[int] = set()
    named: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        for fqn, module in modules:
            for name, tensor in module.__dict__[kind].items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    named[f"{fqn}.{name}" if fqn else name] = tensor
    return named


def first_names(model: nn.Module) -> dict[int, str]:
    """`id` of each parameter and buffer -> its first FQN."""
    return {id(tensor): fqn for fqn, tensor in named_tensors(model).items()}


def snapshot(value: Any) -> Any:
    """Shapes, strides and dtypes of a result, as meta tensors (they do not follow in-place changes)."""
    if isinstance(value, Tensor):
        return _meta(value)
    if isinstance(value, (list, tuple)):
        return tuple(snapshot(item) for item in value)
    return value


def _meta(tensor: Tensor) -> Tensor:
    with DisableTorchFunction():
        if tensor.is_meta and type(tensor) in PLAIN_TENSORS:
            return tensor.detach()
        if tensor.layout is not torch.strided:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def input_names(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """A name for each input tensor: the forward pass's own word, with a number where it holds several."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        words = [*bound][: len(args)]
        starred = isinstance(bound.get(words[-1]) if words else None, tuple)
    except (TypeError, ValueError):
        words, starred = [], True
    if starred or len(words) != len(args):
        words = [f"arg{i}" for i in range(len(args))]
    names = []
    for word, tree in [*zip(words, args, strict=True), *kwargs.items()]:
        count = len(tensor_leaves(tree))
        names += [word] if count == 1 else [f"{word}_{i}" for i in range(count)]
    return [re.sub(r"\W", "_", name) for name in names]


def graph_root(model: nn.Module, graph: fx.Graph) -> dict[str, Tensor]:
    """What ``get_attr`` nodes read: the own tensors of `model`, and the graph's own constants.

    ``torch.fx.GraphModule(graph_root(model, graph), graph)`` runs at the captured shapes, where every constant
    is real.
    """
    tensors = named_tensors(model)
    reads = [node for node in graph.nodes if node.op == "get_attr"]
    return {
        node.target: node.meta["constant"] if "constant" in node.meta else tensors[node.target]
        for node in reads
    }


@functools.lru_cache(maxsize=4096)
def _word(target: Any) -> str:
    """What nodes of a target are called, before they are numbered."""
    name = target if isinstance(target, str) else target.__name__
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace(".", "_")


class Builder:
    """Writes a graph in the normal form.

    Args:
        moment: gives the call that is running; asked once a node.
    """

    def __init__(self, moment: Callable[[], Call]) -> None:
        self.graph = fx.Graph()
        self._moment = moment
        self._reads: dict[str, fx.Node] = {}
        self._constants = 0

    def placeholder(self, name: str, tensor: Tensor) -> fx.Node:
        """One input tensor of the user."""
        return self._note(self.graph.placeholder(name), tensor)

    def read(self, fqn: str, tensor: Tensor) -> fx.Node:
        """A parameter or buffer; one node however often it is read."""
        if fqn not in self._reads:
            self._reads[fqn] = self._note(self._create("get_attr", fqn, (), {}), tensor)
        return self._reads[fqn]

    def constant(self, tensor: Tensor) -> fx.Node:
        """A tensor that came from neither the inputs nor the model's parameters and buffers."""
        target = f"_constant_{self._constants}"
        node = self._note(self._create("get_attr", target, (), {}), tensor)
        self._constants += 1
        node.meta["constant"] = tensor.detach().clone()
        return node

    def call(self, op: Any, args: Any, kwargs: Any, result: Any) -> fx.Node:
        """One call of an op; `args` hold nodes where there were tensors."""
        if op is torch.ops.aten.lift_fresh.default:
            # Outside of tracing it is the identity: a write to its result would spoil the constant.
            op = torch.ops.aten.lift_fresh_copy.default
        return self._note(self._create("call_function", op, args, kwargs), result)

    def items(self, node: fx.Node, result: Any) -> Iterable[tuple[Tensor, fx.Node]]:
        """(tensor, its node) for each tensor of a call's result, with `getitem` nodes between."""
        if isinstance(result, Tensor):
            yield result, node
        elif isinstance(result, (list, tuple)):
            for i, item in enumerate(result):
                if isinstance(item, (Tensor, list, tuple)):
                    picked = self._create("call_function", operator.getitem, (node, i), {})
                    yield from self.items(self._note(picked, item), item)

    def output(self, nodes: Sequence[fx.Node]) -> fx.Graph:
        """Close the graph with the flat outputs."""
        out = self.graph.output(tuple(nodes))
        out.meta["val"] = tuple(node.meta["val"] for node in nodes)
        self.graph.lint()
        return self.graph

    def _create(self, op: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        # The arguments afterwards: `create_node` would look for symbolic numbers among them, at half of its cost.
        node = self.graph.create_node(op, target, name=_word(target))
        if args:
            node.args = args
        if kwargs:
            node.kwargs = kwargs
        return node

    def _note(self, node: fx.Node, value: Any) -> fx.Node:
        call = self._moment()
        node.meta.update(val=snapshot(value), call=call.id, module=call.fqn)
        return node
