"""One seed of the demo: a source, and three targets that differ in nothing but what is grafted onto them.

In: images, a budget, a seed, a device. Out: a `Run`. Always true: plain, grafted and control start from the same
weights and see the same batches in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import nn

from graftlib import Mapping, trace

from . import recipe
from .control import noise_source
from .data import Images
from .models import make_source, make_target
from .recipe import Budget
from .training import Curve, Lesson, train, train_grafted

__all__ = ["ROLES", "Run", "run", "steps_of"]

ROLES = ("source", "plain", "grafted", "random source")
"""The four trainings of a run, in the order in which they take place and are shown."""

Tell = Callable[[str], None]
Tick = Callable[[], None]


@dataclass
class Run:
    """What one seed gave.

    Attributes:
        seed: of everything random in it.
        source: the trained source.
        target: the grafted target, detached.
        mapping: the links between the two.
        curves: one for each of `ROLES`.
        seconds: the same, wall clock.
    """

    seed: int
    source: nn.Module
    target: nn.Module
    mapping: Mapping
    curves: dict[str, Curve] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def steps_of(budget: Budget) -> int:
    """Optimizer steps of a whole run, all four trainings together."""
    target = budget.epochs * max(1, budget.train_size // budget.batch)
    return budget.source_epochs * max(1, budget.source_size // budget.batch) + 3 * target


def run(
    images: Images,
    budget: Budget,
    seed: int,
    device: torch.device,
    *,
    tell: Tell = print,
    tick: Tick = lambda: None,
) -> Run:
    """Train source, plain target, grafted target and control with one seed.

    Args:
        images: to learn from and to be measured on.
        budget: how much training there is.
        seed: of initial weights, drawn images, their order, dropout, the adapter and the control's noise.
        device: that everything takes place on.
        tell: called with what is trained now, a few words.
        tick: called after every optimizer step.
    """
    held_out = images.test_x.to(device), images.test_y.to(device)
    example = (held_out[0][:2],)

    def lesson(size: int, epochs: int) -> Lesson:
        x, y = images.few(size, seed)
        return Lesson(
            x.to(device), y.to(device), held_out, epochs, budget.batch, budget.lr, seed, tick
        )

    def mapped(giver: nn.Module, receiver: nn.Module) -> Mapping:
        return recipe.link(Mapping(trace(giver, example), trace(receiver, example)))

    torch.manual_seed(seed)
    source = make_source(images.shape, images.classes).to(device)
    plain = make_target(images.shape, images.classes).to(device)
    grafted, control = deepcopy(plain), deepcopy(plain)
    much, few = (
        lesson(budget.source_size, budget.source_epochs),
        lesson(budget.train_size, budget.epochs),
    )
    result = Run(seed, source, grafted, mapped(source, grafted))
    givers = [pair.source.fqn for pair in result.mapping.pairs]
    trainings: dict[str, Callable[[], Curve]] = {
        "source": lambda: train(source, much),
        "plain": lambda: train(plain, few),
        "grafted": lambda: train_grafted(grafted, result.mapping, few),
        "random source": lambda: train_grafted(
            control, mapped(noise_source(source, givers, seed), control), few
        ),
    }
    for role in ROLES:
        tell(f"seed {seed}: training {role}")
        began = time.perf_counter()
        result.curves[role] = trainings[role]()
        result.seconds[role] = time.perf_counter() - began
    return result
