"""When a transfer happens: the schedule of eq. 7 in the MergeNet paper, with a start, a stop and an offset.

In: a count of optimizer steps of the target. Out: whether a transfer precedes that step. Always true: the answer
depends on the count alone, so a resumed run transfers at the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from ..arguments import Positive
from ..documents import Count, Record, convert
from ..errors import AttachError

__all__ = ["TransferCycle"]


@dataclass(frozen=True)
class TransferCycle:
    """Transfer before step t where ``(t - offset) % every == 0`` and ``start <= t < stop``; otherwise self-learning.

    Attributes:
        every: T_cycle, in optimizer steps of the target (the paper uses 1 to 5).
        offset: shifts the phase, in steps.
        start: the first step that may transfer: an int is a step, a float in [0, 1] is a share of training.
        stop: the first step that may not, likewise; None means never. ``0.8`` leaves the last fifth of training to
            self-learning alone.

    Raises:
        AttachError: a value is out of range, or `stop` precedes `start`.

    Examples:
        >>> [t for t in range(12) if TransferCycle(4, offset=1).transfers(t)]
        [1, 5, 9]
        >>> [t for t in range(12) if TransferCycle(2, start=3, stop=0.75).transfers(t, total_steps=12)]
        [4, 6, 8]
    """

    every: int = 4
    offset: int = 0
    start: int | float = 0
    stop: int | float | None = None

    def __post_init__(self) -> None:
        steps = "steps are whole numbers, a float is a share of training"
        fix = f"TransferCycle(every=4, offset=0, start=800, stop=0.8): {steps}"
        convert(vars(self), _Values, what="the TransferCycle", error=AttachError, fix=fix)
        if type(self.start) is type(self.stop) and self.stop is not None and self.stop < self.start:
            raise AttachError(
                f"stop={self.stop} precedes start={self.start}: nothing would ever transfer.",
                fix="give a stop after the start, or stop=None",
            )

    @property
    def needs_total(self) -> bool:
        """Whether `start` or `stop` is a share of training, so that the number of steps must be known."""
        return any(isinstance(edge, float) and edge > 0 for edge in (self.start, self.stop))

    def transfers(self, t: int, total_steps: int | None = None) -> bool:
        """Whether a transfer precedes step `t` (the first step is 0)."""
        start = _steps(self.start, total_steps)
        stop = None if self.stop is None else _steps(self.stop, total_steps)
        inside = t >= max(start, self.offset) and (stop is None or t < stop)
        return (
            inside
            and (t - self.offset) % self.every == 0
            and not (total_steps and t >= total_steps)
        )

    def count(self, total_steps: int) -> int:
        """How many transfers a training of `total_steps` steps has."""
        return self.between(0, total_steps, total_steps)

    def between(self, first: int, end: int, total_steps: int | None = None) -> int:
        """How many of the steps from `first` up to, but not including, `end` a transfer precedes; in constant time.

        >>> TransferCycle(4, offset=1).between(5, 12), TransferCycle(2, start=3).between(0, 9)
        (2, 3)
        """
        begin = max(_steps(self.start, total_steps), self.offset, first)
        begin += (self.offset - begin) % self.every
        if self.stop is not None:
            end = min(end, _steps(self.stop, total_steps))
        if total_steps:
            end = min(end, total_steps)
        return max(0, -((begin - end) // self.every))


Edge = Annotated[int, Meta(ge=0, le=2**53)] | Annotated[float, Meta(ge=0, le=1)]


class _Values(Record):
    every: Positive
    offset: Count
    start: Edge
    stop: Edge | None


def _steps(edge: int | float, total_steps: int | None) -> int:
    if isinstance(edge, int):
        return edge
    if edge == 0.0:
        return 0
    if total_steps is None:
        raise AttachError(
            f"{edge} is a share of training, but the number of steps is not known.",
            fix="attach(..., total_steps=epochs * len(loader)), or give start and stop in steps",
        )
    return round(edge * total_steps)
