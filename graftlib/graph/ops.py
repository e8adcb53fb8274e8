"""What every op is: one table, read by all that read graphs.

An entry is one `@rule` in ``axes/rules_*``: an equation as a function that ties axes, and beside the op's names what
the other readers ask. A rule for an overload (``"aten.where.self"``) comes before a rule for all overloads
(``"aten.where"``), and an op that writes in place (``add_``) has the entry of the op that does not.
While a rule runs, `op()` says more about the op: the shapes of its results, its arguments by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch
from torch import fx

__all__ = [
    "GATES",
    "Features",
    "Op",
    "OpSpec",
    "arguments",
    "aten",
    "call_in_words",
    "does",
    "entering",
    "find",
    "keeps_features",
    "module_in_words",
    "moved_args",
    "name_of",
    "named_arguments",
    "op",
    "order_of",
    "overload",
    "rule",
    "rules",
    "schema_name",
    "spec",
    "words",
]

Function = TypeVar("Function", bound=Callable[..., Any])
# The gates of recurrent layers, in the order in which they are packed; the others have one without a name.
GATES = {"lstm": ("input", "forget", "cell", "output"), "gru": ("reset", "update", "new")}


def aten(names: str) -> list[str]:
    """``"add mul"`` -> ``["aten.add", "aten.mul"]``."""
    return [f"aten.{name}" for name in names.split()]


def words(text: str) -> frozenset[str]:
    """The set of the words in `text`."""
    return frozenset(text.split())


@dataclass(frozen=True)
class Features:
    """How an op makes new features from a weight.

    Attributes:
        input: position of the argument with the old features.
        weight: position of the weight.
        bias: position of the bias; None where it has none.
        axis: of the features, in the input and in the result.
        out_axis: axis of the weight that the new features stand on.
        in_axis: axis of the weight that the old features stand on.
    """

    input: int
    weight: int
    bias: int | None
    axis: int
    out_axis: int
    in_axis: int


@dataclass(frozen=True)
class OpSpec:
    """One entry.

    Attributes:
        apply: the rule: takes the op's own arguments, each tensor as its `Axes`, ties what the op ties, and gives the
            `Axes` of the result (a list of them for several results).
        batchwise: the op treats every dimension that it returns as it came as a batch dimension, so that the rule may
            be applied to each tensor of a `Stack` in turn.
        stacks: the rule takes a `Stack` as it is.
        does: what becomes of the features of its input: ``"moves"`` (elements are moved about, none is computed),
            ``"keeps"`` (each stays at its place, scaled, shifted or normalised), ``"activates"`` (likewise, through a
            nonlinear function), ``"folds"`` (many become one), ``"mixes"`` (new ones are made); ``""``: not known.
        how: of an op that moves: ``"same"``, ``"reshape"``, ``"permute"``, ``"expand"``, ``"split"``, ``"join"``; of
            one that mixes: ``"product"`` where both factors may be data.
        kind: of the weight that it reads, as in `Parameter`.
        slots: the arguments that only weights are given for, by position -> their role. Lists of weights end in ``.*``.
        features: of an op that makes new features from one weight.
    """

    apply: Callable[..., Any]
    batchwise: bool = False
    stacks: bool = False
    does: str = ""
    how: str = ""
    kind: str = "other"
    slots: Mapping[str, str] = field(default_factory=dict)
    features: Features | None = None

    def role(self, slot: str) -> str | None:
        """The role of a weight that is given for argument `slot`; None where data may be given, too."""
        return self.slots.get(slot) or self.slots.get(f"{slot.partition('.')[0]}.*")


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


def _no_rule(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError


_rules: dict[str, OpSpec] = {}
_UNKNOWN = OpSpec(_no_rule)
_op: ContextVar[Op] = ContextVar("the op that is being read")


def rule(
    *names: str,
    batchwise: bool = False,
    stacks: bool = False,
    does: str = "",
    how: str = "",
    kind: str = "other",
    slots: Mapping[str, str] | None = None,
    features: Features | None = None,
) -> Callable[[Function], Function]:
    """Register a rule for ops by name; a later one replaces an earlier one.

    A rule raises NotImplementedError where it does not fit what the op is given: what the op touches is then frozen, as
    it is where axes of different sizes are tied. Whatever else it raises reaches the user as a `RuleError` that names
    the op and its node.

    Args:
        names: of an overload (``"aten.linear.default"``) or of all overloads (``"aten.linear"``), for any
            library of ops.
        batchwise: see `OpSpec`.
        stacks: see `OpSpec`.
        does: see `OpSpec`.
        how: see `OpSpec`.
        kind: see `OpSpec`.
        slots: see `OpSpec`.
        features: see `OpSpec`.

    >>> from graftlib.graph.axes.algebra import tie
    >>> @rule("mylib.scaled_add.default", does="keeps")
    ... def scaled_add(x, y, scale):
    ...     "z[..., i] = x[..., i] + scale * y[..., i]"
    ...     for a, b in zip(x, y):
    ...         tie(a, b)
    ...     return x
    """

    def register(function: Function) -> Function:
        entry = OpSpec(function, batchwise, stacks, does, how, kind, dict(slots or {}), features)
        _rules.update(dict.fromkeys(names, entry))
        return function

    return register


def find(name: str) -> OpSpec | None:
    """The entry of an overload such as ``aten.add_.Tensor``; None where there is none."""
    if name in _rules:
        return _rules[name]
    packet = name.rpartition(".")[0] if name.count(".") > 1 else name
    if packet in _rules:
        return _rules[packet]
    if packet.endswith("_") and not packet.endswith("__"):
        return _rules.get(packet[:-1])
    return None


def spec(node: fx.Node) -> OpSpec:
    """The entry of the op that a node calls; an empty one where there is none."""
    return (find(overload(node)) if node.op == "call_function" else None) or _UNKNOWN


def does(node: fx.Node) -> str:
    """`OpSpec.does` of the op that a node calls."""
    return spec(node).does


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


# --- nodes of a graph -------------------------------------------------------------------------------------------------


@cache
def schema_name(target: Any) -> str:
    """``aten.add_.Tensor``; the name of a function that is no op."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(getattr(target, "__name__", target))
    return f"{schema.name.replace('::', '.')}.{schema.overload_name or 'default'}"


