"""The recorder: a forward pass whose ops are given to a function, and the graph of them in the normal form.

Nothing that runs can refuse it: no proxy ever enters the model. The user's model, its buffers and the fast-path switch
are as before.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._torch_private import (
    DisableTorchFunction,
    Sink,
    StorageWeakRef,
    TensorWeakRef,
    pytree,
    seeing_ops,
)
from . import structure
from .call_stack import Call, CallStack
from .constants import Constants
from .leftovers import Leftovers
from .normal import Builder, first_names, input_names
from .shapes import known_result
from .tensors import output_tensors, replaced, tensor_leaves

__all__ = ["Watch", "quiet", "record", "record_meta", "record_real", "record_scratch", "to_device"]

META = torch.device("meta")
_NUMBERS = frozenset((int, float, bool, type(None), str, torch.dtype))


class Watch:
    """What a caller may add to a recording; this one adds nothing. It is entered around the forward pass."""

    recorder: _Writer

    def __enter__(self) -> Any:
        """Entered last, innermost."""
        return self

    def __exit__(self, *error: object) -> None:
        """Left first."""

    def run(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], compute: Any) -> Any:
        """The result of an op that is about to run; ``compute()`` is what torch gives."""
        return compute()

    def note(self, node: fx.Node) -> None:
        """An op was written down."""


def record_meta(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> tuple[fx.Graph, list[Call]]:
    """Record on meta tensors: shapes only, no memory, no compute.

    Args:
        model: stays as it is.
        args: positional inputs.
        kwargs: keyword inputs.
        device: what the graph calls the device, in the place of ``meta``.

    Returns:
        the graph and the module calls that its nodes point to.
    """
    left, twin = Leftovers(), structure.rebuild(model, structure.like_meta)
    try:
        return record_scratch(twin, args, kwargs, device, meta=True, original=model, left=left)
    finally:
        del twin
        left.forget()


def record_real(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> tuple[fx.Graph, list[Call]]:
    """Record a real forward pass, in eval mode, on a copy that shares the parameters' memory.

    Example tensors go to `device`; meta ones become zeros.

    Raises:
        RuntimeError: the forward pass writes into a parameter.
    """
    twin = structure.rebuild(model, structure.alias)
    return record_scratch(twin, args, kwargs, device, meta=False, original=model)


def record(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], sink: Sink) -> Any:
    """Run a model as it is, every op by way of `sink`; see `Sink` and `quiet`. Gives the model's result."""
    with quiet(), seeing_ops(sink):
        return model(*args, **kwargs)


def record_scratch(
    twin: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    device: torch.device,
    watch: Watch | None = None,
    *,
    meta: bool,
    original: nn.Module | None = None,
    left: Leftovers | None = None,
    modules: bool = True,
) -> tuple[fx.Graph, list[Call]]:
    """Record a scratch model.

    Args:
        twin: made by `structure.rebuild`, so that what its forward pass writes is nobody else's.
        args: positional inputs.
        kwargs: keyword inputs.
        device: of the user's model.
        watch: sees every op.
        meta: whether the model and the pass are without values.
        original: the user's model: a module that could not be copied still computes with its own tensors.
        left: is told what the ops made.
        modules: whether it is noted which module runs an op; otherwise all are the root's.

    Raises:
        RuntimeError: the forward pass writes into a parameter that has values.
    """
    originals = () if original is None else (original,)
    stack = CallStack(*((*originals, twin) if modules else ()))
    builder = Builder(lambda: stack.current)
    names = {k: name for each in (*originals, twin) for k, name in first_names(each).items()}
    writer = _Writer(builder, names, watch or Watch())
    value = (tuple(args), dict(kwargs))
    if meta:
        args, kwargs = structure.copy_value(value, structure.like_meta)
        writer.rename = {META: device}
        writer.constants = Constants(builder.graph)
    else:
        args, kwargs = to_device(value, device)
        parameters = twin.named_parameters()
        writer.protected = {p.untyped_storage().data_ptr(): fqn for fqn, p in parameters}
    with torch.device(META) if meta else contextlib.nullcontext():
        # One object passed twice is two inputs.
        tensors = [tensor.view_as(tensor) for tensor in tensor_leaves((args, kwargs))]
        for name, tensor in zip(input_names(twin, args, kwargs), tensors, strict=True):
            writer.learn(tensor, builder.placeholder(name, tensor))
        args, kwargs = replaced((args, kwargs), tensors)
        try:
            with stack if modules else contextlib.nullcontext(), writer.watch:
                out = record(twin, args, kwargs, writer)
            outputs = [writer.node(tensor) for tensor in output_tensors(out)]
            return builder.output(outputs), stack.calls
        finally:
            if left is not None:
                left.note(writer.made())


