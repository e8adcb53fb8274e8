"""`Alignment`: which source unit each base unit reads, for all classes, and what follows for every tensor."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .alignment_problem import BlockPair, Problem, TensorPair
from .errors import AssemblyError
from .permutation import Permutation, reading

__all__ = ["Alignment", "empty_of"]


@dataclass(frozen=True)
class Alignment:
    """Which source unit each base unit reads.

    Attributes:
        problem: what was aligned.
        permutations: number of the class pair -> (m, p) permutation.
        objective: of the matched parameters, larger is better. ``l2``: sum of 2 <B, T'> - |T'|^2, so that |B|^2 minus
            it is the squared distance; ``inner``: sum of <B, T'>.
        history: the objective of the best start before and after each sweep; it never falls.
    """

    problem: Problem
    permutations: Mapping[int, Permutation]
    objective: float
    history: tuple[float, ...]

    def transported(self, source_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Base FQN -> the source's tensor in the base's units.

        Args:
            source_state: FQN -> tensor of the source, any dtype and device.

        Returns:
            new tensors of the base's shapes, in the source's dtype and on its device. Entries that read nothing are
            0, in a running variance 1.
        """
        return dict(self.each(source_state))

    def each(
        self, source_state: Mapping[str, Tensor], *, only: Container[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The same, one base tensor at a time; with `only` those of these names."""
        for fqn, pairs in self.problem.by_base().items():
            if only is not None and fqn not in only:
                continue
            parts = (self._transport(pair, source_state[pair.source]) for pair in pairs)
            # Parts of one base tensor read disjoint places, and what they do not read is 0.
            yield fqn, reduce(lambda moved, part: moved + part.to(moved), parts)

    def reads(self, fqn: str, axis: int) -> Tensor:
        """(n,) int64: the source place that each place of a base axis reads, -1 for none.

        Places of a base tensor that is read from several source tensors count in their own source tensor.

        Raises:
            AssemblyError: the base tensor has no source tensor.
        """
        return torch.stack([self._reads(pair, axis) for pair in self._pairs(fqn)]).amax(0)

    def mask(self, fqn: str) -> Tensor:
        """Bool, of the base tensor's shape, on the CPU: where a source entry stands.

        Raises:
            AssemblyError: the base tensor has no source tensor.
        """
        return self._union(fqn, lambda pair, axis: self._reads(pair, axis) >= 0)

    def region(self, fqn: str) -> Tensor:
        """The same: where a source entry could stand. Outside of it the base tensor takes no part at all.

        Raises:
            AssemblyError: the base tensor has no source tensor.
        """
        return self._union(fqn, _covered)

    def _union(self, fqn: str, along: Callable[[TensorPair, int], Tensor]) -> Tensor:
        def of_one(pair: TensorPair) -> Tensor:
            part = torch.ones((), dtype=torch.bool, device="cpu")
            for axis, size in enumerate(pair.base_shape):
                shape = [size if i == axis else 1 for i in range(len(pair.base_shape))]
                part = part & along(pair, axis).view(shape)
            return part

        return reduce(torch.logical_or, map(of_one, self._pairs(fqn)))

    def _pairs(self, fqn: str) -> list[TensorPair]:
        pairs = self.problem.by_base().get(fqn)
        if not pairs:
            raise AssemblyError(
                f"base tensor '{fqn}' has no source tensor.",
                fix="look at print(alignment.problem)",
            )
        return pairs

    def _transport(self, pair: TensorPair, tensor: Tensor) -> Tensor:
        turned = tensor.permute([axis.source_axis for axis in pair.axes])
        reads = {}
        for axis in range(turned.ndim):
            read = self._reads(pair, axis)
            if not torch.equal(read, torch.arange(turned.shape[axis], device="cpu")):
                reads[axis] = read
        return reading(turned, reads, empty=empty_of(pair.role))

    def _reads(self, pair: TensorPair, axis: int) -> Tensor:
        places = torch.full((pair.base_shape[axis],), -1, dtype=torch.int64, device="cpu")
        for block in pair.axes[axis].blocks:
            places[block.base.all()] = block.source.read(self._units(block))
        return places

    def _units(self, block: BlockPair) -> list[Tensor]:
        """For each dimension the source unit of each base unit."""
        return [
            torch.arange(size, device="cpu") if c is None else self.permutations[c].reads
            for c, size in zip(block.classes, block.base.sizes, strict=True)
        ]

    def __str__(self) -> str:
        base, source = self.problem.names
        lines = [
            f"{base} <- {source}, aligned: objective {self.objective:.6g}, "
            f"{len(self.history) - 1} sweeps"
        ]
        for i, pair in enumerate(self.problem.classes):
            lines.append(f"  {pair.base.members[0].fqn}: {self.permutations[i]}")
        return "\n".join(lines)


def empty_of(role: str) -> float:
    """What stands where nothing is read: a variance of 1, of everything else 0, so that the unit is silent."""
    return 1.0 if role == "variance" else 0.0


def _covered(pair: TensorPair, axis: int) -> Tensor:
    """The places of a base axis that take part: those of its blocks, where the tensor pair is of a part only."""
    covered = torch.full((pair.base_shape[axis],), not pair.axes[axis].partial, device="cpu")
    for block in pair.axes[axis].blocks:
        covered[block.base.all()] = True
    return covered
