"""Read a graph op by op and find what each axis of each parameter has become.

What comes from outside (inputs, outputs, constants, derived buffers) has a fixed order; an op without a
rule, or whose rule says that it does not fit (`Untieable`, `NotImplementedError`), freezes all that it touches and is
counted by name. Anything else that a rule raises, or axes of other shapes than the op's, is a fault in the rule and
raised as a `RuleError`.
"""

from __future__ import annotations

import functools
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import RuleError
from ..normal import named_tensors
from ..ops import (
    Op,
    OpSpec,
    call_in_words,
    entering,
    find,
    module_in_words,
    named_arguments,
    overload,
)
from . import (
    rules_contraction,
    rules_elementwise,
    rules_index,
    rules_movement,
    rules_norm,
    rules_recurrent,
    rules_spatial,
)
from .algebra import ONE, Atom, Untieable, freeze, tie
from .combine import fixed_axes
from .journal import Journal
from .lookahead import picked, written
from .values import Axes, Stack, plain

__all__ = ["Inference", "infer"]

BUILT_IN = (
    rules_contraction,
    rules_elementwise,
    rules_index,
    rules_movement,
    rules_norm,
    rules_recurrent,
    rules_spatial,
)


@dataclass(frozen=True)
class Inference:
    """What a reading of a graph says.

    Attributes:
        axes: FQN of a parameter, or of a buffer that the state dict carries -> its axes, for those that are read.
        constants: likewise, for other buffers that are the same everywhere along an axis: their sizes follow.
        frozen_ops: op -> how often it froze something for want of a rule.
        ties: the op behind every tie of two free atoms, by the tie's number.
        values: node -> its axes, a `Stack`, or a list of them.
        saved: the parameters and buffers that the state dict carries.
    """

    axes: Mapping[str, Axes]
    constants: Mapping[str, Axes]
    frozen_ops: dict[str, int]
    ties: tuple[str, ...]
    values: Mapping[fx.Node, Any]
    saved: frozenset[str]


def infer(
    model: nn.Module,
    graph: fx.Graph,
    *,
    real: bool = False,
    skip: int | None = None,
    saved: frozenset[str] | None = None,
) -> Inference:
    """Read `graph`.

    Args:
        model: whose parameters and buffers the graph reads.
        graph: in the normal form.
        real: the graph is what happened on one input, and may have taken another way on another input.
        skip: number of a tie to leave out; None for none.
        saved: of another reading of a model of the same structure; None asks the state dict.
    """
    with Journal(skip) as journal:
        reader = _Reader(model, journal, saved)
        for node in graph.nodes:
            reader.read(node)
        if real:
            _freeze_beside_unread(model, reader.states)
    ties = tuple(journal.ties)
    return Inference(
        reader.states, reader.constants, dict(reader.unruled), ties, reader.values, reader.saved
    )


