"""The permutation check: are the classes right? The model is run to say so.

In: a layer graph. Out: a `CheckResult`. Every free class is permuted at random in a copy whose norms and running
statistics were drawn at random; the outputs must stay. Then the weights are shuffled, and the outputs must change: a
check that could not fail says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import GraftError, TraceError
from ...progress import part
from ...reports import Report
from ..traced import TracedGraph
from .classes import AxisClass, Member, axis_classes, freedom
from .trial import Example, Trial, compared, difference, without_numbers

__all__ = ["TOLERANCE", "CheckResult", "check", "control", "draw", "jumps", "permute"]

# Doubles keep 16 digits; deep networks lose some. A wrong class shows from about 1e-6 on.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class CheckResult(Report):
    """What the permutation check says.

    Attributes:
        passed: the outputs stayed, and the check was able to fail.
        max_rel_error: largest change of an output, relative to the largest number of its tensor.
        freedom: see `classes.freedom_of`.
        classes: how many free classes were permuted.
        seconds: it took.
        control: the same as `max_rel_error` when the weights are shuffled instead: how much there is to see.
        warning: why the check says little; None where it says what it should.
        own_weights: it ran on the model's own norms and statistics, as drawn ones were ill-conditioned.
        compared: share of the outputs' numbers that are finite, and were compared, 0.0 to 1.0.
        invented: inputs that were traced without values, so that the values were made up.
    """

    passed: bool
    max_rel_error: float
    freedom: float
    classes: int
    seconds: float
    control: float
    warning: str | None = None
    own_weights: bool = False
    compared: float = 1.0
    invented: tuple[str, ...] = ()

    def __str__(self) -> str:
        word = "passed" if self.passed else "inconclusive" if self.warning else "FAILED"
        lines = [
            f"permutation check {word}: {self.classes} free classes, largest relative change "
            f"{self.max_rel_error:.1e} (shuffled weights: {self.control:.1e}), "
            f"freedom {self.freedom:.3f}, {self.seconds:.1f} s"
        ]
        if self.warning:
            lines.append(self.warning)
        if self.own_weights:
            lines.append(
                "with the model's own norms and statistics: with drawn ones, rounding alone moved the outputs. Where "
                "its own are the same everywhere, their order is not seen"
            )
        if self.compared < 1:
            lines.append(
                f"{self.compared:.1%} of the outputs' numbers are finite and were compared"
            )
        if self.invented:
            names = ", ".join(map(repr, self.invented[:6]))
            lines.append(f"traced without values: those of {names} were invented; pass `example`")
        return "\n  ".join(lines)


def check(
    graph: TracedGraph,
    *,
    seed: int = 0,
    example: Example | None = None,
    tolerance: float = TOLERANCE,
) -> CheckResult:
    """Run the permutation check, in double precision and eval mode, on the CPU.

    Args:
        graph: of the model; a model on the meta device gets random weights.
        seed: for weights, inputs and permutations.
        example: (args, kwargs) with real values to run on; None draws by `graph.evidence`: the traced integers and
            booleans, and floating-point numbers within what was seen.
        tolerance: largest relative change of an output that passes.

    Returns:
        the result; where rounding alone moves the outputs of a model with drawn norms and statistics, or they are not
        finite, that of a second run with its own.

    Raises:
        TraceError: `example` is no such pair, or the model does not run on these inputs.
    """
    start = time.perf_counter()
    example = None if example is None else _pair(example)
    result = _checked(graph, seed, example, tolerance, drawn=True)
    if result.warning in (_NOT_FINITE, _JUMPS) and not _on_meta(graph):
        again = _checked(graph, seed, example, tolerance, drawn=False)
        result = replace(again, own_weights=True) if again.warning is None else result
    return replace(result, seconds=time.perf_counter() - start)


def _checked(
    graph: TracedGraph, seed: int, example: Example | None, tolerance: float, *, drawn: bool
) -> CheckResult:
    free = [each for each in axis_classes(graph) if each.free]
    try:
        with part(0.0, 0.5):
            trial = Trial(graph, seed=seed, example=example, drawn=drawn)
            before = trial.run()
    except GraftError:
        raise
    except Exception as failure:
        raise TraceError(
            f"'{graph.name}' does not run on the inputs of the check.",
            where={"inputs": "those of `example`" if example else "drawn by graph.evidence"},
            why=f"{type(failure).__name__}: {failure}"[:300],
            fix="pass inputs that it takes: graph.check(example=(args, kwargs))",
        ) from failure
    orders = draw(free, seed)
    with (
        part(0.5, 0.75),
        changed(trial, {m: order for each, order in orders for m in each.members}),
    ):
        error = difference(before, _after(trial))
    with part(0.75, 1.0):
        shown = control(trial, free, before, seed) if free else 0.0
    warning = _warning(before, free, shown, tolerance)
    if error > tolerance and warning is None and jumps(trial, before, tolerance, seed):
        warning = _JUMPS
    return CheckResult(
        passed=error <= tolerance and (warning is None or not free),
        max_rel_error=error,
        freedom=freedom(graph),
        classes=len(free),
        seconds=0.0,
        control=shown,
        warning=warning,
        compared=compared(before),
        invented=trial.invented,
    )


def _pair(example: Any) -> Example:
    pair = isinstance(example, (tuple, list)) and len(example) == 2
    if not (pair and isinstance(example[0], (tuple, list)) and isinstance(example[1], Mapping)):
        raise TraceError(
            "`example` is a pair (args, kwargs) of what the model is called with.",
            where={"example": type(example).__name__},
            fix="graph.check(example=((x,), {}))",
        )
    return tuple(example[0]), dict(example[1])


def _on_meta(graph: TracedGraph) -> bool:
    model = graph.model
    return any(t.device.type == "meta" for t in [*model.parameters(), *model.buffers()])


def _after(trial: Trial) -> list[Tensor]:
    """The outputs of changed weights; none where the model refuses what it computes then, which is a change, too."""
    try:
        return trial.run()
    except (RuntimeError, IndexError, ValueError, AssertionError):
        return []


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
    with torch.no_grad():
        units = member.units(tensor)
        units.copy_(units.index_select(0, order.to(tensor.device)))


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


def control(
    trial: Trial, classes: Iterable[AxisClass], before: Sequence[Tensor], seed: int = 0
) -> float:
    """How far the outputs move when the elements of every tensor that takes part in the classes are shuffled.

    Args:
        trial: its copy is as before afterwards.
        classes: of its graph.
        before: the outputs as they are.
        seed: of the shuffle.
    """
    names = sorted({m.fqn for each in classes for m in each.members})
    _shuffle(trial, names, seed + 2)
    try:
        return difference(before, _after(trial))
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


def jumps(trial: Trial, before: Sequence[Tensor], tolerance: float, seed: int) -> bool:
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
    before: Sequence[Tensor], free: Sequence[AxisClass], shown: float, tolerance: float
) -> str | None:
    if not free:
        return "nothing is free: there was nothing to permute"
    if without_numbers(before):
        return _NOT_FINITE
    if shown <= 100 * tolerance:
        return "the outputs do not depend on the free weights on this input: the check cannot fail; pass `example`"
    return None


_NOT_FINITE = (
    "an output holds no finite number on this input: the check cannot fail there; pass `example`"
)
_JUMPS = "the outputs jump when weights change by a rounding error (equal scores in a sort?): pass `example`"
