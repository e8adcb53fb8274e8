"""Run models on data and record what their layers put out.

Hooks are gone afterwards and training flags are as before; no gradient is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .alignment_problem import BlockPair, Problem, TensorPair

__all__ = ["CONVS", "Batches", "evaluating", "hooked", "makers", "run", "units"]

CONVS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
# Each: a tensor, a tuple or list of arguments, or a mapping of keyword arguments.
Batches = Iterable[Any]


def makers(problem: Problem) -> dict[TensorPair, int]:
    """Tensor pair of a weight that makes the units of one class pair -> number of that class pair.

    Linear layers and convolutions whose output axis belongs to one class as a whole; where heads and head_dim share an
    axis, no single class has the units.
    """
    numbers = {}
    for pair in problem.pairs:
        if len(pair.base_shape) < 2 or pair.role in ("mean", "variance", "buffer"):
            continue
        for axis, each in enumerate(pair.axes):
            number = _whole(each.blocks)
            if number is not None and not each.partial and axis == pair.out:
                numbers[pair] = number
    return numbers


def units(output: Any, module: nn.Module) -> Tensor:
    """(samples, units): positions count as samples; the unit axis is the second of a convolution, else the last."""
    values: Tensor = output if isinstance(output, Tensor) else output[0]
    axis = 1 if isinstance(module, CONVS) else values.ndim - 1
    return values.movedim(axis, -1).reshape(-1, values.shape[axis])


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; afterwards every module trains or not as before."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def hooked(
    model: nn.Module, layers: Sequence[str], sink: Callable[[str, nn.Module, Any], Any]
) -> Iterator[None]:
    """``sink(fqn, module, output)`` is called when a layer runs; what it returns, if anything, takes its place."""
    handles = []
    try:
        for fqn in layers:
            handles.append(
                model.get_submodule(fqn).register_forward_hook(
                    lambda module, _, output, fqn=fqn: sink(fqn, module, output)
                )
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(model: nn.Module, batch: Any) -> Any:
    """The model on one batch."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def _whole(blocks: Sequence[BlockPair]) -> int | None:
    """The class pair that moves a whole axis; None where there is none, or several."""
    if len(blocks) != 1 or len(blocks[0].classes) != 1:
        return None
    return blocks[0].classes[0]
