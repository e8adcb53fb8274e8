"""What is known of an activation from the weights alone, op by op.

In: the op that makes it, what is known of its inputs. Out: its **energy** (its mean square, where what a weight reads
has mean square 1) and, where it does not depend on the input, its value. One rule an op, written as an equation of the
energies e(.); c(.) are the constant values, and what a rule does not say of them is not constant.
Always true: an energy of 0 is proven: the activation is exactly 0 for every input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..graph.ops import schema_name, words

__all__ = ["MOVES", "SAME", "Op", "Value", "Weight", "anything", "leaves", "plain", "rule_of"]

# What is left of an energy that underflows: it is not proven to be 0.
_TINY, _HUGE = 1e-200, 1e100
_CPU = torch.device("cpu")
# So many rows of a contraction are told apart: heads are, places are not.
_ROWS = 64


# Ops that only move entries, or leave them as they are.
MOVES = words(
    """
    view reshape _unsafe_view flatten unflatten permute transpose t squeeze unsqueeze expand expand_as select slice
    narrow split split_with_sizes chunk unbind movedim flip roll repeat tile repeat_interleave stack
    index_select broadcast_to swapaxes tensor_split diagonal pixel_shuffle pixel_unshuffle channel_shuffle
    """
)
SAME = words(
    """
    contiguous clone detach alias to _to_copy dropout feature_dropout alpha_dropout type_as lift_fresh double float
    half bfloat16 cpu cuda
    """
)


@dataclass(eq=False, slots=True)
class Weight:
    """A tensor that no input has a part in, and the parameters and buffers that it was made of."""

    tensor: Tensor
    names: frozenset[str] = frozenset()


@dataclass(eq=False, slots=True)
class Value:
    """An activation: its energy, and its value where that is the same for every input (NaN where it is not).

    Both have the activation's rank, with size 1 along what is uniform.
    """

    energy: Tensor
    constant: Tensor
    shape: tuple[int, ...]


class Op:
    """A call of an op, for the rules: what is not among its arguments.

    Attributes:
        function: the ATen overload.
        overload: ``"aten.view.dtype"``.
        name: ``"view"``, without the underscore of one that writes.
        writes: whether it writes into an argument.
        record: takes (weight, axis, flow through its positions).
        sums: (weight, groups) -> sums of squares along its first and its second axis.
    """

    def __init__(self, node: fx.Node, record: Any = None, sums: Any = None) -> None:
        self.function: Any = node.target
        self.overload, self.name, self.writes = _names(node.target)
        self.record: Callable[[Weight, int, Tensor], None] = record
        self.sums: Callable[[Weight, int], tuple[Tensor, Tensor]] = sums
        self._node = node

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Of its result."""
        return tuple(self._node.meta["val"].shape)

    def value(self, energy: Tensor, constant: Tensor | None = None) -> Value:
        """Its result: the energy is the square of what is constant, and above 0 where nothing is known."""
        return _settled(energy, constant, self.shape)


@functools.lru_cache(maxsize=1024)
def _names(target: Any) -> tuple[str, str, bool]:
    """The overload, the name, and whether it writes, of what a node calls."""
    overload = schema_name(target)
    name = overload.rpartition(".")[0].removeprefix("aten.").rstrip("_")
    schema = getattr(target, "_schema", None)
    return overload, name, schema is not None and schema.is_mutable


Rule = Callable[..., Any]
R = TypeVar("R", bound=Rule)
_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[R], R]:
    def register(function: R) -> R:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def rule_of(op: Op, args: Sequence[Any]) -> Rule | None:
    """Called with the op and its arguments; gives None where it does not know the form."""
    rule = _RULES.get(op.name)
    if rule is not None and args and isinstance(args[0], Weight):
        # What varies may be the mask and not what it masks; most rules want an activation first, by their annotation.
        _, first, *_ = [*rule.__annotations__.values(), None]
        return None if first == "Value" else rule
    return rule


# ---------------------------------------------------------------------------------------------------- the values


def anything(val: Any) -> Any:
    """Anything may be there."""
    if isinstance(val, Tensor):
        one = torch.ones([1] * val.ndim, dtype=torch.float64, device="cpu")
        return Value(one, _nothing(val.ndim), tuple(val.shape))
    if isinstance(val, (list, tuple)):
        return [anything(item) for item in val]
    return val


