"""The one family of errors: what, where, why, the nearest candidates, and how to mend it.

In: bare facts, given once where they are known. Out: an exception whose text reads like a page of the manual and
whose facts stay available as attributes.
"""

from __future__ import annotations

import difflib
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
    "TraceError",
    "TransferError",
    "ViewError",
    "nearest",
]


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
        return self._text()

    def _text(self) -> str:
        rows = [(label, str(thing)) for label, thing in self.where.items()]
        if self.why:
            rows.append(("why", self.why))
        if self.near:
            rows.append(("nearest", ", ".join(self.near)))
        if self.fix:
            rows.append(("fix", self.fix))
        width = max((len(label) for label, _ in rows), default=0) + 2
        indent = " " * (width + 2)
        lines = [self.what]
        lines += [f"  {label:<{width}}{text}".replace("\n", "\n" + indent) for label, text in rows]
        return "\n".join(lines)


class TraceError(GraftError):
    """No rung of the capture ladder could see the model."""


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


def nearest(name: str, names: Sequence[str], *, n: int = 3) -> tuple[str, ...]:
    """The names most like `name`, best first, quoted for an error message.

    Examples:
        >>> nearest("layer4.conv", ["layer1.conv", "fc"])
        ("'layer1.conv'",)
    """
    return tuple(repr(found) for found in difflib.get_close_matches(name, names, n=n, cutoff=0.3))
