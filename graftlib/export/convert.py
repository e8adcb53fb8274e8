"""A detached model -> an ONNX program, by torch's exporter, with its known noise turned off.

In: an eval-mode copy on the CPU and example inputs. Out: the exporter's program, its batch axis named "batch".
Always true: nothing is printed and nothing is written.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..errors import ExportError, TraceError
from ..graph import structure
from ..graph.normal import input_names
from ..graph.tensors import Flat, is_plain, output_tensors, replaced, tensor_leaves
from .extras import onnx_library
from .probes import batch_of, batched_leaves, draw, odd_batch

__all__ = ["BATCH", "convert"]

BATCH = "batch"

# What the exporter says about itself, and where: nothing a user of `export_onnx` could act on.
NOISE: tuple[tuple[type[Warning], str, str], ...] = (
    (UserWarning, r"# ONNX model has different number of inputs", r"torch\.onnx\."),
    (UserWarning, r"# The axis name: \S+ will not be used", r"torch\.onnx\."),
    (
        FutureWarning,
        r"",
        r"(torch\.onnx|torch\.export|torch\._export|torch\.fx|copyreg|onnxscript|onnx_ir)\b",
    ),
    (
        DeprecationWarning,
        r"",
        r"(torch\.onnx|torch\.export|torch\._export|onnxscript|onnx_ir|onnx)\b",
    ),
)
NOISY_LOGGERS = ("torch.onnx._internal.exporter", "onnxscript.optimizer._constant_folding")
# Where the exporter leaves the paths and source lines of the machine that it ran on.
PRIVATE_METADATA = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")


def convert(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    dynamic_batch: bool,
    opset: int | None,
) -> Any:
    """Convert `model`.

    Args:
        model: a detached copy; see `detached`.
        args: example arguments; with `dynamic_batch` only their form and the distribution of their values matter.
        kwargs: example keyword arguments.
        dynamic_batch: leave the first axis open on every input that shares the batch.
        opset: version of the default operator set; None for the exporter's own choice.

    Returns:
        A `torch.onnx.ONNXProgram`.

    Raises:
        ExportError: the exporter cannot follow the model, or only at a fixed batch size.
    """
    names = None
    if not _is_plain(model, args, kwargs):
        names = input_names(model, args, kwargs)
        model, args, kwargs = Flat(model, args, kwargs), tuple(tensor_leaves((args, kwargs))), {}
    export = functools.partial(_export, names=names, opset=opset)
    if not dynamic_batch:
        return _exported_or_refused(export, model, args, kwargs)
    try:
        return _with_open_batch(export, model, args, kwargs)
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        reason = _reason(error)
        cause = error
    # Is it the batch, or the model? Converting once more with a fixed batch tells, and proves the advice.
    _exported_or_refused(export, model, args, kwargs)
    raise ExportError(
        f"{type(model).__name__} can be exported at batch size {batch_of((args, kwargs))} only: "
        "its batch axis does not stay open.",
        why=reason,
        fix="export_onnx(..., dynamic_batch=False), or take the batch size from x.shape[0] inside the model's "
        "forward instead of a number",
        model=type(model).__name__,
    ) from cause


def _is_plain(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the exporter sees all tensors that go in and come out by itself."""
    value = (args, kwargs)
    again = replaced(value, [tensor.clone() for tensor in tensor_leaves(value)])
    try:
        with torch.no_grad():
            # On a structure of its own: what a model remembers of a run would be exported with it.
            out = structure.rebuild(model, structure.alias)(*again[0], **again[1])
    except Exception:
        return is_plain(value)  # the exporter says why it does not run
    try:
        output_tensors(out)
    except TraceError as error:
        raise ExportError(error.what, where=error.where, why=error.why, fix=error.fix) from error
    return is_plain(value) and is_plain(out)


def _exported_or_refused(
    export: Callable[..., Any], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    try:
        return export(model, args, kwargs, None)
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise ExportError(
            f"{type(model).__name__} cannot be exported to ONNX.",
            why=_reason(error),
            fix="keep control flow off tensor values in its forward (torch.where, torch.cond instead of if), and "
            "check that model(*args, **kwargs) runs; `__cause__` holds the exporter's full report",
            model=type(model).__name__,
        ) from error


def _with_open_batch(
    export: Callable[..., Any], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    example = draw((args, kwargs), odd_batch((args, kwargs)), torch.Generator().manual_seed(0))
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    dimension = torch.export.Dim(BATCH)
    for leaf in batched_leaves(example):
        shapes[leaf] = {0: dimension}
    args, kwargs = example
    dynamic = shapes.dynamic_shapes(model, args, kwargs)
    program = export(model, args, kwargs, dynamic)
    _name_batch(program)
    return program


def _export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic: Any,
    *,
    names: list[str] | None,
    opset: int | None,
) -> Any:
    if args and isinstance(args[-1], dict) and not kwargs:
        args = (*args, {})  # the exporter takes a dict at the end for arguments by name
    with _quiet():
        program: Any = torch.onnx.export(
            model,
            args,
            kwargs=kwargs,
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=names,
            opset_version=opset,
            optimize=True,  # the default since torch 2.9
            verbose=False,
        )
    for node in program.model.graph.all_nodes():
        for key in PRIVATE_METADATA:
            node.metadata_props.pop(key, None)
    return program


def _name_batch(program: Any) -> None:
    """Call the exporter's own symbol for the open axis (``s38``) by its meaning, wherever it stands."""
    ir = onnx_library("onnx_ir")
    graph = program.model.graph
    first = next(
        (
            value.shape[0]
            for value in graph.inputs
            if value.shape and not isinstance(value.shape[0], int)
        ),
        None,
    )
    if first is None or first.value == BATCH:
        return
    symbol = re.compile(rf"\b{re.escape(first.value)}\b")
    values = [*graph.inputs, *(value for node in graph.all_nodes() for value in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value and symbol.search(size.value):
                value.shape[axis] = symbol.sub(BATCH, size.value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in NOISY_LOGGERS}
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category, message, module in NOISE:
                warnings.filterwarnings("ignore", message=message, category=category, module=module)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _reason(error: BaseException) -> str:
    """The root of a chain of exporter errors, in at most three lines."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    text = "\n".join(line[:160] for line in lines[:3])
    return f"{type(root).__name__}: {text}" if text else type(root).__name__
