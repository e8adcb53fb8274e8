"""Inputs to prove an export with: drawn like the example, at any batch size.

In: the example's nest of arguments, on the CPU. Out: nests of the same form with other values and another batch.
The batch is the first axis of the first tensor that has axes; every tensor whose first axis has that size shares it,
every other tensor keeps its shape. Not here: running them (`proof`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graph.tensors import replaced, tensor_leaves

__all__ = ["batch_of", "batched_leaves", "draw", "odd_batch"]


def batch_of(tree: Any) -> int | None:
    """The example's batch size; None where no tensor has an axis."""
    return next((leaf.shape[0] for leaf in tensor_leaves(tree) if leaf.ndim), None)


def batched_leaves(tree: Any) -> list[Tensor]:
    """The leaves whose first axis is the batch."""
    batch = batch_of(tree)
    return [leaf for leaf in tensor_leaves(tree) if leaf.ndim and leaf.shape[0] == batch]


def odd_batch(tree: Any) -> int:
    """A small batch size of at least 2 that no axis of any input has.

    A traced size of 0 or 1 would be taken for a constant, and a size shared with another axis for that axis.
    """
    taken = {size for leaf in tensor_leaves(tree) for size in leaf.shape}
    return next(size for size in range(2, len(taken) + 3) if size not in taken)


def draw(tree: Any, batch: int | None, generator: torch.Generator) -> Any:
    """A nest like `tree`, its tensors drawn anew.

    Args:
        tree: the example.
        batch: the batch size to draw; None keeps the example's.
        generator: on the CPU; the global generators are not used.

    Returns:
        Floating-point leaves are normal with the example's mean and standard deviation (1 where the example is
        constant). Integer and boolean leaves hold the example's own values, each row a permutation of one of the
        example's rows, so that they stay in its range. Leaves that are no tensors stay.
    """
    old = batch_of(tree)

    def leaf(value: Tensor) -> Tensor:
        shape = list(value.shape)
        if batch is not None and value.ndim and value.shape[0] == old:
            shape[0] = batch
        if value.is_complex() or value.numel() == 0:
            return value.clone() if list(value.shape) == shape else value.new_zeros(shape)
        if value.is_floating_point():
            return _normal_like(value, shape, generator)
        return _permuted(value, shape, generator)

    return replaced(tree, map(leaf, tensor_leaves(tree)))


def _normal_like(value: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    sample = value.double()
    spread = sample.std() if value.numel() > 1 else torch.zeros(())
    if not spread > 0:
        spread = torch.ones(())
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (noise * spread + sample.mean()).to(value.dtype)


def _permuted(value: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    if value.ndim < 2:
        count = shape[0] if shape else 1
        chosen = torch.randint(value.numel(), (count,), generator=generator)
        return value.reshape(-1)[chosen].reshape(shape)
    rows = value.reshape(value.shape[0], -1)
    chosen = torch.randint(rows.shape[0], (shape[0],), generator=generator)
    drawn = [rows[i, torch.randperm(rows.shape[1], generator=generator)] for i in chosen.tolist()]
    return torch.stack(drawn).reshape(shape)
