"""What `print(mapping)` shows: every rule with its hits, every pair with its shapes.

In: the rules that were followed. Out: text. Names inside it are untrusted and escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import printable
from ..graph.parameter import Parameter
from .pairing import ARROWS, Pair
from .views import matrix_shape

__all__ = ["Rule", "report"]


@dataclass(frozen=True)
class Rule:
    """One call that made pairs.

    Attributes:
        text: the call in one line.
        pairs: what it made.
        notes: what it skipped, and what found no partner.
        hits: how many parameters it hit (source, target); None where that is not known, as after loading.
    """

    text: str
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()
    hits: tuple[int, int] | None = None


def report(source: str, target: str, rules: Sequence[Rule]) -> str:
    """The whole mapping as text.

    Args:
        source: name of the source model.
        target: name of the target model.
        rules: in the order in which they were followed.
    """
    total = sum(len(rule.pairs) for rule in rules)
    lines = [f"{printable(source)} -> {printable(target)}: {_count(total, 'pair')}"]
    if not rules:
        lines.append("  nothing is linked yet: use link(source, target) or auto()")
    for rule in rules:
        lines.append(f"  {printable(rule.text)}  ({_counts(rule)})")
        lines += [f"    {printable(note)}" for note in rule.notes]
        lines += [f"    {line}" for line in _table(rule)]
    return "\n".join(lines)


def _counts(rule: Rule) -> str:
    pairs = _count(len(rule.pairs), "pair")
    if rule.hits is None:
        return pairs
    return f"{_count(rule.hits[0], 'source hit')}, {_count(rule.hits[1], 'target hit')}, {pairs}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _table(rule: Rule) -> list[str]:
    rows = [
        [
            *_columns(pair.source),
            ARROWS[pair.direction],
            *_columns(pair.target),
            "" if pair.rule == rule.text else printable(pair.rule),
        ]
        for pair in rule.pairs
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _columns(parameter: Parameter) -> tuple[str, str, str]:
    rows, columns = matrix_shape(parameter)
    shape = "×".join(map(str, parameter.shape))
    return printable(parameter.address), shape, f"as {rows}×{columns}"
