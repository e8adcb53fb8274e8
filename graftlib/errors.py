"""The one family of errors: what, where, why, the nearest candidates, and how to mend it.

In: bare facts, given once where they are known. Out: an exception whose text reads like a page of the manual and
whose facts stay available as attributes.
"""

from __future__ import annotations

import difflib
import importlib
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "AttachError",
    "CheckpointError",
    "ExportError",
    "GraftError",
    "MappingError",
    "MatchError",
    "MissingExtraError",
    "ModelNameError",
    "RuleError",
    "TraceError",
    "TransferError",
    "ViewError",
    "closest",
    "nearest",
    "optional",
    "printable",
    "shown",
]

LONGEST_LINE = 400
"""Letters of a line of an error's text: names and values from outside may have any length."""
MOST_LINES = 40
"""Lines of one entry of an error's text."""


class GraftError(Exception):
    """The base of every error that graftlib raises on purpose.

    Args:
        what: the rule that was broken, one sentence.
        where: label -> the thing it speaks of, for example ``{"source": "'fc.weight' (10, 512)"}``.
        why: the reason, where it is not plain from `what`.
        near: the nearest candidates, best first; or a function that looks for them once somebody reads them.
        fix: the edit that mends it.
        facts: anything a caller may want to read back; each becomes an attribute.

    Examples:
        >>> print(GraftError("rule 'fc -> head' matches nothing.", near=["'fc.weight'"], fix="name a layer"))
        rule 'fc -> head' matches nothing.
          nearest  'fc.weight'
          fix      name a layer
    """

    def __init__(
        self,
        what: str,
        *,
        where: Mapping[str, object] | None = None,
        why: str | None = None,
        near: Iterable[str] | Callable[[], Iterable[str]] = (),
        fix: str | None = None,
        **facts: Any,
    ) -> None:
        self.what = what
        self.where = dict(where or {})
        self.why = why
        self._near = near if callable(near) else tuple(near)
        self.fix = fix
        for name, fact in facts.items():
            setattr(self, name, fact)
        super().__init__(what)

    @property
    def near(self) -> tuple[str, ...]:
        """The nearest candidates, best first."""
        if callable(self._near):
            self._near = tuple(self._near())
        return self._near

    def __str__(self) -> str:
        rows = [(label, str(thing)) for label, thing in self.where.items()]
        if self.why:
            rows.append(("why", self.why))
        if self.near:
            rows.append(("nearest", ", ".join(self.near)))
        if self.fix:
            rows.append(("fix", self.fix))
        width = max((len(_cut(label, 80)) for label, _ in rows), default=0) + 2
        indent = " " * (width + 2)
        lines = [_bounded(self.what)]
        for label, text in _first(rows):
            line = f"  {_cut(label, 80):<{width}}{_bounded(text)}"
            lines.append(line.replace("\n", "\n" + indent))
        return "\n".join(lines)


class TraceError(GraftError):
    """No tracer of the tracing backends could see the model."""


class RuleError(GraftError):
    """An axis rule has a fault; ``op`` and ``node`` are attributes."""


class ViewError(GraftError):
    """A parameter, or a part of one, has no 2-D view."""


class MatchError(GraftError):
    """A rule matches nothing, or pairs what cannot be paired."""


class MappingError(GraftError):
    """A mapping file is malformed, or was made for other models."""


class AttachError(GraftError):
    """An adapter cannot be attached, followed or detached as asked."""


class TransferError(GraftError):
    """Transfers went wrong during training (not finite, parameters replaced, a closure)."""


class CheckpointError(GraftError):
    """A checkpoint is truncated, foreign, or does not fit."""


class ExportError(GraftError):
    """A model cannot be exported, or the export does not hold."""


class ModelNameError(GraftError):
    """A model's name on the command line cannot be resolved."""


class MissingExtraError(GraftError, ImportError):
    """An optional library is missing; the fix names the extra."""


def optional(module: str, what: str, extra: str) -> Any:
    """An optional library.

    Args:
        module: its name, to be imported.
        what: needs it, as a sentence.
        extra: that it comes with.

    Raises:
        MissingExtraError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            what, why=str(error), fix=f'pip install "graftlib[{extra}]"'
        ) from error


def shown(value: object, limit: int = 160) -> str:
    """A value from outside as an error quotes it: its `repr` on one line, at most `limit` letters of it.

    >>> shown("x" * 100, limit=8)
    "'xx … x'"
    """
    if isinstance(value, str) and len(value) > limit:
        value = value[:limit] + value[-limit:]  # the middle goes anyway
    if isinstance(value, int) and value.bit_length() > 4 * limit:
        return f"a number of {value.bit_length()} bits"
    try:
        text = reprlib.repr(value) if isinstance(value, (list, tuple, set, dict)) else repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return _cut(" ".join(text.splitlines()), limit)


def printable(text: str) -> str:
    r"""A name from outside with everything that a terminal might act on escaped.

    >>> print(printable("fc\x1b[31m.weight"))
    fc\x1b[31m.weight
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, names: Sequence[str], *, n: int = 3) -> tuple[str, ...]:
    """The names most like `name`, best first, quoted for an error message; none for a name of unusual length.

    Examples:
        >>> nearest("layer4.conv", ["layer1.conv", "fc"])
        ("'layer1.conv'",)
    """
    return tuple(shown(one) for one in closest(name, names, n=n))


def closest(name: str, names: Sequence[str], *, n: int = 3) -> list[str]:
    """The names most like `name`, best first; none for a name of unusual length, as the search takes time by square."""
    if len(name) > LONGEST_LINE:
        return []
    short = [one for one in names if len(one) <= LONGEST_LINE]
    return difflib.get_close_matches(name, short, n=n, cutoff=0.3)


def _cut(text: str, limit: int) -> str:
    """At most `limit` letters: both ends, since names differ at their ends."""
    if len(text) <= limit:
        return text
    head = (limit - 3) * 2 // 3
    return f"{text[:head]} … {text[len(text) - (limit - 3 - head) :]}"


def _bounded(text: str) -> str:
    lines = text.split("\n", MOST_LINES + 1)
    if len(lines) > MOST_LINES:
        more = text.count("\n") + 1 - MOST_LINES
        lines = [*lines[:MOST_LINES], f"… and {more} more lines"]
    return "\n".join(_cut(line, LONGEST_LINE) for line in lines)


def _first(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if len(rows) <= MOST_LINES:
        return rows
    more = len(rows) - MOST_LINES
    # The last ones are what to do about it.
    return [*rows[: MOST_LINES - 3], ("", f"… and {more} more"), *rows[-3:]]
