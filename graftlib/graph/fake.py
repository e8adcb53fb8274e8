"""The `fake` tracer: `torch.fx.experimental.proxy_tensor.make_fx` on fake tensors.

It knows the values of small constants, so it follows models that branch on them, where meta tensors have no value to
branch on. No real compute.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._torch_private import SWITCHES, FakeTensorMode, OpOverload
from . import structure
from .call_stack import Call, CallStack
from .normal import Builder, input_names
from .recorder import quiet, to_device
from .tensors import output_tensors, replaced, tensor_leaves

__all__ = ["record_fake", "rewrite"]


def record_fake(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> tuple[fx.Graph, list[Call]]:
    """Trace with `make_fx`; the fake tensors say that they are on `device`.

    Returns:
        the graph and the module calls that its nodes point to.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    twin = structure.rebuild(model, structure.alias)
    args, kwargs = to_device((tuple(args), dict(kwargs)), torch.device("cpu"))
    names = [*dict(twin.named_parameters()), *dict(twin.named_buffers())]
    state = [*twin.parameters(), *twin.buffers()]

    def run(*flat: Tensor) -> list[Tensor]:
        positional, named = replaced((args, kwargs), flat[len(names) :])
        tensors = dict(zip(names, flat, strict=False))
        return output_tensors(torch.func.functional_call(twin, tensors, positional, named))

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)
            for t in [*state, *tensor_leaves((args, kwargs))]
        ]
    stack = CallStack(model, twin, moved=_stamp)
    with quiet(), stack:
        tracer = make_fx(run, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)
        traced = tracer(*fakes)
    del mode
    heads = [node for node in traced.graph.nodes if node.op == "placeholder"]
    reads = dict(zip(heads, names, strict=False))
    inputs = dict(zip(heads[len(names) :], input_names(twin, args, kwargs), strict=True))
    by_id = {call.id: call for call in stack.calls}
    graph = rewrite(traced, reads, inputs, lambda node: by_id[node.meta.get("call", 0)])
    return graph, stack.calls


def _stamp(call: Call) -> None:
    """Give the nodes made since the last stamp to `call`."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    mode = get_proxy_mode()
    if mode is None:
        return
    for node in reversed(mode.tracer.graph.nodes):
        if "call" in node.meta:
            break
        node.meta["call"] = call.id


def rewrite(
    traced: fx.GraphModule,
    reads: Mapping[fx.Node, str],
    inputs: Mapping[fx.Node, str],
    moment: Callable[[fx.Node], Call],
    constants: Mapping[fx.Node, Tensor] | None = None,
    picked: Callable[[tuple[Any, ...]], Sequence[Any]] = tuple,
) -> fx.Graph:
    """Another tracer's graph in the normal form.

    Args:
        traced: the other tracer's result.
        reads: placeholders that stand for parameters and buffers -> FQN.
        inputs: placeholders that stand for input tensors -> name, in order.
        moment: the module call that a node belongs to.
        constants: placeholders that stand for constants.
        picked: the outputs to keep, of all.

    Raises:
        NotImplementedError: the graph holds a sub-graph that is more than a switch of gradients or autocast.
    """
    return _Rewriter(reads, inputs, moment, constants or {}).run(traced, picked)


class _Rewriter:
    def __init__(
        self,
        reads: Mapping[fx.Node, str],
        inputs: Mapping[fx.Node, str],
        moment: Callable[[fx.Node], Call],
        constants: Mapping[fx.Node, Tensor],
    ) -> None:
        self.reads, self.inputs, self.constants = reads, inputs, constants
        self.call = Call(0, "", None)
        self.moment = moment
        self.builder = Builder(lambda: self.call)

    def run(self, traced: fx.GraphModule, picked: Callable[..., Sequence[Any]]) -> fx.Graph:
        known: dict[fx.Node, fx.Node] = {}
        for node, name in self.inputs.items():
            known[node] = self.builder.placeholder(name, node.meta["val"])
        outputs = self.walk(traced, known)
        kept = [node for node in picked(tuple(outputs)) if isinstance(node, fx.Node)]
        return self.builder.output(kept)

    def walk(self, traced: fx.GraphModule, known: dict[fx.Node, fx.Node]) -> Sequence[Any]:
        """Copy one (sub-)graph; gives its outputs."""
        for node in traced.graph.nodes:
            if node.op == "output":
                outs = fx.node.map_arg(node.args[0], lambda n: self.resolve(traced, n, known))
                return outs if isinstance(outs, (list, tuple)) else (outs,)
            if node.op == "call_function":
                self.call = self.moment(node)
                self.copy(traced, node, known)
        return ()

    def copy(self, traced: fx.GraphModule, node: fx.Node, known: dict[fx.Node, fx.Node]) -> None:
        if _is_switch(node):
            return
        if inner := _inlined(traced, node):
            body, positional = inner
            heads = [n for n in body.graph.nodes if n.op == "placeholder"]
            scope = {
                head: self.resolve(traced, value, known)
                for head, value in zip(heads, positional, strict=True)
                if isinstance(value, fx.Node)
            }
            # Its users read it through `getitem`, which picks from this tuple.
            known[node] = tuple(self.walk(body, scope))  # type: ignore[assignment]
            return
        if node.target is operator.getitem:
            origin: Any = node.args[0]
            source: Any = known.get(origin)
            if isinstance(source, tuple):
                known[node] = source[node.args[1]]  # type: ignore[index]
                return
        elif not isinstance(node.target, OpOverload):
            raise NotImplementedError(f"the graph calls {node.target}, which is not an ATen op")
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda n: self.resolve(traced, n, known)
        )
        known[node] = self.builder.call(node.target, args, kwargs, node.meta.get("val"))

    def resolve(self, traced: fx.GraphModule, node: Any, known: dict[fx.Node, fx.Node]) -> Any:
        """The new node for an old one; reads are written when first met."""
        if not isinstance(node, fx.Node) or node in known:
            return known.get(node, node)
        if node in self.reads:
            known[node] = self.builder.read(self.reads[node], node.meta["val"])
        elif node in self.constants:
            known[node] = self.builder.constant(self.constants[node])
        elif node.op == "get_attr":
            known[node] = self.builder.constant(_attribute(traced, str(node.target)))
        else:
            raise NotImplementedError(f"'{node}' reads {node.op} '{node.target}'")
        return known[node]


def _is_switch(node: fx.Node) -> bool:
    """Turns gradients or autocast on or off: says nothing about tensors."""
    return not isinstance(node.target, OpOverload) and node.target in SWITCHES


def _inlined(traced: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, Sequence[Any]] | None:
    name = getattr(node.target, "__name__", "")
    skip = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}.get(name)
    if skip is None:
        return None
    body = _attribute(traced, str(node.args[skip].target))  # type: ignore[union-attr]
    return body, node.args[skip + 1 :]


def _attribute(root: Any, path: str) -> Any:
    for word in path.split("."):
        root = getattr(root, word)
    return root
