"""Check options where an adapter is made, so that a mistake speaks before any model is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from graftlib.arguments import Positive
from graftlib.errors import GraftError, nearest

__all__ = ["chosen", "flag", "must_be", "whole_number"]


def must_be(kind: Any, name: str, value: object, otherwise: str, fix: str) -> None:
    """GraftError, which says what `value` is `otherwise`, unless it is of `kind`: a type that msgspec knows."""
    try:
        msgspec.convert(_plain(value), kind)
    except msgspec.ValidationError:
        raise GraftError(f"{name}={value!r} {otherwise}", fix=fix, option=name) from None


def _plain(value: object) -> object:
    """NumPy's floats, which are floats, as Python's; those of a pair, too."""
    if isinstance(value, (list, tuple)):
        return [float(each) if isinstance(each, float) else each for each in value]
    return float(value) if isinstance(value, float) else value


def chosen(name: str, value: object, choices: Sequence[str]) -> None:
    """GraftError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise GraftError(
            f"{name}={value!r} is not a choice.",
            near=nearest(str(value), choices),
            fix=f"{name} is one of " + ", ".join(map(repr, choices)),
            option=name,
        )


def whole_number(name: str, value: object) -> None:
    """GraftError unless `value` is an int of at least 1."""
    otherwise = "is not a whole number of at least 1."
    must_be(Positive, name, value, otherwise, f"give {name} an int from 1 on")


def flag(name: str, value: object) -> None:
    """GraftError unless `value` is True or False."""
    must_be(bool, name, value, "is neither True nor False.", f"use {name}=True or {name}=False")
