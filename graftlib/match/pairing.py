"""Who exchanges with whom: pairs, how hits on two sides become pairs, and which pairs exclude each other.

In: what the two patterns of a rule hit. Out: pairs, or a refusal that lists both sides and the ways out.
Always true: captures that both patterns name are equal within a pair; nothing is paired by a rule that was not
asked for, unless the hits leave one answer only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import shown
from ..graph.parameter import Parameter, Part
from .hits import Hits, Match, RuleFailure, listed

if TYPE_CHECKING:
    from ..graph import LayerGraph

__all__ = ["ARROWS", "DIRECTIONS", "PAIRINGS", "Direction", "Pair", "exclude", "overlap", "pair_up"]

Direction = Literal["forward", "backward", "both"]
DIRECTIONS = get_args(Direction)
PAIRINGS = ("order", "nearest", "all")
ARROWS = {"forward": "->", "backward": "<-", "both": "<->"}


@dataclass(frozen=True)
class Pair:
    """Two parameters, or parts of parameters, that exchange knowledge.

    Attributes:
        source: a parameter of the mapping's source graph.
        target: a parameter of its target graph.
        direction: ``"forward"``: the target is written from the source. ``"backward"``: the source is written from
            the target. ``"both"``: each is written from the other.
        rule: the words that made the pair, for the reader.
    """

    source: Parameter
    target: Parameter
    direction: str
    rule: str

    def __str__(self) -> str:
        arrow = ARROWS[self.direction]
        return f"{shown(self.source.address)} {arrow} {shown(self.target.address)}"


Two = tuple[Parameter, Parameter]


def pair_up(sources: Hits, targets: Hits, how: str | None) -> tuple[list[Two], list[str]]:
    """Pair the hits of two patterns.

    Args:
        sources: at least one hit.
        targets: at least one hit.
        how: ``"order"``, ``"nearest"``, ``"all"``, or None: one source goes to every target, equal counts pair in
            order, anything else is refused. Where both patterns capture, this is said of each group of hits with
            equal captures.

    Returns:
        The pairs, in the order of the targets' groups, and notes on hits that found no partner.

    Raises:
        RuleFailure: no equal captures, or counts that `how` cannot pair.
    """
    pairs: list[Two] = []
    read: list[str] = []
    if how == "nearest":
        sources, targets, read = _with_depth(sources, targets)
    groups, notes = _by_captures(sources, targets)
    notes = [*read, *notes]
    for some, others in groups:
        pairs += _PAIR[how](some, others, sources, targets)
    return pairs, notes


def _with_depth(sources: Hits, targets: Hits) -> tuple[Hits, Hits, list[str]]:
    """The hits that the forward pass reads, and so have a depth; notes on the others."""
    with_depth: list[Hits] = []
    notes: list[str] = []
    for side, hits in (("source", sources), ("target", targets)):
        read = tuple(match for match in hits.matches if match.parameter.depth is not None)
        unread = [match.parameter.address for match in hits.matches if match not in read]
        if not read:
            raise RuleFailure(
                f"pair='nearest' needs a depth, and nothing that {hits.pattern!r} hits has one.",
                where={"no depth": listed(unread)},
                why="the forward pass never reads it",
                repairs=[{"pair": None}, {"pair": "all"}],
                hint="name parameters that the forward pass reads",
            )
        if unread:
            notes.append(f"{len(unread)} skipped on the {side} side, never read: {listed(unread)}")
        with_depth.append(replace(hits, matches=read))
    return with_depth[0], with_depth[1], notes


def _by_captures(
    sources: Hits, targets: Hits
) -> tuple[list[tuple[list[Match], list[Match]]], list[str]]:
    """Hits with equal captures together; one group of everything where no name is captured on both sides."""
    shared = sorted(sources.captured & targets.captured)
    if not shared:
        return [([*sources.matches], [*targets.matches])], []
    left, right = _grouped(sources, shared), _grouped(targets, shared)
    groups = [(left[key], right[key]) for key in left if key in right]
    if not groups:
        raise RuleFailure(
            f"rule {sources.pattern!r} -> {targets.pattern!r} captures nothing equal on both sides.",
            where={
                "source": _captures_text(shared, left),
                "target": _captures_text(shared, right),
            },
            why="hits are paired where "
            + " and ".join(f"{{{name}}}" for name in shared)
            + " agree",
            repairs=[
                {"source": _globbed(sources.pattern), "target": _globbed(targets.pattern)} | more
                for more in ({}, {"pair": "nearest"}, {"pair": "all"})
            ],
            hint="write '*' instead of the captures, and say pair='order', 'nearest' or 'all'",
        )
    return groups, [*_alone("source", left, right), *_alone("target", right, left)]


def _grouped(hits: Hits, names: Sequence[str]) -> dict[tuple[str, ...], list[Match]]:
    groups: dict[tuple[str, ...], list[Match]] = {}
    for match in hits.matches:
        groups.setdefault(tuple(match.captures[name] for name in names), []).append(match)
    return groups


def _alone(
    label: str,
    groups: dict[tuple[str, ...], list[Match]],
    others: dict[tuple[str, ...], list[Match]],
) -> Iterator[str]:
    alone = [
        match.parameter.address for key in groups if key not in others for match in groups[key]
    ]
    if alone:
        yield f"no partner for {len(alone)} on the {label} side: {listed(alone)}"


def _captures_text(names: Sequence[str], groups: Iterable[tuple[str, ...]]) -> str:
    return listed([", ".join(map("=".join, zip(names, key, strict=True))) for key in groups])


def _globbed(pattern: str) -> str:
    if pattern.startswith("re:"):
        return re.sub(r"\?P<\w+>", "?:", pattern)
    return re.sub(r"\{\w+\}", "*", pattern)


# --- how a group of sources and a group of targets are paired ----------------------------------------------------


def _only_answer(some: list[Match], others: list[Match], sources: Hits, targets: Hits) -> list[Two]:
    pair = _every if len(some) == 1 else _in_order
    return pair(some, others, sources, targets)


def _in_order(some: list[Match], others: list[Match], sources: Hits, targets: Hits) -> list[Two]:
    if len(some) != len(others):
        raise _uneven(some, others, sources, targets)
    return [(one.parameter, other.parameter) for one, other in zip(some, others, strict=True)]


def _every(some: list[Match], others: list[Match], sources: Hits, targets: Hits) -> list[Two]:
    return [(one.parameter, other.parameter) for other in others for one in some]


def _nearest(some: list[Match], others: list[Match], sources: Hits, targets: Hits) -> list[Two]:
    """Every target with the source nearest in relative depth; the first of several as near."""
    pairs = []
    for other in others:
        depth = other.parameter.depth or 0.0
        near = min(some, key=lambda one: abs((one.parameter.depth or 0.0) - depth))
        pairs.append((near.parameter, other.parameter))
    return pairs


_PAIR: dict[str | None, Callable[[list[Match], list[Match], Hits, Hits], list[Two]]] = {
    None: _only_answer,
    "order": _in_order,
    "nearest": _nearest,
    "all": _every,
}


def _uneven(some: list[Match], others: list[Match], sources: Hits, targets: Hits) -> RuleFailure:
    return RuleFailure(
        f"rule {sources.pattern!r} -> {targets.pattern!r} meets {len(some)} source and "
        f"{len(others)} target parameters, and nothing says who belongs to whom.",
        where={
            "source": listed([match.parameter.address for match in some]),
            "target": listed([match.parameter.address for match in others]),
        },
        why="one source may serve many targets, and equal counts pair in order; anything else needs a word: "
        "pair='nearest' (in depth), pair='all', captures such as '{i}' on both sides, or narrower patterns",
        repairs=[{"pair": "nearest"}, {"pair": "all"}],
        hint="narrow the patterns until both sides hit equally many",
    )


# --- which pairs exclude each other -------------------------------------------------------------------------------


def exclude(pairs: Sequence[Pair], source: LayerGraph, target: LayerGraph) -> Iterator[RuleFailure]:
    """Every reason why these pairs cannot stand together; nothing where they can."""
    yield from _from_itself(pairs, source, target)
    yield from _twice(pairs)
    yield from _overlapping(pairs, source, target)


def _from_itself(
    pairs: Sequence[Pair], source: LayerGraph, target: LayerGraph
) -> Iterator[RuleFailure]:
    for pair in pairs:
        same = source.tensor(pair.source.fqn) is target.tensor(pair.target.fqn)
        if same and overlap(pair.source.selection, pair.target.selection):
            yield RuleFailure(
                f"{pair} links a parameter to itself.",
                why="a parameter has nothing to learn from its own values",
                hint="link two different parameters, or parts that share no unit",
            )


def _twice(pairs: Sequence[Pair]) -> Iterator[RuleFailure]:
    seen: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        first = seen.setdefault((pair.source.address, pair.target.address), pair)
        if first is not pair:
            both = "" if first.direction == pair.direction else ", with direction='both'"
            yield RuleFailure(
                f"{pair} is there twice.",
                where={"first": first.rule, "again": pair.rule},
                hint=f"link it once{both}",
            )


def _overlapping(
    pairs: Sequence[Pair], source: LayerGraph, target: LayerGraph
) -> Iterator[RuleFailure]:
    written: dict[int, list[Parameter]] = {}
    for pair in pairs:
        for parameter, graph in _targets(pair, source, target):
            # By tensor, not by name: two graphs may be the same model, or share a part of it.
            before = written.setdefault(id(graph.tensor(parameter.fqn)), [])
            if any(_units(parameter) == _units(other) for other in before):
                continue
            for other in before:
                if overlap(parameter.selection, other.selection):
                    side = "target" if parameter is pair.target else "source"
                    yield RuleFailure(
                        f"{shown(parameter.address)} and {shown(other.address)} would both be written, "
                        "and they share units.",
                        where={"pair": str(pair)},
                        why="two writes to one unit have no order",
                        repairs=[{side: other.address}],
                        hint="write the whole parameter, or parts that share no unit",
                    )
            before.append(parameter)


def _targets(
    pair: Pair, source: LayerGraph, target: LayerGraph
) -> Iterator[tuple[Parameter, LayerGraph]]:
    if pair.direction in ("forward", "both"):
        yield pair.target, target
    if pair.direction in ("backward", "both"):
        yield pair.source, source


def _units(parameter: Parameter) -> tuple[int, tuple[int, ...]] | None:
    part = parameter.selection
    return None if part is None else (part.axis, tuple(part.units))


def overlap(one: Part | None, other: Part | None) -> bool:
    """Whether two selections of one parameter share a unit; None is the whole parameter."""
    if one is None or other is None or one.axis != other.axis:
        return True
    return not set(one.units).isdisjoint(other.units)
