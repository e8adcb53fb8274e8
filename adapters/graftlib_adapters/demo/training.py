"""Train a model plainly, and train it grafted: the difference is three lines.

In: a model, images, a budget, a seed. Out: its `Curve`, and for a grafted one the history of its transfers.
Always true: runs of one seed see the same batches in the same order, drop the same units and take the same steps;
evaluation sees settled weights; a grafted model comes back without its graft.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from graftlib import Mapping, attach
from graftlib.graft import settled

from . import recipe

__all__ = ["Curve", "Lesson", "accuracy", "train", "train_grafted"]


@dataclass(frozen=True)
class Lesson:
    """What a model is trained on and for how long.

    Attributes:
        x, y: the training images (n, channels, height, width) and labels (n,).
        held_out: images and labels that accuracy is measured on.
        epochs: over the n images.
        batch: images a step; those that do not fill a batch wait for the next epoch's order.
        lr: largest learning rate.
        seed: of the order of the images and of dropout.
        tick: called after every step.
    """

    x: Tensor
    y: Tensor
    held_out: tuple[Tensor, Tensor]
    epochs: int
    batch: int
    lr: float
    seed: int
    tick: Callable[[], None] = lambda: None

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * max(1, len(self.y) // self.batch)

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """The positions of each batch of one epoch: a function of seed and epoch, and of nothing else."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order = torch.randperm(len(self.y), generator=generator)
        size = min(self.batch, len(order))
        yield from torch.split(order[: len(order) // size * size], size)


@dataclass
class Curve:
    """How a training went. All lists have one entry a measured epoch, oldest first.

    Attributes:
        steps: optimizer steps taken by then.
        loss: mean training loss of that epoch, nats.
        accuracy: share of the held-out images named rightly, 0.0 to 1.0; the last entry, on all of them, is
            the result; those before it are counted on the first 2,000.
        batches: SHA-256 over the positions of every image of every batch, in order.
        history: each transfer as plain data (`graftlib.graft.Transfer.to_dict`); empty for a plain training.
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    batches: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)


def train(model: nn.Module, lesson: Lesson) -> Curve:
    """Train `model` in place, plainly."""
    optimizer = SGD(model.parameters(), lr=lesson.lr, momentum=0.9, weight_decay=5e-4)
    return _loop(model, optimizer, lesson)


def train_grafted(model: nn.Module, mapping: Mapping, lesson: Lesson) -> Curve:
    """Train `model`, the mapping's target, in place, with a graft for the time of the training."""
    optimizer = SGD(model.parameters(), lr=lesson.lr, momentum=0.9, weight_decay=5e-4)
    options: Any = {"cycle": recipe.CYCLE, "lr": recipe.LEARNING_RATE, "seed": lesson.seed}
    graft = attach(recipe.adapter(), mapping, total_steps=lesson.steps, **options)  # 1: on
    graft.follow(optimizer)  # 2: from here on, the optimizer's hooks do the work
    curve = _loop(model, optimizer, lesson)
    graft.detach()  # 3: off, without a trace
    curve.history = [transfer.to_dict() for transfer in graft.history]
    return curve


def _loop(model: nn.Module, optimizer: Optimizer, lesson: Lesson) -> Curve:
    """An ordinary training loop; it does not know whether there is a graft."""
    curve, seen, step = Curve(), hashlib.sha256(), 0
    schedule = OneCycleLR(optimizer, lesson.lr, total_steps=lesson.steps)
    torch.manual_seed(lesson.seed)  # of dropout; a graft draws nothing from torch's generator
    for epoch in range(lesson.epochs):
        model.train()
        losses = []
        for batch in lesson.batches(epoch):
            seen.update(batch.numpy().tobytes())
            x, y = lesson.x[batch], lesson.y[batch]
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            step += 1
            lesson.tick()
        if _measured(epoch, lesson.epochs):
            curve.steps.append(step)
            curve.loss.append(float(torch.stack(losses).mean()))
            # On the way 2,000 images draw the curve well enough; the result is counted on all of them.
            shown = None if epoch + 1 == lesson.epochs else 2000
            curve.accuracy.append(accuracy(model, *(half[:shown] for half in lesson.held_out)))
    curve.batches = seen.hexdigest()
    return curve


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images that `model` names rightly, 0.0 to 1.0, by its settled weights in eval mode."""
    model.eval()
    with settled(model), torch.inference_mode():
        named = torch.cat([model(part).argmax(1) for part in torch.split(x, 1000)])
    return float((named == y).double().mean())


def _measured(epoch: int, epochs: int, points: int = 20) -> bool:
    """Whether to evaluate after this epoch: at most `points` times, evenly, the last epoch always."""
    return (epoch + 1) * points // epochs > epoch * points // epochs or epoch + 1 == epochs
