"""Record the ops of a forward pass, whole, with the parameters that they read.

What runs is a copy of the model's structure in eval mode that shares the parameters' memory: nothing can be left
behind in the model, and a new value of a parameter counts from then on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._torch_private import seeing_ops
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
        SurgeryError: there are none, or reading them raises.
    """
    fix = "give an iterable of what the model is called with, such as [images]"
    try:
        batches = [_as_batch(item) for item in data]
    except Exception as error:  # a loader may raise anything
        why = f"{type(error).__name__}: {str(error)[:300]}"
        raise SurgeryError("`data` cannot be read.", why=why, fix=fix) from error
    if not batches:
        raise SurgeryError("`data` holds no inputs.", fix=fix)
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
    """A copy of a model's structure, to be run and recorded.

    Attributes:
        names: id of a tensor -> the first FQN of the parameter that it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = structure.rebuild(model, structure.alias)
        self.names = {id(p): fqn for fqn, p in self.model.named_parameters()}

    def run(self, batch: Batch, see: Callable[[Op], object]) -> Any:
        """Run on one input; `see` is given every op, after it ran. Gives the model's result."""
        with alone():
            return self._run(batch, see)

    def _run(self, batch: Batch, see: Callable[[Op], object]) -> Any:
        faults: list[Exception] = []

        def sink(func: Any, args: Any, kwargs: Any, compute: Callable[[], Any]) -> Any:
            result = compute()
            try:
                again = see((func, tuple(args), dict(kwargs), result))
            except Exception as error:
                faults.append(error)
                raise
            return compute() if again else result

        # A structure of its own for every run: some models keep what they computed from their weights.
        model = structure.shell(self.model)
        try:
            with seeing_ops(sink):
                return called(model, batch)
        except SurgeryError:
            if faults:
                raise faults[0] from None  # of who sees the ops, not of the model
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
            # What is set for a thread does not reach another one.
            with self._device or contextlib.nullcontext(), torch.no_grad():
                self.result = self._run(self._batch, self._stop)
        except _ClosedError:
            pass
        except BaseException as error:  # it is raised where `advance` waits
            self._error = error
        self._here = None
        self._came.release()

    def _stop(self, op: Op) -> bool:
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
