"""Read a parameter, or a part of one, as a matrix, and put the matrix back.

In: a `Parameter` record and a tensor of its full shape (the weight, its gradient, a momentum buffer; any dtype, any
device, meta tensors too). Out: a matrix with one row per output unit, and the way back.
Always true: `unmatrix(p, matrix(p, w), into=w)` has the bits of `w`; `matrix(p, w).shape == matrix_shape(p)`; both
ways only move elements, so gradients flow through them unchanged; writing a part leaves every other unit's bits alone.
Not here: which parameters are paired (`mapping.py`), and what is done to a matrix (the adapters).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ViewError
from ..graph.parameter import Parameter, Part

__all__ = ["matrix", "matrix_shape", "unmatrix"]


def matrix(parameter: Parameter, tensor: Tensor) -> Tensor:
    """The 2-D view of `tensor`: one row per output unit (per token for an embedding).

    Args:
        parameter: what the tensor is; with a part, only the units of that part are taken.
        tensor: the whole tensor, of `parameter.shape`, whatever the part.

    Returns:
        (rows, columns) as `matrix_shape` says, same dtype and device, differentiable. It shares memory with `tensor`
        where strides allow (linear layers, contiguous convolutions, parts that are a range of units) and is a copy
        where they do not (transposed convolutions with a kernel, parts whose units are scattered).

    Raises:
        ViewError: the parameter has no 2-D view, or `tensor` does not have the parameter's shape.

    >>> from graftlib.graph.parameter import Parameter
    >>> conv1d = Parameter("c_fc.weight", (2, 3), torch.float32, "linear", "weight", "c_fc", 0.5, ("in", "out"))
    >>> matrix(conv1d, torch.tensor([[1, 2, 3], [4, 5, 6]]))  # stored in, out: rows of the view are the outs
    tensor([[1, 4],
            [2, 5],
            [3, 6]])
    """
    layout = _layout(parameter)
    _expect_shape(parameter, tensor, parameter.shape, "the parameter's shape")
    taken = _take(tensor, parameter.selection)
    return _rearrange(taken, layout.stored, layout.matrix, layout)


def unmatrix(parameter: Parameter, matrix: Tensor, into: Tensor | None = None) -> Tensor:
    """The tensor whose 2-D view is `matrix`: the inverse of `graftlib.match.matrix`.

    Args:
        parameter: what the result is; with a part, `matrix` holds the units of that part alone.
        matrix: (rows, columns), of `matrix_shape(parameter)`.
        into: the whole tensor that a part is put back in, never changed itself. Needed for a part; without a part it
            is only checked.

    Returns:
        A tensor of `parameter.shape`, differentiable in `matrix` and in `into`. For a part it is a new tensor that has
        the bits of `into` outside the part; for a whole parameter it may share memory with `matrix`.

    Raises:
        ViewError: no 2-D view; a wrong shape; a part without `into`; another dtype or device than `into`.
    """
    layout = _layout(parameter)
    _expect_shape(parameter, matrix, layout.matrix_shape, "the shape of its 2-D view")
    if into is not None:
        _expect_shape(parameter, into, parameter.shape, "the parameter's shape (`into`)")
        _expect_same_home(parameter, matrix, into)
    tensor = _rearrange(matrix, layout.matrix, layout.stored, layout)
    selection = parameter.selection
    if selection is None:
        return tensor
    if into is None:
        raise ViewError(
            f"{_name(parameter)} is a part: the rest of its tensor is needed to put it back.",
            fix="pass the whole tensor: unmatrix(parameter, matrix, into=tensor)",
            parameter=parameter,
        )
    return _put(into, selection, tensor)


def matrix_shape(parameter: Parameter) -> tuple[int, int]:
    """(rows, columns) of the 2-D view, from the record alone.

    Raises:
        ViewError: the parameter has no 2-D view; the message says why and what to use instead.
    """
    return _layout(parameter).matrix_shape


# --- the table of views: W as it is stored = M, the matrix -------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """How one tensor is read as a matrix: einops sides, and the size of every axis named in them."""

    stored: str
    rows: str
    columns: str
    sizes: dict[str, int]

    @property
    def matrix(self) -> str:
        return f"({self.rows}) ({self.columns})"

    @property
    def matrix_shape(self) -> tuple[int, int]:
        rows, columns = (
            math.prod(self.sizes[axis] for axis in side.split())
            for side in (self.rows, self.columns)
        )
        return rows, columns


_Rule = Callable[[Parameter, tuple[int, ...]], _Layout]
_RULES: dict[str, _Rule] = {}
_KERNELS = {3: "k", 4: "kh kw", 5: "kd kh kw"}


def _rule(*kinds: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


@_rule("linear", "recurrent", "embedding")
def _product(parameter: Parameter, shape: tuple[int, ...]) -> _Layout:
    """M[o, i] = W[o, i]: o runs gate by gate, or over tokens; stored transposed (Conv1D): M[o, i] = W[i, o]."""
    _expect_axes(parameter, shape, 2)
    stored = "i o" if parameter.axes[:2] == ("in", "out") else "o i"
    return _Layout(stored, "o", "i", _sizes(stored, shape))


@_rule("conv", "depthwise", "grouped")
def _conv(parameter: Parameter, shape: tuple[int, ...]) -> _Layout:
    """M[o, (i k)] = W[o, i, k]; in groups, i counts the inputs of o's own group."""
    _expect_axes(parameter, shape, *_KERNELS)
    kernel = _KERNELS[len(shape)]
    stored = f"o i {kernel}"
    return _Layout(stored, "o", f"i {kernel}", _sizes(stored, shape))


