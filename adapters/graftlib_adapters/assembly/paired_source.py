"""A source beside a base: which of its tensors the base's read, and their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftlib.arguments import check
from graftlib.errors import shown
from graftlib.graph import LayerGraph
from graftlib.match import Mapping as Links

from .alignment import Alignment
from .alignment_problem import Problem
from .errors import AssemblyError
from .matching import align
from .options import Pairing, Solver
from .pairing import problem
from .zoo import Source

__all__ = ["Declared", "PairedSource", "pair_graphs", "pair_source"]

# Links in words, a mapping of these very graphs, or a function (source graph, base graph) -> mapping.
Declared = Sequence[tuple[str, str]] | Links | Callable[[LayerGraph, LayerGraph], Links] | None


@dataclass(frozen=True)
class PairedSource:
    """The tensors of a source that those of a base read.

    Attributes:
        problem: the pairs of tensors and of classes, and what was refused.
        state: the source's tensors that take part, as they are stored.
    """

    problem: Problem
    state: Mapping[str, Tensor]

    @property
    def module_groups(self) -> list[list[str]]:
        """The base modules that take part, in order: each one with a weight matrix, with the norms behind it."""
        groups: list[list[str]] = []
        weighted = {pair.layer for pair in self.problem.pairs if len(pair.base_shape) > 1}
        for pair in self.problem.pairs:
            if any(pair.layer in group for group in groups):
                continue
            if pair.layer in weighted or not groups:
                groups.append([pair.layer])
            else:
                groups[-1].append(pair.layer)
        return groups

    def align(
        self,
        base_state: Mapping[str, Tensor],
        solver: Solver,
        *,
        seed: int = 0,
        costs: Mapping[int, Tensor] | None = None,
    ) -> Alignment:
        """Align to the weights of `base_state`; ``shrink`` aligns by coordinate descent too.

        `costs` (see `matching.align`) decide the classes that they are given for, but for the controls.
        """
        return align(
            self.problem,
            base_state,
            self.state,
            method="coordinate" if solver.method == "shrink" else solver.method,
            objective=solver.objective or "l2",
            restarts=solver.restarts,
            seed=seed,
            costs=costs,
        )

    def merged_state(self, solver: Solver) -> Mapping[str, Tensor]:
        """The tensors that are merged: the source's, or for ``shrink`` those of a source that holds nothing.

        Nothing is 0, and 1 for a running variance, as for units that read none.
        """
        if solver.method != "shrink":
            return self.state
        ones = {pair.source for pair in self.problem.pairs if pair.role == "variance"}
        return {
            name: torch.ones_like(tensor) if name in ones else torch.zeros_like(tensor)
            for name, tensor in self.state.items()
        }


def pair_source(
    base: LayerGraph, source: Source, mapping: Declared = None, pairing: Pairing = "blocks"
) -> PairedSource:
    """Pair a source with a base, and read those of its tensors that take part; `pairing` as in `pairing.problem`.

    Raises:
        AssemblyError: no tensor is paired, one that takes part is not finite, or the mapping is of other graphs.
    """
    return pair_graphs(base, source.graph(), source.state, mapping, source.name, pairing)


def pair_graphs(
    base: LayerGraph,
    source: LayerGraph,
    state: Callable[[Iterable[str]], Mapping[str, Tensor]],
    mapping: Declared = None,
    name: str = "the source",
    pairing: Pairing = "blocks",
) -> PairedSource:
    """The same for a source that is traced already; `state` reads tensors by FQN."""
    if isinstance(mapping, Links):
        source, base = mapping.source, mapping.target
    task = problem(base, source, mapping=_links(mapping, source, base), pairing=pairing)
    if not task.pairs:
        raise AssemblyError(
            f"no tensor of {shown(name)} fits any of the base.",
            where=dict(task.refused[:6]),
            fix="declare links: mapping=[('source pattern', 'base pattern')]",
        )
    tensors = state(dict.fromkeys(pair.source for pair in task.pairs))
    odd = [each for each, tensor in tensors.items() if not _finite(tensor)]
    if odd:
        raise AssemblyError(
            f"{shown(name)} holds values that are not finite.",
            where={"tensors": ", ".join(map(shown, odd[:6]))},
            fix="leave this source out, or mend its weights",
            tensors=tuple(odd),
        )
    return PairedSource(task, tensors)


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
