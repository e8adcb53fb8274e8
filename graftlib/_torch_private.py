"""Every name of torch that torch does not promise, in one place.

`tests/test_torch_private.py` says which of them moved with another torch, and who needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._C import DisableTorchFunction, DispatchKey, _DisablePythonDispatcher
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef

__all__ = [
    "SWITCHES",
    "VALUE_DEPENDENT",
    "BatchNorm",
    "Conv",
    "DisableTorchFunction",
    "FakeTensorMode",
    "Norm",
    "OpOverload",
    "Sink",
    "StorageWeakRef",
    "TensorWeakRef",
    "pytree",
    "seeing_ops",
]

# Base classes of convolutions, and of norms with running statistics (with and without instance norms).
Conv = nn.modules.conv._ConvNd
Norm = nn.modules.batchnorm._NormBase
BatchNorm = nn.modules.batchnorm._BatchNorm
# What a tracer raises where a model asks for a value that fake tensors have not.
VALUE_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException)
# Calls in a graph that turn gradients or autocast on or off: they say nothing about tensors.
SWITCHES = (torch._C._set_grad_enabled, _enter_autocast, _exit_autocast)

# (op, args, kwargs, a function that runs it) -> what takes the place of its result.
Sink = Callable[[Any, Sequence[Any], Mapping[str, Any], Callable[[], Any]], Any]


@contextlib.contextmanager
def seeing_ops(sink: Sink) -> Iterator[None]:
    """Give every op that runs to `sink`, whole: ``linear``, ``conv2d``, ``layer_norm``, ... as in `torch.export`.

    One such block at a time in a process.
    """
    with enable_python_dispatcher(), _OpMode(sink):
        yield


# A mode at the PreDispatch key must be one of three classes that torch knows by name. `SchemaCheckMode` is the
# one that runs ops as they are and keeps no state with the tracer; only its class is borrowed, not its body.
class _OpMode(SchemaCheckMode):  # type: ignore[no-untyped-call]
    def __init__(self, sink: Sink) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self._sink = sink

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the guard against compiling this costs more than recording does

    def __enter__(self) -> _OpMode:
        TorchDispatchMode.__enter__(self)  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        # The python dispatcher is what brought us here; below, torch's own kernels are meant to run.
        with _DisablePythonDispatcher():
            return self._sink(func, args, named, lambda: func(*args, **named))