@_rule("transposed_conv")
def _transposed_conv(parameter: Parameter, shape: tuple[int, ...]) -> _Layout:
    """M[o, (i k)] = W[i, o, k]; in groups g: M[(g o), (i k)] = W[(g i), o, k]."""
    _expect_axes(parameter, shape, *_KERNELS)
    kernel = _KERNELS[len(shape)]
    groups = _groups_taken(parameter)
    names = f"g i o {kernel}"
    sizes = _sizes(names, (groups, shape[0] // groups, *shape[1:]))
    return _Layout(f"(g i) o {kernel}", "g o", f"i {kernel}", sizes)


def _layout(parameter: Parameter) -> _Layout:
    rule = _RULES.get(parameter.kind)
    if rule is None or len(parameter.shape) < 2:
        raise _no_view(parameter)
    sizes = [*parameter.shape]
    if parameter.selection is not None:
        sizes[parameter.selection.axis] = len(parameter.selection.units)
    return rule(parameter, tuple(sizes))


def _groups_taken(parameter: Parameter) -> int:
    """How many groups the selected units of a transposed convolution span.

    Its first axis runs over the inputs, group by group, so a part of that axis is a matrix only where it is a piece
    of one group, or whole groups one after the other.
    """
    selection = parameter.selection
    if selection is None or selection.axis != 0 or parameter.groups == 1:
        return parameter.groups
    size = parameter.shape[0] // parameter.groups
    group_of = [unit // size for unit in selection.units]
    groups = list(dict.fromkeys(group_of))
    whole = [group * size + unit for group in groups for unit in range(size)]
    if len(groups) == 1 or [*selection.units] == whole:
        return len(groups)
    raise ViewError(
        f"{_name(parameter)} cuts through groups of a transposed convolution.",
        why=f"its inputs come in groups of {size}; the part takes some of several groups",
        fix=f"use a part inside one group: one of '{parameter.fqn}::group[0..{parameter.groups - 1}]'",
        parameter=parameter,
    )


def _sizes(names: str, shape: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(names.split(), shape, strict=True))


# --- moving elements --------------------------------------------------------------------------------------------


def _rearrange(tensor: Tensor, before: str, after: str, layout: _Layout) -> Tensor:
    # Every size is given, so that einops need not divide by an axis of size 0.
    result: Tensor = rearrange(tensor, f"{before} -> {after}", **layout.sizes)
    return result


def _take(tensor: Tensor, selection: Part | None) -> Tensor:
    if selection is None:
        return tensor
    units, axis = selection.units, selection.axis
    if isinstance(units, range) and units.step > 0:
        cut = (slice(None),) * axis + (slice(units.start, units.stop, units.step),)
        return tensor[cut]
    return tensor.index_select(axis, _index(units, tensor))


def _put(into: Tensor, selection: Part, piece: Tensor) -> Tensor:
    units, axis = selection.units, selection.axis
    if isinstance(units, range) and units.step > 0:
        return torch.slice_scatter(into, piece, axis, units.start, units.stop, units.step)
    # Not index_copy: float8 tensors have none. index_put indexes leading axes only.
    moved, piece = into.movedim(axis, 0), piece.movedim(axis, 0)
    return torch.index_put(moved, (_index(units, into),), piece).movedim(0, axis)


def _index(units: range | tuple[int, ...], tensor: Tensor) -> Tensor:
    return torch.tensor(units, dtype=torch.int64, device=tensor.device)


# --- saying no --------------------------------------------------------------------------------------------------


def _expect_axes(parameter: Parameter, shape: tuple[int, ...], *allowed: int) -> None:
    if len(shape) not in allowed:
        raise ViewError(
            f"{_name(parameter)} has no 2-D view.",
            where={"parameter": _described(parameter)},
            why=f"a {parameter.kind} weight has {_either(allowed)} axes, this one has {len(shape)}",
            fix="use a weight of a linear, conv, embedding or recurrent layer",
            parameter=parameter,
        )


def _expect_shape(
    parameter: Parameter, tensor: Tensor, shape: tuple[int, ...], meaning: str
) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ViewError(
            f"{_name(parameter)}: a tensor of {tuple(tensor.shape)} is not of {meaning}.",
            where={"expected": tuple(shape), "got": tuple(tensor.shape)},
            fix=f"pass a tensor of shape {tuple(shape)}",
            parameter=parameter,
        )


def _expect_same_home(parameter: Parameter, matrix: Tensor, into: Tensor) -> None:
    if (matrix.dtype, matrix.device) != (into.dtype, into.device):
        raise ViewError(
            f"{_name(parameter)}: `matrix` and `into` differ in dtype or device.",
            where={
                "matrix": f"{matrix.dtype} on {matrix.device}",
                "into": f"{into.dtype} on {into.device}",
            },
            fix="pass matrix.to(into)",
            parameter=parameter,
        )


_WHY = {
    "bias": "a bias is one number per unit; it has no second axis",
    "norm": "a norm keeps one gain and one shift per element it normalises; nothing is mapped to anything",
    "other": "no known operation reads it as a map from inputs to outputs",
}


def _no_view(parameter: Parameter) -> ViewError:
    axes = len(parameter.shape)
    count = f"{axes} {'axis' if axes == 1 else 'axes'}"
    fix = "use a weight of a linear, conv, embedding or recurrent layer"
    if parameter.kind == "bias":
        weight = "weight".join(parameter.fqn.rsplit("bias", 1))
        fix = f"use the weight of the same layer: {weight!r}"
    return ViewError(
        f"{_name(parameter)} has no 2-D view.",
        where={"parameter": _described(parameter)},
        why=_WHY.get(parameter.kind, f"it has {count}, and a matrix needs rows and columns"),
        fix=fix,
        parameter=parameter,
    )


def _name(parameter: Parameter) -> str:
    return repr(parameter.address)


def _described(parameter: Parameter) -> str:
    return f"{parameter.shape}, kind {parameter.kind}, role {parameter.role}"


def _either(numbers: tuple[int, ...]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
