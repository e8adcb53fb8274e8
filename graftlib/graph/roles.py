"""Which weights are the projections of an attention, and which of their units are whose.

By following data, never by names: back from query, key and value to the linear layer that made them, forward from the
result to the one that reads it. Where a layout cannot be read off exactly, the parts are left out and the role stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, islice

import torch
from torch import Tensor, fx

from .attention import Attention, find_attentions
from .ops import does, keeps_features, moved_args, name_of, spec
from .parameter import Part
from .provenance import Inexact, along, carry, thin, units_of_rows, vector
from .reads import Read, weight_nodes
from .walk import reach

__all__ = ["Projection", "find_projections"]


@dataclass(frozen=True)
class Projection:
    """The role of one parameter in attentions.

    Attributes:
        role: as in `Parameter`.
        heads: of a parameter that is not packed.
        parts: as in `Parameter`.
    """

    role: str
    heads: int | None = None
    parts: dict[str, Part] = field(default_factory=dict)


@dataclass
class _Known:
    """What is known of one parameter, over all attentions."""

    shape: tuple[int, ...]
    axis: int | None = None
    heads: dict[str, list[list[int]]] = field(default_factory=dict)
    words: dict[str, None] = field(default_factory=dict)
    exact: bool = True

    def add(self, word: str, axis: int | None, heads: list[list[int]] | None) -> None:
        known = self.heads.get(word)
        agree = heads is not None and known in (None, heads) and self.axis in (None, axis)
        self.words[word] = None
        self.exact = self.exact and agree
        if heads is not None:
            self.axis, self.heads[word] = axis, heads


def find_projections(graph: fx.Graph, reads: Mapping[str, list[Read]]) -> dict[str, Projection]:
    """FQN -> its role in attentions; only for weights that have one, and for their biases.

    Args:
        graph: in the normal form.
        reads: from `reads.find_reads`.
    """
    weights = weight_nodes(graph)
    made_by = _makers(reads)
    bias_of = _biases(reads)
    known: dict[str, _Known] = {}
    biases: dict[str, _Known] = {}
    for attention in find_attentions(graph, weights):
        for word, (node, axis) in attention.operands.items():
            maker = _maker(node, made_by)
            if maker is None:
                continue
            heads, own = None, None
            with contextlib.suppress(Inexact):
                heads, own = _heads(made_by[maker], node, axis)
            _entry(known, made_by[maker]).add(word, own, heads)
            _add_bias(biases, bias_of.get(maker), word, node, axis)
        _add_output(known, attention, made_by, weights)
    projections = {fqn: _projection(one) for fqn, one in known.items()}
    for fqn, one in biases.items():
        if projection := _projection(one):
            projections[fqn] = Projection("bias", projection.heads, projection.parts)
    return {fqn: one for fqn, one in projections.items() if one is not None}


def _entry(known: dict[str, _Known], read: Read) -> _Known:
    shape = tuple(read.source.meta["val"].shape)
    return known.setdefault(str(read.source.target), _Known(shape))


def _makers(reads: Mapping[str, list[Read]]) -> dict[fx.Node, Read]:
    """Ops that make features from a weight -> that weight's read."""
    return {
        read.node: read
        for each in reads.values()
        for read in each
        if _makes(read) and read.source.meta["val"].ndim >= 2
    }


def _makes(read: Read) -> bool:
    """Whether the weight makes new features; an `einsum` of data and a weight does, in a layout of its own."""
    if name_of(read.node) == "einsum":
        return bool(read.value.meta["val"].ndim > 2)
    makes = spec(read.node).features
    return makes is not None and read.slot == str(makes.weight) and not keeps_features(read.node)


def _maker(node: fx.Node, made_by: Mapping[fx.Node, Read]) -> fx.Node | None:
    """The one op whose features `node` holds; None for none or several."""

    def through(node: fx.Node) -> bool:
        linear = does(node) in ("moves", "keeps", "folds") or keeps_features(node)
        return linear and node not in made_by

    behind = reach([node], moved_args, through) if through(node) else ()
    makers = [*islice((each for each in chain([node], behind) if each in made_by), 2)]
    return makers[0] if len(makers) == 1 else None


def _heads(read: Read, node: fx.Node, axis: int) -> tuple[list[list[int]], int]:
    """The units of a weight (or bias) that `node` reads, head by head, and the axis they stand on."""
    own, units = _units(read, "out")
    return units_of_rows(carry(_numbered(read.node, units), node), axis), own


def _numbered(maker: fx.Node, units: Tensor) -> dict[fx.Node, Tensor]:
    shape = maker.meta["val"].shape
    makes = spec(maker).features
    assert makes is not None
    return {maker: along(units, makes.axis, shape)}


def _units(read: Read, side: str) -> tuple[int, Tensor]:
    """Axis of the parameter, and for each feature the parameter's unit on that axis.

    A weight may be cut or turned before its op reads it, so its axes are numbered and sent the same way.

    Raises:
        Inexact: they are undetermined.
    """
    makes = spec(read.node).features
    if makes is None:
        raise Inexact("features on more than one axis")
    shape = tuple(read.source.meta["val"].shape)
    if read.slot != str(makes.weight):
        return 0, vector(
            carry({read.source: along(torch.arange(shape[0]), 0, shape)}, read.value), 0
        )
    at = makes.out_axis if side == "out" else makes.in_axis
    for axis in (0, 1):
        numbers = carry({read.source: along(torch.arange(shape[axis]), axis, shape)}, read.value)
        try:
            units = vector(numbers, at)
        except Inexact:
            continue
        if len(units) == 1 or units[0] != units[-1]:
            return axis, units
    raise Inexact("neither axis of the weight is the one its op reads")


