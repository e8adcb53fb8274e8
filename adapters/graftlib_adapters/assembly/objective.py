"""How well an aligned source fits a base, and what it gains that one unit reads another.

``l2``: the sum of 2 <B, T'> - |T'|^2, so that |B|^2 minus it is the squared distance; ``inner``: the sum of <B, T'>; T'
is the source in the base's units (Ainsworth et al. 2022, eq. 1). Both are linear in each class that a cell holds once.
Running statistics, whose scale is that of the data, take no part. Tensors are read a part of a layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from .alignment_problem import Cell, Problem
from .errors import AssemblyError
from .options import ObjectiveName
from .permutation import reading

__all__ = [
    "Objective",
    "Reads",
    "State",
    "add_product_gain",
    "determined",
    "read_units",
]

State = Mapping[str, Tensor]
# Class pair -> the source unit of each base unit, (m,) int64; in Frank-Wolfe a relaxed permutation (m, p) of floats.
Reads = Mapping[int, Tensor]
Classes = Sequence[int | None]
_PART = 2**19  # elements that are read at once
_ROWS = 256  # rows of gains that are computed at once, before they are added up in double precision
_STATISTICS = ("mean", "variance", "buffer")


class Objective:
    """The objective of one problem and two states.

    Args:
        problem: which tensors and classes are paired.
        base_state: FQN -> tensor; read, never changed.
        source_state: the same of the source.
        name: ``l2`` or ``inner``.

    Attributes:
        sizes: (m, p) of each class pair.
        cells: of all tensor pairs that take part.
        cells_of: numbers of the cells that hold a class pair, by its number.
        dtype: in which products are computed.

    Raises:
        AssemblyError: a state lacks a tensor, or holds one of another shape.
    """

    def __init__(
        self, problem: Problem, base_state: State, source_state: State, name: ObjectiveName
    ) -> None:
        _check_states(problem, base_state, source_state)
        pairs = [pair for pair in problem.pairs if pair.role not in _STATISTICS]
        self.name = name
        self.sizes = [(pair.bases, pair.sources) for pair in problem.classes]
        self.cells: list[Cell] = [cell for pair in pairs for cell in pair.cells()]
        # As they are stored: parts are converted where they are used.
        self._base = {pair.base: base_state[pair.base].detach() for pair in pairs}
        self._source = {pair.source: source_state[pair.source].detach() for pair in pairs}
        tensors = (*self._base.values(), *self._source.values())
        self.stored_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        wide = any(tensor.dtype == torch.float64 for tensor in tensors)
        self.dtype = torch.float64 if wide else torch.float32
        self.cells_of: list[list[int]] = [[] for _ in problem.classes]
        for i, cell in enumerate(self.cells):
            for c in {each for each in cell.classes if each is not None}:
                self.cells_of[c].append(i)

    @property
    def epsilon(self) -> float:
        """A relative change of the objective that rounding may make."""
        return float(torch.finfo(self.dtype).eps) * 8

    def entries(self, c: int) -> int:
        """How many entries of the base lie in cells that hold this class pair."""
        return sum(self.cells[i].entries for i in self.cells_of[c])

    def linear(self, c: int) -> bool:
        """Whether the objective is linear in this class pair: no cell holds it twice."""
        return all(self.cells[i].classes.count(c) == 1 for i in self.cells_of[c])

    def neighbours(self, c: int) -> set[int]:
        """The class pairs whose gains depend on this one."""
        near = {each for i in self.cells_of[c] for each in self.cells[i].classes} - {None}
        return {each for each in near if each is not None and (each != c or not self.linear(c))}

    def value(self, reads: Reads, *, of: int | None = None, part: int = _PART) -> float:
        """The objective; with `of` only the cells that hold this class pair."""
        cells = self.cells if of is None else [self.cells[i] for i in self.cells_of[of]]
        return sum(self._value(cell, reads, part) for cell in cells)

    def gain(
        self, c: int, reads: Reads, *, known: set[int] | None = None, part: int = _PART
    ) -> Tensor:
        """The gradient of the objective: what it gains that base unit i reads source unit j, all else being aligned.

        Args:
            c: number of the class pair.
            reads: of all class pairs.
            known: only cells whose other classes all belong to these; None: all cells. `reads` need hold no others.
            part: elements that are read at once.

        Returns:
            (m, p) float64 on the CPU.
        """
        total = torch.zeros(self.sizes[c], dtype=torch.float64, device="cpu")
        for i in self.cells_of[c]:
            if known is None or determined(self.cells[i], c, known):
                self.add_cell_gain(total, self.cells[i], c, reads, part=part)
        return total

    def add_cell_gain(
        self,
        total: Tensor,
        cell: Cell,
        c: int,
        reads: Reads,
        *,
        scale: float = 1.0,
        part: int = _PART,
    ) -> None:
        """Add `scale` times the gain of one cell to `total` (m, p) on the CPU, in place."""
        base, source = self.views(cell)
        for dim in [d for d, each in enumerate(cell.classes) if each == c]:
            classes = [None if d == dim else each for d, each in enumerate(cell.classes)]
            add_product_gain(total, self, base, source, classes, dim, reads, scale=scale, part=part)

    def views(self, cell: Cell) -> tuple[Tensor, Tensor]:
        """The base's block and the source's, as they are stored, on the base's device."""
        base = cell.base_view(self._base[cell.pair.base])
        return base, cell.source_view(self._source[cell.pair.source]).to(base.device)

    def _value(self, cell: Cell, reads: Reads, part: int) -> float:
        base, source = self.views(cell)
        total = 0.0
        relaxed = _relaxed(cell.classes, reads)
        if relaxed:
            base, source = base.to(self.dtype), source.to(self.dtype)
        for ours, theirs in _parts(base, source, cell.classes, reads, part):
            theirs = theirs.to(self.dtype)
            total += (1 if self.name == "inner" else 2) * float(
                (ours.to(self.dtype) * theirs).sum()
            )
            if self.name == "l2" and not relaxed:
                total -= float(theirs.square().sum())
        if self.name == "l2" and relaxed:
            total -= float(_norms(source, cell.classes, reads))
        return total


