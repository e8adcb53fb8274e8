"""What an ONNX file costs to run: time and memory, taken in a fresh process.

In: a file, example inputs. Out: a `Measurement`. Not here: the stopwatch itself (`stopwatch`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ExportError
from ..graph.tensors import tensor_leaves
from . import stopwatch
from .probes import batch_of, draw
from .report import Measurement

__all__ = ["measure"]

SECONDS = "1.0"  # about how long to time, wall clock


def measure(
    model: nn.Module, path: Path, example: Any, *, size_bytes: int, dynamic_batch: bool
) -> Measurement:
    """Time the file at batch 1 (at the example's own batch where it is fixed), one thread.

    Args:
        model: that was exported; not run.
        path: the ONNX file; its folder takes a temporary file with the inputs.
        example: (args, kwargs).
        size_bytes: of the file and its data.
        dynamic_batch: whether the file takes another batch than the example's.

    Raises:
        ExportError: the process failed; the reason is its last line.
    """
    question = draw(example, 1 if dynamic_batch else None, torch.Generator().manual_seed(0))
    inputs = path.with_name(path.name + ".inputs.npz")
    np.savez(inputs, *(tensor.numpy() for tensor in tensor_leaves(question)))
    # -P: the script's own folder stays off sys.path, where its neighbours would hide libraries of their names.
    command = [sys.executable, "-P", stopwatch.__file__, str(path), str(inputs), SECONDS]
    name = type(model).__name__
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except subprocess.TimeoutExpired as error:
        raise _unmeasured(name, f"it did not end within {error.timeout:g} s") from error
    finally:
        inputs.unlink(missing_ok=True)
    if done.returncode != 0:
        raise _unmeasured(
            name, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        )
    return Measurement(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        size_bytes=size_bytes,
        batch=batch_of(question) or 0,
        threads=1,
        **json.loads(done.stdout.splitlines()[-1]),
    )


def _unmeasured(name: str, why: str) -> ExportError:
    return ExportError(
        f"the exported {name} could not be timed in a process of its own.",
        why=why,
        fix="export_onnx(..., measure=False)",
    )
