"""Start a fresh model from the weights of a trained one that need not look alike: other widths, depth or family.

The one-shot case of assembly: the merging factor is 1, and nothing is aligned, as a fresh target has nothing to align
to: of each class of units the best are taken, and every tensor that the class runs through takes the same ones. An
entry of the target is either the source's, to the bit, or what it was; within one architecture the result is that of
`graftlib.surgery.prune` at the target's widths, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graftlib.arguments import check
from graftlib.errors import shown
from graftlib.graph import LayerGraph, copy_to_edit, drop_caches
from graftlib.match import Mapping
from graftlib.reports import Report
from graftlib.surgery import IMPORTANCES, Importance, Ranking, ranking
from graftlib.surgery.edits import tensor_of

from .alignment import Alignment
from .alignment_problem import ClassPair, Problem
from .errors import AssemblyError
from .pairing import Links, problem
from .permutation import Permutation
from .zoo import with_values

__all__ = ["Transplanted", "Written", "largest", "transplant"]


@dataclass(frozen=True)
class Written:
    """One tensor of the target that took values.

    Attributes:
        target: its FQN.
        sources: FQNs of the tensors that it took them from; several where it packs what they hold apart.
        share: of its entries that were taken, above 0 to 1.
    """

    target: str
    sources: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class Transplanted(Report):
    """The target with the source's weights in it, and a report when printed.

    Attributes:
        model: of the target's class.
        written: the tensors that took values, in the target's order.
        left: (tensor of the target, why it is what it was).
        share: of the target's parameters that were taken, 0 to 1.
    """

    model: nn.Module
    written: tuple[Written, ...]
    left: tuple[tuple[str, str], ...]
    share: float

    def __str__(self) -> str:
        lines = [f"{len(self.written)} tensors written, {self.share:.0%} of the parameters"]
        lines += [
            f"  {w.target!a} <- {', '.join(map(ascii, w.sources))}  {w.share:.0%}"
            for w in self.written
        ]
        lines += [f"  left {name!a}: {why}" for name, why in self.left]
        return "\n".join(lines)


def transplant(
    mapping: Mapping,
    *,
    importance: str | Importance = "magnitude",
    blocks: Links | None = None,
    inplace: bool = False,
) -> Transplanted:
    """Write the source's weights into the target of a mapping.

    Units are chosen once for a class of axes (`LayerGraph.axis_classes`), so that whoever makes a unit and whoever
    reads it speak of the same one. A narrower target takes the best units in the order they had; a wider one takes all
    and keeps the rest of its own; convolutions of unequal kernels share a centre; layers without a partner stay. What
    is repeated in the target (a transformer layer, a residual block) takes all that it takes from one such module of
    the source: half of the layers are whole layers.

    Args:
        mapping: ``Mapping(source graph, target graph)``. With links, those layers are paired; without, they are by
            kind, order and depth. Both models must hold values.
        importance: which units are worth most: ``"magnitude"``, ``"uniform"``, or a function of (graph, model,
            class) that gives a number for each unit of the source, larger is better.
        blocks: module of the target -> module of the source whose weights it takes, in any order, for example
            ``{"encoder.layer.0": "encoder.layer.5"}``; modules that are not named are chosen by similarity: in depth
            and shape. Not with links.
        inplace: write into the target itself; otherwise into a copy.

    Returns:
        the written model and the report.

    Raises:
        AssemblyError: no tensor is paired, a model is on the meta device, or `blocks` names what is not there.

    >>> from graftlib import trace
    >>> source, target = nn.Linear(3, 4), nn.Linear(3, 4)
    >>> mapping = Mapping(*(trace(each, torch.zeros(1, 3)) for each in (source, target)))
    >>> torch.equal(transplant(mapping).model.weight, source.weight)
    True
    """
    check(
        AssemblyError,
        mapping=(mapping, (Mapping,)),
        importance=(importance, (str, Callable)),
        inplace=(inplace, bool),
    )
    _must_be_known(importance)
    source, target = mapping.source, mapping.target
    for graph in (source, target):
        with_values(graph.model)
    task = problem(target, source, mapping=mapping if mapping.pairs else None, blocks=blocks)
    if not task.pairs:
        raise AssemblyError(
            f"no tensor of {source.name} fits any of {target.name}.",
            where=dict(task.refused[:6]),
            fix="declare links: Mapping(source, target).link('source pattern', 'target pattern')",
        )
    # A source may be the target itself, so everything is read before anything is written.
    alignment = largest(task, source, importance)
    state = {pair.source: tensor_of(source.model, pair.source).detach() for pair in task.pairs}
    moved = alignment.transported(state)
    model = target.model
    if inplace:
        drop_caches(model, target, AssemblyError)
    else:
        model = copy_to_edit(model, target, AssemblyError)
    written, empty = _written(model, task, alignment, moved)
    return Transplanted(model, written, _left(model, task, written, empty), _share(model, written))


def _must_be_known(importance: str | Importance) -> None:
    if isinstance(importance, str) and importance not in IMPORTANCES:
        raise AssemblyError(
            f"importance={shown(importance)} is none.",
            fix="use " + ", ".join(map(repr, IMPORTANCES)),
        )


def largest(
    task: Problem, source: LayerGraph, importance: str | Importance = "magnitude"
) -> Alignment:
    """The best units of each class of the source, in their own order, whatever the target holds."""
    rank = ranking(importance, source, source.model)
    chosen = {number: _best(pair, rank) for number, pair in enumerate(task.classes)}
    return Alignment(task, chosen, 0.0, ())


def _best(pair: ClassPair, rank: Ranking) -> Permutation:
    """The best units in their own order, as `surgery.prune` keeps them; all of them where there is room."""
    if pair.bases >= pair.sources:
        return Permutation.identity(pair.bases, pair.sources)
    best = rank(pair.source).topk(pair.bases).indices.sort().values
    return Permutation(best, pair.sources)


@torch.no_grad()
def _written(
    model: nn.Module, task: Problem, alignment: Alignment, moved: dict[str, Tensor]
) -> tuple[tuple[Written, ...], list[str]]:
    """What took values, and what is paired with a source tensor but reads none of its entries."""
    written, empty = [], []
    for name, pairs in task.by_base().items():
        tensor = tensor_of(model, name)
        mask = alignment.mask(name).to(tensor.device)
        share = float(mask.double().mean()) if mask.numel() else 0.0
        if not share:
            empty.append(name)
            continue
        tensor.copy_(torch.where(mask, moved[name].to(tensor), tensor))
        written.append(Written(name, tuple(dict.fromkeys(p.source for p in pairs)), share))
    return tuple(written), empty


def _left(
    model: nn.Module, task: Problem, written: tuple[Written, ...], empty: list[str]
) -> tuple[tuple[str, str], ...]:
    done = {id(tensor_of(model, each.target)) for each in written}
    reasons = dict(task.refused)
    rows = [(name, "reads no entry of the source") for name in empty]
    for name, tensor in model.named_parameters():
        if id(tensor) not in done and name not in empty:
            rows.append((name, _reason(name, reasons)))
    rows += [
        (each.target, f"{1 - each.share:.0%} of its entries have no counterpart")
        for each in written
        if each.share < 1
    ]
    return tuple(rows)


def _reason(name: str, reasons: dict[str, str]) -> str:
    """Why a tensor has no partner; what was refused may be named by its layer."""
    layer = name.rpartition(".")[0]
    return reasons.get(name) or reasons.get(layer) or "no layer of the source is paired with it"


def _share(model: nn.Module, written: tuple[Written, ...]) -> float:
    parameters = dict(model.named_parameters())
    total = sum(p.numel() for p in parameters.values())
    taken = sum(parameters[w.target].numel() * w.share for w in written if w.target in parameters)
    return taken / total if total else 0.0
