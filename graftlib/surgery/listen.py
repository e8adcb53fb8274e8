"""Record the ops of a forward pass, whole, with the parameters that they read.

In: a model, an input. Out: every op with its arguments and its result is given to a function; a `Walk` stops at some of
them and goes on when it is told to. Always true: the model is not touched: what runs is a copy of its structure in
eval mode that shares the parameters' memory, so nothing can be left behind, and a new value of a parameter counts from
then on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import GraftError
from ..graph import structure
from ..graph.recorder import quiet
from ..random_state import preserved
from .refusal import SurgeryError

__all__ = ["Batch", "Op", "Twin", "Walk", "alone", "as_batches", "called"]

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


def called(model: nn.Module, batch: Batch) -> Any:
    """What a model gives for an input.

    Raises:
        SurgeryError: the model does not take it.
    """
    args, kwargs = batch
    try:
        return model(*args, **kwargs)
    except GraftError:
        raise
    except Exception as error:  # a model may raise anything
        raise SurgeryError(
            "the model does not run on data.",
            why=f"{type(error).__name__}: {str(error)[:300]}",
            fix="pass batches that the model takes: [x], [(x, y)] or [{'name': x}]",
        ) from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """As `quiet`; afterwards the random states are what they were."""
    with preserved(), quiet():
        yield


class Twin:
    """A copy of a model's structure, to be run and listened to.

    Attributes:
        names: id of a tensor -> the first FQN of the parameter that it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = structure.rebuild(model, structure.alias)
        self.names = {id(p): fqn for fqn, p in self.model.named_parameters()}

    def run(self, batch: Batch, hear: Callable[[Op], object]) -> Any:
        """Run on one input; `hear` is given every op, after it ran. Gives the model's result."""
        with alone():
            return self._run(batch, hear)

    def _run(self, batch: Batch, hear: Callable[[Op], object]) -> Any:
        # A structure of its own for every run: some models keep what they computed from their weights.
        model = structure.shell(self.model)
        ears = _Ears(hear)
        try:
            with torch.no_grad(), enable_python_dispatcher(), ears:
                return called(model, batch)
        except SurgeryError:
            if ears.fault is not None:
                raise ears.fault from None  # of who listens, not of the model
            raise


class _ClosedError(BaseException):
    """A walk ends early; no model may catch it."""


class Walk(Twin):
    """One forward pass that stops after some ops; what it needs of the past it holds, so nothing is computed twice.

    It runs in a thread of its own, as the place where a model's code stands can be held in no other way; only one
    of all walks runs at a time, and only while `advance` waits for it. Use it inside of `alone`, and close it.

    Attributes:
        result: of the model, once the pass is over.
    """

    def __init__(
        self, model: nn.Module, batch: Batch, stops: Callable[[Mapping[int, str], Op], Any]
    ) -> None:
        super().__init__(model)
        self.result: Any = None
        self._batch, self._stops = batch, stops
        self._here: Any = None
        self._error: BaseException | None = None
        self._go, self._came = threading.Semaphore(0), threading.Semaphore(0)
        self._closed = False
        device = torch.get_default_device()
        self._device = None if device.type == "cpu" else device
        self._thread = threading.Thread(target=self._walk, daemon=True)

    def advance(self) -> Any:
        """Go to the next stop, and give what `stops` gave there; None at the end of the pass.

        The last op is run again when its stop is left: its weight may be another one by then.

        Raises:
            whatever the model raises.
        """
        if self._thread.ident is None:
            self._thread.start()
        elif self._thread.is_alive():
            self._go.release()
        else:
            return None
        self._came.acquire()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self._here

    def close(self) -> None:
        """End the pass where it stands."""
        self._closed = True
        while self._thread.ident is not None and self._thread.is_alive():
            self._go.release()
            self._thread.join(0.1)

    def _walk(self) -> None:
        try:
            with self._device or contextlib.nullcontext():
                self.result = self._run(self._batch, self._hear)
        except _ClosedError:
            pass
        except BaseException as error:  # it is raised where `advance` waits
            self._error = error
        self._here = None
        self._came.release()

    def _hear(self, op: Op) -> bool:
        if self._closed:
            raise _ClosedError
        self._here = self._stops(self.names, op)
        if self._here is None:
            return False
        self._came.release()
        self._go.acquire()
        self._here = None
        if self._closed:
            raise _ClosedError
        return True


# As in `graph.recorder`: a mode at the PreDispatch key must be of a class that torch knows by name.
class _Ears(SchemaCheckMode):  # type: ignore[no-untyped-call]
    def __init__(self, hear: Callable[[Op], object]) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self._hear = hear
        self.fault: Exception | None = None

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
        try:
            again = self._hear((func, args, kwargs, result))
        except Exception as error:
            self.fault = error
            raise
        if again:
            with torch._C._DisablePythonDispatcher():
                result = func(*args, **kwargs)
        return result
