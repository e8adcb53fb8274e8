"""How well an aligned source fits a base, and what it is worth that one unit reads another.

In: cells, the two states, for every class pair its reads (m,) or, relaxed, a doubly substochastic matrix (m, p). Out:
the objective and its gradient. ``l2``: sum of 2 <B, T'> - |T'|^2, so that |B|^2 minus it is the squared distance, and
``inner``: sum of <B, T'>; T' is the source in the base's units. Both are linear in each class that a cell holds once.
Parameters take part; running statistics, whose scale is that of the data, do not. Memory: parts of one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .cells import Cell, cells_of
from .permutation import AssemblyError, reading
from .records import Problem
from .solvers import Score

__all__ = ["Moves", "Objective", "State"]

State = Mapping[str, Tensor]
# Class pair -> reads (m,) int64, or a relaxed permutation (m, p) in the working dtype.
Moves = Mapping[int, Tensor]
_PART = 2**19  # elements that are carried at once
_ROWS = 256  # rows of gains that are computed at once, before they are added up in double precision
_STATISTICS = ("mean", "variance", "buffer")


class Objective:
    """The objective of one problem and two states.

    Args:
        problem: which tensors and classes meet.
        base_state: FQN -> tensor; read, never changed.
        source_state: the same of the source.
        score: ``l2`` or ``inner``.

    Raises:
        AssemblyError: a state lacks a tensor, or holds one of another shape.
    """

    def __init__(
        self, problem: Problem, base_state: State, source_state: State, score: Score
    ) -> None:
        _must_fit(problem, base_state, source_state)
        self.score = score
        self.sizes = [(pair.bases, pair.sources) for pair in problem.classes]
        matched = [p for p in problem.pairs if p.role not in _STATISTICS]
        self.cells: list[Cell] = [cell for pair in matched for cell in cells_of(pair)]
        names = {(p.base, p.source) for p in matched}
        tensors = [base_state[b] for b, _ in names] + [source_state[s] for _, s in names]
        wide = any(tensor.dtype == torch.float64 for tensor in tensors)
        self.dtype = torch.float64 if wide else torch.float32
        self._base = {b: base_state[b].detach().to(self.dtype) for b, _ in names}
        self._source = {s: source_state[s].detach().to(self.dtype) for _, s in names}
        self.of: list[list[int]] = [[] for _ in problem.classes]
        for i, cell in enumerate(self.cells):
            for pair in {each for each in cell.dims if each is not None}:
                self.of[pair].append(i)

    @property
    def epsilon(self) -> float:
        """A relative change of the objective that rounding may make."""
        return float(torch.finfo(self.dtype).eps) * 8

    def neighbours(self, pair: int) -> set[int]:
        """The class pairs whose gains depend on this one."""
        near = set()
        for i in self.of[pair]:
            dims = self.cells[i].dims
            near |= {each for each in dims if each is not None and each != pair}
            if dims.count(pair) > 1:
                near.add(pair)
        return near

    def linear(self, pair: int) -> bool:
        """Whether the objective is linear in this class pair: no cell holds it twice."""
        return all(len(self.cells[i].where(pair)) == 1 for i in self.of[pair])

    def gain(self, pair: int, moves: Moves, *, known: set[int] | None = None) -> Tensor:
        """The gradient of the objective at `moves`: what it is worth that base unit i reads source unit j.

        Args:
            pair: number of the class pair.
            moves: of all class pairs.
            known: only cells whose other dimensions all belong to one of these, or to none; None: all. `moves` need
                not hold any others then.

        Returns:
            (m, p) float64 on the CPU.
        """
        m, p = self.sizes[pair]
        total = torch.zeros(m, p, dtype=torch.float64, device="cpu")
        for i in self.of[pair]:
            if known is not None and not _told(self.cells[i], pair, known):
                continue
            for dim in self.cells[i].where(pair):
                self._add_gain(total, self.cells[i], dim, moves)
        return total

    def value(self, moves: Moves, *, of: int | None = None) -> float:
        """The objective; with `of` only the cells that hold this class pair."""
        cells = self.cells if of is None else [self.cells[i] for i in self.of[of]]
        return sum(self._value(cell, moves) for cell in cells)

    def evidence(self, pair: int, known: set[int]) -> float:
        """The share of a class pair's entries that lie in cells whose other classes are known."""
        seen = every = 0
        for i in self.of[pair]:
            cell = self.cells[i]
            count = cell.base_view(self._base[cell.base]).numel()
            every += count
            seen += count * _told(cell, pair, known)
        return seen / every if every else 0.0

    # --- one cell -------------------------------------------------------------------------------------------------

    def _views(self, cell: Cell) -> tuple[Tensor, Tensor]:
        base = cell.base_view(self._base[cell.base])
        return base, cell.source_view(self._source[cell.source]).to(base.device)

    def _add_gain(self, total: Tensor, cell: Cell, dim: int, moves: Moves) -> None:
        """Add the gains of one cell to `total`, in place."""
        base, source = self._views(cell)
        # In front before it is carried: what carries it then writes the rows of a matrix, without one more copy.
        base, source = base.movedim(dim, 0), source.movedim(dim, 0)
        dims = (None, *cell.dims[:dim], *cell.dims[dim + 1 :])
        m, p = base.shape[0], source.shape[0]
        relaxed = _relaxed(dims, moves)
        scale = 1.0 if self.score == "inner" else 2.0
        # Where every source unit is read anyhow (m >= p) the norm is the same for all assignments.
        normed = self.score == "l2" and m < p
        for part, carried in _carried(base, source, dims, moves, keep=True):
            ours, theirs = part.reshape(m, -1), carried.reshape(p, -1)
            for start in range(0, m, _ROWS):
                product = ours[start : start + _ROWS] @ theirs.T
                total[start : start + _ROWS].add_(product.to("cpu"), alpha=scale)
            if normed and not relaxed:
                total -= theirs.square().sum(1).to("cpu", torch.float64)
        if normed and relaxed:
            total -= _norms(source, dims, moves, keep=True).to("cpu", torch.float64)

    def _value(self, cell: Cell, moves: Moves) -> float:
        base, source = self._views(cell)
        total = 0.0
        relaxed = _relaxed(cell.dims, moves)
        for part, carried in _carried(base, source, cell.dims, moves):
            total += (1 if self.score == "inner" else 2) * float((part * carried).sum())
            if self.score == "l2" and not relaxed:
                total -= float(carried.square().sum())
        if self.score == "l2" and relaxed:
            total -= float(_norms(source, cell.dims, moves))
        return total


