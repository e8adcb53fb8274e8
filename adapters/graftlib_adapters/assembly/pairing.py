"""Which tensors of two graphs meet, and which axis classes.

In: a base graph, a source graph, and a `Mapping` where the pairs are declared. Out: `Problem`.
Always true: a source class meets at most one base class and the other way round; fixed orders meet only in equal
sizes; the order of depth is kept; what was refused says why. Not here: which unit meets which (`matching`).
Where the rest is: the blocks of a model in `blocks`, an axis as blocks of factors in `structure`, the choice of layers
in `choice`, the records in `records`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Mapping as Map
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Literal

from graftlib.errors import nearest
from graftlib.graph import LayerGraph
from graftlib.graph.axes import AxisClass
from graftlib.graph.parameter import Parameter
from graftlib.match import Mapping

from .blocks import Blocks, around, blocks_of, same_depth
from .choice import Meets, choose, consistent
from .permutation import AssemblyError
from .records import AxisPair, BlockPair, ClassPair, Factor, Problem, TensorPair
from .structure import Axis, Block, Span, axes_of, free, tensors_of

__all__ = [
    "AxisPair",
    "BlockPair",
    "ClassPair",
    "Factor",
    "Pairing",
    "Problem",
    "TensorPair",
    "pair_layers",
    "problem",
]

_CONVOLUTIONS = ("conv", "depthwise", "grouped", "transposed_conv")
Pairing = Literal["blocks", "layers"]
Links = Map[str, str]  # FQN of a base module -> FQN of the source module that it reads
_KERNEL = ("kd", "kh", "kw")
_STATISTICS = {"running_mean": "mean", "running_var": "variance"}
_Met = dict[tuple[int, int], None]  # class pairs, in the order in which they were met
_POINT = 1e-3  # a class that lives at one depth only has an extent all the same
_UNIT = 1_000_000  # worths are whole numbers, so that equal ones are equal on every machine


def pair_layers(
    base: LayerGraph, source: LayerGraph, mapping: Mapping | None = None
) -> tuple[TensorPair, ...]:
    """The tensor pairs of `problem`."""
    return problem(base, source, mapping=mapping).pairs


def problem(
    base: LayerGraph,
    source: LayerGraph,
    *,
    mapping: Mapping | None = None,
    blocks: Links | None = None,
    pairing: Pairing = "blocks",
) -> Problem:
    """Which tensors and classes of `source` meet those of `base`.

    Weights meet weights of their kind and attention role by dynamic programming: both rise in execution order, and
    the total worth (kind, depth, kernel, shape) is the largest among choices in which no class meets two. Blocks (see
    `blocks`) are kept together: the weights of one meet those of one other. Biases go with their weights; norms,
    running statistics and other tensors of one axis meet in order where their classes do.

    Args:
        base: receives.
        source: gives.
        mapping: ``Mapping(source, base)``: its pairs take the place of the dynamic programming.
        blocks: FQN of a base module -> that of the source module whose weights it reads, in any order; other
            modules are chosen by worth, and what is named here meets nothing else.
        pairing: ``"layers"``: blocks may be taken apart (plans of before they were kept together).

    Returns:
        the problem. What stays as it is in the base is in `Problem.refused` with its reason.

    Raises:
        AssemblyError: the mapping is of other graphs; `blocks` names a module that has no weights, or two of which
            one lies in the other, or comes with a mapping.
    """
    if mapping is not None and (mapping.source is not source or mapping.target is not base):
        raise AssemblyError(
            "the mapping is of other graphs.",
            where={
                "mapping": f"{mapping.source.name} -> {mapping.target.name}",
                "asked": f"{source.name} -> {base.name}",
            },
            fix="make it with Mapping(source, base) of the very graphs that are aligned",
        )
    pairs = _Pairing(_Side(base, pairing), _Side(source, pairing), dict(blocks or {}))
    return pairs.run(mapping)


@dataclass(frozen=True)
class _Tensor:
    """One tensor, or a part of one, as a candidate to meet another."""

    fqn: str
    shape: tuple[int, ...]
    kind: str
    role: str
    names: tuple[str, ...]
    depth: float
    layer: str
    axes: tuple[Axis, ...]
    stem: str = ""
    part: str = ""

    @property
    def address(self) -> str:
        return f"{self.fqn}::{self.part}" if self.part else self.fqn


@dataclass(frozen=True)
class _Group:
    """The tensors of one norm; `before` and `after` are the FQNs of the weights that are read around it."""

    tensors: tuple[_Tensor, ...]
    before: str
    after: str


class _Side:
    """The tensors of one model, in the order in which the forward pass reads them."""

    def __init__(self, graph: LayerGraph, pairing: str) -> None:
        self.graph = graph
        self.blocks = blocks_of(graph.model) if pairing == "blocks" else ()
        self.classes: tuple[AxisClass, ...] = graph.axis_classes
        self.axes = axes_of(graph)
        self.tensors = tensors_of(graph)
        self.parameters = {parameter.fqn for parameter in graph.parameters()}
        self._spans: dict[int, tuple[float, float]] = {}

    @cached_property
    def order(self) -> dict[str, int]:
        """FQN of a parameter -> when the forward pass first reads it."""
        seen = (fqn for layer in self.graph.layers for fqn in layer.parameters)
        return {fqn: i for i, fqn in reversed(list(enumerate(seen)))}

    @cached_property
    def all(self) -> dict[str, _Tensor]:
        """FQN -> every tensor whose axes are known."""
        found = {}
        read = [p for p in self.graph.parameters() if p.tied_to is None and p.fqn in self.axes]
        for parameter in sorted(read, key=lambda p: self.order.get(p.fqn, len(self.order))):
            found[parameter.fqn] = self._parameter(parameter)
            found.update(self._statistics(found, parameter))
        for fqn in self.axes:
            found.setdefault(fqn, self._buffer(fqn))
        return found

    def span(self, number: int) -> tuple[float, float]:
        """The least and the largest depth of the weights that hold a class."""
        if number not in self._spans:
            held = [self.all[m.fqn] for m in self.classes[number].members if m.fqn in self.all]
            depths = [t.depth for t in held if t.kind not in ("norm", "buffer")] or [0.0, 1.0]
            self._spans[number] = (min(depths), max(depths))
        return self._spans[number]

    @property
    def weights(self) -> list[_Tensor]:
        """Tensors of two and more axes that read or make units, in order."""
        kinds = ("linear", "embedding", "recurrent", *_CONVOLUTIONS)
        return [tensor for tensor in self.all.values() if tensor.kind in kinds]

    @property
    def groups(self) -> list[_Group]:
        """Tensors that are no weight and no bias, those of one norm together, with the weights beside them."""
        found: dict[str, list[_Tensor]] = {}
        beside: dict[str, list[str]] = {}
        weights = {tensor.fqn for tensor in self.weights}
        last = ""
        open_: list[str] = []
        for tensor in self.all.values():
            if tensor.fqn in weights:
                for key in open_:
                    beside[key][1] = tensor.fqn
                last, open_ = tensor.fqn, []
            elif tensor.kind != "bias":
                key = tensor.layer if tensor.kind == "norm" else tensor.fqn
                found.setdefault(key, []).append(tensor)
                beside.setdefault(key, [last, ""])
                open_.append(key)
        return [_Group(tuple(each), *beside[key]) for key, each in found.items()]

    def parts(self, tensor: _Tensor) -> list[_Tensor]:
        """Query, key and value of a packed weight as tensors of their own; the tensor itself where it packs none."""
        parameter = self.graph.parameter(tensor.fqn)
        found = []
        for name, part in parameter.parts.items():
            if part.role is None or not isinstance(part.units, range) or part.units.step != 1:
                continue
            inside = tuple(b for b in tensor.axes[part.axis] if _within(b, part.units))
            if sum(block.size for block in inside) == len(part.units):
                axes = tuple(inside if i == part.axis else a for i, a in enumerate(tensor.axes))
                found.append(_narrowed(tensor, axes, part.role, name))
        return found if len(found) > 1 else [tensor]

    def _parameter(self, parameter: Parameter) -> _Tensor:
        leaf = parameter.fqn.rpartition(".")[2]
        return _Tensor(
            parameter.fqn,
            parameter.shape,
            parameter.kind,
            parameter.role,
            parameter.axes,
            parameter.depth or 0.0,
            parameter.layer,
            self.axes[parameter.fqn],
            leaf if parameter.kind == "recurrent" else "",
        )

    def _statistics(self, found: dict[str, _Tensor], parameter: Parameter) -> dict[str, _Tensor]:
        """Buffers of the module whose first parameter this is: they stand beside it."""
        if any(t.layer == parameter.layer for t in found.values() if t.fqn != parameter.fqn):
            return {}
        prefix = f"{parameter.layer}." if parameter.layer else ""
        own = [f for f in self.axes if f.startswith(prefix) and "." not in f[len(prefix) :]]
        return {f: self._buffer(f) for f in own if f not in self.parameters}

    def _buffer(self, fqn: str) -> _Tensor:
        layer, _, leaf = fqn.rpartition(".")
        shape = tuple(self.tensors[fqn].shape)
        role = _STATISTICS.get(leaf, "buffer")
        kind = "norm" if leaf in _STATISTICS else "buffer"
        names = ("unit",) * len(shape)
        return _Tensor(fqn, shape, kind, role, names, 0.0, layer, self.axes[fqn], leaf)


def _within(block: Block, units: range) -> bool:
    return units.start <= block.start and block.start + block.size <= units.stop


def _narrowed(tensor: _Tensor, axes: tuple[Axis, ...], role: str, part: str) -> _Tensor:
    return _Tensor(
        tensor.fqn,
        tensor.shape,
        tensor.kind,
        role,
        tensor.names,
        tensor.depth,
        tensor.layer,
        axes,
        tensor.stem,
        part,
    )


class _No(Exception):  # noqa: N818 - the answer to "do these two meet?"
    """Two tensors do not meet; the text says why."""


@dataclass(frozen=True)
class _Couple:
    """A base tensor, a source tensor, how their axes meet, and which free and which fixed classes thereby do."""

    base: _Tensor
    source: _Tensor
    axes: tuple[AxisPair, ...]
    meets: Meets
    fixed: Meets


class _Pairing:
    def __init__(self, base: _Side, source: _Side, links: Links) -> None:
        self.base = base
        self.source = source
        self.links = links
        self.refused: list[tuple[str, str]] = []

    def run(self, mapping: Mapping | None) -> Problem:
        self._check_links(mapping)
        weights = self._chosen() if mapping is None else self._declared(mapping)
        kept = consistent([each.meets for each in weights])
        couples = []
        for each in weights:
            clash = kept.clash(each.meets)
            if clash is None:
                couples.append(each)
            else:
                self._refuse(each.base.address, each.source.address, self._clash(clash))
        couples += self._followers(couples, dict(kept.pairs))
        return self._problem(couples, kept.pairs)

    # --- weights --------------------------------------------------------------------------------------------------

    def _chosen(self) -> list[_Couple]:
        bases, sources = self.base.weights, self.source.weights
        if not (_packed(bases) and _packed(sources)):
            # One model packs query, key and value and the other does not: they meet part by part.
            bases = [part for tensor in bases for part in self.base.parts(tensor)]
            sources = [part for tensor in sources for part in self.source.parts(tensor)]
        grid: dict[tuple[int, int], _Couple] = {}
        why: dict[int, dict[int, str]] = {}
        for i, one in enumerate(bases):
            for j, other in enumerate(sources):
                try:
                    grid[i, j] = self._couple(one, other)
                except _No as no:
                    why.setdefault(i, {})[j] = str(no)
        meets = {key: each.meets for key, each in grid.items()}
        alike = {meet: self._alike(*meet) for each in meets.values() for meet in each}
        worths = {
            key: _worth(each.base, each.source) + _mean([alike[meet] for meet in each.meets])
            for key, each in grid.items()
        }
        names = ([t.fqn for t in bases], [t.fqn for t in sources])
        ways = same_depth(
            [around(fqn, self.base.blocks) for fqn in names[0]],
            [around(fqn, self.source.blocks) for fqn in names[1]],
        )
        taken = self._blockwise(*names, worths, meets, alike, ways)
        chosen = dict(taken)
        for i, tensor in enumerate(bases):
            if i not in chosen:
                self.refused.append((tensor.address, self._reason(i, tensor, sources, why)))
        return [grid[key] for key in taken]

    def _blockwise(
        self,
        rows: Sequence[str],
        columns: Sequence[str],
        worths: dict[tuple[int, int], int],
        meets: dict[tuple[int, int], Meets],
        alike: dict[tuple[int, int], int] | None,
        ways: Iterable[tuple[Sequence[Blocks], Sequence[Blocks]] | None],
    ) -> list[tuple[int, int]]:
        """The pairs of largest worth by any of the ways in which blocks lie around what is named here.

        Those of the blocks that the caller names come first, as their order need not rise.
        """
        named: list[tuple[int, int]] = []
        for one, other in self.links.items():
            inner = {
                (i, j): worth
                for (i, j), worth in worths.items()
                if around(rows[i], [one]) and around(columns[j], [other])
            }
            named += choose(len(rows), len(columns), inner, meets, alike)
        free = {
            (i, j): worth
            for (i, j), worth in worths.items()
            if not around(rows[i], [*self.links]) and not around(columns[j], [*self.links.values()])
        }
        # The first of equals.
        best = max(
            (choose(len(rows), len(columns), free, meets, alike, way) for way in ways),
            key=lambda pairs: sum(worths[pair] for pair in pairs),
        )
        return sorted([*named, *best])

    def _check_links(self, mapping: Mapping | None) -> None:
        if self.links and mapping is not None:
            raise AssemblyError(
                "both links and blocks say what meets.",
                fix="give blocks with a mapping that has no links, or link the layers of the blocks",
            )
        for side, names in ((self.base, [*self.links]), (self.source, [*self.links.values()])):
            weights = [tensor.fqn for tensor in side.weights]
            for name in names:
                if not any(around(fqn, [name]) for fqn in weights):
                    near = side.blocks or tuple(dict.fromkeys(t.layer for t in side.weights))
                    raise AssemblyError(
                        f"{side.graph.name} has no module {name!r} with weights.",
                        near=nearest(name, near),
                        fix="name modules of the model that receives -> modules of the one that gives",
                    )
            twice = [a for a, b in permutations(names, 2) if a == b or a.startswith(f"{b}.")]
            if twice:
                raise AssemblyError(
                    f"{twice[0]!r} is named twice, by itself or by a module around it.",
                    why="the units of one block meet those of one other",
                    fix="name each block once",
                )

    def _reason(
        self, i: int, tensor: _Tensor, sources: Sequence[_Tensor], why: dict[int, dict[int, str]]
    ) -> str:
        """Why a base weight has no partner: what the source weight nearest in depth answers."""
        same = [j for j, other in enumerate(sources) if _company(other) == _company(tensor)]
        if not same:
            return f"the source has no {tensor.kind} weight with the role '{tensor.role}'"
        near = min(same, key=lambda j: (abs(sources[j].depth - tensor.depth), j))
        answer = why.get(i, {}).get(
            near, "others that keep the order of depth and the blocks together were worth more"
        )
        return f"nearest is '{sources[near].address}': {answer}"

    def _declared(self, mapping: Mapping) -> list[_Couple]:
        couples = []
        for pair in mapping.pairs:
            if pair.direction == "backward":
                continue
            sides = []
            for side, parameter in ((self.base, pair.target), (self.source, pair.source)):
                fqn = parameter.tied_to or parameter.fqn
                tensor = side.all.get(fqn)
                if tensor is not None and parameter.part is not None:
                    parts = {each.part: each for each in side.parts(tensor)}
                    tensor = parts.get(parameter.part)
                sides.append(tensor)
            one, other = sides
            if one is None or other is None:
                self._refuse(
                    pair.target.address, pair.source.address, "its axes are in no class as a whole"
                )
                continue
            try:
                couples.append(self._couple(one, other))
            except _No as no:
                self._refuse(one.address, other.address, str(no))
        return couples

    # --- what goes along ------------------------------------------------------------------------------------------

    def _followers(self, couples: Sequence[_Couple], pairs: dict[int, int]) -> list[_Couple]:
        """Biases of paired weights, then norms and whatever else has classes, in order, where the classes meet."""
        found = []
        seen: set[str] = set()
        for each in couples:
            one, other = _bias(self.base, each.base), _bias(self.source, each.source)
            if one is None or one.address in seen:
                continue
            seen.add(one.address)
            if other is None:
                self.refused.append((one.address, f"'{each.source.layer}' has no bias"))
            else:
                found += self._follow(one, other, pairs)
        partners = {each.base.fqn: each.source.fqn for each in couples}
        fits = self._blocks_met(couples)
        fixed = {meet for each in couples for meet in each.fixed}
        return found + self._norms(partners, pairs, fixed, fits)

    def _blocks_met(self, couples: Sequence[_Couple]) -> Callable[[str, str], bool]:
        """Whether two tensors may meet for what they lie in: in blocks whose weights meet, or one of them in none."""
        sides = (self.base.blocks, self.source.blocks)
        partners: tuple[dict[str, Blocks], dict[str, Blocks]] = ({}, {})
        for each in couples:
            names = (each.base.fqn, each.source.fqn)
            for i in (0, 1):
                others = around(names[1 - i], sides[1 - i])
                for block in around(names[i], sides[i]):
                    common = partners[i].get(block, others)
                    partners[i][block] = tuple(other for other in common if other in others)

        def fits(base: str, source: str) -> bool:
            inside = (around(base, sides[0]), around(source, sides[1]))
            return not all(inside) or all(
                set(partners[i].get(block, ())) <= set(inside[1 - i])
                for i in (0, 1)
                for block in inside[i]
            )

        return fits

    def _follow(self, one: _Tensor, other: _Tensor, pairs: dict[int, int]) -> list[_Couple]:
        try:
            couple = self._couple(one, other)
        except _No as no:
            self._refuse(one.address, other.address, str(no))
            return []
        clash = next((meet for meet in couple.meets if pairs.get(meet[0]) != meet[1]), None)
        if clash is None:
            return [couple]
        self._refuse(one.address, other.address, self._clash(clash))
        return []

    def _norms(
        self,
        partners: dict[str, str],
        pairs: dict[int, int],
        fixed: set[tuple[int, int]],
        fits: Callable[[str, str], bool],
    ) -> list[_Couple]:
        """The tensors of a norm meet those of one other norm: one that stands between the same weights, if any does."""
        bases, sources = self.base.groups, self.source.groups
        grid = {}
        worths = {}
        for i, one in enumerate(bases):
            for j, other in enumerate(sources):
                beside = (partners.get(one.before) == other.before) + (
                    partners.get(one.after) == other.after
                )
                # A norm behind one block is the norm before the next one, in models that norm elsewhere.
                apart = beside < 2 and not fits(one.tensors[0].fqn, other.tensors[0].fqn)
                couples = [] if apart else self._group(one, other, pairs, fixed)
                if couples:
                    first = couples[0]
                    grid[i, j] = couples
                    worths[i, j] = _worth(first.base, first.source) + 4 * beside * _UNIT
        rows, columns = ([each.tensors[0].fqn for each in side] for side in (bases, sources))
        taken = self._blockwise(rows, columns, worths, dict.fromkeys(grid, ()), None, [None])
        chosen = dict(taken)
        for i, group in enumerate(bases):
            if i not in chosen:
                for each in group.tensors:
                    why = f"no {each.kind} ({each.role}) of the source goes with its class"
                    self.refused.append((each.address, why))
        return [couple for key in taken for couple in grid[key]]

    def _group(
        self, one: _Group, other: _Group, pairs: dict[int, int], fixed: set[tuple[int, int]]
    ) -> list[_Couple]:
        """The couples of two norms; none where one of their tensors has no partner or another class.

        Classes whose order is fixed meet where those of paired weights do.
        """
        mine, theirs = {t.role: t for t in one.tensors}, {t.role: t for t in other.tensors}
        if mine.keys() != theirs.keys():
            return []
        try:
            couples = [self._couple(mine[role], theirs[role]) for role in mine]
        except _No:
            return []
        meets = [meet for couple in couples for meet in couple.meets]
        if not meets and all(couple.base.kind != "buffer" for couple in couples):
            still = [meet for couple in couples for meet in couple.fixed]
            return couples if still and fixed.issuperset(still) else []
        return couples if meets and all(pairs.get(b) == s for b, s in meets) else []

    # --- two tensors ----------------------------------------------------------------------------------------------

    def _couple(self, one: _Tensor, other: _Tensor) -> _Couple:
        if _company(one) != _company(other):
            raise _No("another kind or role")
        if len(one.shape) != len(other.shape):
            raise _No(f"{len(one.shape)} axes and {len(other.shape)}")
        turns = _turns(one, other)
        meets: _Met = {}
        fixed: _Met = {}
        axes = []
        for i, turn in enumerate(turns):
            if one.names[i] in _KERNEL:
                blocks = _centred(one.shape[i], other.shape[turn])
            else:
                blocks = tuple(self._blocks(one.axes[i], other.axes[turn], meets, fixed))
            kernel = one.names[i] in _KERNEL
            covered = sum(block.size for block in one.axes[i])
            axes.append(AxisPair(turn, blocks, not kernel and covered < one.shape[i]))
        for meet in meets:
            if any(
                meet != rival and (meet[0] == rival[0] or meet[1] == rival[1]) for rival in meets
            ):
                raise _No("one class would meet two in this tensor alone")
        return _Couple(one, other, tuple(axes), tuple(meets), tuple(fixed))

    def _blocks(self, ones: Axis, others: Axis, meets: _Met, fixed: _Met) -> Iterator[BlockPair]:
        if len(ones) != len(others):
            raise _No(f"an axis of {len(ones)} parts and one of {len(others)}")
        for one, other in zip(ones, others, strict=True):
            if len(one.factors) != len(other.factors):
                raise _No(f"units packed as {_packing(one)} and as {_packing(other)}")
            factors = tuple(
                self._factor(a, b, meets, fixed)
                for a, b in zip(one.factors, other.factors, strict=True)
            )
            yield BlockPair(one.start, other.start, factors)

    def _factor(self, one: Span, other: Span, meets: _Met, fixed: _Met) -> Factor:
        if one.terms or other.terms:
            if not (one.terms and other.terms):
                raise _No("one packs several parts in its rows and the other does not")
            terms = tuple(self._blocks(one.terms, other.terms, meets, fixed))
            return Factor(one.size, other.size, None, terms)
        mine, theirs = free(self.base.classes, one), free(self.source.classes, other)
        if mine and theirs and one.number is not None and other.number is not None:
            meets[one.number, other.number] = None
            # The number of the base class for now; that of the class pair is known at the end.
            return Factor(one.size, other.size, one.number)
        if mine or theirs:
            side, span = (self.source, other) if mine else (self.base, one)
            raise _No(f"the {'source' if mine else 'base'}'s order is fixed by {_why(side, span)}")
        if one.size != other.size:
            raise _No(
                f"{one.size} places and {other.size} whose order is fixed by {_why(self.base, one)}"
            )
        if one.number is not None and other.number is not None:
            fixed[one.number, other.number] = None
        return Factor(one.size, other.size)

    def _alike(self, base: int, source: int) -> int:
        """Millionths: the common part of the depths over which two classes live, by the whole of them."""
        (a, b), (c, d) = self.base.span(base), self.source.span(source)
        both = max(b, d) - min(a, c) + _POINT
        return round(max(min(b, d) - max(a, c) + _POINT, 0.0) / both * _UNIT)

    # --- the outcome ----------------------------------------------------------------------------------------------

    def _refuse(self, base: str, source: str, why: str) -> None:
        self.refused.append((f"{base} <- {source}", why))

    def _clash(self, meet: tuple[int, int]) -> str:
        base, source = self.base.classes[meet[0]], self.source.classes[meet[1]]
        return (
            f"{base.size} units of '{base.members[0].fqn}' would meet {source.size} of "
            f"'{source.members[0].fqn}', but more tensors say that these classes meet others"
        )

    def _problem(self, couples: Sequence[_Couple], pairs: Sequence[tuple[int, int]]) -> Problem:
        used = {meet for each in couples for meet in each.meets}
        kept = [pair for pair in pairs if pair in used]
        numbers = {base: i for i, (base, _) in enumerate(kept)}
        return Problem(
            tuple(_pair(each, numbers) for each in couples),
            tuple(ClassPair(self.base.classes[b], self.source.classes[s]) for b, s in kept),
            tuple(self.refused),
            (self.base.graph.name, self.source.graph.name),
        )


def _packed(tensors: Sequence[_Tensor]) -> bool:
    return any(tensor.role == "attention.fused" for tensor in tensors)


def _company(tensor: _Tensor) -> tuple[str, str, str]:
    """Two tensors may meet where this is equal; a bias goes with its weight, whatever it is called."""
    if tensor.kind == "bias":
        return "bias", "", ""
    kind = "conv" if tensor.kind in _CONVOLUTIONS[:3] else tensor.kind
    stem = tensor.stem.split("_l")[0] + ("_reverse" if tensor.stem.endswith("_reverse") else "")
    return kind, tensor.role, stem if tensor.kind == "recurrent" else ""


def _turns(one: _Tensor, other: _Tensor) -> list[int]:
    """For each axis of `one` that of `other`: a linear layer may be stored transposed."""
    same = sorted(one.names) == sorted(other.names) and len(set(one.names)) == len(one.names)
    return [other.names.index(name) if same else i for i, name in enumerate(one.names)]


def _centred(bases: int, sources: int) -> tuple[BlockPair, ...]:
    """The common middle of two kernels, as far as both go."""
    shared = min(bases, sources)
    place = Factor(shared, shared)
    return (BlockPair((bases - shared) // 2, (sources - shared) // 2, (place,)),)


def _packing(block: Block) -> str:
    return " x ".join(str(factor.size) for factor in block.factors)


def _why(side: _Side, span: Span) -> str:
    if span.number is None:
        return "its place"
    return side.classes[span.number].frozen_by or "its place"


def _worth(one: _Tensor, other: _Tensor) -> int:
    """Millionths: 1 for meeting at all, up to 1 for equal depth, 0.5 for an equal kernel, 0.25 for an equal shape."""
    kernels = [i for i, name in enumerate(one.names) if name in _KERNEL]
    kernel = all(one.shape[i] == other.shape[i] for i in kernels)
    shape = sum(min(a, b) / max(a, b) for a, b in zip(one.shape, other.shape, strict=True) if a + b)
    parts = (1.0, 1 - abs(one.depth - other.depth), 0.5 * kernel, 0.25 * shape / len(one.shape))
    return round(sum(parts) * _UNIT)


def _mean(values: Sequence[int]) -> int:
    return sum(values) // len(values) if values else 0


def _bias(side: _Side, weight: _Tensor) -> _Tensor | None:
    """The bias of a weight: its neighbour in the same module under the same name with another word."""
    owner, dot, leaf = weight.fqn.rpartition(".")
    bias = side.all.get(f"{owner}{dot}{leaf.replace('weight', 'bias')}")
    if bias is None or bias.fqn == weight.fqn:
        return None
    if not weight.part:
        return bias
    return next((each for each in side.parts(bias) if each.part == weight.part), None)


def _pair(couple: _Couple, numbers: dict[int, int]) -> TensorPair:
    axes = tuple(
        AxisPair(
            axis.source_axis,
            tuple(_numbered(block, numbers) for block in axis.blocks),
            axis.partial,
        )
        for axis in couple.axes
    )
    base, source = couple.base, couple.source
    out = base.names.index("out") if "out" in base.names else None
    names = (base.layer, source.layer)
    return TensorPair(base.fqn, source.fqn, base.shape, source.shape, axes, base.role, *names, out)


def _numbered(block: BlockPair, numbers: dict[int, int]) -> BlockPair:
    factors = tuple(
        Factor(
            each.bases,
            each.sources,
            None if each.pair is None else numbers[each.pair],
            tuple(_numbered(term, numbers) for term in each.terms),
        )
        for each in block.factors
    )
    return BlockPair(block.base_start, block.source_start, factors)
