"""What a trace keeps of its example inputs, and inputs drawn by it.

Integers and booleans (masks, lengths, offsets, edges) are kept by value, floating-point tensors as meta tensors with
the range of their numbers. No tensor of the user is kept; what is drawn lies in what was seen, along every axis, so it
is never negative where the example never is. A float tensor that holds two different numbers at most is a mask, and one
that holds a number that is not finite says something by its place: these are kept by value, too. One of zeros alone
says nothing but that it is not negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tensors import replaced, tensor_leaves

__all__ = ["Evidence", "Range"]

# Elements of a tensor up to which the range along each axis is asked for; above it that of the whole is.
_MOST = 2**22


@dataclass(frozen=True)
class Range:
    """Bounds of a tensor's numbers.

    Attributes:
        low: tensors that broadcast to its shape, each a lower bound; of the real view where it is complex.
        high: likewise, upper bounds.
    """

    low: tuple[Tensor, ...]
    high: tuple[Tensor, ...]

    def draw(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """Numbers within the bounds, evenly, as a new tensor on the CPU of the shape and dtype of `tensor`."""
        low, high = self.low[0], self.high[0]
        for other in self.low[1:]:
            low = torch.maximum(low, other)
        for other in self.high[1:]:
            high = torch.minimum(high, other)
        shape = (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)
        share = torch.rand(shape, dtype=low.dtype, generator=generator, device="cpu")
        drawn = torch.minimum(low + (high - low) * share, high)
        return (torch.view_as_complex(drawn) if tensor.is_complex() else drawn).to(tensor.dtype)


@dataclass(frozen=True)
class Evidence:
    """What is known of example inputs.

    Attributes:
        args: positional arguments; tensors on the CPU where their values are kept, else on the meta device.
        kwargs: arguments by name, likewise.
        ranges: of each tensor, in order (see `tensors`); None where values are kept, or where there were none.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ranges: tuple[Range | None, ...]

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Evidence:
        """That of arguments."""
        value = (tuple(args), dict(kwargs or {}))
        with torch.no_grad():
            pairs = [_evidence(tensor.detach()) for tensor in tensor_leaves(value)]
        tensors = [tensor for tensor, _ in pairs]
        positional, named = replaced(value, tensors)
        return cls(positional, named, tuple(known for _, known in pairs))

    def drawn(
        self, generator: torch.Generator | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) as new tensors on the CPU; those that were traced without values stay on the meta device.

        Args:
            generator: on the CPU; by default always the same numbers.
        """
        generator = generator or torch.Generator().manual_seed(0)
        value = (self.args, self.kwargs)
        tensors = [
            tensor.clone() if known is None else known.draw(tensor, generator)
            for tensor, known in zip(tensor_leaves(value), self.ranges, strict=True)
        ]
        drawn: tuple[tuple[Any, ...], dict[str, Any]] = replaced(value, tensors)
        return drawn

    @property
    def valueless(self) -> tuple[int, ...]:
        """Which tensors, in order, were traced without values."""
        tensors = tensor_leaves((self.args, self.kwargs))
        pairs = enumerate(zip(tensors, self.ranges, strict=True))
        return tuple(i for i, (t, known) in pairs if known is None and t.device.type == "meta")


def _evidence(tensor: Tensor) -> tuple[Tensor, Range | None]:
    numbers = tensor.is_floating_point() or tensor.is_complex()
    if tensor.device.type == "meta" or tensor.layout is not torch.strided:
        return tensor.clone(), None
    if not numbers or tensor.numel() == 0:
        return tensor.to("cpu", copy=True), None
    view = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    view = view.float() if view.element_size() < 4 else view
    low, high = view.aminmax()
    if low == high == 0:
        return torch.empty_like(tensor, device="meta"), Range((low.cpu(),), (low.cpu() + 1,))
    if not (low.isfinite() and high.isfinite()) or ((view == low) | (view == high)).all():
        return tensor.to("cpu", copy=True), None
    return torch.empty_like(tensor, device="meta"), _range(view)


def _range(view: Tensor) -> Range:
    axes = range(view.ndim) if view.numel() <= _MOST else ()
    others = [[a for a in range(view.ndim) if a != axis] for axis in axes if view.shape[axis] > 1]
    dims = [dims for dims in others if dims] or [list(range(view.ndim))]
    low = tuple(view.amin(each, keepdim=True).cpu() for each in dims)
    high = tuple(view.amax(each, keepdim=True).cpu() for each in dims)
    return Range(low, high)
