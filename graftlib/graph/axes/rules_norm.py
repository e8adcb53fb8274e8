"""Rules of normalisations. Their statistics do not care for the order of what they are taken over."""

# Equations are no sentences.
# ruff: noqa: D403, D415

from __future__ import annotations

from typing import Any

from ..ops import aten, op, rule
from .algebra import fixed, product, split, tie
from .values import Axes

_AFFINE = {"2": "gain", "3": "shift"}


def _with_statistics(x: Axes) -> Any:
    shapes = op().shapes
    if len(shapes) == 1:
        return x
    return [x, *(Axes(fixed(n) for n in shape) for shape in shapes[1:])]


@rule(
    "aten.batch_norm",
    "aten.instance_norm",
    does="keeps",
    kind="norm",
    slots={"1": "gain", "2": "shift"},
)
@rule(
    *aten(
        """
        native_batch_norm cudnn_batch_norm _native_batch_norm_legit
        _native_batch_norm_legit_no_training _native_batch_norm_legit_functional _batch_norm_no_update
        _batch_norm_with_update _batch_norm_impl_index
        """
    )
)
def channel_norm(x: Axes, *args: Any, **kwargs: Any) -> Any:
    """z[n, c, ...] = (x - m[c]) / s[c] g[c] + b[c]"""
    for operand in args[:4]:
        if isinstance(operand, Axes) and len(operand) == 1:
            tie(x[1], operand[0])
    return _with_statistics(x)


@rule("aten.layer_norm", "aten.native_layer_norm", does="keeps", kind="norm", slots=_AFFINE)
@rule("aten.rms_norm", does="keeps", kind="norm", slots={"2": "gain"})
@rule("aten._fused_rms_norm")
def layer_norm(x: Axes, shape: list[int], *args: Any, **kwargs: Any) -> Any:
    """z[..., i] = (x[..., i] - mean_i x) / std_i x g[i] + b[i]"""
    for operand in args:
        if isinstance(operand, Axes):
            for a, b in zip(x[len(x) - len(operand) :], operand, strict=True):
                tie(a, b)
    return _with_statistics(x)


@rule("aten.group_norm", does="keeps", kind="norm", slots=_AFFINE)
def group_norm(x: Axes, groups: int, *args: Any) -> Axes:
    """z[n, (k, c), ...] = (x - mean_k) / std_k g[(k, c)] + b[(k, c)]"""
    for operand in args[:2]:
        if isinstance(operand, Axes):
            tie(x[1], operand[0])
    group, channel = split(x[1], groups, x[1].size // groups)
    return Axes((x[0], product([group, channel]), *x[2:]))


@rule("aten.native_group_norm")
def native_group_norm(
    x: Axes, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> Any:
    """as `group_norm`, with its statistics"""
    return _with_statistics(group_norm(x, groups, weight, bias))
