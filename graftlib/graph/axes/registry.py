"""The table of axis rules: op name -> what the op does to axes.

In: ``@rule("aten.linear.default")`` over a function that takes the op's own arguments, each tensor as its `Axes`,
and gives the `Axes` of the result (a list of them for several results). It ties what the op ties. Out: `find`.
Always true: a rule for an overload comes before a rule for all overloads (``"aten.linear"``), and an op that writes
in place (``add_``) has the rule of the op that does not.
While a rule runs, `op()` says more about the op: the shapes of its results, its arguments by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import fx

__all__ = ["Op", "Rule", "entering", "find", "op", "rule", "rules"]

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        apply: the function.
        batchwise: the op treats every dimension that it returns as it came as a batch dimension, so that it may
            be applied to each tensor of a `Stack` in turn.
        stacks: the function takes a `Stack` as it is.
    """

    apply: Callable[..., Any]
    batchwise: bool = False
    stacks: bool = False


@dataclass(frozen=True)
class Op:
    """The op that is being read.

    Attributes:
        node: its node in the graph.
        shapes: of its results; a tensor of a list of results counts on its own.
        named: its arguments by their name in the ATen schema, tensors as `Axes`.
        hints: what the reading knows beyond the op; see `infer`.
    """

    node: fx.Node
    shapes: tuple[tuple[int, ...], ...]
    named: Mapping[str, Any] = field(default_factory=dict)
    hints: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its first result."""
        return self.shapes[0]


_rules: dict[str, Rule] = {}
_op: ContextVar[Op] = ContextVar("the op that is being read")


def rule(
    *names: str, batchwise: bool = False, stacks: bool = False
) -> Callable[[Function], Function]:
    """Register a rule for ops by name; a later one replaces an earlier one.

    A rule raises NotImplementedError where it does not fit what the op is given: what the op touches is then frozen, as
    it is where axes of different sizes are tied. Whatever else it raises reaches the user as a `RuleError` that names
    the op and its node.

    Args:
        names: of an overload (``"aten.linear.default"``) or of all overloads (``"aten.linear"``), for any
            library of ops.
        batchwise: see `Rule`.
        stacks: see `Rule`.

    >>> from graftlib.graph.axes.algebra import tie
    >>> @rule("mylib.scaled_add.default")
    ... def scaled_add(x, y, scale):
    ...     "z[..., i] = x[..., i] + scale * y[..., i]"
    ...     for a, b in zip(x, y):
    ...         tie(a, b)
    ...     return x
    """

    def register(function: Function) -> Function:
        for name in names:
            _rules[name] = Rule(function, batchwise, stacks)
        return function

    return register


def find(name: str) -> Rule | None:
    """The rule for an overload such as ``aten.add_.Tensor``; None where there is none."""
    if name in _rules:
        return _rules[name]
    packet = name.rpartition(".")[0] if name.count(".") > 1 else name
    if packet in _rules:
        return _rules[packet]
    if packet.endswith("_") and not packet.endswith("__"):
        return _rules.get(packet[:-1])
    return None


def rules() -> tuple[str, ...]:
    """The names that have a rule."""
    return tuple(sorted(_rules))


def op() -> Op:
    """The op that is being read. For use inside a rule."""
    return _op.get()


class entering:  # noqa: N801 - reads as a verb: ``with entering(op)``
    """Make `here` the op that `op()` gives."""

    def __init__(self, here: Op) -> None:
        self._here = here

    def __enter__(self) -> None:
        self._token = _op.set(self._here)

    def __exit__(self, *error: object) -> None:
        _op.reset(self._token)
