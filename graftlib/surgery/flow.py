"""How much of what the model computes flows through each unit: synaptic flow of squares, read from the graph.

In: a graph, the model that holds the values. Out: for each axis of a weight, the flow through its positions. An
activation is described by its **energy** (its mean square, where what a weight reads has mean square 1) and, where it
does not depend on the input, by its value. Flow is energy times the gradient of what is read with respect to it (as in
SynFlow, Tanaka et al. 2020), so it multiplies whatever scales a channel between the weight that makes it and the
weight that reads it: gains of norms over their running deviations, layer scales, masks, gates, parametrizations.

Always true: an energy of 0 is proven: the activation is exactly 0 for every input; and a flow of 0 means that the
channel reaches no output, or is 0. An op that is not known here counts as reading all of its inputs.
Not counted: the share of a channel in the statistics of a norm over channels.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..graph import LayerGraph
from ..graph.ops import overload

__all__ = ["Flows", "flows_of"]

# What is left of an energy that underflows: it is not proven to be 0.
_TINY = 1e-200
# So many rows of a contraction are told apart: heads are, places are not.
_ROWS = 64


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Ops that only move entries, or leave them as they are.
_MOVES = _words(
    """
    view reshape _unsafe_view flatten unflatten permute transpose t squeeze unsqueeze expand expand_as select slice
    narrow split split_with_sizes chunk unbind movedim flip roll repeat tile repeat_interleave stack
    index_select broadcast_to swapaxes tensor_split diagonal pixel_shuffle pixel_unshuffle channel_shuffle
    """
)
_SAME = _words(
    """
    contiguous clone detach alias to _to_copy dropout feature_dropout alpha_dropout type_as lift_fresh double float
    half bfloat16 cpu cuda
    """
)
# f(x) of each entry alone; what is bounded cannot give a larger energy than 1.
_UNARY = _words(
    """
    relu relu6 gelu silu hardswish hardtanh leaky_relu elu selu celu mish softplus abs neg square softsign tanhshrink
    softshrink hardshrink exp expm1 log1p sqrt threshold clamp clamp_min clamp_max
    """
)
_BOUNDED = _words("sigmoid tanh erf sin cos hardsigmoid log_sigmoid")
_POOLS = _words(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d
    max_pool3d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
    upsample_bicubic2d upsample_linear1d upsample_trilinear3d
    """
)
_CONVS = _words("conv1d conv2d conv3d")
_TRANSPOSED = _words("conv_transpose1d conv_transpose2d conv_transpose3d")


@dataclass(frozen=True)
class Flows:
    """What `flows_of` gives.

    Attributes:
        through: (FQN, axis) of a weight -> (size of the axis,) doubles: the flow through its positions there.
        unknown: FQNs of what an op reads that is not known here.
    """

    through: Mapping[tuple[str, int], Tensor]
    unknown: frozenset[str]


@dataclass(frozen=True)
class _Value:
    """An activation: its energy, and its value where that is the same for every input (NaN where it is not).

    Both have the activation's shape, with size 1 along what is uniform.
    """

    energy: Tensor
    constant: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Weight:
    """A tensor that no input has a part in, and the parameters and buffers that it was made of."""

    tensor: Tensor
    names: frozenset[str] = frozenset()


@torch.enable_grad()
def flows_of(graph: LayerGraph, model: nn.Module) -> Flows:
    """The flow through every axis of every weight.

    Args:
        graph: from `graftlib.trace`.
        model: the traced one, or another of the same structure; not changed.
    """
    reader = _Reader(model)
    reader.left.update(node for user in graph.fx.nodes for node in user.all_input_nodes)
    for node in graph.fx.nodes:
        reader.read(node)
        for used in node.all_input_nodes:
            reader.left[used] -= 1
            if not reader.left[used]:
                reader.values.pop(used, None)
    reader.backward()
    return Flows(reader.through, frozenset(reader.unknown))


