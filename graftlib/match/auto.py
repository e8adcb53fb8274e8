"""Find pairs by similarity: that of every compatible pair, and the best assignment that keeps depth order.

In: two graphs and what is linked already. Out: a `Rule` whose pairs explain their similarity.
Always true: only parameters of one family of kinds pair, attention roles agree, every parameter has at most one
partner, and of two pairs the one that is deeper in the source is not shallower in the target; the total similarity is
the largest that this allows, and the result depends on nothing but the graphs and the options.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import MatchError, nearest, shown
from ..graph.parameter import Parameter
from ..progress import part, track
from .hits import Filters, listed, viewable
from .pairing import ARROWS, Pair, exclude, overlap
from .report import Rule
from .views import matrix, matrix_shape

if TYPE_CHECKING:
    from ..graph import LayerGraph

__all__ = ["Options", "assign", "find"]

MEASURES = ("kind", "shape", "depth", "spectrum")
_CONVOLUTIONS = ("conv", "depthwise", "grouped", "transposed_conv")
_RELATED = 0.5  # similarity of two kinds of one family, such as conv and depthwise
_UNIT = 1_000_000  # similarities are compared as millionths, so that equal ones are equal on every machine
# Query, key and value run side by side: at equal depth they need one order in every model.
_ROLE_ORDER = ("attention.fused", "attention.query", "attention.key", "attention.value")

_Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """The arguments of `Mapping.auto`; see there."""

    kind: str | None
    role: str | None
    limit: int | None
    min_similarity: float
    spectrum: bool
    weights: dict[str, float]

    @property
    def text(self) -> str:
        """The call in one line."""
        options = [("kind", self.kind), ("role", self.role), ("limit", self.limit)]
        words = [f"{name}={value!r}" for name, value in options if value is not None]
        words += [f"min_similarity={self.min_similarity:g}"]
        words += ["spectrum=True"] if self.spectrum else []
        words += [f"weights={self.weights!r}"] if self.weights else []
        return f"auto({', '.join(words)})"

    def check(self) -> None:
        """Raise MatchError where the weights do not go with what is compared."""
        for name in self.weights:
            if name not in MEASURES:
                raise MatchError(
                    f"weights has no measure {shown(name)}.",
                    near=nearest(name, MEASURES),
                    fix="use weights for " + ", ".join(map(repr, MEASURES)),
                )
        if "spectrum" in self.weights and not self.spectrum:
            raise MatchError(
                "weights counts the spectrum, which is not compared.", fix="add spectrum=True"
            )
        measures = MEASURES if self.spectrum else MEASURES[:-1]
        if not sum(self.weights.get(name, 1.0) for name in measures) > 0:
            raise MatchError(
                f"weights={self.weights!r} cannot be averaged.",
                fix="use finite weights of 0 and more, with one above 0",
            )


def find(
    source: LayerGraph, target: LayerGraph, linked: Sequence[Pair], direction: str, options: Options
) -> Rule:
    """The pairs of the best assignment, as a rule that explains each.

    Args:
        source: of the mapping.
        target: likewise.
        linked: pairs that are there already; what they hold takes no part.
        direction: of every new pair.
        options: the arguments of `Mapping.auto`.

    Raises:
        MatchError: the weights do not go with what is compared, or no pair is similar enough.
    """
    options.check()
    sources, targets, notes = _candidates(source, target, linked, options)
    measured = _measure(source, target, sources, targets, options)
    similarity = _weighted(measured, options)
    compatible = _equal(map(_compatibility, sources), map(_compatibility, targets))
    tensors = [
        [id(graph.tensor(each.fqn)) for each in side]
        for graph, side in ((source, sources), (target, targets))
    ]
    allowed = compatible & ~_equal(*tensors)  # no tensor pairs with itself
    if not allowed.any():
        raise _nothing_compatible(source, target, sources, targets, options)
    worth = np.where(
        allowed & (similarity >= options.min_similarity), np.rint(similarity * _UNIT), -1
    )
    chosen = assign(worth.astype(np.int64))
    if not chosen:
        raise _nothing_good_enough(sources, targets, np.where(allowed, similarity, -1.0), options)
    chosen = _best(chosen, similarity, options.limit)
    pairs = tuple(
        Pair(sources[i], targets[j], direction, _explained(similarity[i, j], i, j, measured))
        for i, j in chosen
    )
    for failure in exclude((*linked, *pairs), source, target):
        raise MatchError(failure.what, why=failure.why, fix=failure.hint)
    notes += _partnerless("source", sources, [i for i, _ in chosen])
    notes += _partnerless("target", targets, [j for _, j in chosen])
    arrow = "" if direction == "forward" else f" {ARROWS[direction]}"
    return Rule(options.text + arrow, pairs, tuple(notes), (len(sources), len(targets)))


def assign(worth: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The matching of largest total worth in which rows and columns rise together.

    Args:
        worth: (n, m), what each pair is worth; negative for pairs that must not be.

    Returns:
        (row, column) pairs, both strictly rising. Of several matchings with the largest total, one whose pairs come
        as early as possible, the last pair first. Pairs of worth 0 are left out.

    >>> assign(np.array([[5, 4], [4, 0]]))  # 5 + 0 beats 4 and 4, which cross
    [(0, 0)]
    >>> assign(np.array([[1, 9, 2], [3, 1, 8]]))
    [(0, 1), (1, 2)]
    """
    rows, columns = worth.shape
    best = np.zeros((rows + 1, columns + 1), dtype=np.int64)
    for i in range(rows):
        paired = best[i, :-1] + np.maximum(worth[i], 0)
        best[i + 1, 1:] = np.maximum.accumulate(np.maximum(best[i, 1:], paired))
    chosen = []
    i, j = rows, columns
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            chosen.append((i, j))
    return chosen[::-1]