def to_device(value: Any, device: torch.device) -> Any:
    """A copy of `value` with its tensors on `device`; meta tensors become zeros there."""

    def move(tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta" and device.type != "meta":
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
        return tensor.detach().to(device, copy=True)

    return structure.copy_value(value, move)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No gradients, no autocast from outside, no fused attention, no compiled code, for as long as it is entered."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            # Otherwise nothing is compiled, and its import takes seconds.
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Writer:
    """The sink that writes ops down."""

    def __init__(self, builder: Builder, names: dict[int, str], watch: Watch) -> None:
        self.rename: dict[torch.device, torch.device] = {}
        self.protected: dict[int, str] = {}
        self.constants: Constants | None = None
        self.watch = watch
        self._builder, self._names = builder, names
        watch.recorder = self
        # id -> (what still finds the tensor, its storage, its node). An id may be used again once its tensor is gone,
        # and an assignment to ``.data`` gives a tensor other memory.
        self._seen: dict[int, tuple[Callable[[], Tensor | None], int, fx.Node]] = {}
        # The same by memory, for what `tensor.data` gives, another object that no op made: storage -> (what keeps its
        # address from being used again, (offset, node) of all that lies in it).
        self._memory: dict[int, tuple[object, list[tuple[int, fx.Node]]]] = {}

    def __call__(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], compute: Callable[[], Any]
    ) -> Any:
        if self.protected and func._schema.is_mutable:
            self._refuse_write(func, args, kwargs)

        def known_or_computed() -> Any:
            known: Any = known_result(func, args, kwargs)
            if known is not None:
                return known
            try:
                return compute()
            except Exception:
                known = self._constant(func, args, kwargs)
                if known is None:
                    raise
                return known

        result = self.watch.run(func, args, kwargs, known_or_computed)
        if isinstance(result, (Tensor, list, tuple)) or func._schema.is_mutable:
            self._write(func, args, kwargs, result)
        return result

    def _constant(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an op gives that meta tensors cannot answer; None where that is no constant."""
        if self.constants is None or func._schema.is_mutable:
            return None
        return self.constants.answer(func, args, kwargs, self.source)

    def _write(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        node = self._builder.call(func, self._nodes(args), self._nodes(kwargs), result)
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            # The model's own: the graph alone would compute otherwise.
            node.meta["autocast"] = True
        for tensor, item in self._builder.items(node, result):
            self.learn(tensor, item)
        self.watch.note(node)

    def learn(self, tensor: Tensor, node: fx.Node) -> None:
        """From here on `tensor` is what `node` gives."""
        with DisableTorchFunction():
            storage = _storage(tensor)
            address = 0 if storage is None else storage._cdata
            self._seen[id(tensor)] = (TensorWeakRef(tensor), address, node)
            if storage is not None and tensor.layout is torch.strided:
                if address not in self._memory:
                    # On the meta device there is no memory to hold, and the storage itself costs less than its ref.
                    held = storage if tensor.is_meta else StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                    self._memory[address] = (held, [])
                self._memory[address][1].append((int(tensor.storage_offset()), node))

    def made(self) -> list[Tensor]:
        """What ops gave, as far as something holds it."""
        return [
            tensor
            for find, _, node in self._seen.values()
            if node.op == "call_function" and (tensor := find()) is not None
        ]

    def source(self, tensor: Tensor) -> fx.Node | str | None:
        """The node that gives `tensor`; the FQN of a parameter or buffer that was not met; None for others."""
        seen = self._seen.get(id(tensor))
        if seen is not None and seen[0]() is tensor:
            storage = _storage(tensor)
            if seen[1] == (0 if storage is None else storage._cdata):
                return seen[2]
            return self._same_memory(tensor)
        return self._names.get(id(tensor))

    def node(self, tensor: Tensor) -> fx.Node:
        """The node that gives `tensor`; parameters, buffers and constants get theirs when first met."""
        source = self.source(tensor)
        if isinstance(source, fx.Node):
            return source
        node = self._same_memory(tensor) if source is None else self._builder.read(source, tensor)
        if node is None:
            node = self._builder.constant(tensor)
        self.learn(tensor, node)
        return node

    def _same_memory(self, tensor: Tensor) -> fx.Node | None:
        with DisableTorchFunction():
            storage = _storage(tensor)
            if storage is None or tensor.layout is not torch.strided or not tensor.numel():
                return None
            form = tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride()
            _, lying = self._memory.get(storage._cdata, (None, ()))
            for offset, node in reversed(lying):
                val: Tensor = node.meta["val"]
                if (offset, val.dtype, val.shape, val.stride()) == form:
                    return node
        return None

    def _nodes(self, value: Any) -> Any:
        kind = type(value)
        if kind in _NUMBERS:
            return value
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, (list, tuple)):
            nodes = [v if type(v) in _NUMBERS else self._nodes(v) for v in value]
            return nodes if isinstance(value, list) else tuple(nodes)
        if isinstance(value, dict):
            return {key: self._nodes(v) for key, v in value.items()}
        if isinstance(value, torch.device):
            return self.rename.get(value, value)
        return value

    def _refuse_write(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            for tensor in pytree.tree_leaves(value):
                if isinstance(tensor, Tensor) and tensor.numel():
                    fqn = self.protected.get(tensor.untyped_storage().data_ptr())
                    if fqn is not None:
                        raise RuntimeError(f"the forward pass writes into parameter '{fqn}'")


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    """What holds the memory of a tensor; None for what has none."""
    with DisableTorchFunction():
        try:
            return tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return None
