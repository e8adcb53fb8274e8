"""What an assembly is asked for: how units are aligned, which merges are tried, and what a plan keeps of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from graftlib.arguments import Positive, Seed, Share, Some, check
from graftlib.documents import Record

from .errors import AssemblyError

__all__ = [
    "FACTORS",
    "METHODS",
    "PADS",
    "Method",
    "ObjectiveName",
    "Pad",
    "Pairing",
    "RecipeSettings",
    "Search",
    "Settings",
    "Solver",
]

Method = Literal["coordinate", "frank-wolfe", "identity", "random", "shrink"]
METHODS = ("coordinate", "frank-wolfe", "identity", "random", "shrink")
ObjectiveName = Literal["l2", "inner"]
Pad = Literal["zero", "keep"]
PADS: tuple[Pad, ...] = ("zero", "keep")
Pairing = Literal["blocks", "layers"]
FACTORS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)

_Factors = Annotated[list[Share], Meta(min_length=1, max_length=1_000)]
_Parts = Annotated[list[Literal["all", "blocks", "layers"]], Meta(min_length=1, max_length=3)]
_Goal = Literal["better", "within"]
_Tolerance = Annotated[float, Meta(ge=0, le=1e300)]
_Rounds = Annotated[int, Meta(ge=1, le=10_000)]


@dataclass(frozen=True)
class Solver:
    """How the units of a source are aligned, see `matching.align`.

    Attributes:
        method: ``coordinate``, ``frank-wolfe``, or (for `lmc` alone) a control: ``identity`` (unit i reads unit i),
            ``random``, and ``shrink``, which merges a source that holds nothing: W = (1 - λ) W_B.
        objective: what is maximised, ``l2`` or ``inner``; None: ``l2``, in the union frame ``inner``.
        restarts: further random starts; the best objective is kept.

    Raises:
        AssemblyError: a value is out of range; all of them are named.
    """

    method: Method = "coordinate"
    objective: ObjectiveName | None = None
    restarts: int = 0

    def __post_init__(self) -> None:
        check(
            AssemblyError,
            fix="see help(Solver)",
            method=(self.method, Method),
            objective=(self.objective, ObjectiveName | None),
            restarts=(self.restarts, Some),
        )
        object.__setattr__(self, "restarts", int(self.restarts))  # of NumPy and torch, too


@dataclass(frozen=True)
class Search:
    """Which merges of a source are tried, and which of them is taken.

    Attributes:
        goal: ``better``: the candidate of the highest metric, where it is more than `tolerance` above the metric by
            then. ``within``: the largest factor up to which all smaller ones, too, stay within `tolerance` of the best
            metric by then (the paper's merging-factor threshold).
        tolerance: in the unit of the metric, at least 0.
        factors: merging factors that are tried, rising, above 0.
        parts: which modules are tried together: ``all``, ``blocks`` (up to four groups of neighbours), ``layers`` (one
            at a time).
        rounds: how often the sources are gone through; a whole round without a merge ends it sooner. More than one
            needs sources that can be had again.
        max_refusals: stop after so many in a row, for zoos without an end; None: go through all.

    Raises:
        AssemblyError: a value is out of range; all of them are named.
    """

    goal: Literal["better", "within"] = "better"
    tolerance: float = 0.0
    factors: Sequence[float] = FACTORS
    parts: Sequence[Literal["all", "blocks", "layers"]] = ("all", "blocks")
    rounds: int = 1
    max_refusals: int | None = None

    def __post_init__(self) -> None:
        check(
            AssemblyError,
            fix="see help(Search)",
            goal=(self.goal, _Goal),
            tolerance=(self.tolerance, _Tolerance),
            factors=(self.factors, _Factors),
            parts=(self.parts, _Parts),
            rounds=(self.rounds, _Rounds),
            max_refusals=(self.max_refusals, Positive | None),
        )
        factors = tuple(map(float, self.factors))
        if not all(a < b for a, b in pairwise(factors)):
            raise AssemblyError(
                f"factors={factors} do not rise.", fix="name them from the smallest to the largest"
            )
        most = None if self.max_refusals is None else int(self.max_refusals)
        plain = {
            "factors": factors,
            "parts": tuple(self.parts),
            "tolerance": float(self.tolerance),
            "rounds": int(self.rounds),
            "max_refusals": most,
        }
        for name, value in plain.items():  # numbers of NumPy and torch as Python's
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Settings:
    """What the steps of one assembly are chosen by.

    Attributes:
        chosen_by: ``given factor``, ``evaluate`` or ``no data``.
    """

    merge_factor: float | None
    search: Search
    solver: Solver
    pad: Pad
    pairing: Pairing
    seed: int
    chosen_by: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they stand in a plan."""
        plain = {"merge_factor": self.merge_factor, **asdict(self.search), **asdict(self.solver)}
        plain["objective"] = self.solver.objective or "l2"
        plain |= {name: getattr(self, name) for name in ("pad", "pairing", "seed", "chosen_by")}
        return {k: list(v) if isinstance(v, (tuple, list)) else v for k, v in plain.items()}


class RecipeSettings(Record):
    """Those arguments of `assemble` that a recipe may set, those of `Search` and `Solver` among them."""

    merge_factor: Share | UnsetType = UNSET
    goal: _Goal | UnsetType = UNSET
    tolerance: _Tolerance | UnsetType = UNSET
    factors: _Factors | UnsetType = UNSET
    parts: _Parts | UnsetType = UNSET
    rounds: _Rounds | UnsetType = UNSET
    max_refusals: Positive | UnsetType = UNSET
    method: Literal["coordinate", "frank-wolfe"] | UnsetType = UNSET
    objective: ObjectiveName | UnsetType = UNSET
    restarts: Some | UnsetType = UNSET
    pad: Pad | UnsetType = UNSET
    pairing: Pairing | UnsetType = UNSET
    seed: Seed | UnsetType = UNSET

    def to_dict(self) -> dict[str, Any]:
        """Those that are set."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value is not UNSET}

    def keywords(self) -> dict[str, Any]:
        """As `assemble` takes them."""
        values = self.to_dict()
        search = {k: values.pop(k) for k in Search.__dataclass_fields__ if k in values}
        solver = {k: values.pop(k) for k in Solver.__dataclass_fields__ if k in values}
        return {**values, "search": Search(**search), "solver": Solver(**solver)}
