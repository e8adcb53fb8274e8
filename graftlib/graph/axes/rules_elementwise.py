"""Rules of ops that work element by element, or make a tensor out of nothing."""

# Equations are no sentences.
# ruff: noqa: D403, D415

from __future__ import annotations

from typing import Any

from ..ops import aten, op, rule
from .algebra import Expr, fixed, freeze, tie
from .combine import (
    broadcast,
    dims_of,
    fixed_axes,
    freeze_dims,
    packed,
    reduced,
    tie_axes,
    uniform,
)
from .values import Axes

SAME = aten(
    """
    alias contiguous detach lift_fresh_copy to type_as _to_copy
    """
)
SCALED = aten(
    """
    neg pow.Tensor_Scalar square rsqrt sqrt reciprocal dropout clamp clamp_min
    """
)
ACTIVATIONS = aten(
    """
    relu relu6 gelu silu hardswish hardtanh sigmoid tanh leaky_relu elu softplus mish exp
    """
)
UNARY = aten(
    """
    abs absolute acos acosh angle asin asinh atan atanh bitwise_not ceil celu clamp_max clip conj
    conj_physical cos cosh deg2rad digamma erf erfc erfinv exp2 expm1 feature_alpha_dropout
    feature_dropout alpha_dropout fill fix float_power.Tensor_Scalar floor frac hardshrink
    hardsigmoid i0 imag isfinite isinf isnan isneginf isposinf lgamma lift lift_fresh log log10
    log1p log2 log_sigmoid logical_not logit nan_to_num negative positive rad2deg real
    resolve_conj resolve_neg round rrelu selu sgn sign signbit sin sinc sinh softshrink
    special_entr special_erf special_erfcx special_expit special_log_ndtr special_ndtr tan threshold
    trunc zero cpu cuda double float half bool int long pin_memory requires_grad softsign tanhshrink
    _conj logsigmoid special_gelu view.dtype data set_data
    """
)
ARITHMETIC = aten(
    """
    add div masked_fill mul pow rsub sub where clamp.Tensor clamp_min.Tensor masked_fill_
    """
)
BINARY = aten(
    """
    addcdiv addcmul atan2 arctan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift
    bitwise_xor copy copysign divide eq float_power floor_divide fmax fmin fmod ge greater
    greater_equal gt heaviside hypot __and__ __or__ __xor__ __lshift__ __rshift__ __rpow__
    __rsub__ isclose le lerp less less_equal logaddexp logaddexp2 logical_and logical_or
    logical_xor lt maximum minimum multiply ne not_equal remainder subtract true_divide xlogy
    special_xlog1py clamp_max.Tensor complex polar nextafter
    """
)
LIKE = aten(
    """
    zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full zeros ones
    empty full empty_strided new_empty_strided scalar_tensor empty_permuted
    """
)
GENERATED = aten(
    """
    arange linspace logspace eye tril_indices triu_indices rand randn randint randperm rand_like
    randn_like randint_like hann_window hamming_window bartlett_window blackman_window
    kaiser_window normal multinomial fft_fftfreq fft_rfftfreq _shape_as_tensor
    lift_fresh_copy.constant
    """
)


