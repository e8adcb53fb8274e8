"""Scratch models: what a model's code does at other sizes, tried without the model's values.

In: a graph, sizes of its classes, attributes of modules. Out: a pass of a scratch model, op by op beside the traced
one. Where an op gives another shape than the axes say (or none), that is written down as a `Misfit`, and the pass
goes on with the shape that is due: one pass shows all that does not fit. Always true: the model is not changed; nothing
that a pass made outlives it but texts and numbers.
Elsewhere: which sizes go together (`equations`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph import LayerGraph
from ..graph.axes import AxisClass
from ..graph.axes.algebra import Atom, Expr
from ..graph.axes.classes import numbers_of_atoms, reading
from ..graph.axes.infer import Inference, infer
from ..graph.axes.values import Axes, Stack
from ..graph.capture import device_of
from ..graph.normal import named_tensors
from ..graph.ops import call_in_words, name_of, overload
from ..graph.recorder import Watch, record_scratch
from ..graph.structure import alias, like_meta, of_size, rebuild
from .equations import Equations, Sizes, boundary, polynomial
from .tagged import Log, Place, Shapes, Tagged, Term, numbers, places, put, tag

__all__ = [
    "GROUPED",
    "Misfit",
    "Passage",
    "Reference",
    "equations_of",
    "grouped_rows",
    "passage",
    "reference_of",
    "scratch",
    "unaligned",
]

GROUPED = ("_grouped_mm", "grouped_mm_fallback")


@dataclass(frozen=True)
class Misfit:
    """An op that does not go with the sizes.

    Attributes:
        classes: whose new sizes meet there.
        words: what happened.
    """

    classes: tuple[AxisClass, ...]
    words: str


@dataclass(frozen=True)
class Passage:
    """A forward pass at other sizes.

    Attributes:
        graph: of its ops; None where it did not come to its end.
        misfits: in the order of the ops.
    """

    graph: fx.Graph | None
    misfits: tuple[Misfit, ...]


class Reference:
    """The ops of the traced pass and the axes of their results.

    Args:
        graph: of the ops.
        found: what was read of it.
        classes: of the model's graph.
        number: the class of each atom, by its place among them; None where it has to be worked out.
    """

    def __init__(
        self,
        graph: fx.Graph,
        found: Inference,
        classes: Sequence[AxisClass],
        number: Mapping[Atom, int] | None = None,
    ) -> None:
        self.graph, self.found, self.classes = graph, found, tuple(classes)
        self.number = numbers_of_atoms(found, self.classes) if number is None else number
        self.ops = [node for node in graph.nodes if _is_op(node)]
        self._terms: dict[fx.Node, tuple[tuple[Term | None, ...], ...]] = {}

    def shapes(self, node: fx.Node, sizes: Sequence[int]) -> tuple[tuple[int | None, ...], ...]:
        """What each result of an op is due to be; None for a dimension of which nothing is known."""
        if node not in self._terms:
            self._terms[node] = tuple(
                tuple(None if axes.uniform else polynomial(axis, self.number) for axis in axes)
                for axes in _results(self.found.values.get(node))
            )
        return tuple(tuple(_value(term, sizes) for term in terms) for terms in self._terms[node])

    def size(self, axis: Expr, sizes: Sequence[int]) -> int | None:
        """The size of an axis at given sizes of the classes."""
        return _value(polynomial(axis, self.number), sizes)

    def shape(self, fqn: str, sizes: Sequence[int]) -> tuple[int | None, ...] | None:
        """Of a parameter or buffer; None where the pass does not read it, or its size is fixed."""
        axes = self.found.axes.get(fqn) or self.found.constants.get(fqn)
        return None if axes is None else tuple(self.size(axis, sizes) for axis in axes)

    def numbers(self, sizes: Sizes) -> list[int]:
        """The sizes of all classes."""
        return [sizes.get(each, each.size) for each in self.classes]

    def changed(self, axis: Expr, sizes: Sequence[int]) -> list[AxisClass]:
        """The classes in an axis that get another size."""
        return [
            self.classes[i]
            for i in dict.fromkeys(_numbers_in(polynomial(axis, self.number)))
            if sizes[i] != self.classes[i].size
        ]


def reference_of(graph: LayerGraph) -> Reference:
    """The traced pass itself."""
    found, classes, number = reading(graph)
    return Reference(graph.ops, found, classes, number)


def grouped_rows(reference: Reference) -> Iterator[tuple[fx.Node, Expr, int]]:
    """The rows of operands of grouped products: (the op, what a row is made of, of how many elements a multiple).

    Torch's kernels want rows of a multiple of 16 bytes, which they say once they run on values, and not before.
    """
    for node in reference.ops:
        if name_of(node).rpartition(".")[2] not in GROUPED:
            continue
        for operand in node.all_input_nodes[:2]:
            axes, val = reference.found.values.get(operand), operand.meta["val"]
            if not isinstance(axes, Axes) or val.ndim < 2:
                continue
            row = -1 if val.stride(-1) == 1 else -2
            multiple = 16 // val.element_size()
            if val.shape[row] % multiple == 0:
                yield node, axes[row], multiple


def unaligned(reference: Reference, sizes: Sizes) -> tuple[Misfit, ...]:
    """Grouped products that would not run at these sizes."""
    now = reference.numbers(sizes)
    return tuple(
        Misfit(
            tuple(reference.changed(row, now)),
            f"{call_in_words(node)}: rows of {size} elements are no multiple of 16 bytes",
        )
        for node, row, multiple in grouped_rows(reference)
        if (size := reference.size(row, now)) is not None and size % multiple
    )


def scratch(
    model: nn.Module,
    graph: LayerGraph,
    sizes: Sizes,
    attributes: Mapping[Place, int],
    *,
    kind: str,
) -> nn.Module:
    """A second model of the same structure, in eval mode.

    Args:
        model: the traced one, or another of the same structure.
        graph: of it.
        sizes: class -> how many units it has in the second model.
        attributes: set in it.
        kind: ``"meta"`` (no values at all), ``"shapes"`` (parameters and buffers without values, other tensors with
            theirs) or ``"values"`` (parameters that keep their shape share their memory with the model's).
    """
    reference = reference_of(graph)
    now = reference.numbers(sizes)
    shapes: dict[int, tuple[int, ...]] = {}
    registered = named_tensors(model)
    for fqn, tensor in registered.items():
        due = reference.shape(fqn, now)
        if due is not None and due != tuple(tensor.shape):
            shapes[id(tensor)] = tuple(
                n if size is None else size for n, size in zip(tensor.shape, due, strict=True)
            )
    own = {id(tensor) for tensor in registered.values()}

    def change(tensor: Tensor) -> Tensor:
        without = kind == "meta" or (kind == "shapes" and id(tensor) in own)
        if id(tensor) in shapes:
            return of_size(tensor, shapes[id(tensor)], meta=without)
        return like_meta(tensor) if without else alias(tensor)

    twin = rebuild(model, change)
    put(twin, dict(attributes))
    return twin


def passage(
    twin: nn.Module, graph: LayerGraph, reference: Reference, sizes: Sizes, *, meta: bool
) -> Passage:
    """Run a scratch model beside the traced pass.

    Args:
        twin: from `scratch`, at these sizes.
        graph: of the model.
        reference: the pass at the traced sizes that the ops are compared with.
        sizes: class -> how many units.
        meta: whether the scratch model has no values.
    """
    guide = _Guide(reference, sizes)
    # A pass without values needs none drawn.
    args, kwargs = (graph.evidence.args, graph.evidence.kwargs) if meta else graph.example
    try:
        home = _home(graph)
        found, _ = record_scratch(twin, args, kwargs, home, guide, meta=meta, modules=False)
    except Exception as error:
        words = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
        return Passage(None, (*guide.misfits, Misfit(guide.nearby(), words)))
    return Passage(found, tuple(guide.misfits))


def _home(graph: LayerGraph) -> torch.device:
    return device_of(graph.model)


class _Guide(Watch):
    """Holds every op against the traced one."""

    def __init__(self, reference: Reference, sizes: Sizes) -> None:
        self.reference = reference
        self.sizes = reference.numbers(sizes)
        self.misfits: list[Misfit] = []
        self._at = 0
        self._aligned = True

    def run(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], compute: Any) -> Any:
        node = self._next()
        if node is None or not _same(node, op) or not node.all_input_nodes:
            return compute()
        due = self.reference.shapes(node, self.sizes)
        try:
            result = compute()
        except Exception as error:
            words = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            self._misfit(node, None, due, args, words)
            if op._schema.is_mutable:
                return args[0]
            return self._due(node, due, args, error)
        shapes = [tuple(tensor.shape) for tensor in _tensors(result)]
        if len(shapes) == len(due) and all(map(_fits, shapes, due)):
            return result
        self._misfit(node, shapes, due, args, f"gives {_shown(shapes)} where {_shown(due)} is due")
        return result if op._schema.is_mutable else self._due(node, due, args, None)

    def note(self, node: fx.Node) -> None:
        here = self._next()
        self._aligned = here is not None and here.target is node.target
        self._at += 1

    def nearby(self) -> tuple[AxisClass, ...]:
        """The classes that meet in the module that is running, once the pass broke off."""
        ops = self.reference.ops
        if not self._aligned or not ops:
            return ()
        here = ops[min(self._at, len(ops) - 1)].meta.get("module", "")
        for module in (here, here.rpartition(".")[0]):
            ops_there = [
                n for n in ops if n.meta.get("module", "").startswith(module) or not module
            ]
            found = dict.fromkeys(c for node in ops_there for c in self._classes(node))
            if found:
                return tuple(found)
        return ()

    def _next(self) -> fx.Node | None:
        ops = self.reference.ops
        return ops[self._at] if self._aligned and self._at < len(ops) else None

    def _classes(self, node: fx.Node) -> Iterator[AxisClass]:
        for value in (node, *node.all_input_nodes):
            for axes in _results(self.reference.found.values.get(value)):
                for axis in axes:
                    yield from self.reference.changed(axis, self.sizes)

    def _unexpected(self, node: fx.Node) -> Iterator[AxisClass]:
        """The classes that change a weight of the op along an axis that this pass takes for fixed.

        A pass over values may take another way through the code than an exported one, and read less of its axes.
        """
        for value in node.all_input_nodes:
            axes = (
                self.reference.found.axes.get(str(value.target)) if value.op == "get_attr" else None
            )
            if axes is None:
                continue
            for each, size in zip(self.reference.classes, self.sizes, strict=True):
                places = [m.axis for m in each.members if m.fqn == value.target]
                known = (self.reference.changed(axes[axis], self.sizes) for axis in places)
                if size != each.size and not all(each in classes for classes in known):
                    yield each

    def _misfit(
        self,
        node: fx.Node,
        shapes: list[tuple[int, ...]] | None,
        due: Sequence[Sequence[int | None]],
        args: Sequence[Any],
        words: str,
    ) -> None:
        """Blames the classes of the dimensions that differ, or of weights of unlooked-for sizes, or all in the op."""
        given = shapes or [tuple(n for n in numbers(args))[-len(due[0]) :]] if due else []
        axes = list(_results(self.reference.found.values.get(node)))
        blamed = [
            each
            for have, want, these in zip(given, due, axes, strict=False)
            if len(have) == len(want)
            for n, size, axis in zip(have, want, these, strict=True)
            if size not in (None, n) and n != -1
            for each in self.reference.changed(axis, self.sizes)
        ]
        blamed = blamed or [*self._unexpected(node)]
        classes = tuple(dict.fromkeys(blamed or self._classes(node)))
        self.misfits.append(Misfit(classes, f"{call_in_words(node)}: {words}"[:240]))

    def _due(self, node: fx.Node, due: Any, args: Any, error: Exception | None) -> Any:
        """Results of the shapes that are due."""
        metas = list(_tensors(node.meta["val"]))
        if len(metas) != len(due):
            raise error or RuntimeError("an op gave another number of results")
        home = next(_tensors(list(args))).device
        made = [
            torch.zeros(
                [n if size is None else size for n, size in zip(val.shape, shape, strict=True)],
                dtype=val.dtype,
                device=home,
            )
            for val, shape in zip(metas, due, strict=True)
        ]
        value = node.meta["val"]
        return made[0] if isinstance(value, Tensor) else made


def _is_op(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is not operator.getitem


def _same(node: fx.Node, op: Any) -> bool:
    return node.target is op


def _fits(have: Sequence[int], want: Sequence[int | None]) -> bool:
    return len(have) == len(want) and all(
        size in (None, n) for n, size in zip(have, want, strict=True)
    )


def _shown(shapes: Sequence[Sequence[int | None]]) -> str:
    return ", ".join("(" + " ".join("?" if n is None else str(n) for n in s) + ")" for s in shapes)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _results(value: Any) -> Iterator[Axes]:
    """The axes of each result; of tensors side by side those of the first."""
    if isinstance(value, Stack):
        yield value.parts[0]
    elif isinstance(value, Axes):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _results(item)


def _value(term: Term | None, sizes: Sequence[int]) -> int | None:
    if term is None:
        return None
    if isinstance(term, int):
        return term
    if term[0] == "class":
        size: int = sizes[term[1]]
        return size
    left, right = _value(term[1], sizes), _value(term[2], sizes)
    if left is None or right is None:
        return None
    return left * right if term[0] == "*" else left + right


def _numbers_in(term: Term | None) -> Iterator[int]:
    if isinstance(term, tuple):
        if term[0] == "class":
            yield term[1]
        else:
            yield from _numbers_in(term[1])
            yield from _numbers_in(term[2])


# Equations ------------------------------------------------------------------------------------------------------


class _Tagging(Watch):
    """Writes down, op by op, the numbers that the code computed."""

    def __init__(self) -> None:
        self.log = Log()
        self.shapes = Shapes(self.log, self._source)
        self.asked: list[tuple[fx.Node, dict[int, Term]]] = []

    def __enter__(self) -> Any:
        self.shapes.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        self.shapes.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.log.open = False

    def _source(self, tensor: Tensor) -> object | None:
        return self.recorder.source(tensor)

    def note(self, node: fx.Node) -> None:
        terms = _matched(list(numbers((node.args, node.kwargs))), self.shapes.call)
        if terms:
            self.asked.append((node, terms))


def _matched(plain: list[int], call: list[int]) -> dict[int, Term]:
    """Place among an op's numbers -> the term of the number that the code wrote there."""
    if plain == call:
        return {i: n.term for i, n in enumerate(call) if isinstance(n, Tagged)}
    known: dict[int, list[Term]] = {}
    for n in call:
        known.setdefault(int(n), []).append(n.term if isinstance(n, Tagged) else None)
    return {
        i: known[n][0]
        for i, n in enumerate(plain)
        if len(known.get(n, ())) == 1 and known[n][0] is not None
    }


def equations_of(model: nn.Module, graph: LayerGraph) -> tuple[Reference, Equations]:
    """What the code asks of sizes, from one more pass at the traced sizes; and that pass.

    Raises:
        Exception: whatever the forward pass raises.
    """
    meta = graph.tracer == "meta"
    kind = "meta" if meta else "values"
    twin = scratch(model, graph, {}, {}, kind=kind)
    watch = _Tagging()
    tag(twin, model, watch.log)
    seen, _ = record_scratch(twin, *graph.example, _home(graph), watch, meta=meta)
    reference = reference_of(graph)
    ops = [node for node in seen.nodes if _is_op(node)]
    if [node.target for node in ops] == [node.target for node in reference.ops]:
        twins = dict(zip(_values_of(seen), _values_of(reference.graph), strict=False))
    else:
        found = infer(model, seen, real=graph.tracer == "real")
        reference, twins = Reference(seen, found, reference.classes), {}
    reader = _Reader(reference, twins)
    equations = [one for node, terms in watch.asked for one in reader.of_op(node, terms)]
    equations += [one for left, right in watch.log.equal for one in reader.compared(left, right)]
    equations += reader.square(model)
    return reference, Equations(reference.classes, equations, places(model))


def _values_of(graph: fx.Graph) -> list[fx.Node]:
    """Inputs and results of ops in their order; weights are known by name."""
    return [node for node in graph.nodes if node.op in ("placeholder", "call_function")]


class _Reader:
    """Makes equations of what was written down.

    Args:
        reference: the pass whose axes are known.
        twins: node of the tagged pass -> node of the reference, where they are two.
    """

    def __init__(self, reference: Reference, twins: Mapping[fx.Node, fx.Node]) -> None:
        self.reference, self.twins = reference, twins

    def of_op(self, node: fx.Node, terms: Mapping[int, Term]) -> Iterator[tuple[Term, Term]]:
        due = list(self._due(node))
        for i, term in terms.items():
            left = self.term(term)
            for right in due[i] if i < len(due) and left is not None else ():
                if right is not None:
                    yield left, right

    def compared(self, left: Term, right: Term) -> Iterator[tuple[Term, Term]]:
        one, other = self.term(left), self.term(right)
        if one is not None and other is not None:
            yield one, other

    def square(self, model: nn.Module) -> Iterator[tuple[Term, Term]]:
        """`nn.MultiheadAttention` asks, where nothing is written down, that queries, heads and results are as wide."""
        known, number = self.reference.found.axes, self.reference.number
        for name, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                inner = f"{name}." if name else ""
                packed = "q_proj_weight" if module.in_proj_weight is None else "in_proj_weight"
                axes = [
                    *known.get(f"{inner}out_proj.weight", ()),
                    *known.get(inner + packed, ())[1:],
                ]
                first, *others = [polynomial(axis, number) for axis in axes] or [None]
                for each in others:
                    if first is not None and each is not None:
                        yield first, each

    def term(self, term: Term) -> Term | None:
        """With sizes of tensors as sizes of classes."""
        if isinstance(term, int) or term[0] == "at":
            return term
        if term[0] == "of":
            return next(iter(self._sizes(self._axes(term[1]), term[2])), None)
        left, right = self.term(term[1]), self.term(term[2])
        if left is None or right is None:
            return None
        if isinstance(left, int) and isinstance(right, int):
            return {
                "*": left * right, "+": left + right, "-": left - right, "//": left // (right or 1)
            }[term[0]]  # fmt: skip
        return (term[0], left, right)

    def _axes(self, source: fx.Node | str) -> Any:
        if isinstance(source, fx.Node) and source.op == "get_attr":
            source = str(source.target)
        if isinstance(source, str):
            return self.reference.found.axes.get(source)
        return self.reference.found.values.get(self.twins.get(source, source))

    def _sizes(self, value: Any, dim: int) -> list[Term | None]:
        """The size of a dimension; tensors side by side must agree in it."""
        every = value.parts if isinstance(value, Stack) else [value]
        return [
            polynomial(axes[dim], self.reference.number)
            for axes in every
            if isinstance(axes, Axes) and not axes.uniform and dim < len(axes)
        ]

    def _due(self, node: fx.Node) -> Iterator[list[Term | None]]:
        """For each number among an op's arguments what it is due to be; an empty list where nothing says so."""
        name = overload(node).split(".")[1]
        value = self._axes(node)
        args: tuple[Any, ...] = node.args
        first = self._axes(args[0]) if args and isinstance(args[0], fx.Node) else None
        if name in ("view", "reshape", "_unsafe_view", "expand", "broadcast_to"):
            shape = args[1]
            rank = len(node.meta["val"].shape)
            for i, n in enumerate(shape):
                yield self._sizes(value, i + rank - len(shape)) if n != -1 else []
        elif name == "unflatten":
            dim = _dim(args[1], first)
            yield []
            for i, n in enumerate(args[2]):
                yield self._sizes(value, dim + i) if n != -1 else []
        elif name in ("split_with_sizes", "split", "chunk") and isinstance(value, list):
            dim = _dim(args[2] if len(args) > 2 else 0, first)
            if name == "split_with_sizes" or isinstance(args[1], (list, tuple)):
                yield from (self._sizes(part, dim) for part in value)
            elif name == "split":
                full = [p for p in value if isinstance(p, Axes) and p[dim].size == args[1]]
                yield [size for part in full for size in self._sizes(part, dim)]
        elif name == "slice" and isinstance(first, Axes) and len(args) > 3:
            axis = first[_dim(args[1], first)]
            yield []
            for end in args[2:4]:
                inside = isinstance(end, int) and 0 <= end <= axis.size
                if isinstance(end, int):
                    yield [boundary(axis, end, self.reference.number)] if inside else []
        elif name == "narrow" and isinstance(first, Axes):
            dim = _dim(args[1], first)
            yield []
            yield [boundary(first[dim], int(args[2]), self.reference.number)]
            yield self._sizes(value, dim)
        elif name == "arange":
            start, end, step = (0, *args, 1) if len(args) == 1 else (*args, 1)[:3]
            (count,) = self._sizes(value, 0) or [None]
            plain = all(isinstance(n, (int, float)) for n in (start, end, step))
            if plain and start == 0 and end == step * node.meta["val"].shape[0] and step % 1 == 0:
                due = None if count is None else _times(count, int(step))
                yield from [[due]] if len(args) == 1 else [[], [due]]
        elif name in ("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full"):
            shape = args[1] if name.startswith("new") else args[0]
            for i in range(len(shape)):
                yield self._sizes(value, i)
        elif name in ("layer_norm", "rms_norm"):
            shape = args[1]
            for i in range(len(shape)):
                yield self._sizes(value, len(node.meta["val"].shape) - len(shape) + i)


def _times(term: Term, by: int) -> Term:
    return term * by if isinstance(term, int) else term if by == 1 else ("*", term, by)


def _dim(dim: Any, axes: Any) -> int:
    rank = len(axes.parts[0] if isinstance(axes, Stack) else axes or ())
    return int(dim) % max(rank, 1)
