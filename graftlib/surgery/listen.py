"""Hear the ops of a forward pass, whole, with the parameters that they read.

In: a model, an input. Out: every op with its arguments and its result is given to a function. Always true: the model is
not touched: what runs is a copy of its structure in eval mode that shares the parameters' memory, so nothing can
be left behind, and a new value of a parameter is heard in the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..graph import structure
from ..graph.recorder import quiet
from .refusal import SurgeryError

__all__ = ["Batch", "Op", "Twin", "as_batches"]

# (args, kwargs) of one forward pass.
Batch = tuple[tuple[Any, ...], dict[str, Any]]
# (overload, args, kwargs, result)
Op = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


def as_batches(data: Iterable[Any]) -> list[Batch]:
    """Inputs as (args, kwargs): a tuple or list of arguments, a mapping of keywords, (args, kwargs), or one argument.

    Raises:
        SurgeryError: there are none.
    """
    batches = [_as_batch(item) for item in data]
    if not batches:
        raise SurgeryError(
            "`data` holds no inputs.",
            fix="give an iterable of what the model is called with, such as [images]",
        )
    return batches


def _as_batch(item: Any) -> Batch:
    if isinstance(item, Tensor):
        return (item,), {}
    if isinstance(item, Mapping):
        return (), dict(item)
    pair = isinstance(item, Sequence) and len(item) == 2
    if pair and isinstance(item[0], Sequence) and isinstance(item[1], Mapping):
        return tuple(item[0]), dict(item[1])
    return (tuple(item) if isinstance(item, (list, tuple)) else (item,)), {}


class Twin:
    """A copy of a model's structure, to be run and listened to.

    Attributes:
        names: id of a tensor -> the first FQN of the parameter that it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = structure.rebuild(model, structure.alias)
        self.names = {id(p): fqn for fqn, p in self.model.named_parameters()}

    def run(self, batch: Batch, hear: Callable[[Op], None]) -> None:
        """Run on one input; `hear` is given every op, after it ran."""
        args, kwargs = batch
        # A structure of its own for every run: some models keep what they computed from their weights.
        model = structure.shell(self.model)
        with torch.random.fork_rng(devices=[]), quiet(), enable_python_dispatcher(), _Ears(hear):
            model(*args, **kwargs)


# As in `graph.recorder`: a mode at the PreDispatch key must be of a class that torch knows by name.
class _Ears(SchemaCheckMode):  # type: ignore[no-untyped-call]
    def __init__(self, hear: Callable[[Op], None]) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self._hear = hear

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> _Ears:
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
        with torch._C._DisablePythonDispatcher():
            result = func(*args, **kwargs)
        self._hear((func, args, kwargs, result))
        return result
