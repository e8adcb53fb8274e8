"""Rules of recurrent layers: the gates have a fixed order, the hidden units do not."""

# Equations are no sentences.
# ruff: noqa: D403, D415

from __future__ import annotations

from typing import Any

from ..ops import GATES, aten, name_of, op, rule
from .algebra import Expr, freeze, split, tie, total
from .combine import fixed_axes, stacked
from .values import Axes, Stack


def _gates() -> int:
    return len(GATES.get(name_of(op().node).removesuffix("_cell"), ("",)))


@rule(
    "aten.lstm",
    "aten.gru",
    "aten.rnn_tanh",
    "aten.rnn_relu",
    stacks=True,
    does="mixes",
    kind="recurrent",
    slots={"2.*": "weight"},
)
def recurrent(*args: Any, **kwargs: Any) -> list[Any]:
    """h = f(W[(g, h), i] x[i] + U[(g, h), k] h[k] + b + c); both directions side by side; layer on layer"""
    named = op().named
    packed = "data" in named
    x, state, weights = named["data" if packed else "input"], named["hx"], named["params"]
    x = x.plain() if isinstance(x, Stack) else x
    gates = _gates()
    layers, both = int(named["num_layers"]), bool(named["bidirectional"])
    directions = 2 if both else 1
    states = [state] if isinstance(state, (Axes, Stack)) else list(state)
    size = len(weights) // (layers * directions)
    hiddens: list[list[Expr]] = [[] for _ in states]
    below: Expr = x[-1]
    for layer in range(layers):
        outs: list[Expr] = []
        for d in range(directions):
            at = (layer * directions + d) * size
            hidden, cell = _cell(below, weights[at : at + size], gates)
            outs.append(hidden)
            for kind, unit in zip(hiddens, (hidden, cell), strict=False):
                kind.append(unit)
        below = total(outs)
    for initial, kind in zip(states, hiddens, strict=True):
        _tie_state(initial, kind)
    batch = x[1 if named.get("batch_first") is False and len(x) == 3 else 0]
    if packed:
        (batch,) = fixed_axes(op().shapes[1][1:2])
    finals = [stacked([Axes((batch, unit)) for unit in kind], 0) for kind in hiddens]
    if len(x) == 2 and not packed:
        finals = [stacked([Axes((unit,)) for unit in kind], 0) for kind in hiddens]
    return [Axes((*x[:-1], below)), *finals]


@rule("aten._pack_padded_sequence")
def pack(x: Axes, lengths: Any, batch_first: bool) -> list[Axes]:
    """the places of all sequences in one row; what lies at a place stays"""
    data, sizes = op().shapes
    return [Axes((*fixed_axes(data[:1]), *x[2:])), fixed_axes(sizes)]


@rule("aten._pad_packed_sequence")
def pad(data: Axes, sizes: Any, batch_first: bool, value: Any, length: int) -> list[Axes]:
    """the places of all sequences side by side again, and the same number at those that a sequence has not"""
    out, lengths = op().shapes
    return [Axes((*fixed_axes(out[:2]), *data[1:])), fixed_axes(lengths)]


def _cell(below: Expr, weights: list[Axes], gates: int) -> tuple[Expr, Expr]:
    """(hidden, cell) of one direction of one layer; with a projection they differ."""
    matrices = [w for w in weights if len(w) == 2]
    biases = [w for w in weights if len(w) == 1]
    inward, inner = matrices[:2]
    tie(inward[1], below)
    tie(inward[0], inner[0])
    for bias in biases:
        tie(inward[0], bias[0])
    gate, unit = split(inward[0], gates, inward[0].size // gates)
    freeze(gate)
    if len(matrices) == 3:  # W_hr: (projected, hidden)
        tie(matrices[2][1], unit)
        tie(inner[1], matrices[2][0])
        return matrices[2][0], unit
    tie(inner[1], unit)
    return unit, unit


def _tie_state(initial: Any, units: list[Expr]) -> None:
    if isinstance(initial, Stack) and initial.dim == 0:
        for part, unit in zip(initial.parts, units, strict=True):
            tie(part[-1], unit)
        return
    axes = initial.plain() if isinstance(initial, Stack) else initial
    if not axes.uniform:
        for unit in units:
            tie(axes[-1], unit)


@rule(
    *aten("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    does="mixes",
    kind="recurrent",
    slots={"2": "weight", "3": "weight", "4": "bias", "5": "bias"},
)
def cell(x: Axes, state: Any, *weights: Any) -> Any:
    """one step of one layer"""
    initial = [w for w in weights if isinstance(w, Axes)]
    states = [state] if isinstance(state, Axes) else list(state)
    hidden, _ = _cell(x[-1], initial, _gates())
    for one in states:
        if not one.uniform:
            tie(one[-1], hidden)
    out = Axes((*x[:-1], hidden))
    return [out, out] if len(states) == 2 else out