class _Reader:
    def __init__(
        self, model: nn.Module, journal: Journal, saved: frozenset[str] | None = None
    ) -> None:
        self.journal = journal
        self.values: dict[fx.Node, Any] = {}
        self.states: dict[str, Axes] = {}
        self.constants: dict[str, Axes] = {}
        self.unruled: Counter[str] = Counter()
        self.tensors = named_tensors(model)
        if saved is None:
            kept = model.state_dict(keep_vars=True).keys()
            saved = frozenset(
                fqn
                for fqn, tensor in self.tensors.items()
                if fqn in kept or isinstance(tensor, nn.Parameter)
            )
        self.saved = saved

    def read(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node.op == "output":
            for axes in _tensors(self.values_of(node.args)):
                for axis in axes:
                    freeze(axis, "the output")
        elif node.op == "placeholder":
            self.journal.by = f"the input '{node.target}'"
            self.values[node] = fixed_axes(value.shape) if isinstance(value, Tensor) else None
        elif node.op == "get_attr":
            self.values[node] = self.attribute(node, node.meta["val"])
        elif node.op == "call_function":
            self.values[node] = self.call(node)

    def attribute(self, node: fx.Node, value: Tensor) -> Axes:
        fqn = str(node.target)
        if fqn in self.saved and value.is_floating_point():
            self.states[fqn] = Axes(ONE if size == 1 else Atom(size) for size in value.shape)
            return self.states[fqn]
        self.journal.by = f"the constant '{fqn}'"
        tensor = node.meta.get("constant", self.tensors.get(fqn))
        same = [size > 1 and _constant_along(tensor, d) for d, size in enumerate(value.shape)]
        fixed = zip(same, value.shape, fixed_axes(value.shape), strict=True)
        axes = Axes(Atom(size) if free else axis for free, size, axis in fixed)
        if any(same) and fqn in self.tensors:
            self.constants[fqn] = axes
        return axes

    def call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source: Any
            place: Any
            source, place = node.args
            whole = self.values[source]
            return whole[place] if isinstance(whole, (list, tuple)) else whole
        name = overload(node)
        self.journal.by = call_in_words(node)
        shapes = tuple(tuple(t.shape) for t in _leaves(node.meta.get("val"), Tensor))
        args, kwargs = self.values_of(node.args), self.values_of(node.kwargs)
        entry = find(name)
        if entry is not None:
            try:
                return self.apply(node, entry, shapes, args, kwargs)
            except (Untieable, NotImplementedError):  # all that a rule may raise
                name = f"{name} (rule does not fit)"
            except Exception as error:
                raise _broken(name, node, entry, error) from error
        return self.freeze_all(name, [args, kwargs], node.meta.get("val"))

    def values_of(self, arguments: Any) -> Any:
        if isinstance(arguments, fx.Node):
            return self.values.get(arguments)
        if isinstance(arguments, (list, tuple)):
            return [self.values_of(item) for item in arguments]
        if isinstance(arguments, dict):
            return {key: self.values_of(item) for key, item in arguments.items()}
        return arguments

    def apply(
        self,
        node: fx.Node,
        entry: OpSpec,
        shapes: tuple[tuple[int, ...], ...],
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a rule; of one stack on every tensor of it, and a stack comes out where the dimension is still there."""
        once = functools.partial(self.once, node, entry, shapes)
        stacks = [x for x in args if isinstance(x, Stack)]
        alone = len(stacks) == 1 and not any(isinstance(x, Stack) for x in kwargs.values())
        if entry.batchwise and alone and stacks[0].dim >= 0:
            (stack,) = stacks
            mine = ([part if x is stack else x for x in args] for part in stack.parts)
            out = Stack(stack.marker, [plain(once(each, kwargs)) for each in mine])
            return out.plain() if out.dim < 0 else out
        if not entry.stacks:
            args, kwargs = plain(args), {key: plain(value) for key, value in kwargs.items()}
        result = once(args, kwargs)
        self.same_place(node, args, result)
        return result

    def once(
        self,
        node: fx.Node,
        entry: OpSpec,
        shapes: tuple[tuple[int, ...], ...],
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> Any:
        here = Op(node, shapes, named_arguments(node.target, args, kwargs), _hints(node, entry))
        with entering(here):
            result = entry.apply(*args, **kwargs)
        self.check_shapes(result, shapes)
        if isinstance(result, Axes) and result.uniform and not _stays_uniform(entry, args, kwargs):
            return Axes(result)
        return result

    @staticmethod
    def check_shapes(result: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
        own = [
            axes.parts[0].shape if isinstance(axes, Stack) else axes.shape
            for axes in _leaves(result, Axes, Stack)
        ]
        if shapes and own != list(shapes):
            raise ValueError(f"it gave axes of the shapes {own} where the op gave {list(shapes)}")

    def same_place(self, node: fx.Node, args: list[Any], result: Any) -> None:
        """An op that writes in place: what was there and what is there now move alike."""
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable or not args or not isinstance(args[0], Axes):
            return
        if isinstance(result, Axes) and args[0].shape == result.shape and _writes_first(schema):
            for a, b in zip(args[0], result, strict=True):
                tie(a, b)

    def freeze_all(self, name: str, operands: Any, value: Any) -> Any:
        froze = False
        for axes in _tensors(operands):
            for axis in axes:
                froze |= freeze(axis, self.journal.by + ", which has no rule")
        if froze:
            self.unruled[name] += 1
        return _fixed_like(value)


def _broken(name: str, node: fx.Node, entry: OpSpec, error: Exception) -> RuleError:
    code = getattr(entry.apply, "__code__", None)
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    return RuleError(
        f"the axis rule of '{name}' failed.",
        where={
            "node": f"'{node.name}' in {module_in_words(node)}",
            "rule": f"{getattr(entry.apply, '__name__', entry.apply)}{place}",
        },
        why=f"{type(error).__name__}: {error}"[:300],
        fix="mend the rule; where it does not fit what the op is given, it raises NotImplementedError, and what the op "
        "touches is frozen",
        op=name,
        node=node.name,
    )


def _freeze_beside_unread(model: nn.Module, states: Mapping[str, Axes]) -> None:
    """On another input the experts that were not chosen are: what their like ties, they would tie too."""
    unread = {
        word for fqn, _ in model.named_parameters() if fqn not in states for word in _siblings(fqn)
    }
    for fqn, axes in states.items():
        if not unread.isdisjoint(_siblings(fqn)):
            for axis in axes:
                freeze(axis, "a layer like it that this input did not reach")


def _siblings(fqn: str) -> set[str]:
    """The name with one number in it left open, for each of its numbers: ``experts.*.weight``, ``expert_*.weight``."""
    return {fqn[: match.start()] + "*" + fqn[match.end() :] for match in re.finditer(r"\d+", fqn)}


def _leaves(value: Any, *kinds: type) -> Iterator[Any]:
    """What is of `kinds` in nested lists, tuples and dicts, in order."""
    if isinstance(value, kinds):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item, *kinds)


def _tensors(value: Any) -> Iterator[Axes]:
    return map(plain, _leaves(value, Axes, Stack))


def _fixed_like(value: Any) -> Any:
    if isinstance(value, Tensor):
        return fixed_axes(value.shape)
    if isinstance(value, (list, tuple)):
        return [_fixed_like(item) for item in value]
    return value


def _hints(node: fx.Node, entry: OpSpec) -> dict[str, Any]:
    if entry.how == "reshape":
        return {"picked": picked(node)}
    return {"written": written(node)} if entry.apply is rules_elementwise.alike else {}


def _stays_uniform(entry: OpSpec, args: list[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether what is alike everywhere is so still: a running sum of ones is not, nor zeros with something added."""
    if entry.apply is rules_elementwise.alike:
        return True
    tensors = _tensors([args, kwargs])
    return (entry.batchwise or entry.stacks) and all(axes.uniform for axes in tensors)


def _writes_first(schema: Any) -> bool:
    info = schema.arguments[0].alias_info
    return info is not None and info.is_write


def _constant_along(tensor: Tensor | None, dim: int) -> bool:
    if tensor is None or tensor.device.type == "meta" or tensor.layout is not torch.strided:
        return False
    with torch.no_grad():
        return bool((tensor == tensor.narrow(dim, 0, 1)).all())
