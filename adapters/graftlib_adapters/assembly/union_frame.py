"""The union frame (F2): base and source in one architecture as wide as both, each with its own function.

In the base frame (F1, `merging`) what the base has no room for is dropped; here nothing is. Both wide models are run
next to the originals, in double precision, and give the same; where a mean or a variance runs over units of unequal
number, that cannot be, and it is refused with the reason. The base is widened by `graftlib.surgery.widen`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from graftlib.graph import AxisClass, LayerGraph, copy_to_edit, duplicate, own
from graftlib.surgery import SurgeryError, SurgeryWarning, widen
from graftlib.surgery.proof import TOLERANCE, change
from graftlib.surgery.rescale import EPS, Rms, rescale_norms, rms_norms, role_places, scores_only

from .alignment import Alignment
from .alignment_problem import Problem, TensorPair, places_of
from .axis_pairs import AxisPairing, numbers_of, resized, terms_of
from .errors import AssemblyError
from .merging import lerp
from .permutation import Permutation
from .tensors import tensors_of

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
        model = duplicate(self.base, own)
        self.write(model, factor)
        return model


def union(base: LayerGraph, source: LayerGraph, alignment: Alignment) -> Union:
    """Widen both models to one architecture.

    A norm by the root mean square keeps its function at any width (its gain times sqrt(n / N), its eps times n / N),
    and so does an attention whose heads are of another width (its queries times what its scores are divided by more).

    Args:
        base: graph of the base; its model's weights are taken and not changed.
        source: graph of the source.
        alignment: of the two; ``objective="inner"`` suits this frame, where nothing is dropped. Source units that it
            leaves unread are read by the new units of the base, in order.

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
    wide = Alignment(_wide(problem, base, source, widths), full, 0.0, ())
    wide_source = _moved(source, wide_base, wide)
    return Union(wide_base, wide_source, full, widths)


def _must_be_whole(base: LayerGraph, source: LayerGraph, problem: Problem) -> None:
    """Every parameter and statistic of both needs a whole partner: otherwise there is no common architecture."""
    wrong = [f"base {what}: {why}" for what, why in problem.refused]
    for word, graph, paired in (
        ("base", base, {pair.base for pair in problem.pairs}),
        ("source", source, {pair.source for pair in problem.pairs}),
    ):
        tied = {p.fqn for p in graph.parameters() if p.tied_to is not None}
        state = graph.model.state_dict()
        for fqn, tensor in tensors_of(graph).items():
            if fqn in state and tensor.is_floating_point() and fqn not in paired | tied:
                wrong.append(f"{word} '{fqn}' {tuple(tensor.shape)} has no partner")
    for pair in problem.pairs:
        if any(axis.partial for axis in pair.axes):
            wrong.append(f"base '{pair.base}' reads '{pair.source}' only in part")
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
    sizes = [pair.source_shape[axis.source_axis] for axis in pair.axes]
    return all(
        places_of(axis.blocks, base=True) == size and places_of(axis.blocks, base=False) == other
        for size, other, axis in zip(pair.base_shape, sizes, pair.axes, strict=True)
    )


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
        scaled = [norm.fqn for norm in rms_norms(base, base.model, classes)]
        raise _refusal("base", problem, error.where, error.why or error.what, scaled) from error


# --- the source -------------------------------------------------------------------------------------------------------


def _moved(source: LayerGraph, wide_base: nn.Module, alignment: Alignment) -> nn.Module:
    """The wide base with the source's tensors in it, once it computes what the source does."""
    wide = duplicate(wide_base, own)
    norms = _norms(source, wide, alignment.problem)
    error = float("inf")
    for queries in (False, True):
        state = alignment.transported(_doubles(source, alignment.problem, queries=queries))

        def write(model: nn.Module, state: Mapping[str, Tensor] = state) -> None:
            _load(model, state)
            rescale_norms(model, norms)

        try:
            error = min(error, change(source, source.model, wide, write))
        except (RuntimeError, ValueError, TypeError, IndexError) as failure:
            raise AssemblyError(
                "the wide source does not run on the source's example.",
                why=str(failure)[:300],
                fix=_FIX,
            ) from failure
        if error <= TOLERANCE:
            write(wide)
            return wide
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
    norms = []
    for pair in problem.pairs:
        norm = known.get(pair.source)
        if norm is not None:
            names = _small_numbers(wide.get_submodule(pair.layer))
            eps = {name: value for value in norm.eps.values() for name in names}
            norms.append(replace(norm, fqn=pair.base, layer=pair.layer, eps=eps))
    return norms


def _small_numbers(module: nn.Module) -> dict[str, float]:
    """What a norm adds before it divides, by the names that it may have."""
    values = {name: module.__dict__.get(name) for name in EPS}
    return {name: value for name, value in values.items() if isinstance(value, float)}


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """In place: values into the tensors of a model."""
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
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


def _wide(
    problem: Problem, base: LayerGraph, source: LayerGraph, widths: Mapping[int, int]
) -> Problem:
    """The problem of a base whose classes are as wide as both."""
    sides = [numbers_of(graph.axis_classes) for graph in (base, source)]
    sizes = {id(pair.base): widths[i] for i, pair in enumerate(problem.classes)}
    numbers = {sides[0][id(pair.base)]: i for i, pair in enumerate(problem.classes)}
    pairs = []
    for pair in problem.pairs:
        trees = [resized(tree, sizes) for tree in base.axes(pair.base)]
        others = source.axes(pair.source)
        axes = []
        for axis, tree in zip(pair.axes, trees, strict=True):
            blocks = AxisPairing(*sides).blocks(terms_of(tree), terms_of(others[axis.source_axis]))
            axes.append(replace(axis, blocks=tuple(each.numbered(numbers) for each in blocks)))
        shape = tuple(tree.size for tree in trees)
        pairs.append(replace(pair, base_shape=shape, axes=tuple(axes)))
    return replace(problem, pairs=tuple(pairs))


# --- refusals ---------------------------------------------------------------------------------------------------------


def _refusal(
    word: str, problem: Problem, where: Mapping[str, object], why: str, scaled: Sequence[str]
) -> AssemblyError:
    across = _looks_across(problem, scaled)
    if across:
        where = {"norms": "; ".join(across[:3]), **where}
        why = "a norm takes its mean or variance over all units, the silent ones too"
    return AssemblyError(
        f"the union frame cannot keep the function of the {word}.", where=where, why=why, fix=_FIX
    )


def _looks_across(problem: Problem, scaled: Sequence[str]) -> list[str]:
    """Norms without running statistics whose units differ in number, but for those that were scaled."""
    owners = {pair.layer for pair in problem.pairs if pair.role in ("mean", "variance")}
    return [
        f"'{pair.base}' {pair.base_shape[0]} and {pair.source_shape[0]} units"
        for pair in problem.pairs
        if pair.role == "gain"
        and pair.layer not in owners
        and pair.base not in scaled
        and pair.base_shape != pair.source_shape
    ]
