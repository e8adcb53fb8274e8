"""Train several models on the same batches, side by side: on a GPU each step is a CUDA graph on a stream of its own.

In: models, images that are on the device already. Out: the models, trained in place. Always true: order, flips and
shifts are drawn from the seed alone, so all models see the same; the rate ends at zero on a cosine; the global random
states stay; without a GPU the same step runs without a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Images", "Recipe", "train"]


@dataclass(frozen=True)
class Images:
    """Normalised images (n, c, h, w) and labels (n,), to learn from and held out, on one device."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        rule: ``"sgd"`` (Nesterov momentum 0.9, decay 5e-4) or ``"adamw"`` (decay 0.05).
        rate: the highest learning rate.
        epochs: over the images.
        batch: images a step.
        most: models at a time.
    """

    rule: str
    rate: float
    epochs: float
    batch: int = 128
    most: int = 8


def train(models: Sequence[nn.Module], images: Images, recipe: Recipe, seed: int) -> None:
    """Train all models, in place; they end in eval mode."""
    course = _Course(images, recipe, seed)
    for start in range(0, len(models), recipe.most):
        _together(models[start : start + recipe.most], images, recipe, course)
        if images.x.is_cuda:
            torch.cuda.empty_cache()


def _together(models: Sequence[nn.Module], images: Images, recipe: Recipe, course: _Course) -> None:
    runs = [_Run(model, images, recipe, course) for model in models]
    _wait(images)
    for _ in range(course.steps):
        for run in runs:
            with run.on():
                run.step()
    _wait(images)
    for model in models:
        model.eval().zero_grad()


class _Course:
    """Which images come when, how each is moved, and the rate of each step; on the device."""

    def __init__(self, images: Images, recipe: Recipe, seed: int) -> None:
        device, count = images.x.device, len(images.y)
        random = torch.Generator().manual_seed(seed)
        per_epoch = max(count // recipe.batch, 1)
        self.steps = steps = max(round(recipe.epochs * per_epoch), 1)
        batch = min(recipe.batch, count)
        orders = [
            torch.randperm(count, generator=random)[: per_epoch * batch].view(per_epoch, batch)
            for _ in range(math.ceil(steps / per_epoch))
        ]
        self.order = torch.cat(orders)[:steps].to(device)
        flip = 1.0 - 2.0 * torch.randint(0, 2, (steps, batch), generator=random)
        shift = torch.randint(-3, 4, (2, steps, batch), generator=random) * 2 / images.x.shape[-1]
        zero, one = torch.zeros_like(flip), torch.ones_like(flip)
        rows = torch.stack([flip, zero, shift[0], zero, one, shift[1]], -1)
        self.motion = rows.view(steps, batch, 2, 3).to(device)
        warm = steps // 20
        rates = [
            recipe.rate * min((t + 1) / (warm + 1), (1 + math.cos(math.pi * t / steps)) / 2)
            for t in range(steps)
        ]
        self.rates = torch.tensor(rates, device=device)


class _Run:
    """One model in training."""

    def __init__(self, model: nn.Module, images: Images, recipe: Recipe, course: _Course) -> None:
        self.model, self.images, self.course = model.train(), images, course
        self.stream = torch.cuda.Stream() if images.x.is_cuda else None
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        _wait(images)
        with self.on():
            device = images.x.device
            self.t = torch.zeros(1, dtype=torch.int64, device=device)
            self.rate = torch.zeros((), device=device)
            self.moments = [torch.zeros_like(p) for p in self.parameters]
            self.adamw: torch.optim.AdamW | None = None
            if recipe.rule == "adamw":
                self.adamw = torch.optim.AdamW(
                    self.parameters,
                    self.rate,
                    weight_decay=0.05,
                    fused=True,
                    capturable=images.x.is_cuda,
                )
        self.step: Callable[[], None] = self._step
        if self.stream is not None:
            self._capture(self.stream)

    def on(self) -> AbstractContextManager[object]:
        """The stream of this model."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _capture(self, stream: torch.cuda.Stream) -> None:
        """Record the step as a CUDA graph; what its rehearsals wrote is undone."""
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        try:
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._step()
            torch.cuda.synchronize()
            for parameter in self.parameters:
                parameter.grad = None
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                self._step()
            torch.cuda.synchronize()
            self.step = graph.replay
        except RuntimeError as error:  # then step by step: slower, and as right
            print(f"no CUDA graph: {type(error).__name__}: {str(error)[:300]}", flush=True)
            torch.cuda.synchronize()
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(before[name])
            held = [
                v
                for state in (self.adamw.state.values() if self.adamw else ())
                for v in state.values()
            ]
            for value in (*held, *self.moments, self.t):
                value.zero_()
        torch.cuda.synchronize()

    def _step(self) -> None:
        images = self.images
        rows = self.course.order.index_select(0, self.t)[0]
        motion = self.course.motion.index_select(0, self.t)[0]
        x = images.x.index_select(0, rows)
        grid = F.affine_grid(motion, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, mode="nearest", align_corners=False)
        for parameter in self.parameters:
            parameter.grad = None
        loss = F.cross_entropy(self.model(x), images.y.index_select(0, rows))
        loss.backward()
        with torch.no_grad():
            self.rate.copy_(self.course.rates.index_select(0, self.t)[0])
            if self.adamw is not None:
                self.adamw.step()
            else:
                self._descend()
            self.t.add_(1)

    def _descend(self) -> None:
        """Nesterov, as `torch.optim.SGD` has it, at a rate that is on the device."""
        grads = [p.grad for p in self.parameters]
        torch._foreach_add_(grads, self.parameters, alpha=5e-4)
        torch._foreach_mul_(self.moments, 0.9)
        torch._foreach_add_(self.moments, grads)
        torch._foreach_add_(grads, self.moments, alpha=0.9)
        torch._foreach_sub_(self.parameters, torch._foreach_mul(grads, self.rate))


def _wait(images: Images) -> None:
    """For the device, so that what one stream has made can be read on another."""
    if images.x.is_cuda:
        torch.cuda.synchronize()
