"""An ONNX file in int8: the same file with weights of 8 bits, with activations quantized as they come or by ranges.

In: a file in floats; for ranges, inputs. Out: a second file. Not here: how far the two are apart (`proof`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ExportError
from ..graph.tensors import tensor_leaves
from .detached import detached_tree
from .extras import onnx_library

__all__ = ["QUANTIZE", "calls_of", "quantized"]

QUANTIZE = ("int8", "int8-static")
_INTEGERS = ("MatMulInteger", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger")
_HELD_OUT = 4  # one of so many inputs is compared on, and not calibrated with

Call = tuple[tuple[Any, ...], dict[str, Any]]


def calls_of(data: Iterable[Any], kwargs: Mapping[str, Any]) -> tuple[list[Call], list[Call]]:
    """Inputs as (args, kwargs) on the CPU: those to calibrate with, and every fourth, to compare on.

    Args:
        data: each a tensor, a sequence of arguments, a mapping of keywords or (args, kwargs).
        kwargs: keywords of the example; their order is that of the file's inputs.

    Raises:
        ExportError: there are none. Of a single one both lists hold it.
    """
    calls = [_call(item, kwargs) for item in data]
    if not calls:
        raise ExportError("`data` holds no inputs.", fix="give what the model is called with: [x]")
    held = calls[_HELD_OUT - 1 :: _HELD_OUT] or calls[-1:]
    rest = [each for each in calls if not any(each is other for other in held)]
    return rest or calls, held


def _call(item: Any, kwargs: Mapping[str, Any]) -> Call:
    if isinstance(item, Tensor):
        call: Call = ((item,), {})
    elif isinstance(item, Mapping):
        call = ((), dict(item))
    elif len(item) == 2 and isinstance(item[0], Sequence) and isinstance(item[1], Mapping):
        call = (tuple(item[0]), dict(item[1]))
    else:
        call = (tuple(item), {})
    order = [*(k for k in kwargs if k in call[1]), *(k for k in call[1] if k not in kwargs)]
    copied: Call = detached_tree((call[0], {key: call[1][key] for key in order}))
    return copied


def quantized(file: Path, how: str, calls: Sequence[Call], small: Path) -> Path:
    """Write the file again in int8.

    Args:
        file: in floats, with its data in it.
        how: ``"int8"`` or ``"int8-static"``.
        calls: inputs for ranges; of ``"int8-static"``.
        small: where to; its folder takes a temporary file.

    Returns:
        `small`.

    Raises:
        ExportError: nothing in the file has a weight that can be quantized, or the runtime refuses.
    """
    library = onnx_library("onnxruntime.quantization")
    options: Any = {"per_channel": True, "weight_type": library.QuantType.QInt8}
    with _quiet():
        if how == "int8":
            options["op_types_to_quantize"] = ["MatMul", "Gather"]
            library.quantize_dynamic(str(file), str(small), **options)
        else:
            options["op_types_to_quantize"] = ["Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"]
            try:
                library.quantize_static(
                    str(file),
                    str(small),
                    _Reader(file, calls),
                    extra_options={"MatMulConstBOnly": True},
                    **options,
                )
            except ExportError:
                raise
            except Exception as error:  # whatever the runtime and its tools raise
                raise ExportError(
                    "the model cannot be quantized by these data.",
                    why=f"{type(error).__name__}: {str(error)[:300]}",
                    fix="pass inputs such as the example, or quantize='int8', which needs none",
                ) from error
    model = onnx_library("onnx").load(str(small))
    if not any(node.op_type in _INTEGERS for node in model.graph.node):
        raise ExportError(
            "there is nothing to quantize.",
            why="no product of matrices and no embedding has a weight"
            + ("; convolutions stay in floats" if how == "int8" else ""),
            fix="quantize=None" if how != "int8" else "quantize=None, or 'int8-static' with data=",
        )
    return small


class _Reader:
    """Inputs by the file's names, one after another; what onnxruntime calls a calibration data reader."""

    def __init__(self, file: Path, calls: Sequence[Call]) -> None:
        model = onnx_library("onnx").load(str(file), load_external_data=False)
        self.names = [value.name for value in model.graph.input]
        self.calls = iter(calls)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next inputs; None at the end."""
        call = next(self.calls, None)
        if call is None:
            return None
        tensors = tensor_leaves(call)
        if len(tensors) != len(self.names):
            raise ExportError(
                f"the exported model has {len(self.names)} inputs, `data` {len(tensors)} tensors.",
                where={"inputs": ", ".join(self.names)},
                fix="pass what the example has: the same arguments in the same order",
            )
        return dict(zip(self.names, (tensor.numpy() for tensor in tensors), strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises to shapes that are there already
    try:
        yield
    finally:
        logging.disable(disabled)
