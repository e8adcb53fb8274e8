"""What a pattern hits in one graph: parameters with a 2-D view, and why the others were passed over.

In: a graph, a pattern (a glob whose ``*`` crosses dots, ``{i}`` captures, ``re:``, a module's name for its weight, a
``::part`` for every hit) and filters. Out: `Hits`, or `Refused` with the ways out.
Always true: of tied parameters only the first in the model is taken; nothing is left out without being counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    "Refused",
    "Taken",
    "alike",
    "hits_of",
    "listed",
    "passed_text",
    "viewable",
]


class Refused(Exception):  # noqa: N818 - not an error yet: `Mapping` adds a fix that was tried, and raises it
    """A rule cannot be followed: the bare facts, and changes to the call that may mend it.

    Args:
        what, where, why, near: as in `GraftError`.
        ways: changes to the arguments of the call, best first; the first that works becomes the fix.
        otherwise: the fix in words, where no way works.
        error: the class to raise in the end.
    """

    def __init__(
        self,
        what: str,
        *,
        where: dict[str, object] | None = None,
        why: str | None = None,
        near: Iterable[str] = (),
        ways: Iterable[Mapping[str, object]] = (),
        otherwise: str,
        error: type[GraftError] = MatchError,
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.why = what, dict(where or {}), why
        self.near, self.ways, self.otherwise, self.error = tuple(near), list(ways), otherwise, error


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
class Taken:
    """One hit that takes part, and what the pattern captured in its name."""

    parameter: Parameter
    captures: Mapping[str, str]


@dataclass(frozen=True)
class Hits:
    """All that one side of a rule hit.

    Attributes:
        pattern: as it was given.
        taken: the parameters that take part, in the model's order.
        passed: reason -> how many hits were passed over for it.
        notes: what else the reader should know (tied parameters).
    """

    pattern: str
    taken: tuple[Taken, ...]
    passed: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many parameters the pattern named, before any was passed over."""
        return len(self.taken) + sum(self.passed.values())

    @property
    def captured(self) -> set[str]:
        """The names that the pattern captures."""
        return {name for taken in self.taken for name in taken.captures}


def hits_of(graph: LayerGraph, pattern: str, filters: Filters, side: str) -> Hits:
    """Resolve one side of a rule.

    Args:
        graph: where to look.
        pattern: see the head of this module.
        filters: what a hit must be besides.
        side: ``"source"`` or ``"target"``, for the message.

    Raises:
        Refused: nothing is named, or nothing of it is left; an exact name without a 2-D view.
        MatchError: the pattern is not well formed.
    """
    known = {parameter.fqn: parameter for parameter in graph.parameters()}
    base, part = split_pattern(pattern, known)
    found = select(base, known)
    if not found:
        raise _nothing_named(graph, pattern, base, part, side)
    hits, objection = _sorted_out(pattern, part, found, known, filters)
    exact = any(hit.name in (base, f"{base}.weight") for hit in found)
    if not hits.taken and exact and objection is not None:
        raise _no_view(graph, objection, side)
    if not hits.taken:
        raise _nothing_left(graph, hits, objection, filters, side)
    return hits


def _sorted_out(
    pattern: str,
    part: str | None,
    found: Iterable[Hit],
    known: Mapping[str, Parameter],
    filters: Filters,
) -> tuple[Hits, ViewError | None]:
    """What takes part and what is passed over, and the last objection to a view."""
    taken: dict[str, Taken] = {}
    passed: Counter[str] = Counter()
    notes: list[str] = []
    objection: ViewError | None = None
    for hit in found:
        parameter = known[known[hit.name].tied_to or hit.name]
        reason: str | None
        try:
            parameter = _narrowed(parameter, part)
        except ViewError as error:
            objection = error
            reason = f"no part {part!r}" if hasattr(error, "part") else _kind_of(parameter)
        else:
            reason = filters.against(parameter)
        if reason is None and parameter.fqn in taken:
            reason = "tied to another hit"
        if reason is not None:
            passed[reason] += 1
            continue
        taken[parameter.fqn] = Taken(parameter, hit.captures)
        if parameter.fqn != hit.name:
            notes.append(f"{shown(parameter.fqn)} stands for {shown(hit.name)}, tied to it")
    return Hits(pattern, tuple(taken.values()), dict(passed), tuple(notes)), objection


def _narrowed(parameter: Parameter, part: str | None) -> Parameter:
    """The part of a parameter, or the whole; ViewError where that is no matrix."""
    narrowed = parameter if part is None else parameter.select(part)
    matrix_shape(narrowed)
    return narrowed


