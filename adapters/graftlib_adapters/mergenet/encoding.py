"""Re-encode a matrix as W = B A + rest, or as W = A B^T + rest (eq. 4-5), and put a changed A back.

In: a matrix (rows, columns) and the basis of the last transfer. Out: a basis B (rows, rank) with orthonormal columns
and the code A = B^T W (rank, columns); or, where the columns are the longer side, B (columns, rank) and A = W B (rows,
rank). B is data: no gradient passes through it; A carries gradients to W.
Always true: B spans the leading singular vectors of W on its side as closely as a warm-started subspace iteration gets,
its columns keep their meaning from one transfer to the next, no random state but our own is touched, and no finite
matrix, however degenerate, gives NaN. Not here: what happens to the code (`transfer`, `lpka`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["Encoding", "LearnedEncoding", "energy_rank", "leading_basis", "turn"]

COLD = 8  # iterations of the first transfer
WARM = 1  # of every later one: the weights have hardly moved


class Encoding(nn.Module):
    """The basis of one matrix, carried from one transfer to the next.

    Args:
        shape: (rows, columns) of the matrix.
        rank: width of the basis, at most min(rows, columns); None keeps the whole matrix.
        compress: which side of the matrix the rank replaces: ``"longer"``, or always the ``"rows"``. A rank that leaves
            nothing out (with ``"rows"``: one equal to the rows) re-encodes nothing: the code is the matrix.

    The buffer `basis` (length of that side, rank) is all zero before the first transfer and changes in training mode
    only; a matrix that is kept whole has none.
    """

    basis: Tensor | None
    shape: tuple[int, int]

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int | None,
        compress: Literal["longer", "rows"] = "longer",
    ) -> None:
        super().__init__()
        basis = self._measure(shape, rank, compress)
        self.register_buffer("basis", None if basis is None else torch.zeros(basis))
        # Whether there is a basis to start from: read from the buffer once, and again after loading.
        self._warm: bool | None = None
        self.register_load_state_dict_post_hook(_forget_warm)  # type: ignore[no-untyped-call]

    def _measure(
        self, shape: tuple[int, int], rank: int | None, compress: str
    ) -> tuple[int, int] | None:
        """Set the shape of the code; the shape of the basis, None for a matrix that is kept whole."""
        rows, columns = shape
        largest = rows if compress == "rows" else min(shape)
        self.by_columns = False
        if rank is None or rank >= largest:
            self.shape = shape
            return None
        self.by_columns = compress == "longer" and columns > rows
        self.shape = (rows, rank) if self.by_columns else (rank, columns)
        return (columns if self.by_columns else rows, rank)

    def forward(self, matrix: Tensor) -> Tensor | None:
        """The basis for `matrix`; None where the code is the matrix itself."""
        if self.basis is None:
            return None
        with torch.no_grad():
            side = matrix.mT if self.by_columns else matrix
            last = self.basis.to(matrix.dtype)
            if self._warm is None:
                self._warm = bool(last.any())
            basis = next_basis(side, last) if self._warm else first_basis(side, last.shape[1])
            if self.training:
                self.basis.copy_(basis)
                self._warm = True
        return basis

    def encode(self, matrix: Tensor, basis: Tensor | None) -> Tensor:
        """The code: B^T W (rank, columns), W B (rows, rank), or the matrix itself."""
        if basis is None:
            return matrix
        code: Tensor = matrix @ basis if self.by_columns else basis.mT @ matrix
        return code

    def spread(self, code: Tensor, basis: Tensor | None) -> Tensor:
        """The matrix (rows, columns) that a code alone stands for: B A or A B^T."""
        if basis is None:
            return code
        matrix: Tensor = code @ basis.mT if self.by_columns else basis @ code
        return matrix


def _forget_warm(encoding: Any, keys: object) -> None:
    encoding._warm = None


class LearnedEncoding(Encoding):
    """Low-rank factors that the adapter learns, in the place of a basis that follows the singular vectors.

    The code is ``read^T W`` (or ``W read``), and a change of it spreads by `write`: W + write (A_new - A). Both start
    as one orthonormal basis, drawn from torch's global random state, and are trained with the adapter. Arguments as of
    `Encoding`.

    Args:
        written: whether a link writes to the matrix; otherwise there is no `write`.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int | None,
        compress: Literal["longer", "rows"] = "longer",
        *,
        written: bool,
    ) -> None:
        nn.Module.__init__(self)
        factors = self._measure(shape, rank, compress)
        start = None if factors is None else torch.linalg.qr(torch.randn(factors)).Q
        self.read = None if start is None else nn.Parameter(start)
        self.write = None if start is None or not written else nn.Parameter(start.clone())

    def forward(self, matrix: Tensor) -> Tensor | None:
        """The factor that reads the code, with its gradient; None where the code is the matrix itself."""
        return None if self.read is None else self.read.to(matrix.dtype)

    def spread(self, code: Tensor, basis: Tensor | None) -> Tensor:
        """The matrix that a change of the code stands for; by `write`, whatever `basis` is."""
        return super().spread(code, None if self.write is None else self.write.to(code.dtype))


