"""A model made ready for a trial run: a double-precision copy, its weights, its inputs.

Norms, running statistics and whatever is the same everywhere are drawn at random; running statistics around those of
the input itself: a signal that shrinks from layer to layer, or a channel that an activation cuts off at every position,
would hide a fault. A forward pass that asks for single precision gets double: otherwise rounding would hide, or feign,
what is looked for. The model of the graph is not touched, the random state neither.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from ..._torch_private import BatchNorm
from ...random_state import preserved
from .. import structure
from ..caches import without_caches
from ..evidence import Evidence
from ..leftovers import Leftovers
from ..ops import spec
from ..recorder import quiet
from ..tensors import output_tensors, replaced, tensor_leaves
from ..walk import reach, users
from .grouped import grouped_matmul

__all__ = ["Example", "Trial", "compared", "difference", "without_numbers"]

Example = tuple[Sequence[Any], Mapping[str, Any]]
_LOW = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
_GAINS = ("weight", "gamma", "scale", "running_var", "g")


class Seen(Protocol):
    """What a trial needs of a layer graph."""

    model: nn.Module
    ops: fx.Graph
    evidence: Evidence


class Trial:
    """One model, one input.

    Args:
        graph: of the model.
        seed: for weights and inputs.
        example: (args, kwargs) to run on; None draws by the graph's evidence. Tensors on the meta device are invented.
        drawn: draw norms and statistics; otherwise the weights are the model's own.

    Attributes:
        model: the copy.
        args: positional inputs.
        kwargs: inputs by name.
        invented: names of the inputs of whose values nothing was known.
    """

    def __init__(
        self,
        graph: Seen,
        *,
        seed: int = 0,
        example: Example | None = None,
        drawn: bool = True,
    ) -> None:
        self._seed = seed
        self._random = torch.Generator().manual_seed(seed)
        self.invented: tuple[str, ...] = ()
        structure.refuse_quantised(graph.model)
        # What an earlier run made from the weights would be older than those drawn here.
        fresh = without_caches(graph.model, *graph.evidence.drawn())
        self.model = structure.rebuild(fresh, self._double)
        if drawn:
            self._draw_weights()
        if example is None:
            example = graph.evidence.drawn(self._random)
        self.args, self.kwargs = self._inputs(example, graph.ops)
        if drawn and _has_statistics(self.model):
            self._run(_setting_statistics(self._random))

    def tensor(self, fqn: str) -> Tensor:
        """A parameter or buffer of the copy, to be written to."""
        owner, _, name = fqn.rpartition(".")
        module = self.model.get_submodule(owner)
        tensor: Tensor = getattr(module, name)
        return tensor.detach()

    def run(self) -> list[Tensor]:
        """The output tensors, flattened, as doubles."""
        return self._run(_in_double)

    def _run(self, call: structure.Call) -> list[Tensor]:
        args, kwargs = structure.copy_value((self.args, self.kwargs), torch.clone)
        # A structure of its own for every run: some models keep what they computed from their weights.
        model, left = structure.shell(self.model), Leftovers()
        with _alone(self._seed), structure.Intercepted(left.noting(call)):
            out = model(*args, **kwargs)
        tensors = [t if t.layout is torch.strided else t.to_dense() for t in output_tensors(out)]
        del out, model
        left.forget(tensors)
        return [torch.view_as_real(t).double() if t.is_complex() else t.double() for t in tensors]

    def _double(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            return tensor
        wide = _LOW.get(tensor.dtype, tensor.dtype)
        if tensor.device.type != "meta":
            copied = tensor.detach().to("cpu", wide, copy=True)
        elif wide.is_floating_point:
            copied = 0.1 * torch.randn(
                tensor.shape, dtype=wide, generator=self._random, device="cpu"
            )
        else:
            copied = torch.zeros(tensor.shape, dtype=wide, device="cpu")
        parameter = isinstance(tensor, nn.Parameter)
        return nn.Parameter(copied, requires_grad=False) if parameter else copied

    def draw_zeros(self) -> dict[str, Tensor]:
        """Draw, in place, the parameters that are zero everywhere, which hide what is behind them. FQN -> values."""
        drawn = {}
        for fqn, tensor in self.model.named_parameters():
            if tensor.is_floating_point() and tensor.numel() and not bool(tensor.any()):
                drawn[fqn] = tensor.detach().copy_(0.4 * (self._noise(tensor) - 0.5))
        return drawn

    def _draw_weights(self) -> None:
        state = self.model.state_dict(keep_vars=True)
        for fqn, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            if fqn not in state or not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            if tensor.ndim <= 1 or bool((tensor == tensor.flatten()[0]).all()):
                self._draw(fqn.rpartition(".")[2], tensor)

    def _draw(self, name: str, tensor: Tensor) -> None:
        positive = name in _GAINS or bool((tensor > 0).all())
        noise = self._noise(tensor)
        tensor.detach().copy_(0.5 + noise if positive else 0.4 * (noise - 0.5))

    def _noise(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, dtype=like.dtype, generator=self._random, device="cpu")

    def _inputs(self, example: Example, graph: fx.Graph) -> Any:
        value = (tuple(example[0]), dict(example[1]))
        tensors = tensor_leaves(value)
        heads: list[fx.Node | None] = [node for node in graph.nodes if node.op == "placeholder"]
        heads += [None] * (len(tensors) - len(heads))
        self.invented = tuple(
            str(head.target) if head else "an input"
            for tensor, head in zip(tensors, heads, strict=False)
            if tensor.device.type == "meta"
        )
        drawn = [self._input(tensor, head) for tensor, head in zip(tensors, heads, strict=False)]
        return replaced(value, drawn)

    def _input(self, tensor: Tensor, head: fx.Node | None) -> Tensor:
        wide = _LOW.get(tensor.dtype, tensor.dtype)
        if tensor.device.type != "meta":
            return tensor.detach().to("cpu", wide, copy=True)
        if wide.is_floating_point or wide.is_complex:
            return torch.randn(tensor.shape, dtype=wide, generator=self._random, device="cpu")
        rows = _rows(head) if head is not None else None
        if rows is None:
            # A mask that lets all through.
            return torch.ones(tensor.shape, dtype=wide, device="cpu")
        shape, random = tensor.shape, self._random
        return torch.randint(0, rows, shape, dtype=wide, generator=random, device="cpu")


def _rows(head: fx.Node) -> int | None:
    """How many rows the tables have in which an integer input looks up; None where it looks up in none."""
    indices = {head, *filter(_is_integer, reach([head], users, _is_integer))}
    tables = [
        user.args[0]
        for index in indices
        for user in index.users
        if spec(user).kind == "embedding" and user.args[1] is index
    ]
    return min((int(table.meta["val"].shape[0]) for table in tables), default=None)  # type: ignore[union-attr]


def _is_integer(node: fx.Node) -> bool:
    value = node.meta.get("val") if node.op == "call_function" else None
    return isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32)


@contextlib.contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Quiet, double precision by default, a random state of its own."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with preserved(seed), warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(default)


def _in_double(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take every request for single or half precision as one for double."""
    if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
        func = Tensor.double
    if getattr(func, "__name__", "") == "_grouped_mm":
        func = grouped_matmul  # torch's own knows no doubles
    return func(*_widened(args), **_widened(kwargs))


