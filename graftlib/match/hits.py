"""What a pattern hits in one graph: parameters with a 2-D view, and why the others were skipped.

In: a graph, a pattern (a glob whose ``*`` crosses dots, ``{i}`` captures, ``re:``, a module's name for its weight, a
``::part`` for every hit) and filters. Out: `Hits`, or `RuleFailure` with repairs and a hint.
Always true: of tied parameters only the first in the model is taken; nothing is left out without being counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..errors import GraftError, MatchError, ViewError, closest, shown
from ..graph.parameter import Parameter
from ..graph.select import Hit, select, split_pattern
from .views import matrix_shape

if TYPE_CHECKING:
    from ..graph import LayerGraph

__all__ = [
    "Filters",
    "Hits",
    "Match",
    "RuleFailure",
    "alike",
    "hits_of",
    "listed",
    "skipped_text",
    "viewable",
]


class RuleFailure(Exception):  # noqa: N818 - not an error yet: `Mapping` adds a fix that was tried, and raises it
    """A rule cannot be followed: the bare facts, and changes to the call that may mend it.

    Args:
        what, where, why, near: as in `GraftError`.
        repairs: changes to the arguments of the call, best first; the first that works becomes the fix.
        hint: the fix in words, where no repair works.
        error: the class to raise in the end.
    """

    def __init__(
        self,
        what: str,
        *,
        where: dict[str, object] | None = None,
        why: str | None = None,
        near: Iterable[str] = (),
        repairs: Iterable[Mapping[str, object]] = (),
        hint: str,
        error: type[GraftError] = MatchError,
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.why = what, dict(where or {}), why
        self.near, self.repairs, self.hint, self.error = tuple(near), list(repairs), hint, error


@dataclass(frozen=True)
class Filters:
    """What a hit must be besides being named: its kind, its role (a glob), its relative depth (lo, hi)."""

    kind: str | None = None
    role: str | None = None
    depth: tuple[float, float] | None = None

    def against(self, parameter: Parameter) -> str | None:
        """The filter that `parameter` fails, in words; None where it passes all."""
        if 0 in parameter.shape:
            return "no elements"
        if self.kind is not None and parameter.kind != self.kind:
            return f"kind is not {self.kind!r}"
        if self.role is not None and not fnmatchcase(parameter.role, self.role):
            return f"role is not {self.role!r}"
        if self.depth is not None:
            low, high = self.depth
            if parameter.depth is None or not low <= parameter.depth <= high:
                return f"depth is outside {low:g} to {high:g}"
        return None


@dataclass(frozen=True)
class Match:
    """One hit that matches, and what the pattern captured in its name."""

    parameter: Parameter
    captures: Mapping[str, str]


@dataclass(frozen=True)
class Hits:
    """All that one side of a rule hit.

    Attributes:
        pattern: as it was given.
        matches: the parameters that take part, in the model's order.
        skipped: reason -> how many hits were skipped for it.
        notes: what else the reader should know (tied parameters).
    """

    pattern: str
    matches: tuple[Match, ...]
    skipped: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many parameters the pattern named, before any was skipped."""
        return len(self.matches) + sum(self.skipped.values())

    @property
    def captured(self) -> set[str]:
        """The names that the pattern captures."""
        return {name for match in self.matches for name in match.captures}


def hits_of(graph: LayerGraph, pattern: str, filters: Filters, side: str) -> Hits:
    """Resolve one side of a rule.

    Args:
        graph: where to look.
        pattern: see the head of this module.
        filters: what a hit must be besides.
        side: ``"source"`` or ``"target"``, for the message.

    Raises:
        RuleFailure: nothing is named, or nothing of it is left; an exact name without a 2-D view.
        MatchError: the pattern is not well formed.
    """
    known = {parameter.fqn: parameter for parameter in graph.parameters()}
    base, part = split_pattern(pattern, known)
    named = select(base, known)
    if not named:
        raise _nothing_named(graph, pattern, base, part, side)
    hits, objection = _sorted_out(pattern, part, named, known, filters)
    exact = any(hit.name in (base, f"{base}.weight") for hit in named)
    if not hits.matches and exact and objection is not None:
        raise _no_view(graph, objection, side)
    if not hits.matches:
        raise _nothing_left(graph, hits, objection, filters, side)
    return hits


def _sorted_out(
    pattern: str,
    part: str | None,
    named: Iterable[Hit],
    known: Mapping[str, Parameter],
    filters: Filters,
) -> tuple[Hits, ViewError | None]:
    """What takes part and what is skipped, and the last objection to a view."""
    matches: dict[str, Match] = {}
    skipped: Counter[str] = Counter()
    notes: list[str] = []
    objection: ViewError | None = None
    for hit in named:
        parameter = known[known[hit.name].tied_to or hit.name]
        reason: str | None
        try:
            parameter = _part_of(parameter, part)
        except ViewError as error:
            objection = error
            reason = f"no part {part!r}" if hasattr(error, "part") else _kind_of(parameter)
        else:
            reason = filters.against(parameter)
        if reason is None and parameter.fqn in matches:
            reason = "tied to another hit"
        if reason is not None:
            skipped[reason] += 1
            continue
        matches[parameter.fqn] = Match(parameter, hit.captures)
        if parameter.fqn != hit.name:
            notes.append(f"{shown(parameter.fqn)} stands for {shown(hit.name)}, tied to it")
    return Hits(pattern, tuple(matches.values()), dict(skipped), tuple(notes)), objection