def first_basis(matrix: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors (rows, rank), largest first, each with a fixed sign."""
    unit = _unit(matrix)
    basis = leading_basis(unit, _sketch(unit, rank), COLD)
    rotation, _, _ = torch.linalg.svd(basis.mT @ unit, full_matrices=False)
    basis = torch.matmul(basis, rotation)
    peak = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return torch.where(peak < 0, -basis, basis)


def next_basis(matrix: Tensor, last: Tensor) -> Tensor:
    """The leading left singular space, spanned by the vectors nearest to those of `last`, both (rows, rank)."""
    return turn(leading_basis(_unit(matrix), last, WARM), last)


def leading_basis(matrix: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Subspace iteration on W W^T: per iteration two matrix products and a thin QR.

    A shift at the height of the rounding errors leaves the eigenvectors alone, and holds the directions that W does
    not reach (all of them, for a zero matrix) where they are: rounding would throw them anywhere.
    """
    shift = 4 * torch.finfo(matrix.dtype).eps * matrix.square().sum().clamp(min=1)
    basis = start
    for _ in range(iterations):
        basis = torch.linalg.qr(matrix @ (matrix.mT @ basis) + shift * basis).Q
    return basis


def turn(basis: Tensor, last: Tensor) -> Tensor:
    """`basis` in the coordinates nearest to `last`: the rotation R that minimises |basis R - last| (Procrustes)."""
    left, _, right = torch.linalg.svd(basis.mT @ last)
    turned: Tensor = basis @ (left @ right)
    return turned


def energy_rank(matrix: Tensor, share: float, limit: int) -> int:
    """The smallest rank, from 1 to `limit`, that keeps `share` of the squared singular values.

    >>> energy_rank(torch.diag(torch.tensor([3.0, 1.0, 1.0])), 0.8, 3)      # 9 of 11, then 10 of 11
    1
    >>> energy_rank(torch.diag(torch.tensor([3.0, 1.0, 1.0])), 0.9, 3)
    2
    """
    unit = _unit(matrix.detach()).double()
    small = unit if unit.shape[0] <= unit.shape[1] else unit.mT
    energies = torch.linalg.eigvalsh(small @ small.mT).clamp(min=0).flip(0)
    kept = energies.cumsum(0)
    enough = int((kept < share * kept[-1]).sum()) + 1
    return max(1, min(enough, limit))


def _unit(matrix: Tensor) -> Tensor:
    """Scaled to a largest entry of 1, so that W W^T neither under- nor overflows; what is not finite becomes 0."""
    peak = matrix.abs().amax().clamp(min=torch.finfo(matrix.dtype).tiny)
    return torch.nan_to_num(matrix / peak, nan=0.0, posinf=0.0, neginf=0.0)


def _sketch(matrix: Tensor, rank: int) -> Tensor:
    """A fixed Gaussian start (rows, rank): the same on every device, and no global random state is used."""
    numbers = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[0], rank, generator=numbers, dtype=torch.float64)
    return start.to(matrix)
