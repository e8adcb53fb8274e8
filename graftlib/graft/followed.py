"""The host's optimizers: which of them a graft can follow, and the closures that some are handed.

In: optimizers and a `Plan`. Out: nothing, or the refusal. Always true: a closure is evaluated once in a step, before
the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import LBFGS, Optimizer

from ..errors import AttachError, TransferError
from .linked import owns
from .plan import Plan

__all__ = ["Once", "check_optimizers"]


def check_optimizers(optimizers: Iterable[Optimizer], plan: Plan) -> None:
    """Refuse optimizers that a graft cannot live with, or that leave a written parameter unstepped.

    Raises:
        AttachError: see `Graft.follow`.
    """
    optimizers = list(optimizers)
    if len({id(optimizer) for optimizer in optimizers}) < len(optimizers):
        raise AttachError(
            "follow() was passed one optimizer twice.",
            why="each of its steps would be counted twice",
            fix="graft.follow(optimizer)",
        )
    if not optimizers:
        raise AttachError(
            "follow() needs the optimizer that steps the target.", fix="graft.follow(optimizer)"
        )
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise AttachError(
                f"follow() takes torch optimizers, not {type(optimizer).__name__}.",
                fix="pass the torch.optim.Optimizer inside it, often `.optimizer`",
            )
        if isinstance(optimizer, LBFGS):
            raise AttachError(
                "LBFGS evaluates the loss inside its step, so a write cannot last one step.",
                fix="use an optimizer without a closure, such as SGD or AdamW",
            )
        if not any(owns(optimizer, tensor) for tensor in plan.written):
            raise AttachError(
                f"this {type(optimizer).__name__} steps none of the parameters that the graft writes.",
                where={"written": ", ".join(tensor.name for tensor in plan.written)},
                fix="pass the optimizer made from the target's parameters, after any .to() that replaced them",
            )
    for tensor in plan.written:
        if not any(owns(optimizer, tensor) for optimizer in optimizers):
            raise AttachError(
                f"no optimizer passed to follow() steps '{tensor.name}'.",
                why="what the graft writes must be trained, or the adapter would never be updated from it",
                fix="pass its optimizer too, unfreeze it, or link only in the other direction",
            )


class Once:
    """Does `then` after a closure, and lets it be evaluated once only."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then, self.calls = then, 0

    def around(self, value: Any) -> Any:
        """`value`, wrapped where it is a closure."""
        if not callable(value):
            return value

        def evaluated(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls > 1:
                raise TransferError(
                    "the optimizer evaluated its closure twice in one step.",
                    why="a write must last from one forward pass to one update",
                    fix="use an optimizer that evaluates the loss once, such as SGD or AdamW",
                )
            answer = value(*args, **kwargs)
            self.then()
            return answer

        return evaluated