def _told(cell: Cell, pair: int, known: set[int]) -> bool:
    """Whether a cell holds this class once and nothing else that is not known."""
    others = {each for each in cell.dims if each not in (None, pair)}
    return others <= known and cell.dims.count(pair) == 1


def _must_fit(problem: Problem, base_state: State, source_state: State) -> None:
    wrong = []
    for pair in problem.pairs:
        for side, state, fqn, shape in (
            ("base", base_state, pair.base, pair.base_shape),
            ("source", source_state, pair.source, pair.source_shape),
        ):
            held = state.get(fqn)
            if held is None or tuple(held.shape) != shape:
                has = "is missing" if held is None else f"is {tuple(held.shape)}"
                wrong.append(f"{side} '{fqn}' {has} instead of {shape}")
    if wrong:
        raise AssemblyError(
            f"the states are not those of the traced models: {len(wrong)} tensors differ.",
            where={"first": "; ".join(wrong[:3])},
            fix="pass the state dicts of the models whose graphs made the problem",
        )


def _relaxed(dims: Sequence[int | None], moves: Moves) -> bool:
    return any(each is not None and moves[each].ndim == 2 for each in dims)


def _carried(
    base: Tensor, source: Tensor, dims: Sequence[int | None], moves: Moves, *, keep: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """(part of the base, the same part of the carried source); with `keep` dimension 0 has the source's units."""
    ours = range(int(keep), base.ndim)
    if not ours:
        yield base, source
        return
    cut = max(ours, key=lambda d: base.shape[d])
    rest = max(base.numel(), source.numel()) // max(base.shape[cut], 1)
    step = max(_PART // max(rest, 1), 1)
    for start in range(0, base.shape[cut], step):
        count = min(step, base.shape[cut] - start)
        moved = _moved(source, cut, dims[cut], moves, start, count)
        for d in ours:
            if d != cut:
                moved = _moved(moved, d, dims[d], moves, 0, base.shape[d])
        yield base.narrow(cut, start, count), moved


def _moved(
    source: Tensor, dim: int, pair: int | None, moves: Moves, start: int, count: int
) -> Tensor:
    if pair is None:
        return source.narrow(dim, start, count)
    move = moves[pair][start : start + count]
    if move.ndim == 1:
        return reading(source, {dim: move})
    moved: Tensor = torch.tensordot(move.to(source), source, ([1], [dim]))
    return moved.movedim(0, dim)


def _norms(
    source: Tensor, dims: Sequence[int | None], moves: Moves, *, keep: bool = False
) -> Tensor:
    """The source's squares, each unit as often as it is read, summed over all dimensions; with `keep` but the first."""
    squares = source.square()
    for d in reversed(range(int(keep), source.ndim)):
        each = dims[d]
        if each is None:
            squares = squares.sum(d)
        else:
            often = _often(moves[each], source.shape[d]).to(squares)
            squares = torch.tensordot(squares, often, ([d], [0]))
    return squares


def _often(move: Tensor, sources: int) -> Tensor:
    """(p,) how often each source unit is read."""
    counts = torch.zeros(sources, device="cpu")
    if move.ndim == 2:
        counts = move.sum(0)
        return counts
    counts[move[move >= 0].cpu()] = 1.0
    return counts