@rule(*SAME, batchwise=True, does="moves", how="same")
@rule(*SCALED, batchwise=True, does="keeps")
@rule(*ACTIVATIONS, batchwise=True, does="activates")
@rule(*UNARY, batchwise=True)
def unary(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z[i] = f(x[i])"""
    return x


@rule(*ARITHMETIC, batchwise=True, does="keeps")
@rule(*BINARY, batchwise=True)
def binary(*args: Any, **kwargs: Any) -> Axes:
    """z[i] = f(x[i], y[i], …), broadcast"""
    return broadcast(*args, *kwargs.values())


@rule("aten.where.self", "aten.where.default", batchwise=True, does="keeps")
def where(condition: Axes, *branches: Any) -> Axes:
    """z[i] = x[i] where c[i] else y[i]; with the condition alone the places are listed in order."""
    if not branches:
        freeze_dims(condition, range(len(condition)))
        return [fixed_axes(shape) for shape in op().shapes]  # type: ignore[return-value]
    return broadcast(condition, *branches)


@rule(*LIKE)
def alike(*args: Any, **kwargs: Any) -> Axes:
    """z[i] = c"""
    if op().hints.get("written"):
        return Axes(
            uniform(op().shape)
        )  # somebody writes into it: its elements will not stay alike
    return uniform(op().shape)


@rule(*GENERATED)
def generated(*args: Any, **kwargs: Any) -> Axes:
    """z[i] = f(i)"""
    return fixed_axes(op().shape)


@rule(
    *aten(
        """
        _assert_tensor_metadata _assert_async _assert_scalar _functional_assert_async
        sym_constrain_range sym_constrain_range_for_size
        """
    )
)
def asserted(*args: Any, **kwargs: Any) -> None:
    """nothing is computed: a promise about sizes or types"""


@rule("aten.native_dropout", does="keeps")
def native_dropout(x: Axes, *args: Any) -> list[Axes]:
    """z[i] = x[i], and a mask that keeps all"""
    return [x, x]


@rule("aten.prelu", slots={"1": "weight"})
@rule("aten._prelu_kernel")
def prelu(x: Axes, weight: Axes) -> Axes:
    """z[n, c, ...] = max(x, 0) + w[c] min(x, 0), or one w for all"""
    if len(weight) == len(x):
        return broadcast(x, weight)
    if weight and weight[0].size > 1:
        tie(x[1 if len(x) > 1 else 0], weight[0])
    return x


@rule(
    *aten(
        """
        softmax _softmax log_softmax _log_softmax _safe_softmax special_softmax special_log_softmax
        softmin
        """
    )
)
def softmax(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z[i] = exp(x[i]) / sum_j exp(x[j])"""
    return x


@rule(*aten("cumsum cumprod logcumsumexp"))
def cumulative(x: Axes, dim: int, **kwargs: Any) -> Axes:
    """z[i] = sum_{j <= i} x[j]"""
    return freeze_dims(x, dims_of(dim, len(x)))


@rule("aten.diff")
def diff(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z[i] = x[i + 1] - x[i]"""
    (d,) = dims_of(op().named.get("dim", -1), len(x))
    freeze(x[d])
    return Axes((*x[:d], fixed(op().shape[d]), *x[d + 1 :]))


@rule(*aten("cummax cummin sort topk kthvalue mode"))
def ordered(x: Axes, *args: Any, **kwargs: Any) -> list[Axes]:
    """values and the places they come from: along `dim` an order is made"""
    dims = dims_of(op().named.get("dim", -1), len(x))
    freeze_dims(x, dims)
    return [
        Axes(fixed(shape[i]) if i in dims else axis for i, axis in enumerate(x))
        if len(shape) == len(x)
        else Axes(axis for i, axis in enumerate(x) if i not in dims)
        for shape in op().shapes
    ]


@rule("aten.argsort")
def argsort(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z[i] = the place of the i-th smallest x"""
    return freeze_dims(x, dims_of(op().named.get("dim", -1), len(x)))


@rule("aten.glu")
def glu(x: Axes, dim: int = -1) -> Axes:
    """z[i] = x[i] sigmoid(x[n/2 + i])"""
    d = dim % len(x)
    _, half = packed(x[d], 2, x[d].size // 2)
    return Axes((*x[:d], half, *x[d + 1 :]))


@rule(*aten("sum mean std var norm linalg_vector_norm amax amin"), does="folds")
@rule(
    *aten(
        """
        nansum nanmean prod linalg_norm logsumexp any all count_nonzero special_logsumexp
        frobenius_norm
        """
    )
)
def reduction(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z = f{x[i] for all i}: whatever their order"""
    return reduced(x, op().named.get("dim"), op().named.get("keepdim", False))


@rule("aten.var_mean", does="folds")
@rule("aten.std_mean", "aten.aminmax")
def two_reductions(x: Axes, *args: Any, **kwargs: Any) -> list[Axes]:
    """two values for all units"""
    out = reduction(x)
    return [out, out]


@rule(*aten("max min median nanmedian"))
def extreme(x: Axes, *args: Any, **kwargs: Any) -> Any:
    """the largest of all; the larger of two; or with `dim` the largest and its place, which reads the order"""
    if args and isinstance(args[0], Axes):
        return broadcast(x, args[0])
    if "dim" not in op().named:
        return Axes()
    freeze_dims(x, dims_of(op().named["dim"], len(x)))
    out = reduction(x)
    return [out, out]


@rule("aten.argmax", "aten.argmin")
def argmax(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """the place of the largest"""
    dim = op().named.get("dim")
    freeze_dims(x, dims_of(dim, len(x)))
    return reduced(x, dim, op().named.get("keepdim", False))


@rule("aten.renorm")
def renorm(x: Axes, *args: Any) -> Axes:
    """each slice scaled down to a norm"""
    return x


@rule("aten._weight_norm", "aten._weight_norm_interface")
def weight_norm(v: Axes, g: Axes, dim: int = 0) -> Any:
    """w[o, ...] = g[o] v[o, ...] / |v[o]|"""
    broadcast(v, g)
    return [v, g] if len(op().shapes) > 1 else v


@rule("aten.bucketize", "aten.searchsorted")
def bucketize(x: Axes, boundaries: Any, *args: Any, **kwargs: Any) -> Axes:
    """z[i] = the bucket of x[i]; the boundaries are in order"""
    if op().node.name.startswith("searchsorted"):
        x, boundaries = boundaries, x
    if isinstance(boundaries, Axes):
        freeze_dims(boundaries, range(len(boundaries)))
    return x


@rule("aten.one_hot")
def one_hot(x: Axes, *args: Any) -> Axes:
    """z[..., v] = 1 where x[...] = v"""
    return Axes((*x, fixed(op().shape[-1])))


@rule("aten.isin")
def isin(x: Axes, of: Any = None, *args: Any, **kwargs: Any) -> Axes:
    """z[i] = whether x[i] is one of them"""
    return x


@rule("aten.view_as_complex", does="moves")
def view_as_complex(x: Axes) -> Axes:
    """z[...] = x[..., 0] + i x[..., 1]"""
    freeze(x[-1])
    return Axes(x[:-1])


@rule("aten.view_as_real", does="moves")
def view_as_real(x: Axes) -> Axes:
    """z[..., :] = re x[...], im x[...]"""
    return Axes((*x, fixed(2)))


@rule("aten.meshgrid")
def meshgrid(tensors: list[Axes], **kwargs: Any) -> list[Axes]:
    """z_k[i, j, ...] = x_k[the k-th of i, j, ...]"""
    axes: list[Expr] = [x[0] if x else fixed(1) for x in tensors]
    if kwargs.get("indexing") == "xy" and len(axes) > 1:
        axes[0], axes[1] = axes[1], axes[0]
    return [Axes(axes) for _ in tensors]


@rule("aten.broadcast_tensors")
def broadcast_tensors(tensors: list[Axes]) -> list[Axes]:
    """each of them in the shape of all"""
    out = broadcast(*tensors)
    return [out for _ in tensors]


@rule("aten.clone", batchwise=True, does="moves", how="same")
@rule("aten.copy_", batchwise=True)
def copied(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z[i] = x[i]; ``copy_`` writes another tensor into x"""
    sources = [value for value in args if isinstance(value, Axes)]
    if sources and sources[0].uniform and not x.uniform:
        return x
    for other in sources:
        tie_axes(x, broadcast(Axes(x), other)[-len(x) :] if x else ())
    return x
