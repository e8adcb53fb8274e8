"""A layer that reads units, as a least-squares problem: y = x W^T + b, in groups.

rows (groups, rows, features) @ weight^T (groups, features, out) + bias is what the op computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..graph.ops import find, named_arguments, schema_name
from .recording import Op

__all__ = ["Use", "use_of"]


@dataclass(frozen=True)
class Use:
    """One use of a weight.

    Attributes:
        weight: the tensor object that the op takes.
        bias: likewise; None where it has none.
        input: as the op takes it.
        output: of the op.
        stored: ``"out in"``, ``"in out"`` (Hugging Face's Conv1D, a plain product) or ``"conv"``.
        groups: of a convolution; else 1.
        window: (stride, padding, dilation) of a convolution.
    """

    weight: Tensor
    bias: Tensor | None
    input: Tensor
    output: Tensor
    stored: str
    groups: int = 1
    window: tuple[Any, Any, Any] = (1, 0, 1)

    def rows(self, start: int, stop: int) -> Tensor:
        """(groups, rows, features) of the samples from `start` to `stop` along the first axis of the input."""
        x = self.input[start:stop]
        if self.stored != "conv":
            return x.reshape(1, -1, x.shape[-1])
        patches = self._patches(x)  # (n, channels, positions, kernel)
        n, channels, positions, kernel = patches.shape
        grouped = patches.reshape(n, self.groups, channels // self.groups, positions, kernel)
        return grouped.permute(1, 0, 3, 2, 4).reshape(self.groups, n * positions, -1)

    def results(self, start: int, stop: int) -> Tensor:
        """(rows, out) of the same samples."""
        y = self.output[start:stop]
        if self.stored == "conv":
            y = y.flatten(2).movedim(1, 2)
        return y.reshape(-1, y.shape[-1])

    def matrix(self, weight: Tensor) -> Tensor:
        """(groups, out / groups, features) of a weight of this op."""
        if self.stored == "in out":
            weight = weight.t()
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def unmatrix(self, matrix: Tensor) -> Tensor:
        """The weight again, as it is stored."""
        if self.stored == "in out":
            return matrix[0].t()
        return matrix.reshape(self.weight.shape)

    def _patches(self, x: Tensor) -> Tensor:
        sizes = self.weight.shape[2:]
        stride, padding, dilation = (_each(value, len(sizes)) for value in self.window)
        pads: list[int] = []
        for pad, size, step in zip(padding, sizes, dilation, strict=True):
            total = step * (size - 1)
            pads = [*_ends(pad, total), *pads]
        x = F.pad(x, pads)
        for i, (size, gap, step) in enumerate(zip(sizes, stride, dilation, strict=True)):
            x = x.unfold(2 + i, step * (size - 1) + 1, gap)[..., ::step]
        return x.flatten(2, 1 + len(sizes)).flatten(3)


def _each(value: Any, count: int) -> list[Any]:
    if isinstance(value, str) or not hasattr(value, "__len__"):
        return [value] * count
    return list(value) * (count if len(value) == 1 else 1)


def _ends(pad: int | str, total: int) -> tuple[int, int]:
    """How much a dimension is padded, in front and behind; ``"same"`` puts an odd one behind."""
    if pad == "same":
        return total // 2, total - total // 2
    return (0, 0) if pad == "valid" else (int(pad), int(pad))


def use_of(op: Op) -> Use | None:
    """The op as a use of a weight; None where it is no plain product or convolution of data with a weight.

    >>> import torch
    >>> x, w = torch.ones(2, 3), torch.ones(4, 3)
    >>> use_of((torch.ops.aten.linear.default, (x, w), {}, x @ w.t())).rows(0, 2).shape
    torch.Size([1, 2, 3])
    """
    func, args, kwargs, result = op
    entry, named = find(schema_name(func)), [*named_arguments(func, args, kwargs).values()]
    makes = entry.features if entry else None
    if makes is None:
        return None
    x, weight = named[makes.input], named[makes.weight]
    bias = None if makes.bias is None else named[makes.bias]
    if makes.axis != -1:
        groups, window = int(named[6]), (named[3], named[4], named[5])
        return (
            Use(weight, bias, x, result, "conv", groups, window) if x.ndim == weight.ndim else None
        )
    scaled = any(named[i] != 1 for i in range(3, len(named)))  # the factors of an `addmm`
    if weight.ndim != 2 or x.ndim < 2 or scaled:
        return None
    return Use(weight, bias, x, result, "in out" if makes.in_axis == 0 else "out in")