@dataclass(eq=False)
class _Reader:
    """Goes through the graph once forward, op by op, and once backward."""

    model: nn.Module
    through: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    left: Counter[fx.Node] = field(default_factory=Counter)  # how often each is still read
    read_energy: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        buffers, parameters = self.model.named_buffers(), self.model.named_parameters()
        self.tensors: dict[str, Tensor] = {**dict(buffers), **dict(parameters)}

    # ------------------------------------------------------------------------------------------------ forward

    def read(self, node: fx.Node) -> None:
        if node.op == "output":
            self.sink(self.arguments(node.args))
        elif node.op == "placeholder":
            self.values[node] = _any(node.meta.get("val"))
        elif node.op == "get_attr":
            fqn = str(node.target)
            tensor = node.meta.get("constant", self.tensors.get(fqn))
            if tensor is None or tensor.is_meta or tensor.layout is not torch.strided:
                self.values[node] = _any(node.meta.get("val"))
            else:
                names = frozenset([fqn]) if fqn in self.tensors else frozenset()
                self.values[node] = _Weight(tensor.detach(), names)
        elif node.op == "call_function":
            self.values[node] = self.call(node)

    def call(self, node: fx.Node) -> Any:
        args, kwargs = self.arguments(node.args), self.arguments(node.kwargs)
        if node.target is operator.getitem:
            source = args[0]
            return source[args[1]] if isinstance(source, (list, tuple)) else source
        if _writes(node):
            self.overwritten(node)
        try:
            if not any(isinstance(x, _Value) for x in _leaves([args, kwargs])):
                return self.computed(node, args, kwargs)
            rule = _rule(_name(node))
            value = None if rule is None else rule(self, node, args, kwargs)
            if value is not None:
                return value
        except (RuntimeError, TypeError, ValueError, LookupError, NotImplementedError):
            pass  # a form of the op that its rule does not know
        self.sink([args, kwargs])
        return _any(node.meta.get("val"))

    def overwritten(self, node: fx.Node) -> None:
        """What an op writes into may be seen under other names: nothing is known there any more."""
        root = node.args[0] if node.args else None
        while isinstance(root, fx.Node) and root.args and _is_move(root):
            root = root.args[0]
        names = [root] if isinstance(root, fx.Node) else []
        for name in names:
            names += [user for user in name.users if _is_move(user) and user.args[0] is name]
            later = self.left[name] - (name in node.all_input_nodes)
            if name in self.values and later:
                self.sink(self.values[name])
                self.values[name] = _any(name.meta.get("val"))

    def arguments(self, given: Any) -> Any:
        if isinstance(given, fx.Node):
            return self.values.get(given)
        if isinstance(given, (list, tuple)):
            return [self.arguments(item) for item in given]
        if isinstance(given, dict):
            return {key: self.arguments(item) for key, item in given.items()}
        return given

    def computed(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """An op on weights alone is run."""
        names = frozenset().union(
            *(x.names for x in _leaves([args, kwargs]) if isinstance(x, _Weight))
        )
        function: Any = node.target
        with torch.no_grad(), torch.device("cpu"):
            result = function(*_plain(args, _writes(node)), **_plain(kwargs, _writes(node)))
        if isinstance(result, (list, tuple)):
            return [_Weight(t, names) if isinstance(t, Tensor) else t for t in result]
        return _Weight(result, names) if isinstance(result, Tensor) else result

    def sink(self, given: Any) -> None:
        """All of these are read."""
        for value in _leaves(given):
            if isinstance(value, _Value):
                self.read_energy.append(value.energy.sum())
            elif isinstance(value, _Weight):
                self.unknown |= value.names

    # ----------------------------------------------------------------------------------------------- backward

    def backward(self) -> None:
        total = sum(
            (energy for energy in self.read_energy if energy.requires_grad), torch.zeros(())
        )
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        self.read_energy.clear()

    def record(self, weight: _Weight, axis: int, flow: Tensor) -> None:
        """Add the flow through the positions of an axis, for all tensors that have this axis of the weight."""
        size = weight.tensor.shape[axis]
        if len(flow) != size:
            flow = flow.view(-1, size).sum(0)  # group by group
        for name in weight.names:
            shape = self.tensors[name].shape
            if len(shape) == weight.tensor.ndim and shape[axis] == size:
                old = self.through.get((name, axis))
                self.through[name, axis] = flow if old is None else old + flow

    def tapped(self, value: _Value, weight: _Weight, axis: int, dim: int) -> _Value:
        """The same; when the gradient comes, its flow is that of the positions along `axis` of the weight."""
        energy, size = value.energy, value.shape[dim]
        if not energy.requires_grad:
            energy = energy.detach().requires_grad_()

        def record(gradient: Tensor) -> None:
            self.record(weight, axis, _along(gradient * energy.detach(), dim, size))

        energy.register_hook(record)  # type: ignore[no-untyped-call]
        return _Value(energy, value.constant, value.shape)


# ---------------------------------------------------------------------------------------------------- the values


def _any(val: Any) -> Any:
    """Anything may be there."""
    if isinstance(val, Tensor):
        one = torch.ones([1] * val.ndim, dtype=torch.float64, device="cpu")
        return _Value(one, one * torch.nan, tuple(val.shape))
    if isinstance(val, (list, tuple)):
        return [_any(item) for item in val]
    return val


def _value(given: Any) -> _Value:
    """A weight or a number as an activation that is the same for every input."""
    if isinstance(given, _Value):
        return given
    constant = _doubles(given)
    return _settled(constant.square(), constant, tuple(constant.shape))


def _settled(energy: Tensor, constant: Tensor, shape: tuple[int, ...]) -> _Value:
    """Energies that agree with the constants: their squares there, and above 0 where nothing is known."""
    energy, constant = torch.broadcast_tensors(energy, constant.detach())  # type: ignore[no-untyped-call]
    rank = (*[1] * (len(shape) - energy.ndim), *energy.shape)
    energy, constant = energy.reshape(rank), constant.reshape(rank)
    varies = ~constant.isfinite()
    constant = constant.masked_fill(varies, torch.nan)
    square = constant.square()
    known = energy.detach()
    factor = torch.where(known > 0, square / known.clamp_min(_TINY), 0)
    exact = torch.where(known > 0, energy * factor.nan_to_num(0.0), square)
    energy = torch.where(varies, energy.nan_to_num(1.0, 1e100).clamp(_TINY, 1e100), exact)
    return _Value(energy, constant, shape)


def _leaves(given: Any) -> Iterator[Any]:
    if isinstance(given, (list, tuple)):
        for item in given:
            yield from _leaves(item)
    elif isinstance(given, dict):
        yield from _leaves(list(given.values()))
    else:
        yield given


def _doubles(given: Any) -> Tensor:
    tensor = given.tensor if isinstance(given, _Weight) else torch.as_tensor(given, device="cpu")
    return tensor.detach().to("cpu", torch.float64)


def _plain(given: Any, own: bool) -> Any:
    """What an op on weights gets: CPU tensors, the floating ones in doubles; `own`: to be written into."""
    if isinstance(given, _Weight):
        wide = torch.float64 if given.tensor.is_floating_point() else given.tensor.dtype
        return given.tensor.to("cpu", wide, copy=own)
    if isinstance(given, list):
        return [_plain(item, own) for item in given]
    if isinstance(given, dict):
        return {key: _plain(item, own) for key, item in given.items()}
    return torch.device("cpu") if isinstance(given, torch.device) else given


def _whole(tensor: Tensor, shape: tuple[int, ...], dim: int) -> Tensor:
    """With the full size along one dimension."""
    sizes = list(tensor.shape)
    sizes[dim] = shape[dim]
    return tensor.expand(sizes)


def _shrunk(tensor: Tensor) -> Tensor:
    """With size 1 along what is uniform."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = _First.apply(tensor, dim)
    for dim, size in enumerate(tensor.shape):
        if size > 1:
            first, values = tensor.detach().narrow(dim, 0, 1), tensor.detach()
            if bool(((values == first) | (first.isnan() & values.isnan())).all()):
                tensor = _First.apply(tensor, dim)
    return tensor


class _First(torch.autograd.Function):
    """The first of equals; the gradient is shared among them, without memory for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.shape, ctx.size = x.shape, x.shape[dim]
        return x.narrow(dim, 0, 1).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return (gradients[0] / ctx.size).expand(ctx.shape), None


def _grouped(tensor: Tensor, dim: int, groups: int) -> Tensor:
    """With `dim` as (groups, channels of a group)."""
    dim %= tensor.ndim
    return tensor.reshape(
        *tensor.shape[:dim], groups, tensor.shape[dim] // groups, *tensor.shape[dim + 1 :]
    )


def _along(tensor: Tensor, dim: int, size: int) -> Tensor:
    """(size,) sums over all other dimensions, each uniform one counted once."""
    sums = tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1).sum(1)
    return sums if len(sums) == size else (sums / size).expand(size)