def _setting_statistics(random: torch.Generator) -> structure.Call:
    """Sets the running statistics of every batch norm to those of its input, give or take a half."""

    def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is nn.functional.batch_norm:
            names = ("input", "running_mean", "running_var")
            named = {**dict(zip(names, args, strict=False)), **kwargs}
            x, mean, var = (named[name] for name in names)
            _draw_statistics(x, mean, var, random)
        return _in_double(func, args, kwargs)

    return call


def _draw_statistics(
    x: Tensor, mean: Tensor | None, var: Tensor | None, random: torch.Generator
) -> None:
    if mean is None or var is None or x.numel() <= x.shape[1]:
        return
    shift, stretch = (
        torch.rand(mean.shape, dtype=mean.dtype, generator=random, device="cpu") for _ in range(2)
    )
    spread, middle = torch.var_mean(x, [i for i in range(x.ndim) if i != 1])
    mean.copy_(middle + (shift - 0.5) * spread.sqrt())
    # A channel that is the same everywhere keeps a variance that can be told from others.
    var.copy_(spread * (0.5 + stretch) + 1e-3 * stretch)


def _has_statistics(model: nn.Module) -> bool:
    return any(isinstance(module, BatchNorm) for module in model.modules())


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return _LOW.get(value, value)
    if type(value) in (list, tuple):
        return type(value)(_widened(item) for item in value)
    if type(value) is dict:
        return {key: _widened(item) for key, item in value.items()}
    return value


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The largest difference of two runs, relative to the largest finite number of the output tensor it is in.

    Infinite where shapes differ, or what is not finite, by its place and its sign; and where an output holds no finite
    number: two tensors of NaN are not known to be the same.
    """
    if len(a) != len(b):
        return float("inf")
    return max((_difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)


def _difference(x: Tensor, y: Tensor) -> float:
    if x.shape != y.shape:
        return float("inf")
    finite = x.isfinite()
    marked = [t[~finite].nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0) for t in (x, y)]
    if not torch.equal(finite, y.isfinite()) or not torch.equal(*marked):
        return float("inf")
    if x.numel() == 0:
        return 0.0
    x, y = x[finite], y[finite]
    if x.numel() == 0:
        return float("inf")
    gap, scale = float((x - y).abs().max()), float(x.abs().max())
    return gap / scale if scale > 0 else gap


def without_numbers(outputs: Sequence[Tensor]) -> list[int]:
    """Which outputs hold elements, and no finite number among them: nothing can be compared there."""
    return [i for i, t in enumerate(outputs) if t.numel() and not t.isfinite().any()]


def compared(outputs: Sequence[Tensor]) -> float:
    """The share of the outputs' elements that are finite, 0.0 to 1.0: `difference` compares these."""
    count = sum(t.numel() for t in outputs)
    return sum(int(t.isfinite().sum()) for t in outputs) / count if count else 0.0
