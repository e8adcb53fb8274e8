"""The union frame (F2): base and source in one architecture as wide as both, each with its own function.

In: two graphs and an alignment of them. Out: `Union`: two models with the same tensors, between which one can walk. In
the base frame (F1, `merging`) what the base has no room for is dropped; here nothing is. Always true: both wide models
were run next to the originals, in double precision, and gave the same; where a mean, a variance or a scale runs over
units of unequal number, that cannot be, and it is refused with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from graftlib.graph import LayerGraph
from graftlib.graph.axes.trial import Trial, difference
from graftlib.surgery import SurgeryError
from graftlib.surgery.fit import fitted

from .alignment import Alignment
from .merging import lerp
from .permutation import AssemblyError, Permutation
from .records import AxisPair, BlockPair, Factor, Problem, TensorPair
from .structure import tensors_of

__all__ = ["Union", "union"]

# Doubles keep 16 digits; a unit that is not silent shows from about 1e-6 on.
TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Union:
    """Base and source in one architecture.

    Attributes:
        base: the base's function; its units come first, then silent ones.
        source: the source's function, its units in the base's order.
        permutations: number of the class pair -> (N, p) permutation, N = max(m, p): every source unit is read.
        widths: number of the class pair -> N.
    """

    base: nn.Module
    source: nn.Module
    permutations: Mapping[int, Permutation]
    widths: Mapping[int, int]

    def merged(self, factor: float) -> dict[str, Tensor]:
        """The state dict at `factor` between the base (0) and the source (1): base + factor (source - base).

        Raises:
            AssemblyError: `factor` is not within 0 … 1.
        """
        if not 0 <= factor <= 1:
            raise AssemblyError(f"a merging factor of {factor}.", fix="use one from 0.0 to 1.0")
        theirs = self.source.state_dict()
        return {
            fqn: lerp(mine, theirs[fqn].to(mine.device), factor)
            if mine.is_floating_point()
            else mine.clone()
            for fqn, mine in self.base.state_dict().items()
        }

    def at(self, factor: float) -> nn.Module:
        """A new model between the two, see `merged`."""
        made = copy.deepcopy(self.base)
        made.load_state_dict(self.merged(factor))
        return made


def union(base: LayerGraph, source: LayerGraph, alignment: Alignment) -> Union:
    """Widen both models to one architecture.

    Args:
        base: graph of the base; its model's weights are taken and not changed.
        source: graph of the source.
        alignment: of the two; ``score="inner"`` suits this frame, where nothing is dropped. Source units that it leaves
            unread are read by the new units of the base, in order.

    Returns:
        the two wide models. Each is made of the base's modules and code.

    Raises:
        AssemblyError: a tensor of either has no partner, or only in part; kernels differ; the base's modules do not run
            with these sizes; or a wide model would not compute what the original does.
    """
    problem = alignment.problem
    _must_be_whole(base, source, problem)
    widths = {i: max(pair.bases, pair.sources) for i, pair in enumerate(problem.classes)}
    full = {i: _full(each, widths[i]) for i, each in alignment.permutations.items()}
    embed = {
        i: Permutation.identity(widths[i], pair.bases) for i, pair in enumerate(problem.classes)
    }
    ours = Alignment(_wide(problem, widths, of_base=True), embed, 0.0, ())
    theirs = Alignment(_wide(problem, widths, of_base=False), full, 0.0, ())
    _must_keep_norms(problem)
    wide_base = _edited(base, problem, ours, widths)
    wide_source = copy.deepcopy(wide_base)
    _load(wide_source, theirs.transported(tensors_of(source)))
    why = _looks_across(problem)
    _must_agree(base, base.model, wide_base, "base", why)
    _must_agree(source, source.model, wide_source, "source", why)
    return Union(wide_base, wide_source, full, widths)


def _must_be_whole(base: LayerGraph, source: LayerGraph, problem: Problem) -> None:
    """Every parameter and statistic of both must meet a whole one: otherwise there is no common architecture."""
    wrong = [f"base {what}: {why}" for what, why in problem.refused]
    for word, graph, met in (
        ("base", base, {pair.base for pair in problem.pairs}),
        ("source", source, {pair.source for pair in problem.pairs}),
    ):
        tied = {p.fqn for p in graph.parameters() if p.tied_to is not None}
        kept = graph.model.state_dict()
        for fqn, tensor in tensors_of(graph).items():
            if fqn in kept and tensor.is_floating_point() and fqn not in met | tied:
                wrong.append(f"{word} '{fqn}' {tuple(tensor.shape)} meets none")
    for pair in problem.pairs:
        if any(axis.partial for axis in pair.axes):
            wrong.append(f"base '{pair.base}' meets '{pair.source}' only in part")
        elif not _covers(pair):
            wrong.append(f"kernels of '{pair.base}' and '{pair.source}' differ")
    if wrong:
        raise AssemblyError(
            f"the union frame needs every tensor of both models: {len(wrong)} stand apart.",
            where={"first": "; ".join(wrong[:3])},
            fix="merge in the base frame, with merged(...)",
        )


def _covers(pair: TensorPair) -> bool:
    """Whether the blocks of each axis hold all places of both tensors."""
    for size, axis in zip(pair.base_shape, pair.axes, strict=True):
        blocks = axis.blocks
        if sum(_count(block, base=True) for block in blocks) != size:
            return False
        if (
            sum(_count(block, base=False) for block in blocks)
            != pair.source_shape[axis.source_axis]
        ):
            return False
    return True


def _count(block: BlockPair, *, base: bool) -> int:
    count = 1
    for factor in block.factors:
        count *= factor.bases if base else factor.sources
    return count


def _full(permutation: Permutation, width: int) -> Permutation:
    """New base units behind the old ones read, in order, what those leave unread."""
    read = torch.zeros(permutation.sources, dtype=torch.bool, device="cpu")
    read[permutation.reads[permutation.reads >= 0]] = True
    left = (~read).nonzero().flatten()
    reads = torch.full((width,), -1, dtype=torch.int64, device="cpu")
    reads[: permutation.bases] = permutation.reads
    empty = (reads < 0).nonzero().flatten()
    # Silent places of the base first: a base unit without a partner may not share its place where there is room.
    order = torch.cat([empty[empty >= permutation.bases], empty[empty < permutation.bases]])
    reads[order[: len(left)]] = left
    return Permutation(reads, permutation.sources)


def _wide(problem: Problem, widths: Mapping[int, int], *, of_base: bool) -> Problem:
    """The problem of a model whose classes are as wide as both, reading the base or the source."""
    return replace(
        problem, pairs=tuple(_wide_pair(pair, widths, of_base) for pair in problem.pairs)
    )


def _wide_pair(pair: TensorPair, widths: Mapping[int, int], of_base: bool) -> TensorPair:
    axes = []
    shape = []
    for i, axis in enumerate(pair.axes):
        blocks = _wide_blocks(axis.blocks, widths, of_base)
        shape.append(sum(_count(block, base=True) for block in blocks))
        axes.append(AxisPair(i if of_base else axis.source_axis, blocks))
    return replace(
        pair,
        source=pair.base if of_base else pair.source,
        base_shape=tuple(shape),
        source_shape=pair.base_shape if of_base else pair.source_shape,
        axes=tuple(axes),
    )


def _wide_blocks(
    blocks: Sequence[BlockPair], widths: Mapping[int, int], of_base: bool
) -> tuple[BlockPair, ...]:
    made: list[BlockPair] = []
    at = 0
    for block in sorted(blocks, key=lambda each: each.base_start):
        factors = tuple(_wide_factor(factor, widths, of_base) for factor in block.factors)
        start = block.base_start if of_base else block.source_start
        made.append(BlockPair(at, start, factors))
        at += _count(made[-1], base=True)
    return tuple(made)


def _wide_factor(factor: Factor, widths: Mapping[int, int], of_base: bool) -> Factor:
    terms = _wide_blocks(factor.terms, widths, of_base)
    if terms:
        bases = sum(_count(term, base=True) for term in terms)
    else:
        bases = factor.bases if factor.pair is None else widths[factor.pair]
    return Factor(bases, factor.bases if of_base else factor.sources, factor.pair, terms)


def _edited(
    base: LayerGraph, problem: Problem, ours: Alignment, widths: Mapping[int, int]
) -> nn.Module:
    """The base in its new sizes, with the old values in their places and silence in the new ones."""
    sizes = {
        pair.base: widths[i] for i, pair in enumerate(problem.classes) if widths[i] != pair.bases
    }
    state = ours.transported(tensors_of(base))
    if not sizes:
        made = copy.deepcopy(base.model)
        _load(made, state)
        return made
    rows = {}
    for pair in problem.pairs:
        for axis, size in enumerate(pair.base_shape):
            reads = ours.reads(pair.base, axis)
            if len(reads) != size:
                rows[pair.base, axis] = reads.clamp(min=0)
    try:
        return fitted(
            base.model, base, rows, sizes, inplace=False, finish=lambda made: _load(made, state)
        )
    except SurgeryError as error:
        raise AssemblyError(
            "the base's modules do not run in the sizes of both models.",
            where=error.where,
            why=error.why or error.what,
            fix="merge in the base frame, with merged(...)",
        ) from error


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """In place: values into the tensors of a model."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for fqn, values in state.items():
            tensors[fqn].copy_(values)


