"""The tensors of one model as pairing sees them: in the order in which the forward pass reads them, with their axes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from torch import Tensor

from graftlib.graph import LayerGraph, Parameter
from graftlib.surgery.blocks import repeated

from .axis_pairs import Term, numbers_of, terms_of

__all__ = ["CONVOLUTIONS", "KERNEL", "Norm", "Side", "TensorView", "tensors_of"]

CONVOLUTIONS = ("conv", "depthwise", "grouped", "transposed_conv")
KERNEL = ("kd", "kh", "kw")
_WEIGHTS = ("linear", "embedding", "recurrent", *CONVOLUTIONS)
_STATISTICS = {"running_mean": "mean", "running_var": "variance"}


@dataclass(frozen=True)
class TensorView:
    """One tensor, or a part of one, as a candidate to be paired.

    Attributes:
        fqn: of the parameter or buffer.
        shape: of the whole tensor.
        kind: as in `Parameter.kind`; ``buffer`` for what is no statistic of a norm.
        role: as in `TensorPair.role`.
        names: of its axes, as in `Parameter.axes`.
        depth: relative, 0 to 1.
        layer: FQN of the module that owns it.
        axes: the terms of each axis; those of a part alone.
        leaf: its name in the module, where that tells one tensor of a kind from another.
        part: the name of the part.
    """

    fqn: str
    shape: tuple[int, ...]
    kind: str
    role: str
    names: tuple[str, ...]
    depth: float
    layer: str
    axes: tuple[tuple[Term, ...], ...]
    leaf: str = ""
    part: str = ""

    @property
    def address(self) -> str:
        """FQN and part."""
        return f"{self.fqn}::{self.part}" if self.part else self.fqn


@dataclass(frozen=True)
class Norm:
    """The tensors of one norm; `before` and `after` are the FQNs of the weights that are read around it."""

    tensors: tuple[TensorView, ...]
    before: str
    after: str


class Side:
    """The tensors of one model.

    Args:
        graph: of the model.
        keep_blocks: whether what is repeated stays together.
    """

    def __init__(self, graph: LayerGraph, *, keep_blocks: bool) -> None:
        self.graph = graph
        self.blocks = repeated(graph.model) if keep_blocks else ()
        self.classes = graph.axis_classes
        self.numbers = numbers_of(self.classes)
        self._depths: dict[int, tuple[float, float]] = {}

    @cached_property
    def all(self) -> dict[str, TensorView]:
        """FQN -> every tensor that some class moves or fixes, statistics behind the first parameter of their norm."""
        axes = self._axes
        reads = (fqn for layer in self.graph.layers for fqn in layer.parameters)
        order = {fqn: i for i, fqn in reversed(list(enumerate(reads)))}
        parameters = [p for p in self.graph.parameters() if p.tied_to is None and p.fqn in axes]
        names = {parameter.fqn for parameter in self.graph.parameters()}
        tensors: dict[str, TensorView] = {}
        for parameter in sorted(parameters, key=lambda p: order.get(p.fqn, len(order))):
            first = all(tensor.layer != parameter.layer for tensor in tensors.values())
            tensors[parameter.fqn] = _parameter(parameter, axes[parameter.fqn])
            prefix = f"{parameter.layer}." if parameter.layer else ""
            for fqn in axes if first else ():
                if fqn.startswith(prefix) and "." not in fqn[len(prefix) :] and fqn not in names:
                    tensors[fqn] = self._buffer(fqn)
        for fqn in axes:
            if fqn not in tensors:
                tensors[fqn] = self._buffer(fqn)
        return tensors

    @cached_property
    def _axes(self) -> dict[str, tuple[tuple[Term, ...], ...]]:
        """FQN -> the terms of each axis; tied tensors by their first name."""
        names = {member.fqn for each in self.classes for member in each.members}
        return {
            fqn: tuple(map(terms_of, self.graph.axes(fqn)))
            for fqn in tensors_of(self.graph)
            if fqn in names
        }

    def depths(self, number: int) -> tuple[float, float]:
        """The least and the largest depth of the weights that hold a class."""
        if number not in self._depths:
            members = self.classes[number].members
            tensors = [self.all[m.fqn] for m in members if m.fqn in self.all]
            depths = [t.depth for t in tensors if t.kind not in ("norm", "buffer")] or [0.0, 1.0]
            self._depths[number] = (min(depths), max(depths))
        return self._depths[number]

    @property
    def weights(self) -> list[TensorView]:
        """Tensors of two and more axes that read or make units, in order."""
        return [tensor for tensor in self.all.values() if tensor.kind in _WEIGHTS]

    @property
    def norms(self) -> list[Norm]:
        """Tensors that are no weight and no bias, those of one norm together, with the weights beside them."""
        norms: dict[str, list[TensorView]] = {}
        beside: dict[str, list[str]] = {}
        last = ""
        behind: list[str] = []  # norms that no weight has followed yet
        for tensor in self.all.values():
            if tensor.kind in _WEIGHTS:
                for key in behind:
                    beside[key][1] = tensor.fqn
                last, behind = tensor.fqn, []
            elif tensor.kind != "bias":
                key = tensor.layer if tensor.kind == "norm" else tensor.fqn
                norms.setdefault(key, []).append(tensor)
                beside.setdefault(key, [last, ""])
                behind.append(key)
        return [Norm(tuple(each), *beside[key]) for key, each in norms.items()]

    def parts(self, tensor: TensorView) -> list[TensorView]:
        """Query, key and value of a packed weight as tensors of their own; the tensor itself where it packs none."""
        parts = []
        for name, part in self.graph.parameter(tensor.fqn).parts.items():
            if part.role is None or not isinstance(part.units, range) or part.units.step != 1:
                continue
            inside = tuple(
                (start, term)
                for start, term in tensor.axes[part.axis]
                if part.units.start <= start and start + term.size <= part.units.stop
            )
            if sum(term.size for _, term in inside) == len(part.units):
                axes = tuple(inside if i == part.axis else a for i, a in enumerate(tensor.axes))
                parts.append(replace(tensor, axes=axes, role=part.role, part=name))
        return parts if len(parts) > 1 else [tensor]

    def bias(self, weight: TensorView) -> TensorView | None:
        """The bias of a weight: its neighbour in the same module under the same name with another word."""
        owner, dot, leaf = weight.fqn.rpartition(".")
        bias = self.all.get(f"{owner}{dot}{leaf.replace('weight', 'bias')}")
        if bias is None or bias.fqn == weight.fqn or not weight.part:
            return None if bias is None or bias.fqn == weight.fqn else bias
        return next((each for each in self.parts(bias) if each.part == weight.part), None)

    def _buffer(self, fqn: str) -> TensorView:
        layer, _, leaf = fqn.rpartition(".")
        shape = tuple(tensors_of(self.graph)[fqn].shape)
        kind = "norm" if leaf in _STATISTICS else "buffer"
        role = _STATISTICS.get(leaf, "buffer")
        names = ("unit",) * len(shape)
        return TensorView(fqn, shape, kind, role, names, 0.0, layer, self._axes[fqn], leaf)


def tensors_of(graph: LayerGraph) -> dict[str, Tensor]:
    """FQN -> parameter or buffer of the traced model, in the model's order; a tied tensor by its first name."""
    return dict(chain(graph.model.named_parameters(), graph.model.named_buffers()))


def _parameter(parameter: Parameter, axes: tuple[tuple[Term, ...], ...]) -> TensorView:
    return TensorView(
        parameter.fqn,
        parameter.shape,
        parameter.kind,
        parameter.role,
        parameter.axes,
        parameter.depth or 0.0,
        parameter.layer,
        axes,
        parameter.fqn.rpartition(".")[2] if parameter.kind == "recurrent" else "",
    )
