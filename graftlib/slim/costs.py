"""What a model costs, as exact polynomials in the sizes of its axis classes.

In: a layer graph. Out: `Costs`: parameters, multiply-accumulates, bytes and activation memory at any sizes of the free
classes, without building a model. Always true: at the traced sizes the numbers are those of the tensors and of
`torch.utils.flop_counter` (which counts two FLOPs a MAC); after a prune they are those of the pruned model.
MACs are those of products and convolutions of tensors, as that counter has them: norms, activations and pooling are
free. A causal mask saves nothing there.
Elsewhere: time, which is measured (`latency`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from ..graph import LayerGraph
from ..graph.axes import AxisClass
from ..graph.axes.algebra import Atom, Expr, Prod, resolve
from ..graph.axes.values import Axes, Stack
from ..graph.macs import macs, short_name
from ..reports import Report
from ..surgery.scratch import Reference, reference_of
from .names import COSTS

__all__ = ["Costs", "Polynomial", "Reader", "costs_of", "short_name"]

_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout")  # in eval mode the input itself


@dataclass(frozen=True)
class Polynomial:
    """A sum of products of sizes.

    Attributes:
        terms: numbers of the classes that are multiplied, sorted, each as often as it occurs -> how often.

    >>> x, y = Polynomial.of(0), Polynomial.of(1)
    >>> print(x * y + x * 9 + 2, (x * y + x * 9 + 2)([3, 5]))
    c0 c1 + 9 c0 + 2 44
    """

    terms: Mapping[tuple[int, ...], float]

    @staticmethod
    def of(number: int) -> Polynomial:
        """The size of the class of this number."""
        return Polynomial({(number,): 1})

    def __add__(self, other: Polynomial | float) -> Polynomial:
        return _sum([self, _polynomial(other)])

    def __mul__(self, other: Polynomial | float) -> Polynomial:
        product: dict[tuple[int, ...], float] = {}
        for left, count in self.terms.items():
            for right, times in _polynomial(other).terms.items():
                key = tuple(sorted((*left, *right)))
                product[key] = product.get(key, 0) + count * times
        return Polynomial(product)

    __radd__, __rmul__ = __add__, __mul__

    def __call__(self, sizes: Sequence[int]) -> float:
        """Its value where class `i` has ``sizes[i]`` units: a whole number where the counts are."""
        total: float = 0
        for numbers, count in self.terms.items():
            for number in numbers:
                count *= sizes[number]
            total += count
        return total

    def __str__(self) -> str:
        words = []
        for numbers, count in sorted(self.terms.items(), key=lambda item: (-len(item[0]), item[0])):
            factors = [f"c{number}" for number in numbers]
            words.append(" ".join([str(count), *factors] if count != 1 or not factors else factors))
        return " + ".join(words) or "0"


def _polynomial(value: Polynomial | float) -> Polynomial:
    return value if isinstance(value, Polynomial) else Polynomial({(): value} if value else {})


def _product(values: Iterable[Polynomial]) -> Polynomial:
    total = _polynomial(1)
    for value in values:
        total = total * value
    return total


def _sum(values: Iterable[Polynomial]) -> Polynomial:
    total: dict[tuple[int, ...], float] = {}
    for value in values:
        for key, count in value.terms.items():
            total[key] = total.get(key, 0) + count
    return Polynomial(total)


@dataclass(frozen=True)
class Costs(Report):
    """What a model costs at the traced inputs (their batch size included). ``print`` it for the sizes that it has.

    Attributes:
        classes: of the graph, in its order: ``c3`` of a polynomial is the size of ``classes[3]``.
        params: elements of all parameters, each once where it is tied.
        macs: multiply-accumulates of one forward pass.
        bytes: of the parameters and of the buffers that the state dict carries, in their dtypes.
        activations: bytes of all that the ops of one forward pass make; views, what is written in place, and tensors
            of equal elements count nothing. What training keeps is of this order; inference needs less at a time.
        latency_ms: of one forward pass, milliseconds, as measured on one machine; None where it was not.
    """

    classes: tuple[AxisClass, ...]
    params: Polynomial
    macs: Polynomial
    bytes: Polynomial
    activations: Polynomial
    latency_ms: Polynomial | None = None

    def at(self, sizes: Mapping[AxisClass, int] | None = None) -> dict[str, float]:
        """Each cost that is known where classes have these sizes; those that are absent have their own."""
        numbers = [(sizes or {}).get(each, each.size) for each in self.classes]
        known = {name: getattr(self, name) for name in COSTS}
        return {name: each(numbers) for name, each in known.items() if each is not None}

    def __str__(self) -> str:
        return "\n".join(f"{name:<12}{round(value, 3):>20,}" for name, value in self.at().items())


def costs_of(graph: LayerGraph) -> Costs:
    """The costs of the traced model.

    >>> import torch
    >>> from torch import nn
    >>> from graftlib import trace
    >>> graph = trace(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 3))
    >>> costs = costs_of(graph)
    >>> print(costs.params, "|", costs.macs)
    6 c0 + 2 | 5 c0
    >>> print(costs)
    params                        50
    macs                          40
    bytes                        200
    activations                   72
    """
    reader = Reader(graph)
    held = [t for t in graph.model.state_dict(keep_vars=True).items() if isinstance(t[1], Tensor)]
    state = {id(tensor): (fqn, tensor) for fqn, tensor in reversed(held)}
    parameters = {id(p): (fqn, p) for fqn, p in graph.model.named_parameters()}
    ops = [node for node in graph.ops.nodes if node.op == "call_function"]
    return Costs(
        reader.reference.classes,
        _sum(reader.tensor(fqn, tensor) for fqn, tensor in parameters.values()),
        _sum(_polynomial(macs(node, reader)) for node in ops),
        _sum(reader.tensor(f, t) * t.element_size() for f, t in state.values()),
        _sum(reader.made(node) for node in ops if not _is_view(node)),
    )


class Reader:
    """Sizes of what the traced pass holds, as polynomials."""

    def __init__(self, graph: LayerGraph) -> None:
        self.reference: Reference = reference_of(graph)

    def size(self, axis: Expr) -> Polynomial:
        """Of an axis."""
        axis = resolve(axis)
        if isinstance(axis, Atom):
            number = self.reference.number.get(axis)
            free = number is not None and self.reference.classes[number].free
            return Polynomial.of(number) if number is not None and free else _polynomial(axis.size)
        if isinstance(axis, Prod):
            return _product(self.size(factor) for factor in axis.factors)
        return _sum(self.size(term) for term in axis.terms)

    def tensor(self, fqn: str, tensor: Tensor) -> Polynomial:
        """Elements of a parameter or buffer."""
        axes = self.reference.found.axes.get(fqn)
        return _polynomial(tensor.numel()) if axes is None else _product(map(self.size, axes))

    def sizes(self, node: Any) -> list[Polynomial]:
        """Of each dimension of a tensor; of tensors side by side, of the first."""
        axes = self.reference.found.values.get(node)
        if isinstance(axes, Stack):
            axes = axes.parts[0]
        if isinstance(axes, Axes):
            return [self.size(axis) for axis in axes]
        return [_polynomial(size) for size in node.meta["val"].shape]

    def elements(self, node: fx.Node) -> Polynomial:
        """Of one tensor."""
        axes = self.reference.found.values.get(node)
        if isinstance(axes, Stack) and axes.dim >= 0:
            return _sum(_product(map(self.size, axes.part(i))) for i in range(len(axes.parts)))
        return _product(self.sizes(node))

    def made(self, node: fx.Node) -> Polynomial:
        """Bytes of the tensors that an op makes."""
        value, axes = node.meta.get("val"), self.reference.found.values.get(node)
        if isinstance(value, Tensor):
            uniform = isinstance(axes, Axes) and axes.uniform
            return _polynomial(0) if uniform else self.elements(node) * value.element_size()
        if not isinstance(value, (list, tuple)):
            return _polynomial(0)
        known = axes if isinstance(axes, (list, tuple)) and len(axes) == len(value) else value
        return _sum(
            _product(map(self.size, one)) * tensor.element_size()
            if isinstance(one, Axes)
            else _polynomial(tensor.numel() * tensor.element_size())
            for one, tensor in zip(known, value, strict=True)
            if isinstance(tensor, Tensor)
        )


def _is_view(node: fx.Node) -> bool:
    """Whether the result is the memory of an argument."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or short_name(node) in _DROPOUTS:
        return True  # `getitem`
    return any(each.alias_info is not None for each in schema.returns)
