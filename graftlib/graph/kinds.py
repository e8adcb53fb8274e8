"""What a parameter is: its kind, its role, the meaning of its axes, its groups.

By the op that reads it, as its `OpSpec` says, or, where none does, by the module that owns it. What neither knows is
``other``, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from torch import fx, nn

from .._torch_private import Conv, Norm
from .ops import GATES, arguments, does, name_of, spec, words
from .parameter import Part
from .reads import Read
from .skeleton import ModuleFacts
from .walk import reach

__all__ = ["Meaning", "meaning_by_module", "meaning_by_read"]

KERNEL = {1: ("kw",), 2: ("kh", "kw"), 3: ("kd", "kh", "kw")}


@dataclass(frozen=True)
class Meaning:
    """Kind, role, axes, groups and gates, as in `Parameter`."""

    kind: str
    role: str
    axes: tuple[str, ...]
    groups: int = 1
    parts: dict[str, Part] = field(default_factory=dict)


def meaning_by_read(read: Read, leaf: str) -> Meaning:
    """By the op that reads it.

    Args:
        read: the first read.
        leaf: the last component of the FQN, for what only the name tells (an LSTM's ``weight_hr_l0``).
    """
    shape = tuple(read.source.meta["val"].shape)
    name, entry = name_of(read.node), spec(read.node)
    if not _keeps_axes(read):
        return _other(shape, "weight" if len(shape) > 1 else "gain")
    role = entry.role(read.slot)
    if role is None:
        return _by_arithmetic(read, name, shape)
    if role in ("gain", "shift"):
        return Meaning("norm", role, _plain_or(shape, ("unit",)))
    if entry.kind == "recurrent":
        return _recurrent(name.removesuffix("_cell"), leaf, shape)
    if role == "bias":
        return Meaning(
            "bias", "bias", ("out",) if entry.kind == "conv" else _plain_or(shape, ("out",))
        )
    if entry.kind == "conv":
        named = arguments(read.node)
        transposed = "transpose" in name or named.get("transposed", False)
        return _conv(shape, int(named["groups"]), transposed)
    if entry.kind == "linear":
        stored = _axes_of(read, ("in", "out") if name == "addmm" else ("out", "in"))
        return Meaning("linear", "weight", stored) if stored else _other(shape, "weight")
    if entry.kind == "embedding":
        return Meaning("embedding", "weight", ("entry", "dim"))
    return _other(shape, "weight")


def meaning_by_module(module: ModuleFacts, leaf: str, shape: tuple[int, ...]) -> Meaning:
    """By the type of the module that owns it, for a parameter that no op reads."""
    bias = leaf.startswith("bias") or leaf.endswith("bias")
    if issubclass(module.kind, nn.RNNBase | nn.RNNCellBase):
        mode = (module.mode or module.kind.__name__.removesuffix("Cell")).lower()
        return _recurrent(mode, leaf, shape)
    if issubclass(module.kind, Norm | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return Meaning("norm", "shift" if bias else "gain", _plain_or(shape, ("unit",)))
    if bias and len(shape) == 1:
        return Meaning("bias", "bias", ("out",))
    if issubclass(module.kind, Conv) and leaf == "weight":
        return _conv(shape, module.groups, module.transposed)
    if leaf != "weight":
        return _other(shape, "weight" if len(shape) > 1 else "gain")
    if issubclass(module.kind, nn.Embedding | nn.EmbeddingBag):
        return Meaning("embedding", "weight", ("entry", "dim"))
    if issubclass(module.kind, nn.Linear) and len(shape) == 2:
        return Meaning("linear", "weight", ("out", "in"))
    if module.kind.__name__ == "Conv1D" and len(shape) == 2:
        return Meaning("linear", "weight", ("in", "out"))
    return _other(shape, "weight" if len(shape) > 1 else "gain")


def _keeps_axes(read: Read) -> bool:
    """Whether the way to the op leaves the shape, or only turns two axes."""
    before, after = read.source.meta["val"].shape, read.value.meta["val"].shape
    return sorted(before) == sorted(after) or all(does(n) == "moves" for n in read.path)


def _axes_of(read: Read, axes: tuple[str, str]) -> tuple[str, ...] | None:
    """The parameter's axes when the op sees `axes` at the end of the path."""
    if read.source.meta["val"].ndim != 2:
        return None
    turns = sum(spec(node).how == "permute" for node in read.path)
    return axes[::-1] if turns % 2 else axes


def _by_arithmetic(read: Read, name: str, shape: tuple[int, ...]) -> Meaning:
    """Ops that take weights and data alike: products, sums, `einsum`."""
    if name == "addmm" and read.slot == "0":
        return Meaning("bias", "bias", ("out",))
    if name in ("mm", "matmul") and len(shape) == 2:
        stored = _axes_of(read, ("in", "out") if read.slot == "1" else ("out", "in"))
        return Meaning("linear", "weight", stored) if stored else _other(shape, "weight")
    if name == "einsum" and (axes := _einsum_axes(read)):
        return Meaning("linear", "weight", axes)
    if name in ("add", "add_") and len(shape) == 1:
        return Meaning("bias", "bias", ("out",))
    if name in ("mul", "mul_") and len(shape) == 1:
        return Meaning("norm" if _after_rsqrt(read) else "other", "gain", ("unit",))
    return _other(shape, "weight")


def _einsum_axes(read: Read) -> tuple[str, ...] | None:
    equation = str(read.node.args[0]).replace(" ", "")
    terms, _, result = equation.partition("->")
    if read.path or "." in equation or not result:
        return None
    letters = terms.split(",")[int(read.slot.partition(".")[2])]
    axes = tuple("out" if letter in result else "in" for letter in letters)
    return axes if sorted(axes) == ["in", "out"] else None


def _after_rsqrt(read: Read) -> bool:
    """Whether the other factor was divided by its own size: a norm that is written out."""

    def others(node: fx.Node) -> list[fx.Node]:
        return [source for source in node.all_input_nodes if source is not read.value]

    scaled = words("mul to _to_copy type_as")
    nearby = reach([read.node], others, lambda node: name_of(node) in scaled)
    return any(name_of(node) in words("rsqrt rms_norm layer_norm") for node in islice(nearby, 8))


def _conv(shape: tuple[int, ...], groups: int, transposed: bool) -> Meaning:
    kernel = KERNEL.get(len(shape) - 2, tuple(f"k{i}" for i in range(len(shape) - 2)))
    if transposed:
        return Meaning("transposed_conv", "weight", ("in", "out", *kernel), groups)
    kind = "conv" if groups == 1 else "depthwise" if shape[1] == 1 else "grouped"
    return Meaning(kind, "weight", ("out", "in", *kernel), groups)


def _recurrent(mode: str, leaf: str, shape: tuple[int, ...]) -> Meaning:
    # An LSTM with `proj_size` has a matrix without gates, known by its name alone.
    gates = () if "_hr" in leaf else GATES.get(mode, ())
    size = shape[0] // max(len(gates), 1)
    parts = {gate: Part(0, range(i * size, (i + 1) * size)) for i, gate in enumerate(gates)}
    if len(shape) == 1:
        return Meaning("bias", "bias", ("out",), parts=parts)
    return Meaning("recurrent", "weight", ("out", "in"), parts=parts)


def _other(shape: tuple[int, ...], role: str) -> Meaning:
    return Meaning("other", role, _plain(shape))


def _plain(shape: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"axis{i}" for i in range(len(shape)))


def _plain_or(shape: tuple[int, ...], axes: tuple[str, ...]) -> tuple[str, ...]:
    return axes if len(shape) == len(axes) else _plain(shape)