# --- who takes part -----------------------------------------------------------------------------------------------


def _candidates(
    source: LayerGraph, target: LayerGraph, linked: Sequence[Pair], options: Options
) -> tuple[list[Parameter], list[Parameter], list[str]]:
    sources, targets = viewable(source), viewable(target)
    if not (_packed(sources) and _packed(targets)):
        # One model packs query, key and value and the other does not: they pair part by part.
        sources, targets = _unpacked(sources), _unpacked(targets)
    notes: list[str] = []
    sides = []
    for side, parameters, taken in (
        ("source", sources, [pair.source for pair in linked]),
        ("target", targets, [pair.target for pair in linked]),
    ):
        wanted = Filters(options.kind, options.role)
        requested = [parameter for parameter in parameters if wanted.against(parameter) is None]
        free = [parameter for parameter in requested if not _is_linked(parameter, taken)]
        read = [parameter for parameter in free if parameter.depth is not None]
        if len(free) < len(requested):
            notes.append(f"{side}: {len(requested) - len(free)} skipped: linked already")
        if len(read) < len(free):
            unread = [parameter.address for parameter in free if parameter.depth is None]
            notes.append(f"{side}: {len(unread)} skipped: never read ({listed(unread)})")
        sides.append(sorted(read, key=_place))
    return sides[0], sides[1], notes


def _is_linked(parameter: Parameter, by: Sequence[Parameter]) -> bool:
    return any(
        parameter.fqn == other.fqn and overlap(parameter.selection, other.selection) for other in by
    )


def _packed(parameters: Sequence[Parameter]) -> bool:
    return any(parameter.role == "attention.fused" for parameter in parameters)


def _unpacked(parameters: Sequence[Parameter]) -> list[Parameter]:
    parts: list[Parameter] = []
    for parameter in parameters:
        names = [name for name, part in parameter.parts.items() if part.role]
        packed = parameter.role == "attention.fused" and names
        parts += [parameter.select(name) for name in names] if packed else [parameter]
    return parts


def _place(parameter: Parameter) -> tuple[float, int]:
    """Where a parameter stands in its model; `sorted` keeps the model's order among equals."""
    role = parameter.role
    rank = _ROLE_ORDER.index(role) if role in _ROLE_ORDER else len(_ROLE_ORDER)
    return round(parameter.depth or 0.0, 9), rank


def _compatibility(parameter: Parameter) -> tuple[object, ...]:
    """Two parameters are compatible where this is equal."""
    family = "conv" if parameter.kind in _CONVOLUTIONS else parameter.kind
    role = parameter.role if parameter.role.startswith("attention.") else "weight"
    if parameter.kind != "recurrent":
        return family, role
    # An input-to-hidden weight is no hidden-to-hidden one, and an LSTM's gates are not a GRU's.
    stem = parameter.fqn.rpartition(".")[2].split("_l")[0]
    reverse = parameter.fqn.endswith("_reverse")
    return family, role, stem, reverse, tuple(parameter.parts)


def _equal(left: Iterable[object], right: Iterable[object]) -> NDArray[np.bool_]:
    """(n, m) where both are equal; keys are compared once each, as numbers."""
    numbers: dict[object, int] = {}
    one, other = (
        np.array([numbers.setdefault(key, len(numbers)) for key in side], dtype=np.int64)
        for side in (left, right)
    )
    equal: NDArray[np.bool_] = one[:, None] == other
    return equal


# --- the measures, each 0 to 1 ------------------------------------------------------------------------------------


def _measure(
    source: LayerGraph,
    target: LayerGraph,
    sources: Sequence[Parameter],
    targets: Sequence[Parameter],
    options: Options,
) -> dict[str, _Matrix]:
    same_kind = _equal([one.kind for one in sources], [other.kind for other in targets])
    measured = {
        "kind": np.where(same_kind, 1.0, _RELATED),
        "shape": _shape_similarity(sources, targets),
        "depth": _depth_similarity(sources, targets),
    }
    if options.spectrum:
        with part(0.0, 0.5):
            left = np.array([_energy(source, each, "source") for each in track(sources)])
        with part(0.5, 1.0):
            right = np.array([_energy(target, each, "target") for each in track(targets)])
        measured["spectrum"] = _spectrum_similarity(left, right)
    return measured