def leaves(given: Any) -> Iterator[Any]:
    """The items of nested lists and dicts."""
    if isinstance(given, (list, tuple)):
        for item in given:
            yield from leaves(item)
    elif isinstance(given, dict):
        yield from leaves(list(given.values()))
    else:
        yield given


def plain(given: Any, own: bool) -> Any:
    """What an op on weights gets: CPU tensors, the floating ones in doubles; `own`: to be written into."""
    if isinstance(given, Weight):
        wide = torch.float64 if given.tensor.is_floating_point() else given.tensor.dtype
        return given.tensor.to("cpu", wide, copy=own)
    if isinstance(given, list):
        return [plain(item, own) for item in given]
    if isinstance(given, dict):
        return {key: plain(item, own) for key, item in given.items()}
    return torch.device("cpu") if isinstance(given, torch.device) else given


def _value(given: Any) -> Value:
    """A weight or a number as an activation that is the same for every input."""
    if isinstance(given, Value):
        return given
    constant = _doubles(given)
    return _settled(constant.square(), constant, tuple(constant.shape))


def _settled(energy: Tensor, constant: Tensor | None, shape: tuple[int, ...]) -> Value:
    varies = None if constant is None or _is_nothing(constant) else ~constant.isfinite()
    if constant is None or varies is None or bool(varies.all()):
        return Value(_ranked(_bounded_energy(energy), len(shape)), _nothing(len(shape)), shape)
    constant = constant.detach().masked_fill(varies, torch.nan)
    square, known = constant.square(), energy.detach()
    factor = torch.where(known > 0, square / known.clamp_min(_TINY), 0)
    exact = torch.where(known > 0, energy * factor.nan_to_num(0.0), square)
    energy = torch.where(varies, _bounded_energy(energy), exact)
    constant = constant.expand(torch.broadcast_shapes(constant.shape, energy.shape))  # type: ignore[no-untyped-call]
    return Value(_ranked(energy, len(shape)), _ranked(constant, len(shape)), shape)


def _bounded_energy(energy: Tensor) -> Tensor:
    """From `_TINY` to `_HUGE`, and 1 where it is no number; itself where all are, which spares autograd the bounds."""
    if energy.numel():
        least, most = torch.aminmax(energy.detach())
        if float(least) >= _TINY and float(most) <= _HUGE:
            return energy
    return energy.nan_to_num(1.0, _HUGE).clamp(_TINY, _HUGE)


@functools.cache
def _nothing(rank: int) -> Tensor:
    """The constants of what is nowhere the same for every input; one tensor a rank, which nobody writes into."""
    return torch.full([1] * rank, torch.nan, dtype=torch.float64, device="cpu")


def _is_nothing(constant: Tensor) -> bool:
    return constant is _nothing(constant.ndim)


def _ranked(tensor: Tensor, rank: int) -> Tensor:
    return (
        tensor
        if tensor.ndim == rank
        else tensor.reshape(*[1] * (rank - tensor.ndim), *tensor.shape)
    )


def _zero_or_none(zero: Tensor) -> Tensor:
    """The constants of what is 0 here, and nothing known elsewhere."""
    return torch.where(zero, 0.0, torch.nan).to(torch.float64)


def _doubles(given: Any) -> Tensor:
    if isinstance(given, Weight):
        return given.tensor.detach().to(_CPU, torch.float64)
    return torch.as_tensor(given, device=_CPU).detach().to(_CPU, torch.float64)


def _whole(tensor: Tensor, shape: tuple[int, ...], dim: int) -> Tensor:
    """With the full size along one dimension."""
    if tensor.shape[dim] == shape[dim]:
        return tensor
    sizes = list(tensor.shape)
    sizes[dim] = shape[dim]
    return tensor.expand(sizes)


def _along(tensor: Tensor, dim: int, size: int) -> Tensor:
    """(size,) sums over all other dimensions, each uniform one counted once."""
    rows = tensor.shape[dim]
    alone = tensor.numel() == rows
    sums = tensor.reshape(rows) if alone else tensor.movedim(dim, 0).reshape(rows, -1).sum(1)
    return sums if len(sums) == size else (sums / size).expand(size)


def _tapped(op: Op, value: Value, weight: Weight, axis: int, dim: int) -> Value:
    """The same; when the gradient comes, its flow is that of the positions along `axis` of the weight."""
    energy, size = value.energy, value.shape[dim]
    if not energy.requires_grad:
        energy = energy.detach().requires_grad_()
    here = energy.detach()
    energy.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: op.record(weight, axis, _along(gradient * here, dim, size))
    )
    return Value(energy, value.constant, value.shape)


