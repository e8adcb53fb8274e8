"""The ONNX libraries, imported before anything is copied or written, and named where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import MissingExtraError

__all__ = ["onnx_library", "require_onnx"]

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Import onnx, onnxscript and onnxruntime.

    Raises:
        MissingExtraError: one of them is not installed; `.missing` names all that are not.
    """
    missing = []
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise MissingExtraError(
            f"exporting to ONNX needs {' and '.join(missing)}.",
            why="not installed here",
            fix='pip install "graftlib[onnx]"',
            missing=tuple(missing),
        )


def onnx_library(name: str) -> Any:
    """One of the three, untyped: their stubs differ from release to release."""
    return importlib.import_module(name)