def _shape_similarity(sources: Sequence[Parameter], targets: Sequence[Parameter]) -> _Matrix:
    """exp(-(|ln rows/rows'| + |ln columns/columns'|) / 2): the geometric mean of the two ratios."""
    left, right = (
        np.log(np.array([matrix_shape(each) for each in side], dtype=np.float64).reshape(-1, 2))
        for side in (sources, targets)
    )
    ratios: _Matrix = np.abs(left[:, None, :] - right[None, :, :])
    similarity: _Matrix = np.exp(-ratios.mean(axis=-1))
    return similarity


def _depth_similarity(sources: Sequence[Parameter], targets: Sequence[Parameter]) -> _Matrix:
    """1 - |depth - depth'|."""
    left = np.array([one.depth for one in sources], dtype=np.float64)
    right = np.array([other.depth for other in targets], dtype=np.float64)
    similarity: _Matrix = 1.0 - np.abs(left[:, None] - right[None, :])
    return similarity


_GRID = np.linspace(0.0, 1.0, 65)


def _spectrum_similarity(left: _Matrix, right: _Matrix) -> _Matrix:
    """1 - the largest gap between two shares of energy at one share of rank; 1 for a matrix and its multiples."""
    gaps = [np.abs(row[None, :] - right).max(axis=-1) for row in left] if len(right) else []
    return 1.0 - np.array(gaps, dtype=np.float64).reshape(len(left), len(right))


def _energy(graph: LayerGraph, parameter: Parameter, side: str) -> _Matrix:
    """(65,) the share of squared singular values held by the largest ones, at 0, 1/64, … 1 of the rank."""
    tensor = graph.tensor(parameter.fqn).detach()
    if tensor.is_meta:
        raise MatchError(
            f"spectrum=True compares values, and {side} {shown(parameter.fqn)} is on the meta device.",
            fix="trace the model with real weights, or use spectrum=False",
        )
    values = matrix(parameter, tensor).double()
    if not bool(torch.isfinite(values).all()):
        raise MatchError(
            f"spectrum=True compares values, and {side} {shown(parameter.address)} is not finite.",
            fix="mend the weights, or use spectrum=False",
        )
    values = torch.linalg.svdvals(values).square()
    total = float(values.sum())
    # A matrix of zeros has no direction to prefer: its energy counts as evenly spread.
    shares = values / total if total > 0 else torch.full_like(values, 1 / len(values))
    cumulative = np.concatenate([[0.0], np.cumsum(shares.cpu().numpy())])
    energy: _Matrix = np.interp(_GRID, np.linspace(0.0, 1.0, len(cumulative)), cumulative)
    return energy


def _weighted(measured: dict[str, _Matrix], options: Options) -> _Matrix:
    weights = [options.weights.get(name, 1.0) for name in measured]
    similarity: _Matrix = np.average(np.stack([*measured.values()]), axis=0, weights=weights)
    return similarity


# --- the outcome --------------------------------------------------------------------------------------------------


def _best(
    chosen: list[tuple[int, int]], similarity: _Matrix, limit: int | None
) -> list[tuple[int, int]]:
    if limit is None:
        return chosen
    ranked = sorted(chosen, key=lambda pair: -round(float(similarity[pair]) * _UNIT))
    return sorted(ranked[:limit])


def _explained(similarity: float, i: int, j: int, measured: dict[str, _Matrix]) -> str:
    parts = ", ".join(f"{name} {values[i, j]:.2f}" for name, values in measured.items())
    return f"auto (similarity {similarity:.2f}: {parts})"


def _partnerless(side: str, parameters: Sequence[Parameter], chosen: Sequence[int]) -> list[str]:
    used = set(chosen)
    alone = [parameter.address for i, parameter in enumerate(parameters) if i not in used]
    return [f"{side}: {len(alone)} without a partner: {listed(alone)}"] if alone else []


def _nothing_good_enough(
    sources: Sequence[Parameter],
    targets: Sequence[Parameter],
    similarity: _Matrix,
    options: Options,
) -> MatchError:
    i, j = np.unravel_index(int(similarity.argmax()), similarity.shape)
    best = float(similarity[i, j])
    return MatchError(
        f"no pair is similar to {options.min_similarity:g} or more; the best is to {best:.2f}.",
        where={
            "source": shown(sources[int(i)].address),
            "target": shown(targets[int(j)].address),
        },
        fix=f"use min_similarity={math.floor(best * 100) / 100:g}, or link them by name",
        similarity=best,
    )


def _nothing_compatible(
    source: LayerGraph,
    target: LayerGraph,
    sources: Sequence[Parameter],
    targets: Sequence[Parameter],
    options: Options,
) -> MatchError:
    kinds = [
        sorted({f"{one.kind} ({one.role})" for one in parameters}) or ["nothing"]
        for parameters in (sources, targets)
    ]
    first = [
        next((repr(parameter.fqn) for parameter in viewable(graph)), "'...'")
        for graph in (source, target)
    ]
    return MatchError(
        f"{options.text} finds no two compatible parameters.",
        where={"source": ", ".join(kinds[0]), "target": ", ".join(kinds[1])},
        why="only one family of kinds pairs, with equal roles in attention; what is linked "
        "already takes no part",
        fix=f"name them: mapping.link({first[0]}, {first[1]})",
    )
