"""What every experiment on images does: count what is right, and keep what took long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["accuracy", "load_or_train"]


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of `x` (n, …) that `model` names as `y` (n,) does, in eval mode; it is left in the mode it had."""
    was = model.training
    model.eval()
    pairs = zip(x.split(500), y.split(500), strict=True)
    hits = sum(int((model(a).argmax(1) == b).sum()) for a, b in pairs)
    model.train(was)
    return 100 * hits / len(y)


def load_or_train(model: nn.Module, path: Path, train: Callable[[nn.Module], object]) -> nn.Module:
    """`model` in eval mode with the weights that lie at `path`; where there are none, trained and saved first."""
    if not path.exists():
        train(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(model.state_dict(), partial)
        partial.replace(path)
    model.load_state_dict(load_file(path))
    return model.eval()
