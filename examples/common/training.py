"""What every experiment on images does: train, count what is right, and keep what took long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["accuracy", "load_or_train", "loss_and_accuracy", "one_cycle", "save_weights"]


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of `x` (n, …) that `model` names as `y` (n,) does, in eval mode; it is left in the mode it had."""
    was = model.training
    model.eval()
    pairs = zip(x.split(500), y.split(500), strict=True)
    hits = sum(int((model(a).argmax(1) == b).sum()) for a, b in pairs)
    model.train(was)
    return 100 * hits / len(y)


@torch.no_grad()
def loss_and_accuracy(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """(mean cross-entropy in nats, percent of `x` that is named as `y`); the model ends in eval mode."""
    model.eval()
    outputs = torch.cat([model(part) for part in x.split(500)])
    hits = float((outputs.argmax(1) == y).float().mean())
    return float(F.cross_entropy(outputs, y)), 100 * hits


def one_cycle(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    rate: float,
    seed: int,
    *,
    batch: int,
    follow: Callable[[torch.optim.Optimizer], object] | None = None,
) -> nn.Module:
    """The model itself, trained by AdamW with a one-cycle schedule; the same seed gives the same batches.

    Args:
        model: is trained in place, and ends in eval mode.
        x: what it reads, (n, …).
        y: (n,) int64.
        steps: of the optimizer.
        rate: the highest learning rate.
        seed: of the batches.
        batch: rows a step.
        follow: is shown the optimizer before the first step: a graft's.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    if follow is not None:
        follow(optimizer)
    random = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    model.train()
    for _ in range(steps):
        if len(order) < min(batch, len(x)):
            order = torch.randperm(len(x), generator=random)
        rows, order = order[:batch], order[batch:]
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def save_weights(model: nn.Module, path: Path) -> None:
    """The state at `path`, whole or not at all; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(model.state_dict(), partial)
    partial.replace(path)


def load_or_train(model: nn.Module, path: Path, train: Callable[[nn.Module], object]) -> nn.Module:
    """`model` in eval mode with the weights that lie at `path`; where there are none, trained and saved first."""
    if not path.exists():
        train(model)
        save_weights(model, path)
    model.load_state_dict(load_file(path))
    return model.eval()
