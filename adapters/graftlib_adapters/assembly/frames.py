"""The union frame (F2): base and source in one architecture as wide as both, each with its own function.

In: two graphs and an alignment of them. Out: `Union`: two models with the same tensors, between which one can walk. In
the base frame (F1, `merging`) what the base has no room for is dropped; here nothing is. Always true: both wide models
were run next to the originals, in double precision, and gave the same; where a mean or a variance runs over units of
unequal number, that cannot be, and it is refused with the reason.
Elsewhere: the base is widened by `graftlib.surgery.widen`; what is scaled with the widths is in `surgery.rescale`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from graftlib.graph import LayerGraph
from graftlib.graph.axes import AxisClass
from graftlib.graph.caches import copy_to_edit
from graftlib.graph.structure import duplicate, own
from graftlib.surgery import SurgeryError, SurgeryWarning, widen
from graftlib.surgery.proof import TOLERANCE, change
from graftlib.surgery.rescale import (
    EPS,
    Rms,
    rescale_norms,
    rms_norms,
    role_places,
    scores_only,
)

from .alignment import Alignment
from .merging import lerp
from .permutation import AssemblyError, Permutation
from .records import BlockPair, Factor, Problem, TensorPair
from .structure import tensors_of

__all__ = ["Union", "union"]

_FIX = "merge in the base frame, with merged(...)"


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

        An RMS norm's small number is no tensor: `write` and `at` set it, too.

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

    def write(self, model: nn.Module, factor: float) -> None:
        """Make a copy of `base`, in place, the model at `factor`, see `merged`."""
        model.load_state_dict(self.merged(factor))
        for module, one, other in zip(
            model.modules(), self.base.modules(), self.source.modules(), strict=True
        ):
            theirs = _small_numbers(other)
            for name, mine in _small_numbers(one).items():
                setattr(module, name, mine + factor * (theirs[name] - mine))

    def at(self, factor: float) -> nn.Module:
        """A new model between the two, see `merged`."""
        made = duplicate(self.base, own)
        self.write(made, factor)
        return made


def union(base: LayerGraph, source: LayerGraph, alignment: Alignment) -> Union:
    """Widen both models to one architecture.

    A norm by the root mean square keeps its function at any width (its gain times sqrt(n / N), its eps times n / N),
    and so does an attention whose heads are of another width (its queries times what its scores are divided by more).

    Args:
        base: graph of the base; its model's weights are taken and not changed.
        source: graph of the source.
        alignment: of the two; ``score="inner"`` suits this frame, where nothing is dropped. Source units that it leaves
            unread are read by the new units of the base, in order.

    Returns:
        the two wide models. Each is made of the base's modules and code, and held in its dtype.

    Raises:
        AssemblyError: a tensor of either has no partner, or only in part; kernels differ; the base's modules do not run
            with these sizes; or a wide model would not compute what the original does.
    """
    problem = alignment.problem
    _must_be_whole(base, source, problem)
    widths = {i: max(pair.bases, pair.sources) for i, pair in enumerate(problem.classes)}
    full = {i: _full(each, widths[i]) for i, each in alignment.permutations.items()}
    wide_base = _widened(base, problem, widths)
    wide_source = _moved(source, wide_base, Alignment(_wide(problem, widths), full, 0.0, ()))
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
            fix=_FIX,
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


# --- the base ---------------------------------------------------------------------------------------------------------


def _widened(base: LayerGraph, problem: Problem, widths: Mapping[int, int]) -> nn.Module:
    """The base in its new sizes."""
    sizes: dict[AxisClass | int | str, int] = {
        pair.base: widths[i] for i, pair in enumerate(problem.classes) if widths[i] != pair.bases
    }
    if not sizes:
        return copy_to_edit(base.model, base, AssemblyError)
    try:
        with warnings.catch_warnings():
            # A frame is walked in and not saved.
            warnings.simplefilter("ignore", SurgeryWarning)
            return widen(base, sizes, fill="zero")
    except SurgeryError as error:
        classes = [pair.base for pair in problem.classes]
        kept = [norm.fqn for norm in rms_norms(base, base.model, classes)]
        raise _refusal("base", problem, error.where, error.why or error.what, kept) from error


# --- the source -------------------------------------------------------------------------------------------------------


def _moved(source: LayerGraph, wide_base: nn.Module, alignment: Alignment) -> nn.Module:
    """The wide base with the source's tensors in it, once it computes what the source does."""
    made = duplicate(wide_base, own)
    norms = _norms(source, made, alignment.problem)
    error = float("inf")
    for queries in (False, True):
        state = alignment.transported(_doubles(source, alignment.problem, queries=queries))

        def write(model: nn.Module, state: Mapping[str, Tensor] = state) -> None:
            _load(model, state)
            rescale_norms(model, norms)

        try:
            error = min(error, change(source, source.model, made, write))
        except (RuntimeError, ValueError, TypeError, IndexError) as failure:
            raise AssemblyError(
                "the wide source does not run on the source's example.",
                why=str(failure)[:300],
                fix=_FIX,
            ) from failure
        if error <= TOLERANCE:
            write(made)
            return made
    raise _refusal(
        "source",
        alignment.problem,
        {"relative change": f"{error:.1e}"},
        "an op looks at all units at once, or the two models differ in what is no tensor (activation, stride, eps)",
        [norm.fqn for norm in norms],
    )


