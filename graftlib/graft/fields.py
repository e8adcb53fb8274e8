"""Check plain data from outside, field by field: each function returns what it was given, or refuses it by name.

In: a value of any type, and where in the state it stands. Out: the value, of the type that it must have; tensors and
containers are copies. Always true: what is refused is a `CheckpointError` with the place, the value in short and what
it must be; nothing is changed.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError

__all__ = ["at_least", "integer", "items", "number", "record", "refusal", "shown", "tensor", "text"]

T = TypeVar("T")
LARGEST = 2**53  # what a step count may be: exact as a float, too


def refusal(place: str, value: object, wanted: str) -> CheckpointError:
    """The error for a `value` that is not `wanted`."""
    return CheckpointError(
        f"the graft's state is damaged: {place} is not {wanted}.",
        where={"there is": shown(value)},
        fix="resume from the checkpoint before it",
        place=place,
    )


def integer(place: str, value: object, low: int = 0, high: int = LARGEST) -> int:
    """An int from `low` to `high`; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise refusal(place, value, f"an int from {low} to {high}")
    return value


def number(place: str, value: object, *, finite: bool = False) -> float:
    """A float or an int; inf and nan only where `finite` is not asked for."""
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (not finite or abs(value) < math.inf)
    ):
        return value
    raise refusal(place, value, "a finite number" if finite else "a number")


def at_least(place: str, value: object, low: float, below: float = 1e30) -> float:
    """A number from `low` to, but not including, `below`."""
    if not low <= number(place, value, finite=True) < below:
        raise refusal(place, value, f"a number from {low} to below {below}")
    return number(place, value)


def text(place: str, value: object, among: Iterable[str] | None = None) -> str:
    """A str, one of `among` where that is given."""
    if not isinstance(value, str) or (among is not None and value not in set(among)):
        raise refusal(place, value, "a name of this graft" if among is not None else "a str")
    return value


def items(place: str, value: object, one: Callable[[str, object], T]) -> list[T]:
    """A new list of what `one` accepts; a tuple counts as a list."""
    if not isinstance(value, list | tuple):
        raise refusal(place, value, "a list")
    return [one(f"{place}[{i}]", item) for i, item in enumerate(value)]


def record(place: str, value: object, required: Iterable[Any] = ()) -> dict[Any, Any]:
    """A dict with at least the keys `required`; a shallow copy."""
    if not isinstance(value, dict):
        raise refusal(place, value, "a dict")
    missing = [key for key in required if key not in value]
    if missing:
        raise refusal(place, list(value), "complete: " + ", ".join(map(repr, missing)) + " missing")
    return dict(value)


def tensor(
    place: str,
    value: object,
    shape: Iterable[int],
    dtype: torch.dtype | None,
    *,
    finite: bool = True,
) -> Tensor:
    """A copy of a dense tensor of this shape and dtype (None: any floating one), every value of it finite."""
    shape = tuple(shape)
    wanted = f"a tensor of shape {shape} and dtype {dtype or 'of floats'}"
    if (
        not isinstance(value, Tensor)
        or value.layout is not torch.strided
        or value.device.type == "meta"
        or tuple(value.shape) != shape
        or (value.dtype != dtype if dtype is not None else not value.is_floating_point())
    ):
        raise refusal(place, value, wanted)
    if finite and not bool(value.isfinite().all()):
        raise refusal(
            place, value, f"finite: {int((~value.isfinite()).sum())} values are inf or nan"
        )
    copy: Tensor = value.detach().clone()
    return copy


def shown(value: object) -> str:
    """A value from outside in short, on one line, whatever it is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    if value is None or isinstance(value, bool | str | bytes | list | tuple | dict | float):
        return reprlib.repr(value)
    if isinstance(value, int):
        # The digits of a very large int are slow to find, and are refused by Python from 4,300 on.
        return repr(value) if value.bit_length() < 200 else f"an int of {value.bit_length()} bits"
    return f"a {type(value).__name__}"
