"""The `export` tracer: `torch.export.export`, not strict.

The slowest tracer that runs nothing real; it takes what branches on unbacked sizes, such as some mixtures of experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import structure
from .call_stack import Call
from .fake import rewrite
from .normal import first_names, input_names
from .recorder import quiet, to_device
from .tensors import Flat, tensor_leaves

__all__ = ["record_export"]

_TWIN = "model."  # what `Flat` puts before every name


def record_export(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> tuple[fx.Graph, list[Call]]:
    """Trace with `torch.export`.

    Returns:
        the graph and the module calls that its nodes point to, as far as torch names them.
    """
    twin = structure.rebuild(model, structure.alias)
    own = next((t.device for t in [*model.parameters(), *model.buffers()]), device)
    positional, named = to_device((tuple(args), dict(kwargs)), own)
    flat = Flat(twin, positional, named)
    with quiet():
        program = torch.export.export(flat, tuple(tensor_leaves((positional, named))), strict=False)
    first = {f"{_TWIN}{fqn}": name for fqn, name in _first_fqns(twin).items()}
    heads = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    reads, inputs, constants = {}, [], {}
    for spec in program.graph_signature.input_specs:
        head, kind = heads[spec.arg.name], spec.kind.name
        if kind in ("PARAMETER", "BUFFER"):
            reads[head] = first[str(spec.target)]
        elif kind == "CONSTANT_TENSOR":
            constants[head] = program.constants[str(spec.target)]
        elif isinstance(head.meta.get("val"), Tensor):
            inputs.append(head)
    names = dict(zip(inputs, input_names(twin, positional, named), strict=True))
    kinds = [spec.kind.name for spec in program.graph_signature.output_specs]
    stack = _Stack()

    def picked(outputs: tuple[Any, ...]) -> list[Any]:
        return [out for out, kind in zip(outputs, kinds, strict=True) if kind == "USER_OUTPUT"]

    graph = rewrite(program.graph_module, reads, names, stack.call, constants, picked)
    return graph, stack.calls


def _first_fqns(model: nn.Module) -> dict[str, str]:
    first = first_names(model)
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {fqn: first[id(tensor)] for fqn, tensor in every}


class _Stack:
    """Turns ``nn_module_stack`` into module calls."""

    def __init__(self) -> None:
        self.calls = [Call(0, "", None)]
        self._ids: dict[tuple[str, ...], int] = {}

    def call(self, node: fx.Node) -> Call:
        keys: tuple[str, ...] = ()
        call = self.calls[0]
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            if not path:
                continue  # `Flat` itself
            keys = (*keys, key)
            if keys not in self._ids:
                self._ids[keys] = len(self.calls)
                call.leaf = False
                self.calls.append(Call(len(self.calls), _fqn(path), call.id))
            call = self.calls[self._ids[keys]]
        return call


def _fqn(path: str) -> str:
    # A module that is called again is written as `conv@1`.
    return re.sub(r"@\d+", "", f"{path}.").removeprefix(_TWIN).removesuffix(".")
