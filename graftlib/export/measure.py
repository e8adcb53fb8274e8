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

from ..errors import ExportError
from ..graph.tensors import tensor_leaves
from . import stopwatch
from .probes import batch_of, draw
from .report import Measurement

__all__ = ["measure"]


def measure(
    path: Path,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    name: str,
    parameters: int,
    size_bytes: int,
    dynamic_batch: bool,
    seconds: float = 1.0,
) -> Measurement:
    """Time the file at batch 1 (at the example's own batch where it is fixed), one thread.

    Args:
        path: the ONNX file; its folder takes a temporary file with the inputs.
        args: example arguments.
        kwargs: example keyword arguments.
        name: of the model, for the report.
        parameters: of the model, for the report.
        size_bytes: of the file, for the report.
        dynamic_batch: whether the file takes another batch than the example's.
        seconds: about how long to time, wall clock.

    Raises:
        ExportError: the process failed; the reason is its last line.
    """
    question = draw((args, kwargs), 1 if dynamic_batch else None, torch.Generator().manual_seed(0))
    inputs = path.with_name(path.name + ".inputs.npz")
    np.savez(inputs, *(tensor.numpy() for tensor in tensor_leaves(question)))
    # -P: the script's own folder stays off sys.path, where its neighbours would hide libraries of their names.
    command = [sys.executable, "-P", stopwatch.__file__, str(path), str(inputs), str(seconds)]
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
        parameters=parameters,
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
