"""Which tensors of a source those of a base read, and which axis classes.

A source class is read by at most one base class and the other way round; fixed orders are paired in equal sizes alone;
the order of depth is kept; what was refused says why. Which unit reads which is `matching`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Map
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

from graftlib.errors import nearest
from graftlib.graph import LayerGraph
from graftlib.match import Mapping

from .alignment_problem import AxisPair, ClassPair, Problem, TensorPair
from .axis_pairs import AxisPairing, Incompatible, centred
from .errors import AssemblyError
from .layer_order import Blocks, ClassPairs, around, choose, consistent, same_depth
from .options import Pairing
from .tensors import CONVOLUTIONS, KERNEL, Norm, Side, TensorView

__all__ = ["Links", "problem"]

Links = Map[str, str]  # FQN of a base module -> FQN of the source module that it reads
_POINT = 1e-3  # a class that lives at one depth only has an extent all the same
_UNIT = 1_000_000  # similarities are whole numbers, so that equal ones are equal on every machine


def problem(
    base: LayerGraph,
    source: LayerGraph,
    *,
    mapping: Mapping | None = None,
    blocks: Links | None = None,
    pairing: Pairing = "blocks",
) -> Problem:
    """Which tensors and classes of `source` those of `base` read.

    Weights are paired with weights of their kind and attention role by dynamic programming: both rise in execution
    order, and the total similarity (kind, depth, kernel, shape) is the largest among choices in which no class is
    paired twice. Blocks (what `graftlib.surgery.blocks` calls repeated) are kept together: the weights of one read
    those of one other. Biases go with their weights; norms, running statistics and other tensors of one axis follow in
    order where their classes are paired.

    Args:
        base: receives.
        source: gives.
        mapping: ``Mapping(source, base)``: its pairs take the place of the dynamic programming.
        blocks: FQN of a base module -> that of the source module whose weights it reads, in any order; other
            modules are chosen by similarity, and what is named here is paired with nothing else.
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
    one, other = (Side(each, keep_blocks=pairing == "blocks") for each in (base, source))
    return _Pairing(one, other, dict(blocks or {})).run(mapping)


@dataclass(frozen=True)
class _Candidate:
    """A base tensor and a source tensor that it may read, and which free and which fixed classes are thereby paired."""

    base: TensorView
    source: TensorView
    axes: tuple[AxisPair, ...]
    classes: ClassPairs
    fixed: ClassPairs

    def numbered(self, numbers: Map[int, int]) -> TensorPair:
        """The pair, its classes counted by `numbers` of the base's classes."""
        base, source = self.base, self.source
        axes = tuple(
            replace(axis, blocks=tuple(block.numbered(numbers) for block in axis.blocks))
            for axis in self.axes
        )
        out = base.names.index("out") if "out" in base.names else None
        return TensorPair(
            base.fqn, source.fqn, base.shape, source.shape, axes, base.role, base.layer, source.layer, out
        )  # fmt: skip