def add_product_gain(
    total: Tensor,
    objective: Objective,
    base: Tensor,
    source: Tensor,
    classes: Classes,
    dim: int,
    reads: Reads,
    *,
    scale: float,
    part: int = _PART,
) -> None:
    """Add the gain of two views to `total`, in place: what it gains that unit i of dimension `dim` reads unit j there.

    Args:
        total: (m, p) on the CPU.
        objective: which one, and its dtype.
        base: a cell's view of the base, or some units of it.
        source: that of the source.
        classes: of each dimension; None for `dim` and where the order is fixed.
        dim: the dimension.
        reads: of those classes.
        scale: what the gain is multiplied by.
        part: elements that are read at once.
    """
    twice = scale if objective.name == "inner" else 2 * scale
    # Where every source unit is read anyhow (m >= p) the norm is the same for all assignments.
    normed = objective.name == "l2" and total.shape[0] < total.shape[1]
    relaxed = _relaxed(classes, reads)
    if relaxed:
        base, source = base.to(objective.dtype), source.to(objective.dtype)
    read = any(each is not None for each in classes)
    for ours, theirs in _parts(base, source, classes, reads, part, dim):
        theirs = _units_first(theirs.to(objective.dtype), dim, read)
        _add_product(total, _units_first(ours.to(objective.dtype), dim), theirs, twice)
        if normed and not relaxed:
            total.sub_(theirs.square().sum(1).to("cpu", total.dtype), alpha=scale)
    if normed and relaxed:
        total.sub_(_norms(source, classes, reads, keep=dim).to("cpu", total.dtype), alpha=scale)


def determined(cell: Cell, c: int, known: set[int]) -> bool:
    """Whether a cell holds this class once and nothing else that is not known."""
    others = {each for each in cell.classes if each not in (None, c)}
    return others <= known and cell.classes.count(c) == 1


