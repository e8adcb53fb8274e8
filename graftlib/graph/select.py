"""Which names does a pattern mean?

In: a pattern and names. Out: the names it hits, in their own order, with what the pattern captured.
Shell globs whose ``*`` also crosses dots; ``{name}`` captures exactly one component between dots, the same text
wherever the same name stands; ``re:`` introduces a regular expression for the whole name, whose named groups are
captures. A pattern that means a module means its ``weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import MatchError

__all__ = ["Hit", "select"]

MSG_SYNTAX = "write a shell glob with {captures}, or 're:' and a regular expression"


@dataclass(frozen=True)
class Hit:
    """One name that a pattern meant, and what each capture stood for in it."""

    name: str
    captures: dict[str, str] = field(default_factory=dict)


def select(pattern: str, names: Iterable[str]) -> list[Hit]:
    """The names that `pattern` hits; an empty list where there are none.

    Raises:
        MatchError: the pattern is not well formed.

    >>> [hit.name for hit in select("layer{i}.*", ["layer1.conv.weight", "fc.weight"])]
    ['layer1.conv.weight']
    >>> select("fc", ["fc.weight", "fc.bias"])
    [Hit(name='fc.weight', captures={})]
    """
    expression = _compile(pattern)
    hits = []
    for name in names:
        found = expression.fullmatch(name)
        if found is None and name.endswith(".weight"):
            found = expression.fullmatch(name.removesuffix(".weight"))
        if found is not None:
            captures = {key: text for key, text in found.groupdict().items() if text is not None}
            hits.append(Hit(name, captures))
    return hits


def _compile(pattern: str) -> re.Pattern[str]:
    text = pattern.removeprefix("re:") if pattern.startswith("re:") else _glob(pattern)
    try:
        return re.compile(text, re.DOTALL)
    except re.error as error:
        raise MatchError(
            f"the pattern '{pattern}' is not well formed.",
            why=str(error),
            fix=MSG_SYNTAX,
            pattern=pattern,
        ) from None


def _glob(pattern: str) -> str:
    """The regular expression of a glob."""
    captured: set[str] = set()
    text, rest = "", pattern
    while rest:
        if found := re.match(r"\{([^{}]*)\}", rest):
            text += _capture(found[1], captured, pattern)
        elif found := re.match(r"\[(!?)([^\]]+)\]", rest):
            inner = found[2].replace("\\", r"\\").replace("^", r"\^")
            text += f"[{'^' if found[1] else ''}{inner}]"
        elif found := re.match(r"\*+", rest):
            text += ".*"
        else:
            found = re.match(r".", rest, re.DOTALL)
            assert found is not None
            text += "." if found[0] == "?" else re.escape(found[0])
        rest = rest[found.end() :]
    return text


def _capture(name: str, captured: set[str], pattern: str) -> str:
    if not name.isidentifier():
        raise MatchError(
            f"the pattern '{pattern}' is not well formed.",
            why=f"'{{{name}}}' is no name for a capture",
            fix="give it a name that starts with a letter: {block}",
            pattern=pattern,
        )
    if name in captured:
        return f"(?P={name})"
    captured.add(name)
    return rf"(?P<{name}>[^.]+)"
