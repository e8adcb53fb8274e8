"""What there is to see of a model that no tracer could follow: its modules, and how far a forward pass came.

In: a model and example inputs. Out: an `Outline`, which `graftlib.view` draws. Always true: the model is not run: a
copy of it is, in eval mode; random states stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch import Tensor, nn

from .._torch_private import Conv
from . import structure
from .capture import device_of, undisturbed
from .layers import Layer
from .parameter import Parameter
from .recorder import quiet, to_device
from .tensors import output_tensors, tensor_leaves

__all__ = ["Outline", "outline"]

KINDS: tuple[tuple[Any, str], ...] = (
    (nn.Linear, "linear"),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "transposed_conv"),
    (Conv, "conv"),
    (nn.Embedding, "embedding"),
    (nn.RNNBase, "recurrent"),
)


@dataclass(frozen=True)
class Outline:
    """The modules of a model in the place of its layers; ``view(outline)`` shows it.

    Attributes:
        name: the model's class.
        model: by reference.
        layers: the modules that hold parameters of their own or no modules, those that ran first, in that order; the
            others have 0 `calls`.
        nx: as of a `LayerGraph`; an edge where a module reads the very tensor that another gave.
        stopped: FQN of the module in which the forward pass ended; ``""`` for the root, None where it did not end.
        reason: what ended it.
        tracer: ``"none"``.
    """

    name: str
    model: nn.Module
    layers: tuple[Layer, ...]
    nx: nx.MultiDiGraph[str]
    stopped: str | None
    reason: str | None
    tracer: str = "none"

    def parameters(self) -> list[Parameter]:
        """All of the model's, with kinds by the classes of the modules that own them."""
        return [_parameter(self.model, fqn, p) for fqn, p in self.model.named_parameters()]

    @property
    def lines(self) -> tuple[str, ...]:
        """How far it came and what ended it, in words."""
        ran = sum(layer.calls > 0 for layer in self.layers)
        lines = [f"{ran} of {len(self.layers)} layers were reached; the others are drawn pale"]
        if self.stopped is not None:
            lines.append(
                f"the forward pass ended in {self.stopped or 'the model itself'}: {self.reason}"
            )
        return tuple(lines)

    def __str__(self) -> str:
        return "\n".join([f"{self.name}, not traced", *self.lines])

    def _repr_html_(self) -> str:
        from ..view import view

        return view(self)._repr_html_()


def outline(
    model: nn.Module, args: Sequence[Any] | Tensor = (), kwargs: Mapping[str, Any] | None = None
) -> Outline:
    """Run a copy of a model as far as it goes, and note which modules ran.

    For models that `trace` refuses; of one that runs, the outline is complete, but has no axes and few edges.

    Args:
        model: any module.
        args: positional example inputs; one tensor may stand without its tuple.
        kwargs: keyword example inputs.

    Raises:
        TraceError: the model is a ScriptModule, or holds one.

    >>> import torch
    >>> class Broken(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
    ...
    ...     def forward(self, x):
    ...         return self.b(self.a(x)[:, :1])
    >>> print(outline(Broken(), torch.zeros(1, 2)))
    Broken, not traced
    1 of 2 layers were reached; the others are drawn pale
    the forward pass ended in b: RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x1 and 2x2)
    """
    model = structure.unwrap(model)
    given = ((args,) if isinstance(args, Tensor) else tuple(args), dict(kwargs or {}))
    names = {fqn: module for fqn, module in model.named_modules() if _is_layer(module)}
    seen, reason = _Seen(), None
    try:
        with undisturbed(), quiet():
            meta = any(p.is_meta for p in model.parameters())
            twin = structure.rebuild(model, structure.like_meta if meta else structure.own).eval()
            seen.watch(twin, set(names))
            move = structure.copy_value(given, structure.like_meta) if meta else None
            positional, named = move or to_device(given, device_of(model))
            twin(*positional, **named)
    except Exception as error:  # what a model raises is its own affair
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300]
    order = [*seen.calls, *(fqn for fqn in names if fqn not in seen.calls)]
    layers = tuple(_layer(fqn, names[fqn], seen) for fqn in order)
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    for layer in layers:
        graph.add_node(layer.name, layer=layer)
    for u, v, tensor in seen.edges:
        graph.add_edge(u, v, shape=tuple(tensor.shape), dtype=tensor.dtype)
    stopped = None if reason is None else (seen.open[-1] if seen.open else "")
    return Outline(type(model).__name__, model, layers, graph, stopped, reason)


class _Seen:
    """Hooks that note what runs."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.shapes: dict[str, tuple[Any, Any]] = {}
        self.edges: list[tuple[str, str, Tensor]] = []
        self.open: list[str] = []  # entered and not left
        self.entered: dict[str, Any] = {}
        self._makers: dict[
            int, tuple[str, Tensor]
        ] = {}  # the tensor is kept, so that its id stays its own

    def watch(self, twin: nn.Module, layers: set[str]) -> None:
        for fqn, module in twin.named_modules():
            layer = fqn in layers
            module.register_forward_pre_hook(self._enter(fqn, layer), with_kwargs=True)
            module.register_forward_hook(self._leave(fqn, layer), with_kwargs=True)

    def _enter(self, fqn: str, layer: bool) -> Any:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.open.append(fqn)
            entered = tensor_leaves((args, kwargs)) if layer else []
            for tensor in entered:
                maker = self._makers.get(id(tensor))
                if maker and maker[0] != fqn:
                    self.edges.append((maker[0], fqn, tensor))
            if layer:
                self.entered[fqn] = tuple(tuple(tensor.shape) for tensor in entered)

        return enter

    def _leave(self, fqn: str, layer: bool) -> Any:
        def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self.open.pop()
            if not layer:
                return
            left = output_tensors(result)
            self.calls[fqn] = self.calls.get(fqn, 0) + 1
            shapes = tuple(tuple(tensor.shape) for tensor in left)
            self.shapes.setdefault(fqn, (self.entered[fqn], shapes))
            self._makers.update((id(tensor), (fqn, tensor)) for tensor in left)

        return leave


def _layer(fqn: str, module: nn.Module, seen: _Seen) -> Layer:
    own = tuple(name for name, _ in module.named_parameters(recurse=False))
    entered, left = seen.shapes.get(fqn, (seen.entered.get(fqn, ()), ()))
    parameters = tuple(f"{fqn}.{name}" if fqn else name for name in own)
    return Layer(
        name=fqn,
        fqn=fqn,
        kind=type(module).__name__,
        parameters=parameters,
        in_shapes=entered,
        out_shapes=left,
        calls=seen.calls.get(fqn, 0),
        depth=None,
    )


def _is_layer(module: nn.Module) -> bool:
    return not any(module.children()) or any(True for _ in module.parameters(recurse=False))


def _parameter(model: nn.Module, fqn: str, tensor: Tensor) -> Parameter:
    home, _, own = fqn.rpartition(".")
    module = model.get_submodule(home)
    kind = next((kind for each, kind in KINDS if isinstance(module, each)), "other")
    if own.startswith("bias"):
        kind = "bias"
    elif "norm" in type(module).__name__.lower():
        kind = "norm"
    role = "bias" if kind == "bias" else "weight"
    return Parameter(fqn, tuple(tensor.shape), tensor.dtype, kind, role, home, None, ())
