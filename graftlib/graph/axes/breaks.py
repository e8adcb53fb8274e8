"""Two controls of the check itself: is a broken class seen, and is every tie needed?

In: a layer graph of a small model. Out: reports of single breaks. These run the model once for each break, so they are
for tests and benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..traced import TracedGraph
from .blind import blind_parts
from .check import TOLERANCE, changed, draw
from .classes import AxisClass, Member, axis_classes, classes_of
from .infer import infer
from .trial import Example, Trial, difference

__all__ = ["Break", "left_out_members", "undone_ties"]


@dataclass(frozen=True)
class Break:
    """One thing done wrong.

    Attributes:
        what: in words.
        error: the largest relative change of an output.
        blind: the function is known not to depend on it.
    """

    what: str
    error: float
    blind: bool = False

    @property
    def seen(self) -> bool:
        """Whether the check fails, as it should."""
        return self.error > TOLERANCE


def left_out_members(
    graph: TracedGraph, *, seed: int = 0, example: Example | None = None
) -> Iterator[Break]:
    """Permute every free class of two and more members, and leave out one member after the other."""
    free = [each for each in axis_classes(graph) if each.free and len(each.members) > 1]
    trial = Trial(graph, seed=seed, example=example)
    before = trial.run()
    for each, order in draw(free, seed):
        for member in each.members:
            orders = {m: order for m in each.members if m is not member}
            yield Break(str(member), _error(trial, orders, before), member.blind)


def undone_ties(
    graph: TracedGraph, *, seed: int = 0, example: Example | None = None
) -> Iterator[Break]:
    """Leave out one tie after the other; where the classes come out different, permute them.

    A tie that another one makes good again changes no class and is passed over.
    """
    inference = infer(graph.model, graph.fx, real=graph.real)
    whole = {frozenset(each.members) for each in classes_of(inference) if each.free}
    trial = Trial(graph, seed=seed, example=example)
    before = trial.run()
    known = blind_parts(graph.fx)
    for number, by in enumerate(inference.ties):
        classes = classes_of(infer(graph.model, graph.fx, real=graph.real, skip=number))
        new = [each for each in classes if each.free and frozenset(each.members) not in whole]
        if new:
            # One of the parts alone: two classes of two units can only be swapped, and two swaps are the whole.
            errors = [
                _error(trial, dict.fromkeys(each.members, order), before)
                for each, order in draw(new, seed)
            ]
            yield Break(by, max(errors), any(_blind(known, each) for each in new))


def _blind(known: Mapping[tuple[str, int], frozenset[int]], each: AxisClass) -> bool:
    """Whether the function depends on no member of a class."""
    return all(known.get((m.fqn, m.axis), frozenset()).issuperset(m.places) for m in each.members)


def _error(trial: Trial, orders: dict[Member, Tensor], before: list[Tensor]) -> float:
    with changed(trial, orders):
        return difference(before, trial.run())