class _Pairing:
    def __init__(self, base: Side, source: Side, links: Links) -> None:
        self.base, self.source, self.links = base, source, links
        self.refused: list[tuple[str, str]] = []

    def run(self, mapping: Mapping | None) -> Problem:
        self._check_links(mapping)
        weights = self._chosen() if mapping is None else self._declared(mapping)
        classes = consistent([each.classes for each in weights])
        weights = [each for each in weights if self._agrees(each, classes)]
        candidates = [*weights, *self._biases(weights, classes), *self._norms(weights, classes)]
        used = {pair for each in candidates for pair in each.classes}
        pairs = [pair for pair in sorted(classes.items()) if pair in used]
        numbers = {base: i for i, (base, _) in enumerate(pairs)}
        return Problem(
            tuple(each.numbered(numbers) for each in candidates),
            tuple(ClassPair(self.base.classes[b], self.source.classes[s]) for b, s in pairs),
            tuple(self.refused),
            (self.base.graph.name, self.source.graph.name),
        )

    def _agrees(self, candidate: _Candidate, classes: Map[int, int]) -> bool:
        """Whether a candidate pairs no class otherwise than it is; refused if it does."""
        for base, source in candidate.classes:
            if classes.get(base) != source:
                one, other = self.base.classes[base], self.source.classes[source]
                self._refuse(
                    candidate.base,
                    candidate.source,
                    f"{one.size} units of '{one.members[0].fqn}' would read {other.size} of "
                    f"'{other.members[0].fqn}', but more tensors say that these classes are paired with others",
                )
                return False
        return True

    # --- weights --------------------------------------------------------------------------------------------------

    def _chosen(self) -> list[_Candidate]:
        """The candidates of largest total similarity."""
        bases, sources = self.base.weights, self.source.weights
        if not (_packed(bases) and _packed(sources)):
            # One model packs query, key and value and the other does not: they are paired part by part.
            bases = [part for tensor in bases for part in self.base.parts(tensor)]
            sources = [part for tensor in sources for part in self.source.parts(tensor)]
        candidates: dict[tuple[int, int], _Candidate] = {}
        why: dict[int, dict[int, str]] = {}
        for i, one in enumerate(bases):
            for j, other in enumerate(sources):
                try:
                    candidates[i, j] = self._candidate(one, other)
                except Incompatible as reason:
                    why.setdefault(i, {})[j] = str(reason)
        overlaps = {
            pair: self._overlap(*pair) for each in candidates.values() for pair in each.classes
        }
        similarities = {
            key: _similarity(each.base, each.source)
            + _mean([overlaps[pair] for pair in each.classes])
            for key, each in candidates.items()
        }
        names = ([t.fqn for t in bases], [t.fqn for t in sources])
        nestings = same_depth(
            [around(fqn, self.base.blocks) for fqn in names[0]],
            [around(fqn, self.source.blocks) for fqn in names[1]],
        )
        classes = {key: each.classes for key, each in candidates.items()}
        pairs = self._blockwise(*names, similarities, classes, overlaps, nestings)
        paired = dict(pairs)
        for i, tensor in enumerate(bases):
            if i not in paired:
                self.refused.append((tensor.address, _reason(tensor, sources, why.get(i, {}))))
        return [candidates[key] for key in pairs]

    def _blockwise(
        self,
        rows: Sequence[str],
        columns: Sequence[str],
        similarities: dict[tuple[int, int], int],
        classes: dict[tuple[int, int], ClassPairs],
        overlaps: dict[tuple[int, int], int] | None,
        nestings: Iterable[tuple[Sequence[Blocks], Sequence[Blocks]] | None],
    ) -> list[tuple[int, int]]:
        """The pairs of largest similarity by any of the ways in which blocks lie around what is named here.

        Those of the blocks that the caller names come first, as their order need not rise.
        """
        size = len(rows), len(columns)
        named: list[tuple[int, int]] = []
        for one, other in self.links.items():
            inner = {
                (i, j): similarity
                for (i, j), similarity in similarities.items()
                if around(rows[i], [one]) and around(columns[j], [other])
            }
            named += choose(*size, inner, classes, overlaps)
        others = {
            (i, j): similarity
            for (i, j), similarity in similarities.items()
            if not around(rows[i], [*self.links]) and not around(columns[j], [*self.links.values()])
        }
        # The first of equals.
        best = max(
            (choose(*size, others, classes, overlaps, nesting) for nesting in nestings),
            key=lambda pairs: sum(similarities[pair] for pair in pairs),
        )
        return sorted([*named, *best])

    def _check_links(self, mapping: Mapping | None) -> None:
        if self.links and mapping is not None:
            raise AssemblyError(
                "both links and blocks say what is paired.",
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
                        fix="name modules of the base -> modules of the source",
                    )
            twice = [a for a, b in permutations(names, 2) if a == b or a.startswith(f"{b}.")]
            if twice:
                raise AssemblyError(
                    f"{twice[0]!r} is named twice, by itself or by a module around it.",
                    why="the units of one block read those of one other",
                    fix="name each block once",
                )

    def _declared(self, mapping: Mapping) -> list[_Candidate]:
        """The candidates that a mapping names."""
        candidates = []
        for pair in mapping.pairs:
            if pair.direction == "backward":
                continue
            sides = []
            for side, parameter in ((self.base, pair.target), (self.source, pair.source)):
                tensor = side.all.get(parameter.tied_to or parameter.fqn)
                if tensor is not None and parameter.part is not None:
                    parts = {each.part: each for each in side.parts(tensor)}
                    tensor = parts.get(parameter.part)
                sides.append(tensor)
            one, other = sides
            if one is None or other is None:
                self._refuse(pair.target, pair.source, "its axes are in no class as a whole")
            else:
                candidates += self._compatible(one, other)
        return candidates

    # --- what goes along ------------------------------------------------------------------------------------------

    def _biases(self, weights: Sequence[_Candidate], classes: Map[int, int]) -> list[_Candidate]:
        """The biases of paired weights, where their classes are paired alike."""
        candidates = []
        done: set[str] = set()
        for weight in weights:
            one, other = self.base.bias(weight.base), self.source.bias(weight.source)
            if one is None or one.address in done:
                continue
            done.add(one.address)
            if other is None:
                self.refused.append((one.address, f"'{weight.source.layer}' has no bias"))
            else:
                both = self._compatible(one, other)
                candidates += [each for each in both if self._agrees(each, classes)]
        return candidates

    def _norms(self, weights: Sequence[_Candidate], classes: Map[int, int]) -> list[_Candidate]:
        """The tensors of a norm read those of one other norm: one that stands between the same weights, if any does."""
        partners = {each.base.fqn: each.source.fqn for each in weights}
        fixed = {pair for each in weights for pair in each.fixed}
        same_block = self._same_block(weights)
        bases, sources = self.base.norms, self.source.norms
        grid: dict[tuple[int, int], list[_Candidate]] = {}
        similarities = {}
        for i, one in enumerate(bases):
            for j, other in enumerate(sources):
                beside = (partners.get(one.before) == other.before) + (
                    partners.get(one.after) == other.after
                )
                # A norm behind one block is the norm before the next one, in models that norm elsewhere.
                if beside < 2 and not same_block(one.tensors[0].fqn, other.tensors[0].fqn):
                    continue
                pairs = self._norm(one, other, classes, fixed)
                if pairs:
                    grid[i, j] = pairs
                    first = _similarity(pairs[0].base, pairs[0].source)
                    similarities[i, j] = first + 4 * beside * _UNIT
        rows, columns = ([each.tensors[0].fqn for each in side] for side in (bases, sources))
        chosen = self._blockwise(rows, columns, similarities, dict.fromkeys(grid, ()), None, [None])
        paired = dict(chosen)
        for i, norm in enumerate(bases):
            if i not in paired:
                for each in norm.tensors:
                    why = f"no {each.kind} ({each.role}) of the source goes with its class"
                    self.refused.append((each.address, why))
        return [candidate for key in chosen for candidate in grid[key]]

    def _same_block(self, weights: Sequence[_Candidate]) -> Callable[[str, str], bool]:
        """Whether two tensors lie in blocks whose weights are paired, or one of them in none."""
        sides = (self.base.blocks, self.source.blocks)
        partners: tuple[dict[str, Blocks], dict[str, Blocks]] = ({}, {})
        for each in weights:
            names = (each.base.fqn, each.source.fqn)
            for i in (0, 1):
                others = around(names[1 - i], sides[1 - i])
                for block in around(names[i], sides[i]):
                    common = partners[i].get(block, others)
                    partners[i][block] = tuple(other for other in common if other in others)

        def same_block(base: str, source: str) -> bool:
            inside = (around(base, sides[0]), around(source, sides[1]))
            return not all(inside) or all(
                set(partners[i].get(block, ())) <= set(inside[1 - i])
                for i in (0, 1)
                for block in inside[i]
            )

        return same_block

    def _norm(
        self, one: Norm, other: Norm, classes: Map[int, int], fixed: set[tuple[int, int]]
    ) -> list[_Candidate]:
        """The candidates of two norms; none where one of their tensors has no partner or another class.

        Classes whose order is fixed are paired where those of paired weights are.
        """
        mine, theirs = {t.role: t for t in one.tensors}, {t.role: t for t in other.tensors}
        if mine.keys() != theirs.keys():
            return []
        try:
            candidates = [self._candidate(mine[role], theirs[role]) for role in mine]
        except Incompatible:
            return []
        pairs = [pair for each in candidates for pair in each.classes]
        if not pairs and all(each.base.kind != "buffer" for each in candidates):
            still = [pair for each in candidates for pair in each.fixed]
            return candidates if still and fixed.issuperset(still) else []
        return candidates if pairs and all(classes.get(b) == s for b, s in pairs) else []

    # --- two tensors ----------------------------------------------------------------------------------------------

    def _compatible(self, one: TensorView, other: TensorView) -> list[_Candidate]:
        """The one candidate, or none: then it is refused."""
        try:
            return [self._candidate(one, other)]
        except Incompatible as reason:
            self._refuse(one, other, str(reason))
            return []

    def _candidate(self, one: TensorView, other: TensorView) -> _Candidate:
        if _compatibility(one) != _compatibility(other):
            raise Incompatible("another kind or role")
        if len(one.shape) != len(other.shape):
            raise Incompatible(f"{len(one.shape)} axes and {len(other.shape)}")
        pairing = AxisPairing(self.base.numbers, self.source.numbers)
        axes = []
        for i, turn in enumerate(_turns(one, other)):
            if one.names[i] in KERNEL:
                axes.append(AxisPair(turn, centred(one.shape[i], other.shape[turn])))
                continue
            blocks = tuple(pairing.blocks(one.axes[i], other.axes[turn]))
            covered = sum(term.size for _, term in one.axes[i])
            axes.append(AxisPair(turn, blocks, covered < one.shape[i]))
        pairs = tuple(pairing.free)
        if any(len({pair[k] for pair in pairs}) < len(pairs) for k in (0, 1)):
            raise Incompatible("one class would be paired twice in this tensor alone")
        return _Candidate(one, other, tuple(axes), pairs, tuple(pairing.fixed))

    def _overlap(self, base: int, source: int) -> int:
        """Millionths: the common part of the depths over which two classes live, by the whole of them."""
        (a, b), (c, d) = self.base.depths(base), self.source.depths(source)
        both = max(b, d) - min(a, c) + _POINT
        return round(max(min(b, d) - max(a, c) + _POINT, 0.0) / both * _UNIT)

    def _refuse(self, base: Any, source: Any, why: str) -> None:
        self.refused.append((f"{base.address} <- {source.address}", why))