# ----------------------------------------------------------------------------------------------------- the rules

_Rule = Callable[[_Reader, fx.Node, Any, Any], Any]


def _name(node: fx.Node) -> str:
    return overload(node).rpartition(".")[0].removeprefix("aten.").rstrip("_")


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _is_move(node: fx.Node) -> bool:
    return node.target is operator.getitem or _name(node) in _MOVES | _SAME


def _rule(name: str) -> _Rule | None:
    if name in _MOVES:
        return _move
    if name in _SAME:
        return lambda reader, node, args, kwargs: args[0]
    if name in _UNARY or name in _BOUNDED:
        return _bounded if name in _BOUNDED else _unary
    if name in _POOLS:
        return _pool
    if name in _CONVS or name in _TRANSPOSED:
        return _transposed if name in _TRANSPOSED else _conv
    return _RULES.get(name)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _move(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> Any:
    function: Any = node.target
    name = overload(node)
    if _writes(node):
        return None
    if name.startswith(("aten.view.default", "aten._unsafe_view", "aten.reshape")):
        args, kwargs, function = [args[0], _shape(node)], {}, torch.reshape
    elif name.startswith("aten.view"):
        return None  # as another dtype

    def moved(given: Any, part: str) -> Any:
        if isinstance(given, list):
            return [moved(item, part) for item in given]
        if isinstance(given, _Weight) and not given.tensor.is_floating_point():
            return given.tensor.cpu()
        if isinstance(given, (_Value, _Weight)):
            value = _value(given)
            tensor: Tensor = getattr(value, part)
            return tensor.expand(value.shape)
        return given

    energy, constant = (
        function(*moved(args, part), **{key: moved(x, part) for key, x in kwargs.items()})
        for part in ("energy", "constant")
    )
    if isinstance(energy, Tensor):
        return _Value(_shrunk(energy), _shrunk(constant), tuple(energy.shape))
    pairs = zip(energy, constant, strict=True)
    return [_Value(_shrunk(e), _shrunk(c), tuple(e.shape)) for e, c in pairs]


def _joined(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    parts = [_value(part) for part in args[0]]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % parts[0].energy.ndim

    def joined(part: str) -> Tensor:
        tensors = [_whole(getattr(each, part), each.shape, dim) for each in parts]
        shape = torch.broadcast_shapes(*(tensor.select(dim, 0).shape for tensor in tensors))  # type: ignore[no-untyped-call]
        around = [*shape[:dim], -1, *shape[dim:]]
        return torch.cat([tensor.expand(around) for tensor in tensors], dim)

    return _Value(joined("energy"), joined("constant"), _shape(node))


def _pad(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    """What is uniform stays so; a border of another value ends what is constant."""
    x, pads = args[:2]
    energy, constant = x.energy, x.constant
    whole = list(pads)
    for i in range(0, len(pads), 2):
        if energy.shape[-1 - i // 2] == 1:
            whole[i : i + 2] = 0, 0
    if any(whole):
        energy = F.pad(energy, whole)
        constant = F.pad(constant, whole)
    return _settled(energy, torch.where(constant == 0, 0.0, torch.nan), _shape(node))


def _unary(reader: _Reader, node: fx.Node, args: Any, kwargs: Any, bounded: bool = False) -> _Value:
    x, function = args[0], node.target

    def of(c: Tensor) -> Tensor:
        result: Tensor = function(c.clone(), *args[1:], **kwargs)  # type: ignore[operator]
        return result

    rest = float(of(torch.zeros(1, dtype=torch.float64, device="cpu")))
    energy = x.energy
    energy = energy / (1 + energy) if bounded else energy
    return _settled(energy + rest**2, of(x.constant), _shape(node))


def _bounded(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    return _unary(reader, node, args, kwargs, bounded=True)


def _inverse(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    """A norm's factor: its statistics are no path of their own."""
    energy = 1 / (args[0].energy.detach() + 1e-12)
    return _settled(energy, torch.full_like(energy, torch.nan), _shape(node))


def _power(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    exponent = args[1]
    if not isinstance(exponent, (int, float)):
        return None
    if exponent < 0:
        return _inverse(reader, node, args, kwargs)
    return _unary(reader, node, args, kwargs) if exponent else None


def _sum(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    x, y = _value(args[0]), _value(args[1])
    x, y = _without_places(x, y), _without_places(y, x)
    factor = args[2] if len(args) > 2 else kwargs.get("alpha", 1)
    name = overload(node)
    a, b = (factor, 1) if name.startswith("aten.rsub") else (1, factor)
    minus = -1 if "sub" in name else 1
    energy = a**2 * x.energy + b**2 * y.energy
    first, second = a * x.constant, b * y.constant
    constant = second - first if name.startswith("aten.rsub") else first + minus * second
    return _settled(energy, constant, _shape(node))


def _without_places(x: _Value, y: _Value) -> _Value:
    """Means of x over long dimensions along which y, which has channels, is uniform: a table of positions."""
    energy, constant = x.energy, x.constant
    if energy.ndim == y.energy.ndim and y.energy.numel() > 1:
        for dim, size in enumerate(energy.shape):
            if size > _ROWS and y.energy.shape[dim] == 1:
                least, most = constant.amin(dim, True), constant.amax(dim, True)
                energy, constant = (
                    energy.mean(dim, True),
                    torch.where(least == most, most, torch.nan),
                )
    return _settled(energy, constant, x.shape) if energy is not x.energy else x


def _product(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    x, y = _value(args[0]), _value(args[1])
    first, second = x.constant, y.constant
    constant = torch.where((first == 0) | (second == 0), 0.0, first * second)
    return _settled(x.energy * y.energy, constant, _shape(node))


def _gated(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    """The first half times the sigmoid of the second."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    energy, gate = _whole(args[0].energy, args[0].shape, dim).chunk(2, dim)
    constant = _whole(args[0].constant, args[0].shape, dim).chunk(2, dim)[0]
    constant = torch.where(constant == 0, 0.0, torch.nan)
    return _settled(energy * (0.25 + gate / (1 + gate)), constant, _shape(node))


def _rectified(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    constant = args[0].constant
    return _settled(args[0].energy, torch.where(constant == 0, 0.0, torch.nan), _shape(node))


def _quotient(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    if len(args) > 2 or kwargs:
        return None  # rounding
    x, y = _value(args[0]), _value(args[1])
    first, second = x.constant, y.constant
    constant = torch.where((first == 0) & (second != 0), 0.0, first / second)
    return _settled(x.energy / (y.energy.detach() + 1e-12), constant, _shape(node))


def _masked(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    x, _, value = args
    if not isinstance(value, (int, float)):
        return None
    constant = x.constant
    constant = torch.where(constant == value, constant, torch.nan)
    return _settled(x.energy + min(value**2, 1.0), constant, _shape(node))


def _either(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    x, y = _value(args[1]), _value(args[2])
    first, second = x.constant, y.constant
    constant = torch.where(first == second, first, torch.nan)
    energy = x.energy + y.energy.clamp_max(1.0)
    return _settled(energy, constant, _shape(node))


def _softmax(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    energy = args[0].energy
    return _settled(1 + energy / (1 + energy), torch.full_like(energy, torch.nan), _shape(node))


def _mean(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    x = args[0]
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    dims = list(range(x.energy.ndim)) if dims is None or dims == [] else dims
    keep = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
    energy, constant = x.energy, x.constant
    energy, constant = energy.mean(dims, keepdim=keep), constant.mean(dims, keepdim=keep)
    if overload(node).startswith("aten.sum"):
        constant = torch.where(constant == 0, constant, torch.nan)
    return _settled(energy, constant, _shape(node))


def _pool(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    x, name = args[0], overload(node)
    inner = int(name.partition("d.")[0][-1])
    dims = tuple(range(-inner, 0))
    energy, constant = x.energy.mean(dims, True), x.constant
    least, most = constant.amin(dims, True), constant.amax(dims, True)
    same = (least == most) & ((most == 0) | _borderless(name, args))
    return _settled(energy, torch.where(same, most, torch.nan), _shape(node))


def _borderless(name: str, args: Any) -> bool:
    """Whether what is uniform stays so: a mean over a border counts its zeros."""
    return not name.startswith("aten.avg_pool") or len(args) < 4 or not any(_leaves(args[3]))


def _batch_norm(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    x, gain, shift, mean, variance, training, _, eps = args[:8]
    if training or mean is None or variance is None:
        return _normalised(node, x, gain, shift, 1, tuple(range(2, x.energy.ndim)), True, eps)
    lie = [-1 if i == 1 else 1 for i in range(x.energy.ndim)]
    scale = (_doubles(variance) + eps).rsqrt()
    scale = scale if gain is None else _doubles(gain) * scale
    offset = -scale * _doubles(mean)
    offset = offset if shift is None else offset + _doubles(shift)
    scale, offset = scale.view(lie), offset.view(lie)
    constant = x.constant
    constant = torch.where(scale == 0, offset, scale * constant + offset)
    # Where a channel varies, its running mean takes its own mean away: the shift is what is left.
    rest = 0.0 if shift is None else _doubles(shift).view(lie).square()
    return _settled(scale.square() * x.energy + rest, constant, _shape(node))


def _normalised(
    node: fx.Node,
    x: _Value,
    gain: Any,
    shift: Any,
    dim: int,
    over: tuple[int, ...],
    centred: bool,
    eps: float | None,
) -> _Value:
    """(x - mean) / deviation * gain + shift; the statistics are no path of their own."""
    energy, constant = x.energy, x.constant
    mean = energy.detach().mean(over, True) if over else energy.detach()
    count = 1.0
    for each in over:
        count *= x.shape[each]
    base = energy + mean / count if centred else energy
    energy = torch.where(mean > 0, base / mean.clamp_min(_TINY), 0 * base)
    dead = (constant == 0).to(torch.float64).amin(over, True) > 0 if over else constant == 0
    # Centred to 0; a lone channel that is 0 stays 0 under a norm that does not centre.
    known = dead if centred else constant == 0
    result = torch.where(known, 0.0, torch.full_like(energy, torch.nan))
    return _affine(node, energy, result, gain, shift, dim)


def _affine(
    node: fx.Node, energy: Tensor, constant: Tensor, gain: Any, shift: Any, dim: int
) -> _Value:
    shape = _shape(node)

    def laid(given: Any) -> Tensor:
        tensor = _doubles(given)
        if tensor.ndim == 1:
            tensor = tensor.view([-1 if i == dim % len(shape) else 1 for i in range(len(shape))])
        return tensor

    if gain is not None:
        factor = laid(gain)
        energy = energy * factor.square()
        constant = torch.where(factor == 0, 0.0, constant * factor)
    if shift is not None:
        energy, constant = energy + laid(shift).square(), constant + laid(shift)
    return _settled(energy, constant, shape)


def _layer_norm(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    x, shape, gain, shift = (*args[:4], *[None] * (4 - len(args)))[:4]
    over = tuple(range(-len(shape), 0))
    return _normalised(node, x, gain, shift, -1, over, True, None)


def _rms_norm(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    x, shape, gain = (*args[:3], *[None] * (3 - len(args)))[:3]
    return _normalised(node, x, gain, None, -1, tuple(range(-len(shape), 0)), False, None)


def _group_norm(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value:
    x, groups, gain, shift = (*args[:4], *[None] * (4 - len(args)))[:4]
    shape = x.shape
    energy = _grouped(_whole(x.energy, x.shape, 1), 1, groups)
    constant = _grouped(_whole(x.constant, x.shape, 1), 1, groups)
    over = tuple(range(2, energy.ndim))
    mean = energy.detach().mean(over, True)
    count = float(torch.tensor(shape[1:]).prod()) / groups
    centred = torch.where(mean > 0, (energy + mean / count) / mean.clamp_min(_TINY), 0 * energy)
    dead = (constant == 0).to(torch.float64).amin(over, True) > 0
    result = torch.where(dead, 0.0, torch.full_like(centred, torch.nan))
    return _affine(node, centred.flatten(1, 2), result.flatten(1, 2), gain, shift, 1)


def _linear(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    x, weight, bias = (*args, None)[:3]
    return _contracted(reader, node, x, weight, bias, (0, 1))


def _addmm(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    bias, x, weight = args
    return None if kwargs else _contracted(reader, node, x, weight, bias, (1, 0))


def _matmul(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    x, y = args
    if isinstance(x, _Value) and isinstance(y, _Weight) and y.tensor.ndim == 2:
        return _contracted(reader, node, x, y, None, (1, 0))
    x, y = _value(x), _value(y)
    if x.energy.ndim < 2 or y.energy.ndim < 2:
        return None
    first, second = x.energy, y.energy
    if first.shape[-1] != second.shape[-2]:
        size = max(first.shape[-1], second.shape[-2])
        first = first.expand(*first.shape[:-1], size)
        second = second.expand(*second.shape[:-2], size, second.shape[-1])
    energy = first @ second
    zero = torch.where(energy.detach() == 0, 0.0, torch.nan)
    return _settled(energy, zero, _shape(node))


def _attention(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    query, key, value = (_value(x) for x in args[:3])
    heads = query.shape[-3]

    def repeated(tensor: Tensor) -> Tensor:
        tensor = tensor.mean(-2, keepdim=True)
        return (
            tensor.repeat_interleave(heads // tensor.shape[-3], -3)
            if tensor.shape[-3] > 1
            else tensor
        )

    q, k, v = (repeated(x.energy) for x in (query, key, value))
    scores = (q * k).sum(-1, keepdim=True)
    energy = v * (1 + scores / (1 + scores))
    return _settled(energy, torch.where(energy.detach() == 0, 0.0, torch.nan), _shape(node))


def _embedding(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    weight = args[0]
    if not isinstance(weight, _Weight):
        return None
    table = _doubles(weight)
    energy = table.square().mean(0)
    same = (table == table[:1]).all(0)
    value = _settled(energy, torch.where(same, table[0], torch.nan), _shape(node))
    return reader.tapped(value, weight, 1, -1)


def _conv(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    x, weight, bias = (*args, None, None)[:3]
    groups = args[6] if len(args) > 6 else 1
    return _contracted(reader, node, x, weight, bias, (0, 1), groups, dim=1)


def _transposed(reader: _Reader, node: fx.Node, args: Any, kwargs: Any) -> _Value | None:
    x, weight, bias = (*args, None, None)[:3]
    groups = args[6] if len(args) > 6 else 1
    return _contracted(reader, node, x, weight, bias, (1, 0), groups, dim=1)


def _contracted(
    reader: _Reader,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Any,
    axes: tuple[int, int],
    groups: int = 1,
    dim: int = -1,
) -> _Value | None:
    """The result of x W + b: what is read of x ends here, what is made begins anew; a depthwise weight only scales.

    `axes` are those of the outputs and of the inputs in the weight; `dim` is that of the channels of x and the result.
    """
    if not isinstance(weight, _Weight) or not isinstance(x, _Value):
        return None
    shape = _shape(node)
    if dim == 1 and len(shape) != weight.tensor.ndim:
        return None  # no batch
    out_axis, in_axis = axes
    inputs = _whole(x.energy, x.shape, dim)
    if dim == 1:
        inputs = inputs.mean(tuple(range(2, inputs.ndim))) if inputs.ndim > 2 else inputs
    inputs = _fewer(inputs)

    def squares() -> Tensor:
        return _squares(weight.tensor, out_axis, groups)

    if groups > 1 and weight.tensor.shape[in_axis] == (1 if in_axis else groups):
        energy = (_grouped(inputs, -1, groups) * squares()[:, :, 0]).flatten(-2)
    else:
        energy = _Contraction.apply(inputs, squares, _read_along(reader, weight, in_axis))
    lost = energy.detach() == 0
    if dim == 1:
        lie = (*energy.shape, *[1] * (len(shape) - 2))
        energy, lost = energy.view(lie), lost.view(lie)
    constant = torch.zeros((), dtype=torch.float64, device="cpu")
    if bias is not None:
        known = _value(bias)
        rank = (*known.energy.shape, *[1] * (len(shape) - 2)) if dim == 1 else known.energy.shape
        energy = energy + known.energy.reshape(rank)
        constant = known.constant.reshape(rank)
    value = _settled(energy, torch.where(lost, constant, torch.nan), shape)
    return reader.tapped(value, weight, out_axis, dim)


def _fewer(energy: Tensor) -> Tensor:
    """At most `_ROWS` rows: means over the longest dimensions (places) but the last; 0 stays where all are 0."""
    while energy[..., 0].numel() > _ROWS:
        longest = max(range(energy.ndim - 1), key=lambda dim: energy.shape[dim])
        energy = energy.mean(longest, keepdim=True)
    return energy


def _squares(weight: Tensor, out_axis: int, groups: int) -> Tensor:
    """(groups, out, in) doubles: sums of squares over the kernel."""
    sums = weight.detach().to("cpu", torch.float64).square()
    sums = sums.flatten(2).sum(2) if sums.ndim > 2 else sums
    if out_axis == 1:  # (groups * in, out)
        return _grouped(sums, 0, groups).transpose(1, 2)
    return _grouped(sums, 0, groups)


def _read_along(reader: _Reader, weight: _Weight, axis: int) -> Callable[[Tensor], None]:
    return lambda flow: reader.record(weight, axis, flow)


class _Contraction(torch.autograd.Function):
    """Energies (…, in) -> (…, out): the sum of the squared weights of what is not 0.

    Backward, an input is read with the squared weights of those outputs that are read themselves. So flow joins a
    weight to the next one, and no further. The squares are taken twice: kept, they would double the memory.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, squares: Callable[[], Tensor], record: Callable[[Tensor], None]
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.squares, ctx.record = squares, record
        weights = squares()
        live = _grouped((x > 0).to(x.dtype), -1, weights.shape[0])
        return torch.einsum("...gi,goi->...go", live, weights).flatten(-2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        weights = ctx.squares()
        read = _grouped((gradients[0] > 0).to(x.dtype), -1, weights.shape[0])
        gradient = torch.einsum("...go,goi->...gi", read, weights).flatten(-2)
        ctx.record(_along(gradient * x, -1, x.shape[-1]))
        return gradient, None, None


_RULES: dict[str, _Rule] = {
    "cat": _joined,
    "concat": _joined,
    "concatenate": _joined,
    **dict.fromkeys(
        (
            "pad",
            "constant_pad_nd",
            *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
        ),
        _pad,
    ),
    "glu": _gated,
    "prelu": _rectified,
    "instance_norm": _batch_norm,
    "linear": _linear,
    "addmm": _addmm,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
    "add": _sum,
    "sub": _sum,
    "rsub": _sum,
    "mul": _product,
    "multiply": _product,
    "div": _quotient,
    "true_divide": _quotient,
    "pow": _power,
    "rsqrt": _inverse,
    "reciprocal": _inverse,
    "masked_fill": _masked,
    "where": _either,
    "softmax": _softmax,
    "_softmax": _softmax,
    "mean": _mean,
    "sum": _mean,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
}
