"""Single breaks: is a broken class seen, a wrong widening, a wrong choice of units, and is every tie needed?

In: a layer graph of a small model (for the edits, in double precision). Out: reports of single breaks, each of which
runs the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftlib.graph import AxisClass, LayerGraph
from graftlib.graph.axes import Member, axis_classes
from graftlib.graph.axes.blind import blind_parts
from graftlib.graph.axes.check import TOLERANCE, changed, draw
from graftlib.graph.axes.classes import classes_of
from graftlib.graph.axes.infer import infer
from graftlib.graph.axes.trial import Example, Trial, difference
from graftlib.graph.traced import TracedGraph
from graftlib.surgery import SurgeryError, prune, widen
from graftlib.surgery.edits import rows_of, tensor_of
from graftlib.surgery.fill import Fill, grown
from graftlib.surgery.importance import norm_of, reads
from graftlib.surgery.proof import change
from graftlib.surgery.whole_model import outer_classes
from graftlib.surgery.widen import units_like

__all__ = ["Break", "forgetful_importances", "left_out_members", "undone_ties", "wrong_widenings"]


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


def wrong_widenings(graph: LayerGraph, *, seed: int = 0) -> Iterator[Break]:
    """Widen every class that may be widened to twice its width, and break one member after the other.

    A member that reads new units reads them as it reads the old ones, instead of with zeros; in any other member the
    old units are changed: what its new ones are is free, as nothing reads them.
    """
    for each in axis_classes(graph):
        if not each.free:
            continue
        try:
            wide = widen(graph, {each: 2 * each.size}, seed=seed)
        except SurgeryError:
            continue
        random = torch.Generator().manual_seed(seed)
        fill = grown(graph, {each: units_like(each.size, 2 * each.size, random)})
        if change(graph, graph.model, wide) > TOLERANCE:
            raise AssertionError(f"widening {each.members[0]} was wrongly accepted")
        for member in each.members:
            broken = copy.deepcopy(wide)
            what = _broken(broken, graph.model, fill, (member.fqn, member.axis))
            yield Break(f"{member}: {what}", change(graph, graph.model, broken), member.blind)


def _broken(wide: nn.Module, model: nn.Module, fill: Fill, key: tuple[str, int]) -> str:
    fqn, axis = key
    tensor = tensor_of(wide, fqn).detach()
    silent = fill.silent.get(key)
    if silent is not None and len(silent):
        read: Tensor = tensor_of(model, fqn).detach().index_select(axis, fill.rows[key][silent])
        tensor.index_copy_(axis, silent, read)
        return "new units are read"
    # Not one number for all: inputs with a mean of zero do not show that. Not one unit: it may be switched off.
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(tensor.shape, dtype=tensor.dtype, generator=random, device="cpu")
    tensor.add_(noise.index_fill_(axis, fill.new[key], 0.0))
    return "old units are changed"


def forgetful_importances(graph: LayerGraph) -> Iterator[Break]:
    """Switch half of the units of every class off, and prune as many by an importance that does not see it.

    They are off by what makes them, or by what reads them, and large on the other side, which is all that the
    importance looks at. Where the units that are left alone give the function, ``"magnitude"`` must choose them.
    """
    for each in outer_classes(graph):
        off = torch.arange(each.size // 2, device="cpu")
        on = torch.arange(len(off), each.size, device="cpu")
        makers, readers = (
            [m for m in each.members if reads(graph, m) is side] for side in (False, True)
        )
        if not (len(off) and makers and readers):
            continue
        for zero, large, word in ((makers, readers, "makes"), (readers, makers, "reads")):
            model = copy.deepcopy(graph.model)
            _scale(graph, model, each, zero, on, 0.0)
            _scale(graph, model, each, large, on, 50.0)

            def changed(keep: Tensor | int, **options: Any) -> float:
                slim = prune(graph, {each: keep}, model=model, **options)  # noqa: B023
                return change(graph, model, slim)  # noqa: B023

            def forgets(graph: LayerGraph, model: nn.Module, each: AxisClass) -> Tensor:
                return norm_of(model, large)  # noqa: B023

            try:
                if changed(on) > TOLERANCE:
                    continue  # a norm over all units, or what comes after 0, still reads them
            except SurgeryError:
                continue  # the code holds the size
            if changed(len(on)) > TOLERANCE:
                raise AssertionError(f"units of {each.members[0]} that are off were kept")
            what = f"{each.members[0]}: an importance that forgets what {word} a unit"
            yield Break(what, changed(len(on), importance=forgets))


@torch.no_grad()
def _scale(
    graph: LayerGraph,
    model: nn.Module,
    each: AxisClass,
    members: list[Member],
    on: Tensor,
    factor: float,
) -> None:
    """Parameters times a factor, in place, where units are not `on`."""
    named = {(m.fqn, m.axis) for m in members}
    for (fqn, axis), left in rows_of(graph, {each: on}).items():
        tensor = tensor_of(model, fqn)
        if (fqn, axis) in named and isinstance(tensor, nn.Parameter):
            scale = torch.full(
                (tensor.shape[axis],), factor, dtype=tensor.dtype, device=tensor.device
            )
            scale[left] = 1.0
            tensor.mul_(scale.view([-1 if i == axis else 1 for i in range(tensor.ndim)]))