def _units_first(tensor: Tensor, dim: int, dense: bool = False) -> Tensor:
    """(n, rest): one dimension in front of the others, as a view where one will do and `dense` is not set."""
    n, before, after = tensor.shape[dim], prod(tensor.shape[:dim]), prod(tensor.shape[dim + 1 :])
    if before > 1 and after > 3 and tensor.is_contiguous():
        # What follows is moved in runs, which is several times faster than element by element.
        runs = torch.arange(before, device=tensor.device) * n
        index = torch.arange(n, device=tensor.device)[:, None] + runs
        return tensor.reshape(-1, after).index_select(0, index.flatten()).view(n, -1)
    turned = tensor.movedim(dim, 0)
    return (turned.contiguous() if dense else turned).reshape(n, -1)


def _add_product(total: Tensor, ours: Tensor, theirs: Tensor, scale: float) -> None:
    """Add ``scale * ours @ theirs.T`` to `total`, in place."""
    if total.dtype == ours.dtype and total.device == ours.device:
        total.addmm_(ours, theirs.T, alpha=scale)
        return
    for start in range(0, len(ours), _ROWS):
        product = ours[start : start + _ROWS] @ theirs.T
        total[start : start + _ROWS].add_(product.to("cpu"), alpha=scale)


def _parts(
    base: Tensor, source: Tensor, classes: Classes, reads: Reads, part: int, keep: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(part of the base, the source read there); dimension `keep` has the source's units."""
    dims = [d for d in range(base.ndim) if d != keep]
    if not dims:
        yield base, source
        return
    longest = max(dims, key=lambda d: base.shape[d])
    rest = max(base.numel(), source.numel()) // max(base.shape[longest], 1)
    step = max(part // max(rest, 1), 1)
    for start in range(0, base.shape[longest], step):
        count = min(step, base.shape[longest] - start)
        theirs = read_units(source, longest, classes[longest], reads, start, count)
        for d in dims:
            if d != longest:
                theirs = read_units(theirs, d, classes[d], reads, 0, base.shape[d])
        yield base.narrow(longest, start, count), theirs


def read_units(
    source: Tensor, dim: int, c: int | None, reads: Reads, start: int, count: int
) -> Tensor:
    """The source's units that some base units of one dimension read."""
    if c is None:
        return source.narrow(dim, start, count)
    units = reads[c][start : start + count]
    if units.ndim == 1:
        return reading(source, {dim: units})
    mixed: Tensor = torch.tensordot(units.to(source), source, ([1], [dim]))
    return mixed.movedim(0, dim)


def _relaxed(classes: Classes, reads: Reads) -> bool:
    return any(each is not None and reads[each].ndim == 2 for each in classes)


def _norms(source: Tensor, classes: Classes, reads: Reads, *, keep: int | None = None) -> Tensor:
    """The source's squares, each unit as often as it is read, summed over all dimensions, or all but `keep`."""
    squares = source.square()
    for d in reversed([d for d in range(source.ndim) if d != keep]):
        each = classes[d]
        if each is None:
            squares = squares.sum(d)
        else:
            often = _how_often(reads[each], source.shape[d]).to(squares)
            squares = torch.tensordot(squares, often, ([d], [0]))
    return squares


def _how_often(reads: Tensor, sources: int) -> Tensor:
    """(p,) how often each source unit is read."""
    if reads.ndim == 2:
        return reads.sum(0)
    counts = torch.zeros(sources, device="cpu")
    counts[reads[reads >= 0].cpu()] = 1.0
    return counts


def _check_states(problem: Problem, base_state: State, source_state: State) -> None:
    wrong = []
    for pair in problem.pairs:
        for side, state, fqn, shape in (
            ("base", base_state, pair.base, pair.base_shape),
            ("source", source_state, pair.source, pair.source_shape),
        ):
            tensor = state.get(fqn)
            if tensor is None or tuple(tensor.shape) != shape:
                has = "is missing" if tensor is None else f"is {tuple(tensor.shape)}"
                wrong.append(f"{side} '{fqn}' {has} instead of {shape}")
    if wrong:
        raise AssemblyError(
            f"the states are not those of the traced models: {len(wrong)} tensors differ.",
            where={"first": "; ".join(wrong[:3])},
            fix="pass the state dicts of the models whose graphs made the problem",
        )
