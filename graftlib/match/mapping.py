"""Pairs of parameters of two models, declared by rules or found by similarity.

In: two layer graphs, and rules (`link`) or a request to find pairs (`auto`). Out: `Mapping.pairs`, a report when
printed, a YAML file.
Always true: a call adds all of its pairs or none; no pair is there twice, none links a parameter to itself, and no
unit is written through two different addresses.
Where the rest is: patterns in `hits.py`, pairing and exclusion in `pairing.py`, similarities in `auto.py`, the file in
`files.py`, the text in `report.py`.
"""

from __future__ import annotations

from collections.abc import Mapping as Weights
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from ..arguments import Positive, check
from ..errors import GraftError, MatchError, nearest, shown
from ..graph.parameter import KINDS
from . import auto as _auto
from . import files as _files
from .hits import Filters, Hits, RuleFailure, hits_of, skipped_text
from .pairing import ARROWS, DIRECTIONS, PAIRINGS, Direction, Pair, exclude, pair_up
from .report import Rule, report

if TYPE_CHECKING:
    from ..graph import LayerGraph

__all__ = ["Mapping"]


class Mapping:
    """Which parameters of `source` and `target` exchange knowledge.

    Args:
        source: the graph whose weights are read, unless a link runs backward.
        target: the graph whose weights are written; the same graph as `source` for links inside one model.

    Raises:
        MatchError: an argument is not a layer graph.

    Example::

        mapping = Mapping(trace(resnet, (x,)), trace(mobilenet, (x,)))
        mapping.link("layer4.*.conv3", "features.17.conv.2", pair="all", direction="both")
        mapping.auto(kind="conv", limit=4)
        print(mapping)
    """

    def __init__(self, source: LayerGraph, target: LayerGraph) -> None:
        for name, graph in (("source", source), ("target", target)):
            if not (hasattr(graph, "parameters") and hasattr(graph, "tensor")):
                raise MatchError(
                    f"Mapping takes layer graphs, and {name} is a {type(graph).__name__}.",
                    fix="trace it first: Mapping(trace(source, args), trace(target, args))",
                )
        self.source = source
        self.target = target
        self._rules: list[Rule] = []

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs, in the order in which they were made."""
        return tuple(pair for rule in self._rules for pair in rule.pairs)

    def link(
        self,
        source: str,
        target: str,
        *,
        direction: Direction = "forward",
        role: str | None = None,
        kind: str | None = None,
        depth: tuple[float, float] | None = None,
        pair: Literal["order", "nearest", "all"] | None = None,
    ) -> Mapping:
        """Pair what two patterns hit.

        Args:
            source: a pattern over the names of the source's parameters: a glob whose ``*`` also crosses dots,
                ``{i}`` for one name between dots that must be equal on both sides, or ``re:`` and a regular
                expression with named groups. A module's name means its weight. A ``::part`` behind it
                (``::query``, ``::head[3]``, ``::group[0]``, ``::forget``) narrows every hit.
            target: the same for the target.
            direction: ``"forward"`` writes the target from the source, ``"backward"`` the source from the
                target, ``"both"`` each from the other. Kept in the pair; the sides never change places.
            role: only parameters of this role, a glob: ``"attention.query"``, ``"attention.*"``.
            kind: only parameters of this kind, one of `graftlib.graph.parameter.KINDS`.
            depth: only parameters whose relative depth (0.0 first, 1.0 last) lies within (lo, hi).
            pair: how several hits on both sides are paired. None: one source to every target, or equal counts in
                order. ``"order"``: equal counts in order. ``"nearest"``: every target with the source nearest in
                depth. ``"all"``: everything with everything.

        Returns:
            This mapping, so that calls chain.

        Raises:
            MatchError: a pattern hits nothing, the hits cannot be paired, or the pairs exclude each other. The
                fix is a call that was tried on this mapping. Nothing was added.
            ViewError: an exact name has no 2-D view, or not the part that was asked for.
        """
        call = _LinkCall(source, target, direction, role, kind, depth, pair)
        try:
            rule = self._follow(call)
        except RuleFailure as failure:
            raise self._explained(failure, call) from None
        self._rules.append(rule)
        return self

    def auto(
        self,
        *,
        kind: str | None = None,
        role: str | None = None,
        limit: int | None = None,
        min_similarity: float = 0.6,
        spectrum: bool = False,
        direction: Direction = "forward",
        weights: Weights[str, float] | None = None,
    ) -> Mapping:
        """Find pairs by similarity: kind, 2-D shape, relative depth and, if wanted, spectrum.

        The similarity of all compatible pairs is measured, each part from 0 to 1, and the assignment of largest total
        similarity is taken among those that keep the order of depth, where every parameter has at most one partner.
        Equal totals go to the earlier parameters. Parameters that are linked already, or that the forward pass never
        reads, take no part.

        Args:
            kind: only parameters of this kind on both sides.
            role: only parameters of this role, a glob.
            limit: keep this many pairs of the assignment, those of highest similarity; None keeps all.
            min_similarity: pairs of less similarity are not considered; 0 to 1.
            spectrum: also compare singular values, which needs real weights on both sides.
            direction: as in `link`.
            weights: how much each of ``"kind"``, ``"shape"``, ``"depth"``, ``"spectrum"`` counts; 1 for each that
                is absent.

        Returns:
            This mapping, so that calls chain. Each pair's `rule` explains its similarity.

        Raises:
            MatchError: nothing is similar enough, an argument is out of range, or `spectrum` meets weights that
                are on the meta device or not finite. Nothing was added.
        """
        _check_words(direction, None, kind)
        check(
            MatchError,
            role=(role, str | None),
            limit=(limit, Positive | None),
            min_similarity=(min_similarity, Annotated[float, Meta(ge=0, le=1)]),
            spectrum=(spectrum, bool),
            weights=(weights, dict[str, Annotated[float, Meta(ge=0, le=1e300)]] | None),
        )
        options = _auto.Options(
            kind,
            role,
            None if limit is None else int(limit),
            float(min_similarity),
            spectrum,
            {name: float(weight) for name, weight in (weights or {}).items()},
        )
        rule = _auto.find(self.source, self.target, self.pairs, direction, options)
        self._rules.append(rule)
        return self

    def save(self, path: str | Path) -> None:
        """Write the mapping as YAML: both models' names, the linked parameters' shapes, and the pairs.

        The file appears whole or not at all.

        Raises:
            MappingError: the file cannot be written.
        """
        _files.save(path, self.source, self.target, self.pairs)

    @classmethod
    def load(cls, path: str | Path, source: LayerGraph, target: LayerGraph) -> Mapping:
        """Read a mapping that `save` wrote, for the same two models.

        Raises:
            MappingError: the file cannot be read, is malformed or of another version, or was made for other models;
                all that differs is listed at once.
        """
        mapping = cls(source, target)
        mapping._rules.append(_files.load(path, source, target))
        return mapping

    def __len__(self) -> int:
        return len(self.pairs)

    def __bool__(self) -> bool:
        # A mapping is a thing, not a list: an empty one is still there.
        return True

    def __str__(self) -> str:
        return report(self.source.name, self.target.name, self._rules)

    def __repr__(self) -> str:
        return f"<Mapping {self.source.name} -> {self.target.name}: {len(self)} pairs>"

    def _repr_html_(self) -> str:
        from ..view import view

        return view(self)._repr_html_()

    def _follow(self, call: _LinkCall) -> Rule:
        """The rule with its pairs, checked against all that is there; nothing is added."""
        _check_words(call.direction, call.pair, call.kind)
        check(
            MatchError,
            source=(call.source, str),
            target=(call.target, str),
            role=(call.role, str | None),
        )
        filters = Filters(call.kind, call.role, _checked_depth(call.depth))
        sources, targets = self._both_sides(call, filters)
        paired, notes = pair_up(sources, targets, call.pair)
        pairs = tuple(Pair(one, other, call.direction, call.rule) for one, other in paired)
        for failure in exclude((*self.pairs, *pairs), self.source, self.target):
            raise failure
        for side, hits in (("source", sources), ("target", targets)):
            notes += [f"{side}: {note}" for note in hits.notes]
            notes += [f"{side}: {skipped_text(hits.skipped)}"] if hits.skipped else []
        return Rule(call.rule, pairs, tuple(notes), (sources.count, targets.count))

    def _both_sides(self, call: _LinkCall, filters: Filters) -> tuple[Hits, Hits]:
        hits: list[Hits] = []
        failures: list[RuleFailure] = []
        for side, graph in (("source", self.source), ("target", self.target)):
            try:
                hits.append(hits_of(graph, getattr(call, side), filters, side))
            except RuleFailure as failure:
                failures.append(failure)
        if failures:
            raise reduce(_joined, failures)
        return hits[0], hits[1]

    def _explained(self, failure: RuleFailure, call: _LinkCall) -> GraftError:
        """The refusal as an error whose fix, where it is a call, was tried."""
        return failure.error(
            failure.what,
            where=failure.where,
            why=failure.why,
            near=failure.near,
            fix=self._working(failure, call) or failure.hint,
            rule=call.rule,
        )

    def _working(self, failure: RuleFailure, call: _LinkCall) -> str | None:
        changes = [replace(call, **repair) for repair in failure.repairs]  # type: ignore[arg-type]
        tried: list[_LinkCall] = []
        for changed in changes:
            tried += [changed] if changed.pair else [changed, replace(changed, pair="nearest")]
        for changed in (*tried, *self._with_one_source(changes)):
            try:
                self._follow(changed)
            except (RuleFailure, GraftError):
                continue
            return changed.call
        return None

    def _with_one_source(self, changes: list[_LinkCall]) -> list[_LinkCall]:
        """The same calls with the first parameter that the source pattern hits: one source fits any target."""
        narrower = []
        for changed in changes:
            try:
                hits = hits_of(self.source, changed.source, Filters(), "source")
            except (RuleFailure, GraftError):
                continue
            narrower.append(replace(changed, source=hits.matches[0].parameter.address))
        return narrower


@dataclass(frozen=True)
class _LinkCall:
    """The arguments of one `link`."""

    source: str
    target: str
    direction: str
    role: str | None
    kind: str | None
    depth: tuple[float, float] | None
    pair: str | None

    @property
    def rule(self) -> str:
        """The call in one line, for people."""
        arrow = ARROWS.get(self.direction, "->")
        return ", ".join([f"{self.source} {arrow} {self.target}", *self._options()])

    @property
    def call(self) -> str:
        """The call as code."""
        way = [] if self.direction == "forward" else [f"direction={self.direction!r}"]
        words = [repr(self.source), repr(self.target), *way, *self._options()]
        return f"mapping.link({', '.join(words)})"

    def _options(self) -> list[str]:
        """The filters and the pairing that were asked for."""
        asked = {name: getattr(self, name) for name in ("role", "kind", "depth", "pair")}
        return [f"{name}={value!r}" for name, value in asked.items() if value is not None]


def _joined(one: RuleFailure, other: RuleFailure) -> RuleFailure:
    return RuleFailure(
        f"{one.what}\n{other.what}",
        where={**one.where, **other.where},
        why="; ".join(why for why in (one.why, other.why) if why) or None,
        near=[*one.near, *other.near],
        # The smallest change first: one filter that mends both sides before two that mend one each.
        repairs=sorted(
            ({**this, **that} for this in one.repairs for that in other.repairs), key=len
        ),
        hint=f"{one.hint}; {other.hint}",
        error=one.error,
    )


def _check_words(direction: str, pair: str | None, kind: str | None) -> None:
    for name, word, words in (
        ("direction", direction, DIRECTIONS),
        ("pair", pair, PAIRINGS),
        ("kind", kind, KINDS),
    ):
        if word is None and name != "direction":
            continue
        if not isinstance(word, str) or word not in words:
            raise MatchError(
                f"{name}={shown(word)} is not a {name}.",
                near=nearest(word, words) if isinstance(word, str) else (),
                fix=f"use {name}= one of " + ", ".join(map(repr, words)),
            )


def _checked_depth(depth: tuple[float, float] | None) -> tuple[float, float] | None:
    if depth is None:
        return None
    try:
        low, high = map(float, depth)
    except Exception:  # whatever the methods of a caller's object raise
        low, high = 1.0, 0.0
    if not low <= high:
        raise MatchError(
            f"depth={shown(depth)} is not a range.",
            why="relative depth runs from 0.0, the first layer, to 1.0, the last",
            fix="use depth=(lo, hi) with lo <= hi, for example depth=(0.5, 1.0)",
        )
    return low, high
