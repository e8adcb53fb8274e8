"""One base and one source side by side: what meets, how it is aligned, what a merge gives.

In: two graphs and their tensors. Out: alignments, and models with merged weights. Always true: the base is never
changed; `Stage` writes into a copy of its own and gives every tensor its base value back that a merge does not write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graftlib.arguments import check
from graftlib.errors import shown
from graftlib.graph import LayerGraph
from graftlib.graph.caches import copy_to_edit
from graftlib.graph.structure import shell
from graftlib.match import Mapping as Links
from graftlib.surgery.edits import tensor_of

from .matching import Alignment, align
from .merging import merged
from .pairing import Pairing, Problem, problem
from .permutation import AssemblyError
from .zoo import Giver

__all__ = [
    "METHODS",
    "Declared",
    "Meeting",
    "Method",
    "Pad",
    "Stage",
    "base_side",
    "between",
    "meet",
    "runs",
]

Method = Literal["coordinate", "frank-wolfe", "identity", "random", "shrink"]
METHODS = ("coordinate", "frank-wolfe", "identity", "random", "shrink")
Pad = Literal["zero", "keep"]
# Links in words, a mapping of these very graphs, or a function (source graph, base graph) -> mapping.
Declared = Sequence[tuple[str, str]] | Links | Callable[[LayerGraph, LayerGraph], Links] | None


@dataclass(frozen=True)
class Meeting:
    """What of a source meets what of a base, with the tensors that take part.

    Attributes:
        problem: the pairs of tensors and of classes, and what was refused.
        source_state: the source's tensors that take part, as they are stored.
    """

    problem: Problem
    source_state: Mapping[str, Tensor]

    def align(
        self,
        base_state: Mapping[str, Tensor],
        *,
        method: Method = "coordinate",
        score: Literal["l2", "inner"] = "l2",
        restarts: int = 0,
        seed: int = 0,
        costs: Mapping[int, Tensor] | None = None,
    ) -> Alignment:
        """Align to the weights of `base_state`; ``shrink`` aligns by coordinate descent too.

        `costs` (see `matching.match`) decide the classes that they are given for, but for the controls.
        """
        how = "coordinate" if method == "shrink" else method
        return align(
            self.problem,
            base_state,
            self.source_state,
            method=how,
            score=score,
            restarts=restarts,
            seed=seed,
            costs=costs,
        )

    def given(self, method: Method) -> Mapping[str, Tensor]:
        """The tensors that are merged: the source's, or for ``shrink`` those of a source that holds nothing.

        Nothing is 0, and 1 for a running variance, as for units that read none.
        """
        if method != "shrink":
            return self.source_state
        ones = {pair.source for pair in self.problem.pairs if pair.role == "variance"}
        return {
            name: torch.ones_like(tensor) if name in ones else torch.zeros_like(tensor)
            for name, tensor in self.source_state.items()
        }


def meet(
    base: LayerGraph, giver: Giver, mapping: Declared = None, pairing: Pairing = "blocks"
) -> Meeting:
    """Find what meets, and read those tensors of the source; `pairing` as in `pairing.problem`.

    Raises:
        AssemblyError: nothing meets, a tensor that takes part is not finite, or the mapping is of other graphs.
    """
    return between(base, giver.graph(), giver.state, mapping, giver.name, pairing)


def between(
    base: LayerGraph,
    source: LayerGraph,
    state: Callable[[Iterable[str]], Mapping[str, Tensor]],
    mapping: Declared = None,
    name: str = "the source",
    pairing: Pairing = "blocks",
) -> Meeting:
    """The same for a source that is traced already; `state` reads tensors by FQN."""
    if isinstance(mapping, Links):
        source, base = mapping.source, mapping.target
    found = problem(base, source, mapping=_links(mapping, source, base), pairing=pairing)
    if not found.pairs:
        raise AssemblyError(
            f"nothing of {shown(name)} meets anything of the base.",
            where=dict(found.refused[:6]),
            fix="declare links: mapping=[('source pattern', 'base pattern')]",
        )
    tensors = state(dict.fromkeys(pair.source for pair in found.pairs))
    odd = [each for each, tensor in tensors.items() if not _finite(tensor)]
    if odd:
        raise AssemblyError(
            f"{shown(name)} holds values that are not finite.",
            where={"tensors": ", ".join(map(shown, odd[:6]))},
            fix="leave this source out, or mend its weights",
            tensors=tuple(odd),
        )
    return Meeting(found, tensors)


def _finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not tensor.is_floating_point():
        return True
    # Floats of one byte cannot be asked.
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def _links(mapping: Declared, source: LayerGraph, base: LayerGraph) -> Links | None:
    if mapping is None or isinstance(mapping, Links):
        return mapping
    if callable(mapping):
        links = mapping(source, base)
        check(AssemblyError, fix="return a graftlib.Mapping", mapping=(links, (Links,)))
        return links
    links = Links(source, base)
    check(AssemblyError, mapping=(mapping, list[tuple[str, str]]))
    for one, other in mapping:
        links.link(one, other)
    return links


def base_side(found: Problem) -> list[str]:
    """FQNs of the base's tensors that take part."""
    return list(dict.fromkeys(pair.base for pair in found.pairs))


