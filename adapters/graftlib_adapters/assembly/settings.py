"""What the steps of an assembly are chosen by: the arguments of `assemble` that a plan keeps, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .merging import Pad
from .pairing import Pairing
from .permutation import AssemblyError

__all__ = ["FACTORS", "PARTS", "Settings", "checked"]

FACTORS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
PARTS = ("all", "blocks", "layers")
GOALS = ("better", "within")
METHODS = ("coordinate", "frank-wolfe")


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
    rising = all(a < b for a, b in zip((0.0, *factors), factors, strict=False))
    wrong = {
        f"merge_factor={merge_factor}": merge_factor is not None and not 0 < merge_factor <= 1,
        f"goal={goal!r}": goal not in ("better", "within"),
        f"tolerance={tolerance}": not tolerance >= 0,
        f"factors={tuple(factors)}": not factors or not rising or factors[-1] > 1,
        f"parts={tuple(parts)}": not parts or not set(parts) <= set(PARTS),
        f"pad={pad!r}": pad not in ("zero", "keep"),
        f"frame={frame!r}": frame != "base",
        f"method={method!r}": method not in ("coordinate", "frank-wolfe"),
        f"pairing={pairing!r}": pairing not in ("blocks", "layers"),
        f"rounds={rounds}": rounds < 1,
        f"patience={patience}": patience is not None and patience < 1,
    }
    if any(wrong.values()):
        raise AssemblyError(
            "assemble cannot work with " + ", ".join(word for word, bad in wrong.items() if bad),
            fix="see help(assemble); a wider base is made by surgery.widen before",
        )
    judged = "given factor" if merge_factor is not None else "evaluate" if evaluate else "no data"
    return Settings(
        merge_factor, goal, float(tolerance), tuple(map(float, factors)), tuple(parts), pad, method,
        score, restarts, rounds, patience, seed, judged, pairing,
    )  # fmt: skip
