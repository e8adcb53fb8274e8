"""Generalized permutations: which source unit each base unit reads.

An m x p matrix of zeros and ones with at most one 1 in a row and in a column, kept as m integers.
``(a @ b).apply(t, axis) == a.apply(b.apply(t, axis), axis)``, and ``a.inverse() @ a`` is the identity where a reads
every source unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import AssemblyError

__all__ = ["Permutation", "reading"]


@dataclass(frozen=True, eq=False)
class Permutation:
    """Which of `sources` source units each base unit reads.

    As a matrix P, (m, p): ``P[i, reads[i]] = 1``, and row i is zero where ``reads[i]`` is -1. Base wider than source:
    m - p units read nothing. Base narrower: p - m source units are read by none.

    Attributes:
        reads: (m,) int64 on the CPU; entry i is the source unit that base unit i reads, -1 for none.
        sources: p, how many source units there are.

    Raises:
        AssemblyError: an entry is out of range, or a source unit is read twice.

    >>> Permutation(torch.tensor([2, 0, 1]), 3).apply(torch.tensor([10.0, 20.0, 30.0]), 0)  # a 3-cycle
    tensor([30., 10., 20.])
    >>> Permutation(torch.tensor([0, -1, 1]), 2).apply(torch.tensor([10.0, 20.0]), 0)  # the base is wider
    tensor([10.,  0., 20.])
    """

    reads: Tensor
    sources: int

    def __post_init__(self) -> None:
        reads = torch.as_tensor(self.reads, device="cpu").to(torch.int64).reshape(-1)
        object.__setattr__(self, "reads", reads)
        read = reads[reads >= 0]
        if len(reads) and (int(reads.min()) < -1 or int(reads.max()) >= self.sources):
            raise AssemblyError(
                f"a permutation of {self.sources} source units holds numbers from -1 to {self.sources - 1}.",
                where={"numbers": f"{int(reads.min())} to {int(reads.max())}"},
            )
        if len(set(read.tolist())) != len(read):
            raise AssemblyError("a source unit is read by two base units.")

    @classmethod
    def identity(cls, bases: int, sources: int) -> Permutation:
        """Unit i reads unit i, as far as both go."""
        reads = torch.arange(bases, device="cpu")
        return cls(torch.where(reads < sources, reads, -1), sources)

    @classmethod
    def random(cls, bases: int, sources: int, generator: torch.Generator) -> Permutation:
        """Any of the permutations with min(m, p) matches, each as likely as any other.

        Args:
            bases: m.
            sources: p.
            generator: on the CPU.
        """
        order = torch.randperm(max(bases, sources), generator=generator, device="cpu")[:bases]
        return cls(torch.where(order < sources, order, -1), sources)

    @property
    def bases(self) -> int:
        """m, how many base units there are."""
        return len(self.reads)

    @property
    def matched(self) -> int:
        """How many base units read a source unit."""
        return int((self.reads >= 0).sum())

    def __matmul__(self, other: Permutation) -> Permutation:
        """The product of the matrices: `other` is applied first.

        Raises:
            AssemblyError: `self` reads from another number of units than `other` has.
        """
        if self.sources != other.bases:
            raise AssemblyError(
                f"({self.bases}, {self.sources}) and ({other.bases}, {other.sources}) do not compose."
            )
        return Permutation(_read(other.reads, 0, self.reads, -1), other.sources)

    def inverse(self) -> Permutation:
        """The transposed matrix: which base unit each source unit is read by, -1 for none."""
        back = torch.full((self.sources,), -1, dtype=torch.int64, device="cpu")
        matched = (self.reads >= 0).nonzero().flatten()
        back[self.reads[matched]] = matched
        return Permutation(back, self.bases)

    def apply(self, tensor: Tensor, axis: int, *, empty: float = 0.0) -> Tensor:
        """See `reading`, for one axis."""
        return reading(tensor, {axis: self.reads}, empty=empty)

    def matrix(self) -> Tensor:
        """(m, p) float64 of zeros and ones, on the CPU."""
        matrix = torch.zeros(self.bases, self.sources, dtype=torch.float64, device="cpu")
        matched = (self.reads >= 0).nonzero().flatten()
        matrix[matched, self.reads[matched]] = 1.0
        return matrix

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation):
            return NotImplemented
        return self.sources == other.sources and torch.equal(self.reads, other.reads)

    def __hash__(self) -> int:
        return hash((self.sources, tuple(self.reads.tolist())))

    def __str__(self) -> str:
        return f"{self.matched} of {self.bases} units read one of {self.sources}"


def reading(source: Tensor, reads: Mapping[int, Tensor], *, empty: float = 0.0) -> Tensor:
    """Reorder, drop or pad the units of `source` so that they line up with a base.

    Args:
        source: any shape, dtype and device.
        reads: axis -> (n_base,) int64. Entry i is the source unit that base unit i reads, or -1 for none. Axes that
            are absent keep their order.
        empty: written where nothing is read. 0 for weights; 1 for a running variance.

    Returns:
        a new tensor (or `source` itself where `reads` is empty) of `source`'s dtype and device; gradients flow back.

    Raises:
        IndexError: an entry is >= the source's size on that axis.

    >>> bias = torch.tensor([10.0, 20.0, 30.0])
    >>> reading(bias, {0: torch.tensor([0, -1, 1, 2])})  # the base is one unit wider
    tensor([10.,  0., 20., 30.])
    """
    for axis, read in reads.items():
        source = _read(source, axis, read.to(source.device), empty)
    return source


def _read(source: Tensor, axis: int, read: Tensor, empty: float) -> Tensor:
    none = read < 0
    some = bool(none.any())
    if some and source.shape[axis] == 0:
        return source.new_full(
            [len(read) if i == axis % source.ndim else n for i, n in enumerate(source.shape)], empty
        )
    picked = _picked(source, axis % source.ndim, read.clamp(min=0) if some else read)
    if not some:
        return picked
    shape = [-1 if i == axis % source.ndim else 1 for i in range(source.ndim)]
    return picked.masked_fill(none.view(shape), empty)


def _picked(source: Tensor, axis: int, read: Tensor) -> Tensor:
    if source.ndim < 3 or axis == source.ndim - 1 or not source.is_contiguous():
        return source.index_select(axis, read)
    # Several times faster with what follows the axis as one: it is moved in runs.
    picked = source.flatten(axis + 1).index_select(axis, read)
    return picked.view(*picked.shape[:-1], *source.shape[axis + 1 :])