def viewable(graph: LayerGraph) -> list[Parameter]:
    """The parameters that a link may name: not tied to an earlier one, with a 2-D view, not empty."""
    return [
        parameter
        for parameter in graph.parameters()
        if parameter.tied_to is None and 0 not in parameter.shape and _has_view(parameter)
    ]


def alike(name: str, names: Sequence[str], *, n: int = 3) -> list[str]:
    """The names most like `name`, best first; some name always, where there is one."""
    plain = re.sub(r"re:|[*?\\^$(){}\[\]|+]", "", name)
    return closest(plain, names, n=n) or list(names[:1])


def listed(names: Iterable[str], *, most: int = 6) -> str:
    """Names in a row, the first `most` of them, and how many more there are."""
    names = [shown(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def passed_text(passed: Mapping[str, int]) -> str:
    """``4 passed over: 3 bias, 1 norm``."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(passed.items()))
    return f"{sum(passed.values())} passed over: {reasons}"


def _has_view(parameter: Parameter) -> bool:
    try:
        matrix_shape(parameter)
    except ViewError:
        return False
    return True


def _kind_of(parameter: Parameter) -> str:
    """Why a parameter is passed over: its kind says it, or its number of axes."""
    if parameter.kind in ("bias", "norm"):
        return f"{parameter.kind} (no 2-D view)"
    return f"{parameter.kind} with {len(parameter.shape)} axes (no 2-D view)"


def _nothing_named(
    graph: LayerGraph, pattern: str, base: str, part: str | None, side: str
) -> Refused:
    names = [parameter.fqn for parameter in viewable(graph)]
    near = alike(base, names)
    suffix = "" if part is None else f"::{part}"
    repaired = [_repaired(base, name) for name in near]
    ways = [{side: name + suffix} for name in dict.fromkeys([*repaired, *near])]
    ways += [{side: name} for name in near] if part else []
    return Refused(
        f"the {side} pattern {shown(pattern)} matches nothing in {graph.name}.",
        near=map(shown, near),
        ways=ways,
        otherwise=f"see print({side}) for the names of {graph.name}",
    )


def _repaired(pattern: str, name: str) -> str:
    """`pattern` with its words taken from `name` and its wildcards kept, where they run side by side."""
    words, named = pattern.split("."), name.split(".")
    if pattern.startswith("re:") or len(named) - len(words) not in (0, 1):
        return name
    both = zip(words, named, strict=False)
    kept = [word if re.search(r"[*?{\[]", word) else other for word, other in both]
    return ".".join(kept + named[len(words) :])


def _no_view(graph: LayerGraph, objection: ViewError, side: str) -> Refused:
    fqn = str(getattr(objection.parameter, "fqn", getattr(objection, "parameter", "")))  # type: ignore[attr-defined]
    names = [parameter.fqn for parameter in viewable(graph) if parameter.fqn != fqn]
    near = objection.near or map(shown, alike(fqn, names))
    part = getattr(objection, "part", None)
    return Refused(
        objection.what,
        where=objection.where,
        why=objection.why,
        near=near,
        ways=[{side: name} for name in ([fqn] if part else []) + alike(fqn, names)],
        otherwise=objection.fix or f"see print({side})",
        error=ViewError,
    )


def _nothing_left(
    graph: LayerGraph, hits: Hits, objection: ViewError | None, filters: Filters, side: str
) -> Refused:
    base, part = split_pattern(hits.pattern, [p.fqn for p in graph.parameters()])
    asked = {"kind": filters.kind, "role": filters.role, "depth": filters.depth}
    used = [name for name, value in asked.items() if value is not None]
    ways: list[Mapping[str, object]] = [{name: None} for name in used]
    ways += [dict.fromkeys(used)] if len(used) > 1 else []
    if part is not None:
        ways += [{side: base}]
    ways += [{side: name} for name in alike(base, [found.fqn for found in viewable(graph)])]
    if any(" is " in reason for reason in hits.passed):
        objection = None  # a filter took some, so the lack of a view is not why nothing is left
    return Refused(
        f"the {side} pattern {shown(hits.pattern)} leaves no parameter to link in {graph.name}.",
        where={side: passed_text(hits.passed)},
        why=None if objection is None else objection.why,
        near=() if objection is None else objection.near,
        ways=ways,
        otherwise="use another pattern, or fewer filters",
    )
