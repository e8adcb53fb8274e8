"""The recorder: a forward pass that is only listened to.

In: a model, its inputs. Out: the graph of the ATen ops that ran, in the normal form. It listens at the
PreDispatch key, where ``linear``, ``conv2d``, ``layer_norm`` and ``scaled_dot_product_attention`` are still
whole: the vocabulary of `torch.export`. Nothing that runs can refuse it: no proxy ever enters the model.
Always true: the user's model, its buffers and the fast-path switch are as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef

from . import structure
from .frames import Call, Frames
from .normal import Builder, first_names, input_names
from .shapes import known_result
from .tensors import output_tensors, replaced, tensor_leaves
from .unrolled import recurrent_shapes

__all__ = ["Watch", "quiet", "record", "record_meta", "record_real", "to_device"]

META = torch.device("meta")


class Watch:
    """What a caller may add to a recording; this one adds nothing. It is entered around the forward pass."""

    recorder: _Recorder

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
    twin = structure.rebuild(model, structure.like_meta)
    given, named = structure.copy_value((tuple(args), dict(kwargs)), structure.like_meta)
    with torch.device(META):
        return _record(model, twin, given, named, rename={META: device})


def record(
    twin: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    device: torch.device,
    watch: Watch,
    *,
    meta: bool,
) -> tuple[fx.Graph, list[Call]]:
    """Record a scratch model under a watch.

    Args:
        twin: made by `structure.rebuild`, so that nobody minds what its forward pass writes.
        args: positional inputs.
        kwargs: keyword inputs.
        device: of the user's model.
        watch: sees every op.
        meta: whether the model and the pass are without values.
    """
    if not meta:
        given, named = to_device((tuple(args), dict(kwargs)), device)
        shared = {p.untyped_storage().data_ptr(): fqn for fqn, p in twin.named_parameters()}
        return _record(twin, twin, given, named, protected=shared, watch=watch)
    given, named = structure.copy_value((tuple(args), dict(kwargs)), structure.like_meta)
    with torch.device(META):
        return _record(twin, twin, given, named, rename={META: device}, watch=watch)


def record_real(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> tuple[fx.Graph, list[Call]]:
    """Record a real forward pass, in eval mode, on a copy that shares the parameters' memory.

    Example tensors go to `device`; meta ones become zeros.

    Raises:
        RuntimeError: the forward pass writes into a parameter.
    """
    twin = structure.rebuild(model, structure.alias)
    given, named = to_device((tuple(args), dict(kwargs)), device)
    shared = {p.untyped_storage().data_ptr(): fqn for fqn, p in model.named_parameters()}
    return _record(model, twin, given, named, protected=shared)


def to_device(value: Any, device: torch.device) -> Any:
    """A copy of `value` with its tensors on `device`; meta tensors become zeros there."""

    def move(tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta" and device.type != "meta":
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
        return tensor.detach().to(device, copy=True)

    return structure.copy_value(value, move)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No gradients, no autocast from outside, no fused attention, for as long as it is entered."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _record(
    model: nn.Module,
    twin: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    rename: Mapping[torch.device, torch.device] | None = None,
    protected: Mapping[int, str] | None = None,
    watch: Watch | None = None,
) -> tuple[fx.Graph, list[Call]]:
    frames = Frames(model, twin)
    builder = Builder(lambda: frames.current)
    # A module that could not be copied still computes with the user's own tensors.
    names = {**first_names(model), **first_names(twin)}
    watch = watch or Watch()
    recorder = _Recorder(builder, names, dict(rename or {}), dict(protected or {}), watch)
    # One object given twice is two inputs.
    tensors = [tensor.view_as(tensor) for tensor in tensor_leaves((args, kwargs))]
    for name, tensor in zip(input_names(twin, args, kwargs), tensors, strict=True):
        recorder.learn(tensor, builder.placeholder(name, tensor))
    args, kwargs = replaced((args, kwargs), tensors)
    with quiet(), enable_python_dispatcher(), frames, recorder, watch:
        out = twin(*args, **kwargs)
    outputs = [recorder.node(tensor) for tensor in output_tensors(out)]
    return builder.output(outputs), frames.calls


def _result(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    known: Any = known_result(func, args, kwargs)
    if known is None:
        known = recurrent_shapes(func, args)
    return func(*args, **kwargs) if known is None else known


# A mode at the PreDispatch key must be one of three classes that torch knows by name. `SchemaCheckMode` is the
# one that runs ops as they are and keeps no state with the tracer; only its class is borrowed, not its body.
class _Recorder(SchemaCheckMode):  # type: ignore[no-untyped-call]
    def __init__(
        self,
        builder: Builder,
        names: dict[int, str],
        rename: dict[torch.device, torch.device],
        protected: dict[int, str],
        watch: Watch,
    ) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self._builder = builder
        self._names = names
        self._rename = rename
        self._protected = protected
        self._watch = watch
        watch.recorder = self
        # id -> (what still finds the tensor, its node). An id may be used again once its tensor is gone.
        self._seen: dict[int, tuple[Callable[[], Tensor | None], fx.Node]] = {}
        # The same by memory, for what `tensor.data` gives: another object that no op made.
        self._memory: dict[tuple[Any, ...], tuple[StorageWeakRef, fx.Node]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the guard against compiling this costs more than listening does

    def __enter__(self) -> _Recorder:
        TorchDispatchMode.__enter__(self)  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._protected and func._schema.is_mutable:
            self._refuse_write(func, args, kwargs)
        # The python dispatcher is what brought us here; below, torch's own kernels are meant to run.
        with torch._C._DisablePythonDispatcher():
            result = self._watch.run(func, args, kwargs, lambda: _result(func, args, kwargs))
            if isinstance(result, (Tensor, list, tuple)) or func._schema.is_mutable:
                self._write(func, args, kwargs, result)
        return result

    def _write(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        node = self._builder.call(func, self._nodes(args), self._nodes(kwargs), result)
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            # The model's own: the graph alone would compute otherwise.
            node.meta["autocast"] = True
        for tensor, item in self._builder.items(node, result):
            self.learn(tensor, item)
        self._watch.note(node)

    def learn(self, tensor: Tensor, node: fx.Node) -> None:
        """From here on `tensor` is what `node` gives."""
        self._seen[id(tensor)] = (TensorWeakRef(tensor), node)
        if (place := _place(tensor)) is not None:
            storage, *view = place
            self._memory[storage.cdata, *view] = (storage, node)

    def source(self, tensor: Tensor) -> fx.Node | str | None:
        """The node that gives `tensor`; the FQN of a parameter or buffer that was not met; None for others."""
        seen = self._seen.get(id(tensor))
        if seen is not None and seen[0]() is tensor:
            return seen[1]
        return self._names.get(id(tensor))

    def node(self, tensor: Tensor) -> fx.Node:
        """The node that gives `tensor`; parameters, buffers and constants get theirs when first met."""
        found = self._seen.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        fqn = self._names.get(id(tensor))
        node = self._same_memory(tensor) if fqn is None else self._builder.read(fqn, tensor)
        if node is None:
            node = self._builder.constant(tensor)
        self.learn(tensor, node)
        return node

    def _same_memory(self, tensor: Tensor) -> fx.Node | None:
        place = _place(tensor)
        if place is None:
            return None
        storage, *view = place
        found = self._memory.get((storage.cdata, *view))
        return None if found is None else found[1]

    def _nodes(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, (list, tuple)):
            return (
                [self._nodes(v) for v in value]
                if isinstance(value, list)
                else tuple(self._nodes(v) for v in value)
            )
        if isinstance(value, dict):
            return {key: self._nodes(v) for key, v in value.items()}
        if isinstance(value, torch.device):
            return self._rename.get(value, value)
        return value

    def _refuse_write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            for tensor in pytree.tree_leaves(value):
                if isinstance(tensor, Tensor) and tensor.numel():
                    fqn = self._protected.get(tensor.untyped_storage().data_ptr())
                    if fqn is not None:
                        raise RuntimeError(f"the forward pass writes into parameter '{fqn}'")


def _place(tensor: Tensor) -> tuple[Any, ...] | None:
    """Where the values lie, held weakly so that the address is not used again; None for what has no memory."""
    with torch._C.DisableTorchFunction():
        if tensor.layout is not torch.strided or not tensor.numel():
            return None
        try:
            storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        except (NotImplementedError, RuntimeError):
            return None
        return storage, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