def _must_keep_norms(problem: Problem) -> None:
    across = _looks_across(problem)
    if across:
        raise AssemblyError(
            "the union frame cannot keep the functions of both models.",
            where={"norms": "; ".join(across[:3])},
            why="a norm takes its mean or variance over all units, the silent ones too",
            fix="merge in the base frame, with merged(...)",
        )


def _looks_across(problem: Problem) -> list[str]:
    """Norms without running statistics whose units differ in number."""
    owners = {pair.layer for pair in problem.pairs if pair.role in ("mean", "variance")}
    return [
        f"'{pair.base}' {pair.base_shape[0]} and {pair.source_shape[0]} units"
        for pair in problem.pairs
        if pair.role == "gain" and pair.layer not in owners and pair.base_shape != pair.source_shape
    ]


def _must_agree(
    graph: LayerGraph, model: nn.Module, wide: nn.Module, word: str, across: Sequence[str]
) -> None:
    """Both are run as they are, in double precision, on one drawn input."""
    try:
        before, after = (Trial(_Seen(graph, one), drawn=False).run() for one in (model, wide))
        error = difference(before, after)
    except (RuntimeError, ValueError, TypeError, IndexError) as failure:
        raise AssemblyError(
            f"the wide {word} does not run on the {word}'s example.",
            why=str(failure)[:300],
            fix="merge in the base frame, with merged(...)",
        ) from failure
    if error > TOLERANCE:
        raise AssemblyError(
            f"the wide {word} does not compute what the {word} does.",
            where={"relative change": f"{error:.1e}", **({"norms": across[0]} if across else {})},
            why="an op looks at all units at once (a norm, a product of queries and keys), or the two models differ "
            "in what is no tensor (activation, stride, eps)",
            fix="merge in the base frame, with merged(...)",
        )


class _Seen:
    """A model with another one's graph: what a trial needs of a layer graph."""

    def __init__(self, graph: LayerGraph, model: nn.Module) -> None:
        self.model: nn.Module = model
        self.fx: fx.Graph = graph.fx
        self._example: Any = graph._example