def overload(node: fx.Node) -> str:
    """`schema_name` of what a node calls."""
    return schema_name(node.target)


def module_in_words(node: fx.Node) -> str:
    """The module that ran a node, for messages: ``'layer1.0'``, or ``the model itself``."""
    module = node.meta.get("module", "")
    return f"'{module}'" if module else "the model itself"


def call_in_words(node: fx.Node) -> str:
    """What a node calls and where, for messages: ``linear in 'fc'``, ``cumsum in the model itself``."""
    name = overload(node)
    short = name.rpartition(".")[0].removeprefix("aten.") or name
    return f"{short} in {module_in_words(node)}"


def name_of(node: fx.Node) -> str:
    """``aten.add_.Tensor`` -> ``add_``; ``""`` for a node that calls nothing.

    Ops of other namespaces keep it: ``torchvision.nms``.
    """
    if node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    name = schema_name(node.target) if schema is None else str(schema.name)
    return name.removeprefix("aten::").replace("::", ".")


def named_arguments(target: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an op by their names in its schema and in its order, defaults too, however they are passed."""
    expected = _expected(target)
    if expected is None:
        return dict(kwargs)
    names, defaults = expected
    values = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
    return {name: values[name] for name in names if name in values}


@cache
def _expected(target: Any) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """The names of the arguments in an op's schema, and the defaults of some; None for a function that is no op."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return None
    defaults = {e.name: e.default_value for e in schema.arguments if e.has_default_value()}
    return tuple(each.name for each in schema.arguments), defaults


def arguments(node: fx.Node) -> dict[str, Any]:
    """`named_arguments` of a node, with nodes where there are tensors."""
    return named_arguments(node.target, node.args, node.kwargs)


def moved_args(node: fx.Node) -> list[fx.Node]:
    """The nodes whose elements an op passes on; ``view_as`` asks its second argument only for a shape."""
    if name_of(node).endswith("_as") or keeps_features(node):
        return node.all_input_nodes[:1]
    return node.all_input_nodes


def keeps_features(node: fx.Node) -> bool:
    """Whether an op is a depthwise convolution: each feature is made of the positions of the same feature alone."""
    if name_of(node) not in ("conv1d", "conv2d", "conv3d"):
        return False
    named = arguments(node)
    channels = (named["input"].meta["val"].shape[1], named["weight"].meta["val"].shape[0])
    return channels == (named["groups"], named["groups"])


def order_of(node: fx.Node) -> tuple[int, ...]:
    """Which dimension of its input each dimension of a result is; of an op that permutes them."""
    source: Any = node.args[0]
    # Distinct sizes stand for the dimensions, to see where the op takes each.
    sizes = range(2, 2 + source.meta["val"].ndim)
    function = getattr(torch.ops.aten, name_of(node).rstrip("_"))
    moved = function(torch.empty(tuple(sizes), device="meta"), *node.args[1:], **node.kwargs)
    return tuple(size - 2 for size in moved.shape)
