"""How well an aligned source fits a base, and what it is worth that one unit reads another.

In: cells, the two states, for every class pair its reads (m,) or, relaxed, a doubly substochastic matrix (m, p). Out:
the objective and its gradient. ``l2``: sum of 2 <B, T'> - |T'|^2, so that |B|^2 minus it is the squared distance, and
``inner``: sum of <B, T'>; T' is the source in the base's units. Both are linear in each class that a cell holds once.
Parameters take part; running statistics, whose scale is that of the data, do not. Memory: parts of one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from .cells import Cell, cells_of
from .permutation import AssemblyError, reading
from .records import Problem
from .solvers import Score, assign

__all__ = ["Change", "Moves", "Objective", "State", "is_determined"]

State = Mapping[str, Tensor]
# Class pair -> reads (m,) int64, or a relaxed permutation (m, p) in the working dtype.
Moves = Mapping[int, Tensor]
# A class pair, its reads before and after.
Change = tuple[int, Tensor, Tensor]
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
        # As they are stored: parts are converted where they are used.
        self._base = {b: base_state[b].detach() for b, _ in names}
        self._source = {s: source_state[s].detach() for _, s in names}
        self._sizes = [c.base_view(self._base[c.base]).numel() for c in self.cells]
        self.of: list[list[int]] = [[] for _ in problem.classes]
        for i, cell in enumerate(self.cells):
            for pair in {each for each in cell.dims if each is not None}:
                self.of[pair].append(i)

    @property
    def epsilon(self) -> float:
        """A relative change of the objective that rounding may make."""
        return float(torch.finfo(self.dtype).eps) * 8

    @property
    def weight(self) -> int:
        """Bytes of both models' tensors that take part, as they are stored."""
        tensors = (*self._base.values(), *self._source.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def entries(self, pair: int) -> int:
        """How many entries of the base lie in cells that hold this class pair."""
        return sum(self._sizes[i] for i in self.of[pair])

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

    def gain(
        self, pair: int, moves: Moves, *, known: set[int] | None = None, part: int = _PART
    ) -> Tensor:
        """The gradient of the objective at `moves`: what it is worth that base unit i reads source unit j.

        Args:
            pair: number of the class pair.
            moves: of all class pairs.
            known: only cells whose other dimensions all belong to one of these, or to none; None: all. `moves` need
                not hold any others then.
            part: elements that are carried at once.

        Returns:
            (m, p) float64 on the CPU.
        """
        m, p = self.sizes[pair]
        total = torch.zeros(m, p, dtype=torch.float64, device="cpu")
        for i in self.of[pair]:
            if known is not None and not is_determined(self.cells[i], pair, known):
                continue
            self.add_gain(total, i, pair, moves, part=part)
        return total

    def value(self, moves: Moves, *, of: int | None = None, part: int = _PART) -> float:
        """The objective; with `of` only the cells that hold this class pair."""
        cells = self.cells if of is None else [self.cells[i] for i in self.of[of]]
        return sum(self._value(cell, moves, part) for cell in cells)

    def determined_share(self, pair: int, known: set[int]) -> float:
        """The share of a class pair's entries that lie in cells whose other classes are known."""
        seen = every = 0
        for i in self.of[pair]:
            every += self._sizes[i]
            seen += self._sizes[i] * is_determined(self.cells[i], pair, known)
        return seen / every if every else 0.0

    def undetermined_neighbours(self, pair: int, known: set[int]) -> set[int]:
        """The class pairs that alone keep a cell of this one undetermined."""
        return {
            open_
            for i in self.of[pair]
            if (open_ := _undetermined(self.cells[i], pair, known)) is not None
        }

    def bound(self, pair: int, moves: Moves, *, known: set[int]) -> Tensor:
        """At most what it is worth that base unit i reads source unit j, where one other class is not known yet.

        Heads and head_dim share an axis: which head meets which cannot be said without the order inside of them, nor
        the other way round. Here every pair of units has the best order for itself, which is the true one where the
        two are the same unit. Cells with another number of unknown classes say nothing.

        Args:
            pair: number of the class pair.
            moves: of the known class pairs.
            known: number of the class pairs that are.

        Returns:
            (m, p) float64 on the CPU.
        """
        m, p = self.sizes[pair]
        total = torch.zeros(m, p, dtype=torch.float64, device="cpu")
        inside: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for i in self.of[pair]:
            open_ = _undetermined(self.cells[i], pair, known)
            if open_ is not None:
                inside.setdefault(open_, []).append(self._rows(self.cells[i], pair, open_, moves))
        for held in inside.values():
            for i in range(m):
                gain = torch.stack([self._each(ours[i], theirs) for ours, theirs in held]).sum(0)
                for j, each in enumerate(gain.to("cpu", torch.float64)):
                    best = assign(each).reads
                    matched = (best >= 0).nonzero().flatten()
                    total[i, j] += each[matched, best[matched]].sum()
        return total

    def _rows(self, cell: Cell, pair: int, inner: int, moves: Moves) -> tuple[Tensor, Tensor]:
        """Both sides as (units, units inside, all the rest), the rest in the base's units."""
        base, source = self._views(cell)
        front = (cell.where(pair)[0], cell.where(inner)[0])
        for d, each in enumerate(cell.dims):
            if d not in front:
                source = _moved(source, d, each, moves, 0, base.shape[d])
        ours, theirs = (t.to(self.dtype).movedim(front, (0, 1)) for t in (base, source))
        return ours.reshape(*ours.shape[:2], -1), theirs.reshape(*theirs.shape[:2], -1)

    def _each(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """(p, mi, pi) gains inside of one base unit (mi, rest) and each source unit (p, pi, rest)."""
        inner = (theirs @ ours.T).mT
        return inner if self.score == "inner" else 2 * inner - theirs.square().sum(2)[:, None]

    # --- one cell -------------------------------------------------------------------------------------------------

    def add_gain(
        self,
        total: Tensor,
        number: int,
        pair: int,
        moves: Moves,
        *,
        change: Change | None = None,
        sign: float = 1.0,
        part: int = _PART,
    ) -> None:
        """Add the gains of one cell to `total`, in place.

        Args:
            total: (m, p) on the CPU.
            number: of the cell.
            pair: the class pair whose gains these are.
            moves: of the cell's other class pairs.
            change: add what the gains change by when this other class pair does; its entry in `moves` is not read.
            sign: 1, or -1 to subtract.
            part: elements that are carried at once.
        """
        cell = self.cells[number]
        m, p = self.sizes[pair]
        scale = sign if self.score == "inner" else 2 * sign
        # Where every source unit is read anyhow (m >= p) the norm is the same for all assignments.
        normed = self.score == "l2" and m < p
        for dim in cell.where(pair):
            base, source = self._views(cell)
            dims = tuple(None if d == dim else each for d, each in enumerate(cell.dims))
            relaxed = change is None and _relaxed(dims, moves)
            if relaxed:
                base, source = base.to(self.dtype), source.to(self.dtype)
            read = any(each is not None for each in dims)
            for ours, carried, way in self._parts(
                base, source, dims, moves, change, part, dim, apart=normed
            ):
                theirs = _front(carried, dim, read)
                _add_product(total, _front(ours, dim), theirs, way * scale)
                if normed and not relaxed:
                    squares = theirs.square().sum(1)
                    total.sub_(squares.to("cpu", total.dtype), alpha=way * sign)
            if normed and relaxed:
                norms = _norms(source, dims, moves, keep=dim)
                total.sub_(norms.to("cpu", total.dtype), alpha=sign)

    def _value(self, cell: Cell, moves: Moves, part: int) -> float:
        base, source = self._views(cell)
        total = 0.0
        relaxed = _relaxed(cell.dims, moves)
        if relaxed:
            base, source = base.to(self.dtype), source.to(self.dtype)
        for ours, carried, _ in self._parts(base, source, cell.dims, moves, None, part):
            total += (1 if self.score == "inner" else 2) * float((ours * carried).sum())
            if self.score == "l2" and not relaxed:
                total -= float(carried.square().sum())
        if self.score == "l2" and relaxed:
            total -= float(_norms(source, cell.dims, moves))
        return total

    def _views(self, cell: Cell) -> tuple[Tensor, Tensor]:
        base = cell.base_view(self._base[cell.base])
        return base, cell.source_view(self._source[cell.source]).to(base.device)

    def _parts(
        self,
        base: Tensor,
        source: Tensor,
        dims: Sequence[int | None],
        moves: Moves,
        change: Change | None,
        part: int,
        keep: int | None = None,
        *,
        apart: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor, float]]:
        """(part of the base, the carried source there, 1) in the working dtype.

        With a change the source after it less the source before it; or, `apart`, (…, after, 1) and (…, before, -1).
        """
        if change is None:
            for ours, carried in _carried(base, source, dims, moves, part, keep):
                yield ours.to(self.dtype), carried.to(self.dtype), 1.0
            return
        number, old, new = change
        place = dims.index(number)
        dims = (*dims[:place], None, *dims[place + 1 :])
        moved = (old != new).nonzero().flatten()
        size = max(each.numel() // max(each.shape[place], 1) for each in (base, source))
        for units in torch.split(moved, max(part // max(size, 1), 1)):
            mine = reading(base, {place: units})
            after, before = (
                reading(source, {place: reads[units]}).to(self.dtype) for reads in (new, old)
            )
            ways = ((after, 1.0), (before, -1.0)) if apart else ((after.sub_(before), 1.0),)
            del before
            for found, way in ways:
                for ours, carried in _carried(mine, found, dims, moves, part, keep):
                    yield ours.to(self.dtype), carried, way


def _front(tensor: Tensor, dim: int, dense: bool = False) -> Tensor:
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


def is_determined(cell: Cell, pair: int, known: set[int]) -> bool:
    """Whether a cell holds this class once and nothing else that is not known."""
    others = {each for each in cell.dims if each not in (None, pair)}
    return others <= known and cell.dims.count(pair) == 1


def _undetermined(cell: Cell, pair: int, known: set[int]) -> int | None:
    """The one other class that a cell holds, once, and that is not known; None where there are more or none."""
    open_ = [each for each in cell.dims if each is not None and each not in known]
    others = [each for each in open_ if each != pair]
    return others[0] if len(others) == 1 and len(open_) == 2 else None


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
    base: Tensor,
    source: Tensor,
    dims: Sequence[int | None],
    moves: Moves,
    part: int,
    keep: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(part of the base, the same part of the carried source); dimension `keep` has the source's units."""
    ours = [d for d in range(base.ndim) if d != keep]
    if not ours:
        yield base, source
        return
    cut = max(ours, key=lambda d: base.shape[d])
    rest = max(base.numel(), source.numel()) // max(base.shape[cut], 1)
    step = max(part // max(rest, 1), 1)
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
    source: Tensor, dims: Sequence[int | None], moves: Moves, *, keep: int | None = None
) -> Tensor:
    """The source's squares, each unit as often as it is read, summed over all dimensions, or all but `keep`."""
    squares = source.square()
    for d in reversed([d for d in range(source.ndim) if d != keep]):
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
