"""Tracing backends, tried in order until one sees the model. The user's model is as before, whatever happened."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import fx, nn

from .._torch_private import VALUE_DEPENDENT
from ..errors import TraceError
from ..random_state import all_preserved
from .call_stack import Call
from .exported import record_export
from .fake import record_fake
from .recorder import record_meta, record_real
from .tensors import tensor_leaves

__all__ = ["TRACERS", "TURN", "Capture", "capture", "device_of", "mute", "undisturbed"]

Tracer = Callable[
    [nn.Module, Sequence[Any], Mapping[str, Any], torch.device], tuple[fx.Graph, list[Call]]
]
TRACERS: dict[str, Tracer] = {
    "meta": record_meta,
    "fake": record_fake,
    "export": record_export,
    "real": record_real,
}
# Modes at the PreDispatch key live in one place for the whole process, so recordings take turns.
TURN = threading.Lock()


@dataclass(frozen=True)
class Capture:
    """What a tracer saw.

    Attributes:
        graph: in the normal form.
        calls: the module calls that ``node.meta["call"]`` counts.
        tracer: the name of the tracer that made it.
        real: real tensors ran, so every constant in the graph has its value.
        answers: tracer -> ``"ok"``, or why it gave nothing.
    """

    graph: fx.Graph
    calls: tuple[Call, ...]
    tracer: str
    real: bool
    answers: dict[str, str]


def capture(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    device: torch.device | str | None = None,
    tracers: Sequence[str] = tuple(TRACERS),
) -> Capture:
    """See a forward pass of `model`.

    Args:
        model: already unwrapped (see `structure.unwrap`).
        args: positional example inputs, tensors on any device.
        kwargs: keyword example inputs.
        device: the device that the forward pass is meant for; the model's own by default.
        tracers: names of tracers, tried in this order.

    Raises:
        TraceError: no tracer saw it; ``answers`` and ``shapes`` are attributes.
    """
    kwargs = dict(kwargs or {})
    home = torch.device(device) if device is not None else device_of(model)
    answers: dict[str, str] = {}
    failures: dict[str, Exception] = {}
    for tracer in tracers:
        if tracer == "real" and _on_meta(model):
            answers[tracer] = "skipped: the model has no values, it is on the meta device"
            continue
        if (
            tracer == "export"
            and "real" in tracers
            and not _on_meta(model)
            and _by_values(failures)
        ):
            answers[tracer] = (
                "skipped: the forward pass depends on values, as the 'fake' tracer saw"
            )
            continue
        try:
            with TURN, undisturbed():
                graph, calls = TRACERS[tracer](model, args, kwargs, home)
        except TraceError:
            raise
        except Exception as error:
            failures[tracer] = error
            answers[tracer] = _first_line(error)
        else:
            answers[tracer] = "ok"
            return Capture(graph, tuple(calls), tracer, tracer == "real", answers)
    raise _untraceable(model, args, kwargs, answers) from next(iter(failures.values()), None)


def device_of(model: nn.Module) -> torch.device:
    """Where the model lives; cpu for a model that is on the meta device or has no tensors."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
    return torch.device("cpu")


def _by_values(failures: Mapping[str, Exception]) -> bool:
    return isinstance(failures.get("fake"), VALUE_DEPENDENT)


def _on_meta(model: nn.Module) -> bool:
    return any(t.device.type == "meta" for t in [*model.parameters(), *model.buffers()])


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Leave random states as they are, and say nothing: a tracer that fails answers by its exception."""
    with all_preserved(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Tracers print the half of the graph that they have when they give up.
        with contextlib.redirect_stderr(io.StringIO()), mute("torch"):
            yield


@contextlib.contextmanager
def mute(name: str) -> Iterator[None]:
    """Drop what this thread logs under `name`."""
    thread = threading.get_ident()
    logger = logging.getLogger(name)

    def keep(record: logging.LogRecord) -> bool:
        return record.thread != thread

    handlers = list(logger.handlers)
    for handler in handlers:
        handler.addFilter(keep)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(keep)


def _first_line(error: Exception) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}".strip()[:300]


def _untraceable(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], answers: dict[str, str]
) -> TraceError:
    shapes = _input_shapes(model, args, kwargs)
    name = type(model).__name__
    if problem := _unbound(model, args, kwargs):
        what = f"'{name}' cannot be called with these example inputs: {problem}."
        fix = f"pass what its forward takes: {name}.forward{inspect.signature(model.forward)}"
    else:
        what = f"no way of tracing could follow '{name}' on these example inputs."
        fix = (
            "check that the model itself runs on these inputs: model(*args, **kwargs); "
            "if it does, its forward does what none of the tracers can follow; "
            "view(graftlib.graph.outline(model, args, kwargs)) shows how far it comes"
        )
    return TraceError(
        what,
        where={"inputs": shapes or "none", **answers},
        fix=fix,
        answers=answers,
        shapes=shapes,
        model=name,
    )


def _unbound(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    except ValueError:
        return None
    return None


def _input_shapes(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    words = [f"args[{i}]" for i in range(len(args))] + [*kwargs]
    shown = []
    for word, tree in zip(words, [*args, *kwargs.values()], strict=True):
        shown += [f"{word} {tuple(t.shape)} {t.dtype}" for t in tensor_leaves(tree)]
    return ", ".join(shown)