# ------------------------------------------------------------------------------------------- what moves entries


@_rule(*SAME)
def _same(op: Op, x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


@_rule(*MOVES)
def _move(op: Op, *args: Any, **kwargs: Any) -> Any:
    """y[i] = x[p(i)]: energies and constants move alike."""
    function = op.function
    if op.writes or op.overload == "aten.view.dtype":
        return None
    if op.name in ("view", "_unsafe_view", "reshape"):
        args, kwargs, function = (args[0], op.shape), {}, torch.reshape

    def moved(given: Any, part: str) -> Any:
        if isinstance(given, (list, tuple)):
            return [moved(item, part) for item in given]
        if isinstance(given, Weight) and not given.tensor.is_floating_point():
            return given.tensor.cpu()
        if isinstance(given, (Value, Weight)):
            value = _value(given)
            tensor: Tensor = getattr(value, part)
            return tensor.expand(value.shape)
        return given

    def results(part: str) -> Any:
        return function(*moved(args, part), **{key: moved(x, part) for key, x in kwargs.items()})

    energy = results("energy")
    energies = [energy] if isinstance(energy, Tensor) else list(energy)
    if all(
        _is_nothing(x.constant) or (x.constant.numel() == 1 and bool(x.constant.isnan()))
        for x in map(_value, _tensors(args))
    ):
        constants = [_nothing(each.ndim) for each in energies]
    else:
        constant = results("constant")
        constants = [constant] if isinstance(constant, Tensor) else list(constant)
    values = [
        Value(_shrunk(e), _shrunk(c), tuple(e.shape))
        for e, c in zip(energies, constants, strict=True)
    ]
    return values[0] if isinstance(energy, Tensor) else values


def _tensors(given: Any) -> Iterator[Value | Weight]:
    return (x for x in leaves(given) if isinstance(x, (Value, Weight)))


def _shrunk(tensor: Tensor) -> Tensor:
    """With size 1 along what is uniform."""
    values = tensor.detach()
    dims = [
        dim
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
        if size > 1 and (stride == 0 or (_equal(values, dim, 2) and _equal(values, dim, size)))
    ]
    shrunk: Tensor = _First.apply(tensor, dims) if dims else tensor
    return shrunk


def _equal(values: Tensor, dim: int, count: int) -> bool:
    first, others = values.narrow(dim, 0, 1), values.narrow(dim, 0, count)
    return bool(((others == first) | (first.isnan() & others.isnan())).all())


class _First(torch.autograd.Function):
    """The first of equals; the gradient is shared among them, without memory for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: list[int]) -> Tensor:
        ctx.shape, ctx.count = x.shape, prod(x.shape[dim] for dim in dims)
        for dim in dims:
            x = x.narrow(dim, 0, 1)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return (gradients[0] / ctx.count).expand(ctx.shape), None


@_rule("cat", "concat", "concatenate")
def _joined(op: Op, given: list[Any], dim: int = 0) -> Value:
    """e(cat(x, y)) = cat(e(x), e(y))."""
    parts = [_value(part) for part in given]
    dim %= parts[0].energy.ndim

    def joined(part: str) -> Tensor:
        tensors = [_whole(getattr(each, part), each.shape, dim) for each in parts]
        shape = torch.broadcast_shapes(*(tensor.select(dim, 0).shape for tensor in tensors))  # type: ignore[no-untyped-call]
        around = [*shape[:dim], -1, *shape[dim:]]
        return torch.cat([tensor.expand(around) for tensor in tensors], dim)

    return Value(joined("energy"), joined("constant"), op.shape)


@_rule(
    "pad",
    "constant_pad_nd",
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
)
def _pad(op: Op, x: Value, pads: list[int], *args: Any, **kwargs: Any) -> Value:
    """What is uniform stays so; a border of another value ends what is constant."""
    whole = list(pads)
    for i in range(0, len(pads), 2):
        if x.energy.shape[-1 - i // 2] == 1:
            whole[i : i + 2] = 0, 0
    energy, constant = x.energy, x.constant
    if any(whole):
        constant = constant.expand(torch.broadcast_shapes(constant.shape, energy.shape))  # type: ignore[no-untyped-call]
        energy, constant = F.pad(energy, whole), F.pad(constant, whole)
    return op.value(energy, _zero_or_none(constant == 0))


# ------------------------------------------------------------------------------------------------ entry by entry


@_rule(
    *words(
        """
        relu relu6 gelu silu hardswish hardtanh leaky_relu elu selu celu mish softplus abs neg square softsign
        tanhshrink softshrink hardshrink exp expm1 log1p sqrt threshold clamp clamp_min clamp_max
        """
    )
)
def _unary(op: Op, x: Value, *args: Any, **kwargs: Any) -> Value:
    """e(f(x)) = e(x) + f(0)^2, c(f(x)) = f(c(x))."""
    rest = _at_zero(op.function, args, tuple(kwargs.items()))
    if not rest and _is_nothing(x.constant):
        return Value(x.energy, x.constant, op.shape)
    constant = None if _is_nothing(x.constant) else op.function(x.constant.clone(), *args, **kwargs)
    return op.value(x.energy + rest**2 if rest else x.energy, constant)


@functools.lru_cache(maxsize=256)
def _at_zero(function: Any, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> float:
    """f(0)."""
    zero = torch.zeros(1, dtype=torch.float64, device="cpu")
    return float(function(zero, *args, **dict(kwargs)))


@_rule("sigmoid", "tanh", "erf", "sin", "cos", "hardsigmoid", "log_sigmoid")
def _bounded(op: Op, x: Value, *args: Any, **kwargs: Any) -> Value:
    """No larger than 1: e(f(x)) = e(x) / (1 + e(x)) + f(0)^2."""
    return _unary(op, Value(x.energy / (1 + x.energy), x.constant, x.shape), *args, **kwargs)


@_rule("rsqrt", "reciprocal")
def _inverse(op: Op, x: Value, *args: Any) -> Value:
    """A norm's factor: its statistics are no path of their own."""
    return op.value(1 / (x.energy.detach() + 1e-12))


@_rule("pow")
def _power(op: Op, x: Value, exponent: Any) -> Value | None:
    if not isinstance(exponent, (int, float)) or not exponent:
        return None
    return _inverse(op, x) if exponent < 0 else _unary(op, x, exponent)


@_rule("add", "sub", "rsub")
def _sum(op: Op, x: Any, y: Any, alpha: float = 1) -> Value:
    """e(a x + b y) = a^2 e(x) + b^2 e(y)."""
    x, y = _value(x), _value(y)
    x, y = _without_places(x, y), _without_places(y, x)
    a, b = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[op.name]
    if _is_nothing(x.constant) or _is_nothing(y.constant):
        return op.value(a**2 * x.energy + b**2 * y.energy)
    return op.value(a**2 * x.energy + b**2 * y.energy, a * x.constant + b * y.constant)


def _without_places(x: Value, y: Value) -> Value:
    """Means of x over long dimensions along which y, which has channels, is uniform: a table of positions."""
    energy, constant = x.energy, x.constant
    if energy.ndim == y.energy.ndim and y.energy.numel() > 1:
        for dim, size in enumerate(energy.shape):
            if size > _ROWS and y.energy.shape[dim] == 1:
                energy, constant = energy.mean(dim, True), _if_equal(constant, dim)
    return _settled(energy, constant, x.shape) if energy is not x.energy else x


def _if_equal(constant: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """What is the same all along some dimensions."""
    least, most = constant.amin(dims, True), constant.amax(dims, True)
    return torch.where(least == most, most, torch.nan)


@_rule("mul", "multiply")
def _product(op: Op, x: Any, y: Any) -> Value:
    """e(x y) = e(x) e(y), and 0 times anything is 0."""
    x, y = _value(x), _value(y)
    if _is_nothing(x.constant) and _is_nothing(y.constant):
        return op.value(x.energy * y.energy)
    zero = (x.constant == 0) | (y.constant == 0)
    return op.value(x.energy * y.energy, torch.where(zero, 0.0, x.constant * y.constant))


@_rule("div", "true_divide")
def _quotient(op: Op, x: Any, y: Any) -> Value:
    """e(x / y) = e(x) / e(y)."""
    x, y = _value(x), _value(y)
    zero = (x.constant == 0) & (y.constant != 0)
    constant = torch.where(zero, 0.0, x.constant / y.constant)
    return op.value(x.energy / (y.energy.detach() + 1e-12), constant)


@_rule("glu")
def _gated(op: Op, x: Value, dim: int = -1) -> Value:
    """The first half times the sigmoid of the second."""
    energy, gate = _whole(x.energy, x.shape, dim).chunk(2, dim)
    constant = _whole(x.constant, x.shape, dim).chunk(2, dim)[0]
    return op.value(energy * (0.25 + gate / (1 + gate)), _zero_or_none(constant == 0))


@_rule("prelu")
def _rectified(op: Op, x: Value, slope: Any) -> Value:
    slopes = _doubles(slope)
    if len(op.shape) > 1:
        slopes = slopes.view([-1 if i == 1 else 1 for i in range(len(op.shape))])
    return op.value(x.energy, torch.where(x.constant >= 0, x.constant, slopes * x.constant))


@_rule("masked_fill")
def _masked(op: Op, x: Value, mask: Any, value: Any) -> Value | None:
    if not isinstance(value, (int, float)):
        return None
    constant = torch.where(x.constant == value, x.constant, torch.nan)
    return op.value(x.energy + min(value**2, 1.0), constant)


@_rule("where")
def _either(op: Op, condition: Any, x: Any, y: Any) -> Value:
    x, y = _value(x), _value(y)
    constant = torch.where(x.constant == y.constant, x.constant, torch.nan)
    return op.value(x.energy + y.energy.clamp_max(1.0), constant)


# ----------------------------------------------------------------------------------------- over several entries


@_rule("softmax", "_softmax")
def _softmax(op: Op, x: Value, *args: Any) -> Value:
    return op.value(1 + x.energy / (1 + x.energy))


@_rule("mean", "sum")
def _mean(op: Op, x: Value, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Value:
    dims = list(range(x.energy.ndim)) if dim is None or dim == [] else dim
    energy, constant = (t.mean(dims, keepdim=keepdim) for t in (x.energy, x.constant))
    if op.name == "sum":
        constant = _zero_or_none(constant == 0)
    return op.value(energy, constant)


@_rule(
    *(f"{kind}_pool{n}d" for kind in ("adaptive_avg", "avg", "max") for n in (1, 2, 3)),
    "adaptive_max_pool2d",
    *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
    *["upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d"],
)
def _pool(op: Op, x: Value, *args: Any) -> Value:
    """Means of energies; what is uniform stays so, but a mean over a border counts its zeros."""
    dims = tuple(range(-int(op.name[-2]), 0))
    constant = _if_equal(x.constant, dims)
    if op.name.startswith("avg_pool") and len(args) > 2 and any(leaves(args[2])):
        constant = torch.where(constant == 0, constant, torch.nan)
    return op.value(x.energy.mean(dims, True), constant)


# ----------------------------------------------------------------------------------------------------- the norms


@_rule("batch_norm", "instance_norm")
def _batch_norm(
    op: Op, x: Value, gain: Any, shift: Any, mean: Any, variance: Any, fresh: bool, _: Any, eps: float, *__: Any
) -> Value:  # fmt: skip
    """Y = s x + t, s = gain / deviation: e(y) = s^2 e(x) + shift^2, as the running mean takes the mean away."""
    if fresh or mean is None or variance is None:
        over = tuple(range(2, x.energy.ndim))
        return _affine(
            op, *_normalised(x, over, prod(x.shape[d] for d in over), True), gain, shift, 1
        )
    lie = [-1 if i == 1 else 1 for i in range(x.energy.ndim)]
    scale = (_doubles(variance) + eps).rsqrt()
    scale = (scale if gain is None else _doubles(gain) * scale).view(lie)
    energy, shifts = scale.square() * x.energy, None
    if shift is not None:
        shifts = _doubles(shift).view(lie)
        energy = energy + shifts.square()
    if _is_nothing(x.constant) and bool(scale.all()):
        return op.value(energy)
    offset = (0 if shifts is None else shifts) - scale * _doubles(mean).view(lie)
    return op.value(energy, torch.where(scale == 0, offset, scale * x.constant + offset))


@_rule("layer_norm")
def _layer_norm(op: Op, x: Value, shape: Any, gain: Any = None, shift: Any = None, *args: Any) -> Value:  # fmt: skip
    over = tuple(range(-len(shape), 0))
    return _affine(op, *_normalised(x, over, prod(x.shape[-len(shape) :]), True), gain, shift, -1)


@_rule("rms_norm")
def _rms_norm(op: Op, x: Value, shape: Any, gain: Any = None, *args: Any) -> Value:
    over = tuple(range(-len(shape), 0))
    return _affine(op, *_normalised(x, over, prod(x.shape[-len(shape) :]), False), gain, None, -1)


@_rule("group_norm")
def _group_norm(op: Op, x: Value, groups: int, gain: Any = None, shift: Any = None, *args: Any) -> Value:  # fmt: skip
    energy, constant = (
        torch.unflatten(_whole(t, x.shape, 1), 1, (groups, -1)) for t in (x.energy, x.constant)
    )
    over, count = tuple(range(2, energy.ndim)), prod(x.shape[1:]) // groups
    energy, constant = _normalised(Value(energy, constant, ()), over, count, True)
    return _affine(op, energy.flatten(1, 2), constant.flatten(1, 2), gain, shift, 1)


def _normalised(
    x: Value, over: tuple[int, ...], count: int, centred: bool
) -> tuple[Tensor, Tensor]:
    """(x - mean) / deviation over `count` entries; the statistics are no path of their own.

    Where all are 0 they stay 0; a lone channel that is 0 stays 0 under a norm that does not centre.
    """
    energy, dead = x.energy, x.constant == 0
    mean = energy.detach().mean(over, True) if over else energy.detach()
    if centred:
        energy = energy + mean / count
        dead = dead.to(torch.float64).amin(over, True) > 0 if over else dead
    energy = torch.where(mean > 0, energy / mean.clamp_min(_TINY), 0 * energy)
    return energy, torch.where(dead, 0.0, torch.full_like(energy, torch.nan))


def _affine(op: Op, energy: Tensor, constant: Tensor, gain: Any, shift: Any, dim: int) -> Value:
    """e(g x + s) = g^2 e(x) + s^2."""
    rank = len(op.shape)

    def laid(given: Any) -> Tensor:
        tensor = _doubles(given)
        return (
            tensor.view([-1 if i == dim % rank else 1 for i in range(rank)])
            if tensor.ndim == 1
            else tensor
        )

    if gain is not None:
        factor = laid(gain)
        energy = energy * factor.square()
        constant = torch.where(factor == 0, 0.0, constant * factor)
    if shift is not None:
        offset = laid(shift)
        energy, constant = energy + offset.square(), constant + offset
    return op.value(energy, constant)


# ------------------------------------------------------------------------------------------------ the contractions


@_rule("linear")
def _linear(op: Op, x: Any, weight: Any, bias: Any = None) -> Value | None:
    return _contracted(op, x, weight, bias, (0, 1))


@_rule("addmm")
def _addmm(op: Op, bias: Any, x: Any, weight: Any) -> Value | None:
    return _contracted(op, x, weight, bias, (1, 0))


@_rule("conv1d", "conv2d", "conv3d")
def _conv(op: Op, x: Any, weight: Any, bias: Any = None, *rest: Any) -> Value | None:
    return _contracted(op, x, weight, bias, (0, 1), rest[3] if len(rest) > 3 else 1, dim=1)


@_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed(op: Op, x: Any, weight: Any, bias: Any = None, *rest: Any) -> Value | None:
    return _contracted(op, x, weight, bias, (1, 0), rest[3] if len(rest) > 3 else 1, dim=1)


@_rule("embedding")
def _embedding(op: Op, weight: Any, *args: Any, **kwargs: Any) -> Value | None:
    """The mean of the rows."""
    if not isinstance(weight, Weight):
        return None
    table = weight.tensor.detach()
    same = (table[:2] == table[:1]).all(0)
    if bool(same.any()):
        same = (table == table[:1]).all(0)
    energy = op.sums(weight, 1)[1] / len(table)
    value = op.value(energy, torch.where(same.cpu(), _doubles(table[0]), torch.nan))
    return _tapped(op, value, weight, 1, -1)


@_rule("matmul", "mm", "bmm")
def _matmul(op: Op, x: Any, y: Any) -> Value | None:
    """e(x y) = e(x) e(y)."""
    if isinstance(x, Value) and isinstance(y, Weight) and y.tensor.ndim == 2:
        return _contracted(op, x, y, None, (1, 0))
    first, second = _value(x).energy, _value(y).energy
    if first.ndim < 2 or second.ndim < 2:
        return None
    if isinstance(x, Weight) or isinstance(y, Weight):
        rows = "abcdefgh"[: len(op.shape) - 2]
        one, other = rows[len(op.shape) - first.ndim :], rows[len(op.shape) - second.ndim :]
        return _einsum(op, f"{one}ij,{other}jk->{rows}ik", [x, y])
    size = max(first.shape[-1], second.shape[-2])
    first = first.expand(*first.shape[:-1], size)
    second = second.expand(*second.shape[:-2], size, second.shape[-1])
    energy = first @ second
    return op.value(energy, _zero_or_none(energy.detach() == 0))


@_rule("einsum")
def _einsum(op: Op, equation: str, given: list[Any], **kwargs: Any) -> Value | None:
    """e(y) = sum e(x) w^2, over the letters that y has not; as in `_contracted`, what is read of x ends here."""
    terms, arrow, made = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    plain = arrow and "." not in equation and all(len({*each}) == len(each) for each in letters)
    pairs = list(zip(letters, given, strict=True))
    weights = [(read, each) for read, each in pairs if isinstance(each, Weight)]
    others = [(read, each) for read, each in pairs if isinstance(each, Value)]
    if not plain or not others or len(weights) > 1:
        return None
    read = "".join(dict.fromkeys("".join(each for each, _ in others)))
    left = read if weights else made
    inputs = torch.einsum(
        f"{','.join(each for each, _ in others)}->{left}", *(x.energy for _, x in others)
    )
    if not weights:
        return op.value(inputs, _zero_or_none(inputs.detach() == 0))
    ((held, weight),) = weights
    for letter in set(read) - set(held):
        if inputs.shape[read.index(letter)] > _ROWS:
            inputs = inputs.mean(read.index(letter), True)
    sizes = dict(zip(held, weight.tensor.shape, strict=True))
    inputs = inputs.expand(
        [sizes.get(letter, n) for letter, n in zip(read, inputs.shape, strict=True)]
    )
    energy = _Einsum.apply(inputs, op, weight, (read, held, made))
    value = op.value(energy, _zero_or_none(energy.detach() == 0))
    for axis, letter in enumerate(held):
        if letter in made:
            value = _tapped(op, value, weight, axis, made.index(letter))
    return value


@_rule("bilinear")
def _bilinear(op: Op, x: Any, y: Any, weight: Any, bias: Any = None) -> Value | None:
    """y[o] = sum x[i] y[j] W[o, i, j] + b[o]."""
    rows = "abcdefgh"[: len(op.shape) - 1]
    value = _einsum(op, f"{rows}i,{rows}j,oij->{rows}o", [x, y, weight])
    if bias is None or value is None:
        return value
    shift, lost = _doubles(bias), value.energy.detach() == 0
    return op.value(value.energy + shift.square(), torch.where(lost, shift, torch.nan))


class _Einsum(torch.autograd.Function):
    """As `_Contraction`, for any letters: those of what is read, of the weight, and of what is made."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, op: Op, weight: Weight, letters: tuple[str, str, str]
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.given = op, weight, letters
        read, held, made = letters
        return _counted((x > 0, read), (weight, held), made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (op, weight, (read, held, made)) = ctx.saved_tensors, ctx.given
        gradient = _counted((gradients[0] > 0, made), (weight, held), read).expand(x.shape)
        for axis, letter in enumerate(held):
            if letter in read and letter not in made:
                size = weight.tensor.shape[axis]
                op.record(weight, axis, _along(gradient * x, read.index(letter), size))
        return gradient, None, None, None


def _counted(counted: tuple[Tensor, str], held: tuple[Weight, str], made: str) -> Tensor:
    """The sums of the squared weights that are counted; size 1 along letters that neither has."""
    (mask, read), (weight, letters) = counted, held
    kept = "".join(letter for letter in made if letter in read + letters)
    sums = torch.einsum(
        f"{read},{letters}->{kept}", mask.to(torch.float64), _doubles(weight).square()
    )
    return sums.view([sums.shape[kept.index(letter)] if letter in kept else 1 for letter in made])


@_rule("scaled_dot_product_attention")
def _attention(op: Op, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Value | None:
    """e(y) = e(v) (1 + s / (1 + s)), s = sum_d e(q) e(k), by head."""
    heads = _value(query).shape[-3]

    def repeated(given: Any) -> Tensor:
        energy = _value(given).energy.mean(-2, keepdim=True)
        held = energy.shape[-3]
        return energy.repeat_interleave(heads // held, -3) if held > 1 else energy

    q, k, v = (repeated(x) for x in (query, key, value))
    scores = (q * k).sum(-1, keepdim=True)
    energy = v * (1 + scores / (1 + scores))
    return op.value(energy, _zero_or_none(energy.detach() == 0))


def _contracted(
    op: Op,
    x: Any,
    weight: Any,
    bias: Any,
    axes: tuple[int, int],
    groups: int = 1,
    dim: int = -1,
) -> Value | None:
    """Y = x W + b: what is read of x ends here, what is made begins anew; a depthwise weight only scales.

    `axes` are those of the outputs and of the inputs in the weight; `dim` is that of the channels of x and the result.
    """
    if not isinstance(weight, Weight) or not isinstance(x, Value):
        return None
    rank = len(op.shape)
    if dim == 1 and rank != weight.tensor.ndim:
        return None  # no batch
    out_axis, in_axis = axes
    inputs = _whole(x.energy, x.shape, dim)
    if dim == 1:
        alone = inputs.shape[2:].numel() == 1
        inputs = inputs.flatten(1) if alone else inputs.flatten(2).mean(2)
    inputs = _fewer(inputs)
    if groups > 1 and weight.tensor.shape[in_axis] == (1 if in_axis else groups):
        made = op.sums(weight, groups)[out_axis]
        energy = (inputs.unsqueeze(-1) * made.view(inputs.shape[-1], -1)).flatten(-2)
    else:
        energy = _Contraction.apply(inputs, op, weight, axes, groups)
    lie = [*energy.shape, *[1] * (rank - 2)] if dim == 1 else [*energy.shape]
    energy = energy.view(lie)
    made_here = energy.detach()
    shift: Tensor | float = 0.0
    if bias is not None:
        shift = bias.constant if isinstance(bias, Value) else _doubles(bias)
        added = bias.energy if isinstance(bias, Value) else shift.square()
        if dim == 1:
            shift, added = (t.reshape(*t.shape, *lie[2:]) for t in (shift, added))
        energy = energy + added
    lost = (
        None if bool(made_here.all()) else _doubles(torch.where(made_here == 0, shift, torch.nan))
    )
    value = op.value(energy, lost)
    return _tapped(op, value, weight, out_axis, dim)


def _fewer(energy: Tensor) -> Tensor:
    """At most `_ROWS` rows: means over the longest dimensions (places) but the last; 0 stays where all are 0."""
    while prod(energy.shape[:-1]) > _ROWS:
        longest = max(range(energy.ndim - 1), key=lambda dim: energy.shape[dim])
        energy = energy.mean(longest, keepdim=True)
    return energy


class _Contraction(torch.autograd.Function):
    """Energies (…, in) -> (…, out): the sum of the squared weights of what is not 0.

    Backward, an input is read with the squared weights of those outputs that are read themselves. So flow joins a
    weight to the next one, and no further.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, op: Op, weight: Weight, axes: tuple[int, int], groups: int
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.given = op, weight, axes, groups
        return _summed(x > 0, op, weight, axes, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (op, weight, (made, read), groups) = ctx.saved_tensors, ctx.given
        gradient = _summed(gradients[0] > 0, op, weight, (read, made), groups).expand(x.shape)
        op.record(weight, read, _along(gradient * x, -1, x.shape[-1]))
        return gradient, None, None, None, None


def _summed(counted: Tensor, op: Op, weight: Weight, axes: tuple[int, int], groups: int) -> Tensor:
    """(…, channels of one axis) bool -> (…, channels of the other): sums of the squared weights that are counted.

    One row stands for all where they are alike.
    """
    out, over = axes
    every = bool(counted.all())
    if every or not bool(counted.any()):
        sums = op.sums(weight, groups)[out]
        return (sums if every else sums * 0).view(*[1] * (counted.ndim - 1), -1)
    squares = _doubles(weight).square()
    squares = squares.flatten(2).sum(2) if squares.ndim > 2 else squares
    squares = torch.unflatten(
        squares, 0, (groups, -1)
    )  # (groups, channels of axis 0, channels of axis 1)
    mask = torch.unflatten(counted.to(torch.float64), -1, (groups, -1))
    letters = {0: "i", 1: "j"}
    return torch.einsum(f"...g{letters[over]},gij->...g{letters[out]}", mask, squares).flatten(-2)