def _doubles(source: LayerGraph, problem: Problem, *, queries: bool) -> dict[str, Tensor]:
    """The source's tensors; with `queries` those of heads of another width take the base's scale.

    Scores are divided by the root of a head's width, m in the base and p in the source. Whether the base's code keeps
    sqrt(m) or takes the root of the width it finds, the factor that makes sqrt(p) of it is sqrt(m / p), or none.
    """
    state = {fqn: tensor.detach().double() for fqn, tensor in tensors_of(source).items()}
    done: set[tuple[str, int]] = set()
    for pair in problem.classes if queries else ():
        if pair.bases == pair.sources or not scores_only(source, pair.source):
            continue
        for member in pair.source.members:
            key = (member.fqn, member.axis)
            places = role_places(source, *key, "attention.query")
            if key in done or not len(places):
                continue
            done.add(key)
            tensor = state[member.fqn]
            factor = torch.ones(tensor.shape[member.axis], dtype=torch.float64, device="cpu")
            factor[places] = (pair.bases / pair.sources) ** 0.5
            shape = [-1 if i == member.axis else 1 for i in range(tensor.ndim)]
            state[member.fqn] = tensor * factor.view(shape).to(tensor.device)
    return state


def _norms(source: LayerGraph, wide: nn.Module, problem: Problem) -> list[Rms]:
    """The source's norms by the root mean square, under the names that they have in the wide model."""
    classes = [pair.source for pair in problem.classes]
    known = {norm.fqn: norm for norm in rms_norms(source, source.model, classes)}
    found = []
    for pair in problem.pairs:
        norm = known.get(pair.source)
        if norm is not None:
            names = _small_numbers(wide.get_submodule(pair.layer))
            eps = {name: value for value in norm.eps.values() for name in names}
            found.append(replace(norm, fqn=pair.base, layer=pair.layer, eps=eps))
    return found


def _small_numbers(module: nn.Module) -> dict[str, float]:
    """What a norm adds before it divides, by the names that it may have."""
    held = {name: module.__dict__.get(name) for name in EPS}
    return {name: value for name, value in held.items() if isinstance(value, float)}


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """In place: values into the tensors of a model."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for fqn, values in state.items():
            tensors[fqn].copy_(values)


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


def _wide(problem: Problem, widths: Mapping[int, int]) -> Problem:
    """The problem of a base whose classes are as wide as both."""
    return replace(problem, pairs=tuple(_wide_pair(pair, widths) for pair in problem.pairs))


def _wide_pair(pair: TensorPair, widths: Mapping[int, int]) -> TensorPair:
    axes = tuple(replace(axis, blocks=_wide_blocks(axis.blocks, widths)) for axis in pair.axes)
    shape = tuple(sum(_count(block, base=True) for block in axis.blocks) for axis in axes)
    return replace(pair, base_shape=shape, axes=axes)


def _wide_blocks(blocks: Sequence[BlockPair], widths: Mapping[int, int]) -> tuple[BlockPair, ...]:
    made: list[BlockPair] = []
    at = 0
    for block in sorted(blocks, key=lambda each: each.base_start):
        factors = tuple(_wide_factor(factor, widths) for factor in block.factors)
        made.append(BlockPair(at, block.source_start, factors))
        at += _count(made[-1], base=True)
    return tuple(made)


def _wide_factor(factor: Factor, widths: Mapping[int, int]) -> Factor:
    terms = _wide_blocks(factor.terms, widths)
    if terms:
        return replace(factor, bases=sum(_count(term, base=True) for term in terms), terms=terms)
    return factor if factor.pair is None else replace(factor, bases=widths[factor.pair])


# --- refusals ---------------------------------------------------------------------------------------------------------


def _refusal(
    word: str,
    problem: Problem,
    where: Mapping[str, object],
    why: str,
    kept: Sequence[str],
) -> AssemblyError:
    across = _looks_across(problem, kept)
    if across:
        where = {"norms": "; ".join(across[:3]), **where}
        why = "a norm takes its mean or variance over all units, the silent ones too"
    return AssemblyError(
        f"the union frame cannot keep the function of the {word}.",
        where=where,
        why=why,
        fix=_FIX,
    )


def _looks_across(problem: Problem, kept: Sequence[str]) -> list[str]:
    """Norms without running statistics whose units differ in number, but for those that were scaled."""
    owners = {pair.layer for pair in problem.pairs if pair.role in ("mean", "variance")}
    return [
        f"'{pair.base}' {pair.base_shape[0]} and {pair.source_shape[0]} units"
        for pair in problem.pairs
        if pair.role == "gain"
        and pair.layer not in owners
        and pair.base not in kept
        and pair.base_shape != pair.source_shape
    ]
