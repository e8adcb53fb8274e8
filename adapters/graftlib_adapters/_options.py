"""Check options where an adapter is made, so that a mistake speaks before any model is touched."""

from __future__ import annotations

from collections.abc import Sequence

from graftlib.errors import GraftError, nearest

__all__ = ["chosen", "flag", "whole_number"]


def chosen(name: str, value: object, choices: Sequence[str]) -> None:
    """GraftError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise GraftError(
            f"{name}={value!r} is not a choice.",
            near=nearest(str(value), choices),
            fix=f"{name} is one of " + ", ".join(repr(choice) for choice in choices),
            option=name,
        )


def whole_number(name: str, value: object) -> None:
    """GraftError unless `value` is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise GraftError(
            f"{name}={value!r} is not a whole number of at least 1.",
            fix=f"give {name} an int from 1 on",
            option=name,
        )


def flag(name: str, value: object) -> None:
    """GraftError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise GraftError(
            f"{name}={value!r} is neither True nor False.",
            fix=f"use {name}=True or {name}=False",
            option=name,
        )
