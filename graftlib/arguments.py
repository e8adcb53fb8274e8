"""Arguments of public functions, checked at the door.

In: each argument by name, with what it should be. Out: nothing, or one error that names all those that are not.
Types are those of `graftlib.documents`, so that a number in a file and one in Python have the same bounds.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .documents import faults_of
from .errors import GraftError, shown

__all__ = ["Positive", "Seed", "Share", "Some", "check"]

Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""What `torch.Generator.manual_seed` takes."""
Share = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Some = Annotated[int, Meta(ge=0, le=10_000)]
"""How often something long is done again."""


def check(error: type[GraftError], *, fix: str | None = None, **arguments: tuple[Any, Any]) -> None:
    """Raise `error` where an argument is not what it should be.

    Args:
        error: the member of the family.
        fix: what to do; None for the words of each fault.
        arguments: name -> (value, what it should be): a type that msgspec knows (numbers of NumPy and torch count as
            numbers), or a tuple of classes.

    Raises:
        GraftError: names every argument that is wrong; they are its attribute ``arguments``.

    >>> check(GraftError, limit=(3, int | None))
    >>> check(GraftError, limit=("3", int | None), model=(4, (dict,)))
    Traceback (most recent call last):
        ...
    graftlib.errors.GraftError: limit='3', model=4: these arguments are not what they should be.
      limit  expected whole number or nothing, got text
      model  expected dict, got int
      fix    see help(…) for what they are
    """
    wrong = {
        name: fault for name, (value, kind) in arguments.items() if (fault := _fault(value, kind))
    }
    if not wrong:
        return
    words = ", ".join(f"{name}={shown(arguments[name][0], 60)}" for name in wrong)
    one = (
        "this argument is not what it should be"
        if len(wrong) == 1
        else "these arguments are not what they should be"
    )
    raise error(
        f"{words}: {one}.",
        where=wrong,
        fix=fix or "see help(…) for what they are",
        arguments=tuple(wrong),
    )


def _fault(value: Any, kind: Any) -> str:
    if isinstance(kind, tuple):
        if isinstance(value, kind):
            return ""
        words = " or ".join("nothing" if one is type(None) else one.__name__ for one in kind)
        return f"expected {words}, got {type(value).__name__}"
    plain = _plain(value)
    try:
        msgspec.convert(plain, kind)
    except Exception:  # msgspec's own, and whatever the methods of a caller's object raise
        faults = list(faults_of(plain, kind, ""))
    else:
        return ""
    at, text = faults[0] if faults else ("", f"got {type(value).__name__}")
    return f"{at} {text}".strip() if at else text.partition(": ")[0]


def _plain(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's, ranges and tuples as lists."""
    if isinstance(value, (list, tuple, range, set, frozenset)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value