def _packed(tensors: Sequence[TensorView]) -> bool:
    return any(tensor.role == "attention.fused" for tensor in tensors)


def _compatibility(tensor: TensorView) -> tuple[str, str, str]:
    """Two tensors are candidates where this is equal; a bias goes with its weight, whatever it is called."""
    if tensor.kind == "bias":
        return "bias", "", ""
    kind = "conv" if tensor.kind in CONVOLUTIONS[:3] else tensor.kind
    leaf = tensor.leaf.split("_l")[0] + ("_reverse" if tensor.leaf.endswith("_reverse") else "")
    return kind, tensor.role, leaf if tensor.kind == "recurrent" else ""


def _turns(one: TensorView, other: TensorView) -> list[int]:
    """For each axis of `one` that of `other`: a linear layer may be stored transposed."""
    same = sorted(one.names) == sorted(other.names) and len(set(one.names)) == len(one.names)
    return [other.names.index(name) if same else i for i, name in enumerate(one.names)]


def _similarity(one: TensorView, other: TensorView) -> int:
    """Millionths: 1 for a pair at all, up to 1 for equal depth, 0.5 for an equal kernel, 0.25 for an equal shape."""
    kernels = [i for i, name in enumerate(one.names) if name in KERNEL]
    kernel = all(one.shape[i] == other.shape[i] for i in kernels)
    shape = sum(min(a, b) / max(a, b) for a, b in zip(one.shape, other.shape, strict=True) if a + b)
    parts = (1.0, 1 - abs(one.depth - other.depth), 0.5 * kernel, 0.25 * shape / len(one.shape))
    return round(sum(parts) * _UNIT)


def _reason(tensor: TensorView, sources: Sequence[TensorView], why: Map[int, str]) -> str:
    """Why a base weight has no partner: the answer for the source weight nearest in depth."""
    same = [j for j, other in enumerate(sources) if _compatibility(other) == _compatibility(tensor)]
    if not same:
        return f"the source has no {tensor.kind} weight with the role '{tensor.role}'"
    near = min(same, key=lambda j: (abs(sources[j].depth - tensor.depth), j))
    alike = "others that keep the order of depth and the blocks together are more alike"
    return f"nearest is '{sources[near].address}': {why.get(near, alike)}"


def _mean(values: Sequence[int]) -> int:
    return sum(values) // len(values) if values else 0
