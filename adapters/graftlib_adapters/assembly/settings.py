"""What the steps of an assembly are chosen by: the arguments of `assemble` that a plan keeps, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from graftlib.arguments import Positive, Seed, Share, Some, check
from graftlib.documents import Record

from .merging import Pad
from .pairing import Pairing
from .permutation import AssemblyError

__all__ = ["FACTORS", "PARTS", "Settings", "Wishes", "checked"]

FACTORS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
PARTS = ("all", "blocks", "layers")

_Factors = Annotated[list[Share], Meta(min_length=1, max_length=1_000)]
_Parts = Annotated[list[Literal["all", "blocks", "layers"]], Meta(min_length=1, max_length=3)]
_Goal = Literal["better", "within"]
_Pad = Literal["zero", "keep"]
_Method = Literal["coordinate", "frank-wolfe"]
_Score = Literal["l2", "inner"]
_Tolerance = Annotated[float, Meta(ge=0, le=1e300)]
_Rounds = Annotated[int, Meta(ge=1, le=10_000)]


class Wishes(Record):
    """Those arguments of `assemble` that a recipe may set."""

    merge_factor: Share | UnsetType = UNSET
    goal: _Goal | UnsetType = UNSET
    tolerance: _Tolerance | UnsetType = UNSET
    factors: _Factors | UnsetType = UNSET
    parts: _Parts | UnsetType = UNSET
    pad: _Pad | UnsetType = UNSET
    method: _Method | UnsetType = UNSET
    score: _Score | UnsetType = UNSET
    restarts: Some | UnsetType = UNSET
    rounds: _Rounds | UnsetType = UNSET
    patience: Positive | UnsetType = UNSET
    seed: Seed | UnsetType = UNSET

    def to_dict(self) -> dict[str, Any]:
        """Those that are set."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value is not UNSET}


@dataclass(frozen=True)
class Settings:
    """What steps are chosen by; the arguments of `assemble` that a plan keeps."""

    merge_factor: float | None
    goal: str
    tolerance: float
    factors: tuple[float, ...]
    parts: tuple[str, ...]
    pad: Pad
    method: str
    score: str
    restarts: int
    rounds: int
    patience: int | None
    seed: int
    judged_by: str
    pairing: Pairing

    @property
    def align(self) -> dict[str, Any]:
        """The keywords of `Meeting.align`."""
        return {
            "method": self.method,
            "score": self.score,
            "restarts": self.restarts,
            "seed": self.seed,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def checked(
    merge_factor: float | None,
    evaluate: Callable[..., float] | None,
    goal: str,
    tolerance: float,
    factors: Sequence[float],
    parts: Sequence[str],
    pad: Pad,
    frame: str,
    method: str,
    score: str,
    restarts: int,
    rounds: int,
    patience: int | None,
    seed: int,
    pairing: Pairing,
) -> Settings:
    """The settings of one assembly.

    Raises:
        AssemblyError: arguments are out of range; all of them are named.
    """
    check(
        AssemblyError,
        fix="see help(assemble); a wider base is made by surgery.widen before",
        merge_factor=(merge_factor, Share | None),
        evaluate=(evaluate, (Callable, type(None))),
        goal=(goal, _Goal),
        tolerance=(tolerance, _Tolerance),
        factors=(factors, _Factors),
        parts=(parts, _Parts),
        pad=(pad, _Pad),
        frame=(frame, Literal["base"]),
        method=(method, _Method),
        score=(score, _Score),
        restarts=(restarts, Some),
        rounds=(rounds, _Rounds),
        patience=(patience, Positive | None),
        seed=(seed, Seed),
        pairing=(pairing, Literal["blocks", "layers"]),
    )
    factors = tuple(map(float, factors))
    if not all(a < b for a, b in pairwise(factors)):
        raise AssemblyError(
            f"factors={factors} do not rise.", fix="name them from the smallest to the largest"
        )
    judged = "given factor" if merge_factor is not None else "evaluate" if evaluate else "no data"
    return Settings(
        None if merge_factor is None else float(merge_factor), goal, float(tolerance), factors,
        tuple(parts), pad, method, score, int(restarts), int(rounds),
        None if patience is None else int(patience), int(seed), judged, pairing,
    )  # fmt: skip