def runs(found: Problem) -> list[list[str]]:
    """The base modules that take part, in order: each one with a weight matrix, with the norms behind it."""
    groups: list[list[str]] = []
    weighted = {pair.layer for pair in found.pairs if len(pair.base_shape) > 1}
    for pair in found.pairs:
        if any(pair.layer in group for group in groups):
            continue
        if pair.layer in weighted or not groups:
            groups.append([pair.layer])
        else:
            groups[-1].append(pair.layer)
    return groups


class Stage:
    """A copy of a base whose weights can be put on and off.

    Args:
        base: graph of the base, which is never changed.

    Attributes:
        model: the copy, in eval mode. It is never run: some models keep what they computed from their weights.
        state: FQN -> the weights that a merge begins with; those of the base until `commit`.
    """

    def __init__(self, base: LayerGraph) -> None:
        self.model = copy_to_edit(base.model, base, AssemblyError)
        self.model.eval()
        self._kept: dict[str, Tensor] = {}

    @property
    def state(self) -> dict[str, Tensor]:
        """The committed tensors."""
        held = {n: t.detach() for n, t in self.model.state_dict(keep_vars=True).items()}
        return {**held, **self._kept}

    @torch.no_grad()
    def show(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The model with these tensors, and the committed values everywhere else."""
        for name in [name for name in self._kept if name not in tensors]:
            tensor_of(self.model, name).copy_(self._kept.pop(name))
        for name, values in tensors.items():
            held = tensor_of(self.model, name)
            if name not in self._kept:
                self._kept[name] = held.detach().clone()
            held.copy_(values)
        return self.model

    def commit(self, tensors: Mapping[str, Tensor]) -> None:
        """Make these tensors the ones that the next merge begins with."""
        self.show(tensors)
        self._kept.clear()

    def merge(
        self,
        alignment: Alignment,
        source_state: Mapping[str, Tensor],
        factor: float,
        *,
        pad: Pad = "zero",
        layers: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """What `merged` makes of the committed weights."""
        return merged(self.state, alignment, source_state, factor, pad=pad, layers=layers)


Evaluate = Callable[[nn.Module], float]


@torch.no_grad()
def scored(evaluate: Callable[[nn.Module], Any], model: nn.Module) -> float:
    """What `evaluate` says of a model, without gradients; not a number counts as the worst there is."""
    answer = evaluate(shell(model))
    try:
        value = float(answer)
    except Exception as error:
        raise AssemblyError(
            f"evaluate gave {shown(answer)}, which is no number.",
            why=str(error).partition("\n")[0],
            fix="give a function: model -> score, larger is better",
        ) from None
    return value if value == value else float("-inf")
