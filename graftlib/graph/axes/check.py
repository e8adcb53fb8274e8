"""The permutation check: are the classes right? The model is run to say so.

In: a layer graph. Out: a `CheckResult`. Every free class is permuted at random in a copy whose norms and running
statistics were drawn at random; the outputs must stay. Then the weights are shuffled, and the outputs must change: a
check that could not fail says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .classes import AxisClass, Member, axis_classes, freedom
from .trial import Example, Trial, difference

if TYPE_CHECKING:
    from ..layergraph import LayerGraph

__all__ = ["TOLERANCE", "CheckResult", "check", "draw", "permute"]

# Doubles keep 16 digits; deep networks lose some. A wrong class shows from about 1e-6 on.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class CheckResult:
    """What the permutation check found.

    Attributes:
        passed: the outputs stayed, and the check was able to fail.
        max_rel_error: largest change of an output, relative to the largest number of its tensor.
        freedom: see `classes.freedom_of`.
        classes: how many free classes were permuted.
        seconds: it took.
        control: the same as `max_rel_error` when the weights are shuffled instead: how much there is to see.
        warning: why the check says little; None where it says what it should.
    """

    passed: bool
    max_rel_error: float
    freedom: float
    classes: int
    seconds: float
    control: float
    warning: str | None = None

    def __str__(self) -> str:
        word = "passed" if self.passed else "inconclusive" if self.warning else "FAILED"
        text = (
            f"permutation check {word}: {self.classes} free classes, largest relative change "
            f"{self.max_rel_error:.1e} (shuffled weights: {self.control:.1e}), "
            f"freedom {self.freedom:.3f}, {self.seconds:.1f} s"
        )
        return text + (f"\n  {self.warning}" if self.warning else "")


def check(
    graph: LayerGraph,
    *,
    seed: int = 0,
    example: Example | None = None,
    tolerance: float = TOLERANCE,
) -> CheckResult:
    """Run the permutation check, in double precision and eval mode, on the CPU.

    Args:
        graph: of the model; a model on the meta device gets random weights.
        seed: for weights, inputs and permutations.
        example: (args, kwargs) with real values to run on; by default they are drawn at random at the traced
            shapes, integers within the tables they look up in.
        tolerance: largest relative change of an output that passes.
    """
    start = time.perf_counter()
    free = [each for each in axis_classes(graph) if each.free]
    trial = Trial(graph, seed=seed, example=example)
    before = trial.run()
    orders = draw(free, seed)
    with changed(trial, {m: order for each, order in orders for m in each.members}):
        error = difference(before, trial.run())
    control = _control(trial, free, before, seed) if free else 0.0
    warning = _warning(before, free, control, tolerance)
    if error > tolerance and warning is None and _jumps(trial, before, tolerance, seed):
        warning = "the outputs jump when weights change by a rounding error (equal scores in a sort?): pass `example`"
    return CheckResult(
        passed=error <= tolerance and (warning is None or not free),
        max_rel_error=error,
        freedom=freedom(graph),
        classes=len(free),
        seconds=time.perf_counter() - start,
        control=control,
        warning=warning,
    )


def draw(classes: Sequence[AxisClass], seed: int) -> list[tuple[AxisClass, Tensor]]:
    """A random order for each class, never the one it has: entry i is the unit that comes to place i."""
    random = torch.Generator().manual_seed(seed + 1)
    return [(each, _order(each.size, random)) for each in classes]


def _order(size: int, random: torch.Generator) -> Tensor:
    order = torch.randperm(size, generator=random, device="cpu")
    if bool((order == torch.arange(size, device="cpu")).all()):
        order = order.roll(1)
    return order


def permute(tensor: Tensor, member: Member, order: Tensor) -> None:
    """Put the units of `member` in `tensor` in another order, in place."""
    count = 1
    for size in member.factors:
        count *= size
    units = tensor.narrow(member.axis, member.start, count)
    index = (
        torch.arange(count, device="cpu")
        .reshape(member.factors)
        .index_select(member.position, order)
        .flatten()
    )
    with torch.no_grad():
        units.copy_(units.index_select(member.axis, index.to(tensor.device)))


class changed:  # noqa: N801 - reads as a verb: ``with changed(trial, …)``
    """The copy with members permuted; afterwards it is as before."""

    def __init__(self, trial: Trial, orders: Mapping[Member, Tensor]) -> None:
        self._trial = trial
        self._orders = orders

    def __enter__(self) -> None:
        for member, order in self._orders.items():
            permute(self._trial.tensor(member.fqn), member, order)

    def __exit__(self, *error: Any) -> None:
        # Back by the inverse orders: copies of the weights would double the memory.
        for member, order in reversed(list(self._orders.items())):
            permute(self._trial.tensor(member.fqn), member, order.argsort())


def _control(trial: Trial, free: Sequence[AxisClass], before: Sequence[Tensor], seed: int) -> float:
    """How far the outputs move when the elements of every tensor that takes part are shuffled."""
    names = sorted({m.fqn for each in free for m in each.members})
    _shuffle(trial, names, seed + 2)
    try:
        return difference(before, trial.run())
    except (RuntimeError, IndexError, ValueError, AssertionError):
        # A model that refuses what it computes then has seen it too.
        return float("inf")
    finally:
        _shuffle(trial, names, seed + 2, back=True)


def _shuffle(trial: Trial, names: Sequence[str], seed: int, *, back: bool = False) -> None:
    """Move the elements of each tensor, seen as flat, by a random number of places, in place; `back` undoes it.

    A full shuffle of a hundred million weights would take longer than running the model.
    """
    random = torch.Generator().manual_seed(seed)
    for fqn in names:
        tensor = trial.tensor(fqn)
        places = int(torch.randint(1, max(tensor.numel(), 2), (), generator=random, device="cpu"))
        tensor.copy_(tensor.flatten().roll(-places if back else places).view(tensor.shape))


def _jumps(trial: Trial, before: Sequence[Tensor], tolerance: float, seed: int) -> bool:
    """Whether rounding alone moves the outputs that far: then a permutation, which rounds otherwise, may too."""
    random = torch.Generator().manual_seed(seed + 3)
    with torch.no_grad():
        for tensor in trial.model.parameters():
            if tensor.is_floating_point():
                noise = torch.randn(
                    tensor.shape, dtype=tensor.dtype, generator=random, device="cpu"
                )
                tensor.mul_(1 + 1e-15 * noise)
    return difference(before, trial.run()) > tolerance


def _warning(
    before: Sequence[Tensor], free: Sequence[AxisClass], control: float, tolerance: float
) -> str | None:
    if not free:
        return "nothing is free: there was nothing to permute"
    if not any(t.numel() and bool(t.isfinite().any()) for t in before):
        return (
            "the outputs hold no finite number on this input: the check cannot fail; pass `example`"
        )
    if control <= 100 * tolerance:
        return "the outputs do not depend on the free weights on this input: the check cannot fail; pass `example`"
    return None
