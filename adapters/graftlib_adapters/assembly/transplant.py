"""Start a fresh model from the weights of a trained one that need not look alike: other widths, depth or family.

In: a mapping from the trained model's graph to the fresh one's. Out: a `Transplanted`: the fresh model, written, and
what was written and left. The one-shot case of assembly: the merging factor is 1, and nothing is aligned, as a fresh
target has nothing to align to: of each class of units the best are taken, and every tensor that the class runs through
takes the same ones. Always true: an entry of the target is either the source's, to the bit, or what it was; within one
architecture the result is that of `graftlib.surgery.narrow` at the target's widths, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graftlib.arguments import check
from graftlib.errors import shown
from graftlib.graph import LayerGraph
from graftlib.graph.caches import copy_to_edit, drop_caches
from graftlib.match import Mapping
from graftlib.surgery.edits import tensor_of
from graftlib.surgery.scores import SCORES, Ranking, Score, ranking

from .matching import Alignment
from .pairing import ClassPair, Links, Problem, problem
from .permutation import AssemblyError, Permutation

__all__ = ["Transplanted", "Written", "transplant"]


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
class Transplanted:
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
    score: str | Score = "magnitude",
    blocks: Links | None = None,
    inplace: bool = False,
) -> Transplanted:
    """Write the source's weights into the target of a mapping.

    Units are chosen once for a class of axes (`LayerGraph.axis_classes`), so that whoever makes a unit and whoever
    reads it speak of the same one. A narrower target takes the best units in the order they had; a wider one takes all
    and keeps the rest of its own; convolutions of unequal kernels share a centre; layers that meet nothing stay. What
    is repeated in the target (a transformer layer, a residual block) takes all that it takes from one such module of
    the source: half of the layers are whole layers.

    Args:
        mapping: ``Mapping(source graph, target graph)``. With links, those layers meet; without, layers are paired by
            kind, order and depth. Both models must hold values.
        score: which units are worth most: ``"magnitude"``, ``"uniform"``, or a function of (graph, model, class) that
            gives a number for each unit of the source, larger is better (`graftlib.surgery.scores`).
        blocks: module of the target -> module of the source whose weights it takes, in any order, for example
            ``{"encoder.layer.0": "encoder.layer.5"}``; modules that are not named are chosen by worth: alike in depth
            and shape. Not with links.
        inplace: write into the target itself; otherwise into a copy.

    Returns:
        the written model and the report.

    Raises:
        AssemblyError: nothing meets, a model is on the meta device, or `blocks` names what is not there.

    >>> from graftlib import trace
    >>> source, target = nn.Linear(3, 4), nn.Linear(3, 4)
    >>> mapping = Mapping(*(trace(each, torch.zeros(1, 3)) for each in (source, target)))
    >>> torch.equal(transplant(mapping).model.weight, source.weight)
    True
    """
    check(
        AssemblyError,
        mapping=(mapping, (Mapping,)),
        score=(score, (str, Callable)),
        inplace=(inplace, bool),
    )
    _must_be_a_score(score)
    source, target = mapping.source, mapping.target
    _must_hold_values(source, target)
    found = problem(target, source, mapping=mapping if mapping.pairs else None, blocks=blocks)
    if not found.pairs:
        raise AssemblyError(
            f"nothing of {source.name} meets anything of {target.name}.",
            where=dict(found.refused[:6]),
            fix="declare links: Mapping(source, target).link('source pattern', 'target pattern')",
        )
    # A source may be the target itself, so everything is read before anything is written.
    rank = ranking(score, source, source.model)
    alignment = Alignment(found, _chosen(found, rank), 0.0, ())
    given = {pair.source: tensor_of(source.model, pair.source).detach() for pair in found.pairs}
    moved = alignment.transported(given)
    model = target.model
    if inplace:
        drop_caches(model, target, AssemblyError)
    else:
        model = copy_to_edit(model, target, AssemblyError)
    written, empty = _written(model, found, alignment, moved)
    return Transplanted(model, written, _left(model, found, written, empty), _share(model, written))


def _must_be_a_score(score: str | Score) -> None:
    if isinstance(score, str) and score not in SCORES:
        raise AssemblyError(
            f"score={shown(score)} is none.", fix="use " + ", ".join(map(repr, SCORES))
        )


def _must_hold_values(*graphs: LayerGraph) -> None:
    for graph in graphs:
        if any(tensor.is_meta for tensor in graph.model.state_dict().values()):
            raise AssemblyError(
                f"{graph.name} is on the meta device and holds no values.",
                fix="trace the model on the CPU",
            )


def _chosen(found: Problem, rank: Ranking) -> dict[int, Permutation]:
    return {number: _best(pair, rank) for number, pair in enumerate(found.classes)}


def _best(pair: ClassPair, rank: Ranking) -> Permutation:
    """The best units in their own order, as `surgery.narrow` keeps them; all of them where there is room."""
    if pair.bases >= pair.sources:
        return Permutation.identity(pair.bases, pair.sources)
    best = rank(pair.source).topk(pair.bases).indices.sort().values
    return Permutation(best, pair.sources)


@torch.no_grad()
def _written(
    model: nn.Module, found: Problem, alignment: Alignment, moved: dict[str, Tensor]
) -> tuple[tuple[Written, ...], list[str]]:
    """What took values, and what meets a source tensor but reads none of its entries."""
    written, empty = [], []
    givers: dict[str, list[str]] = {}
    for pair in found.pairs:
        givers.setdefault(pair.base, []).append(pair.source)
    for name, sources in givers.items():
        held = tensor_of(model, name)
        mask = alignment.mask(name).to(held.device)
        share = float(mask.double().mean()) if mask.numel() else 0.0
        if not share:
            empty.append(name)
            continue
        held.copy_(torch.where(mask, moved[name].to(held), held))
        written.append(Written(name, tuple(dict.fromkeys(sources)), share))
    return tuple(written), empty


def _left(
    model: nn.Module, found: Problem, written: tuple[Written, ...], empty: list[str]
) -> tuple[tuple[str, str], ...]:
    done = {id(tensor_of(model, each.target)) for each in written}
    reasons = dict(found.refused)
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
    """Why nothing met a tensor; what was refused may be named by its layer."""
    layer = name.rpartition(".")[0]
    return reasons.get(name) or reasons.get(layer) or "no layer of the source meets it"


def _share(model: nn.Module, written: tuple[Written, ...]) -> float:
    parameters = dict(model.named_parameters())
    total = sum(p.numel() for p in parameters.values())
    taken = sum(parameters[w.target].numel() * w.share for w in written if w.target in parameters)
    return taken / total if total else 0.0