def _biases(reads: Mapping[str, list[Read]]) -> dict[fx.Node, Read]:
    """Ops that make features from a weight -> the read of the bias that they add."""
    return {
        read.node: read
        for each in reads.values()
        for read in each
        if (makes := spec(read.node).features)
        and read.slot == str(makes.bias)
        and read.source.meta["val"].ndim == 1
    }


def _add_bias(
    biases: dict[str, _Known], read: Read | None, word: str, node: fx.Node, axis: int
) -> None:
    if read is None:
        return
    try:
        heads, own = _heads(read, node, axis)
    except Inexact:
        return
    _entry(biases, read).add(word, own, heads)


def _add_output(
    known: dict[str, _Known],
    attention: Attention,
    made_by: Mapping[fx.Node, Read],
    weights: set[fx.Node],
) -> None:
    if attention.result is None:
        return
    reader = _reader(attention.result, made_by, weights)
    if reader is None:
        return
    read = made_by[reader]
    heads, axis = None, None
    with contextlib.suppress(Inexact):
        heads, axis = _output_heads(attention, read, made_by)
    _entry(known, read).add("output", axis, heads)


def _reader(
    result: fx.Node, made_by: Mapping[fx.Node, Read], weights: set[fx.Node]
) -> fx.Node | None:
    """The one op with a weight that takes an attention's result."""
    own, readers = {result}, []
    node = result
    while (node := node.next).op != "root":
        if own.isdisjoint(node.all_input_nodes):
            continue
        if node in made_by:
            readers.append(node)
        elif does(node) in ("moves", "keeps", "activates"):
            # A sum with other data is the residual stream: what reads that is not this attention's own.
            joins = name_of(node) in ("add", "add_", "sub", "cat", "stack")
            if not joins or {*node.all_input_nodes} <= own | weights:
                own.add(node)
    return readers[0] if len(readers) == 1 else None


def _output_heads(
    attention: Attention, read: Read, made_by: Mapping[fx.Node, Read]
) -> tuple[list[list[int]], int]:
    """The units on the in axis of the output projection, head by head."""
    assert attention.result is not None
    shape = tuple(attention.result.meta["val"].shape)
    if shape[:-1] != tuple(attention.operands["query"][0].meta["val"].shape)[:-1]:
        raise Inexact("the result does not stand where the query stood")
    labels = _head_labels(attention, made_by)
    count, size = int(labels.max()) + 1, shape[-1]
    numbers = (labels.unsqueeze(-1) * size + torch.arange(size)).expand(shape)
    makes = spec(read.node).features
    if makes is None:
        raise Inexact("features on more than one axis")
    source = read.node.args[makes.input]
    assert isinstance(source, fx.Node)
    features = vector(carry({attention.result: numbers}, source), makes.axis)
    axis, units = _units(read, "in")
    if not torch.equal(features.sort().values, torch.arange(count * size)) or len(units) != len(
        features
    ):
        raise Inexact("the output projection does not read every head once")
    placed = units[features.argsort()].view(count, size)
    return placed.tolist(), axis


def _head_labels(attention: Attention, made_by: Mapping[fx.Node, Read]) -> Tensor:
    """The number of the head at each position of the query, its feature axis left out."""
    node, axis = attention.operands["query"]
    maker = _maker(node, made_by)
    if maker is None or axis not in (-1, node.meta["val"].ndim - 1):
        raise Inexact("the query's heads are not known")
    _, units = _units(made_by[maker], "out")
    numbers = carry(_numbered(maker, units), node)
    first = {head[0]: i for i, head in enumerate(units_of_rows(numbers, axis))}
    leading = thin(numbers, keep=axis).select(axis, 0).real.long()
    lookup = torch.zeros(max(first) + 1, dtype=torch.long)
    for unit, label in first.items():
        lookup[unit] = label
    return lookup[leading]


def _projection(known: _Known) -> Projection | None:
    words = list(known.words)
    if len(words) == 1:
        role = f"attention.{words[0]}"
        heads = known.heads.get(words[0]) if known.exact else None
        if heads is None or known.axis is None:
            return Projection(role)
        if sum(map(len, heads)) == known.shape[known.axis]:
            return Projection(role, len(heads), {"heads": _part(known.axis, heads, role)})
        # Some units are another's, whose way was not understood.
        return Projection("attention.fused", None, {words[0]: _part(known.axis, heads, role)})
    if "output" in words:
        return None
    if not known.exact or known.axis is None:
        return Projection("attention.fused")
    units = [unit for heads in known.heads.values() for head in heads for unit in head]
    if len({*units}) != len(units):
        # One projection serves as several operands: it is not packed.
        return None
    parts: dict[str, Part] = {
        word: _part(known.axis, known.heads[word], f"attention.{word}")
        for word in ("query", "key", "value")
        if word in known.heads
    }
    return Projection("attention.fused", None, parts)


def _part(axis: int, heads: list[list[int]], role: str) -> Part:
    units = [unit for head in heads for unit in head]
    run = range(units[0], units[0] + len(units))
    return Part(axis, run if list(run) == units else tuple(units), len(heads), role)