def _part_of(parameter: Parameter, part: str | None) -> Parameter:
    """The part of a parameter, or the whole; ViewError where that is no matrix."""
    result = parameter if part is None else parameter.select(part)
    matrix_shape(result)
    return result


def viewable(graph: LayerGraph) -> list[Parameter]:
    """The parameters that a link may name: not tied to an earlier one, with a 2-D view, not empty."""
    found = []
    for parameter in graph.parameters():
        if parameter.tied_to is None and 0 not in parameter.shape:
            with suppress(ViewError):
                matrix_shape(parameter)
                found.append(parameter)
    return found


def alike(name: str, names: Sequence[str]) -> list[str]:
    """The names most like `name`, best first; some name always, where there is one."""
    plain = re.sub(r"re:|[*?\\^$(){}\[\]|+]", "", name)
    return closest(plain, names) or list(names[:1])


def listed(names: Iterable[str]) -> str:
    """Names in a row, the first six of them, and how many more there are."""
    names = [shown(name) for name in names]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def skipped_text(skipped: Mapping[str, int]) -> str:
    """``4 skipped: 3 bias, 1 norm``."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return f"{sum(skipped.values())} skipped: {reasons}"


def _kind_of(parameter: Parameter) -> str:
    """Why a parameter is skipped: its kind says it, or its number of axes."""
    if parameter.kind in ("bias", "norm"):
        return f"{parameter.kind} (no 2-D view)"
    return f"{parameter.kind} with {len(parameter.shape)} axes (no 2-D view)"


def _nothing_named(
    graph: LayerGraph, pattern: str, base: str, part: str | None, side: str
) -> RuleFailure:
    names = [parameter.fqn for parameter in viewable(graph)]
    near = alike(base, names)
    suffix = "" if part is None else f"::{part}"
    patterns = [_as_pattern(base, name) for name in near]
    repairs = [{side: name + suffix} for name in dict.fromkeys([*patterns, *near])]
    repairs += [{side: name} for name in near] if part else []
    return RuleFailure(
        f"the {side} pattern {shown(pattern)} matches nothing in {graph.name}.",
        near=map(shown, near),
        repairs=repairs,
        hint=f"see print({side}) for the names of {graph.name}",
    )


def _as_pattern(pattern: str, name: str) -> str:
    """`pattern` with its words taken from `name` and its wildcards kept, where they run side by side."""
    words, named = pattern.split("."), name.split(".")
    if pattern.startswith("re:") or len(named) - len(words) not in (0, 1):
        return name
    both = zip(words, named, strict=False)
    kept = [word if re.search(r"[*?{\[]", word) else other for word, other in both]
    return ".".join(kept + named[len(words) :])


def _no_view(graph: LayerGraph, objection: ViewError, side: str) -> RuleFailure:
    fqn = str(getattr(objection.parameter, "fqn", getattr(objection, "parameter", "")))  # type: ignore[attr-defined]
    names = [parameter.fqn for parameter in viewable(graph) if parameter.fqn != fqn]
    near = objection.near or map(shown, alike(fqn, names))
    part = getattr(objection, "part", None)
    return RuleFailure(
        objection.what,
        where=objection.where,
        why=objection.why,
        near=near,
        repairs=[{side: name} for name in ([fqn] if part else []) + alike(fqn, names)],
        hint=objection.fix or f"see print({side})",
        error=ViewError,
    )


def _nothing_left(
    graph: LayerGraph, hits: Hits, objection: ViewError | None, filters: Filters, side: str
) -> RuleFailure:
    base, part = split_pattern(hits.pattern, [p.fqn for p in graph.parameters()])
    asked = {"kind": filters.kind, "role": filters.role, "depth": filters.depth}
    used = [name for name, value in asked.items() if value is not None]
    repairs: list[Mapping[str, object]] = [{name: None} for name in used]
    repairs += [dict.fromkeys(used)] if len(used) > 1 else []
    if part is not None:
        repairs += [{side: base}]
    repairs += [{side: name} for name in alike(base, [each.fqn for each in viewable(graph)])]
    if any(" is " in reason for reason in hits.skipped):
        objection = None  # a filter took some, so the lack of a view is not why nothing is left
    return RuleFailure(
        f"the {side} pattern {shown(hits.pattern)} leaves no parameter to link in {graph.name}.",
        where={side: skipped_text(hits.skipped)},
        why=None if objection is None else objection.why,
        near=() if objection is None else objection.near,
        repairs=repairs,
        hint="use another pattern, or fewer filters",
    )
