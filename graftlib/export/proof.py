"""Ask PyTorch and onnxruntime the same questions and compare the answers.

In: the detached model, an ONNX file, example inputs. Out: a `Comparison`, or an `ExportError` that says where they
part. Always true: the file is run as it lies on the disk, the example's own inputs are among the questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ExportError
from ..graph.tensors import output_tensors, replaced, tensor_leaves
from ..progress import track
from .extras import onnx_library
from .probes import batch_of, draw
from .report import Comparison

__all__ = ["TOLERANCES", "compare", "prove", "session", "tolerance_for"]

_Question = tuple[tuple[Any, ...], dict[str, Any]]
_Array = np.ndarray[Any, Any]
_Ask = Callable[[_Question], list[_Array]]
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class _Gap:
    """How far one output lies apart: `top` and `rows` count rows with the same largest class."""

    output: int
    batch: int
    max_abs: float
    max_rel: float
    cosine: float
    top: int
    rows: int


def tolerance_for(model: nn.Module) -> float:
    """The largest accepted relative difference, by the coarsest float type among the model's tensors."""
    held = {tensor.dtype for tensor in [*model.parameters(), *model.buffers()]}
    return max((TOLERANCES[dtype] for dtype in held if dtype in TOLERANCES), default=1e-4)


def prove(
    model: nn.Module,
    path: Path,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    batch_sizes: Sequence[int | None],
    tolerance: float,
    seed: int,
) -> Comparison:
    """Run the file and the model on the example and on fresh draws.

    Args:
        model: the detached copy that was converted.
        path: the ONNX file.
        args: example arguments, on the CPU.
        kwargs: example keyword arguments.
        batch_sizes: sizes to draw; None for the example's own.
        tolerance: largest accepted difference relative to an output's largest magnitude.
        seed: of the draws.

    Raises:
        ExportError: the runtime refuses the file, the model refuses a batch size, or an answer differs.
    """
    runtime = session(path)
    questions = [*_questions(args, kwargs, batch_sizes, seed)]
    gaps = _gaps(partial(_ask_torch, model), runtime, questions)
    comparison = _summary(gaps)
    if not comparison.max_rel <= tolerance:
        worst = max(gaps, key=lambda gap: gap.max_rel)
        name = runtime.get_outputs()[worst.output].name
        roomy = f"{2 * worst.max_rel:.0e}" if math.isfinite(worst.max_rel) else "..."
        raise ExportError(
            f"onnxruntime answers differently from {type(model).__name__}; nothing was written.",
            where={
                "output": f"{worst.output} '{name}' at batch size {worst.batch}",
                "differs": f"{worst.max_abs:.3g} absolute, {worst.max_rel:.3g} relative",
                "allowed": f"{tolerance:g} relative",
            },
            why="the model draws random numbers in eval mode, depends on state the file does not carry, or an op "
            "is computed differently",
            fix=f"make model.eval() deterministic, or accept it with export_onnx(..., tolerance={roomy})",
            comparison=comparison,
        )
    return comparison


def compare(
    reference: nn.Module | Path,
    path: Path,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    batch_sizes: Sequence[int | None] = (),
    seed: int = 0,
    calls: Sequence[_Question] | None = None,
) -> Comparison:
    """As `prove`, against a model or another file, with any difference; on `calls` where they are given.

    Raises:
        ExportError: as `prove`, but for answers that differ.
    """
    ask: _Ask = (
        partial(_ask_torch, reference)
        if isinstance(reference, nn.Module)
        else partial(_ask_runtime, session(reference))
    )
    asked = [*_questions(args, kwargs, batch_sizes, seed)] if calls is None else calls
    return _summary(_gaps(ask, session(path), asked))


def _gaps(ask: _Ask, runtime: Any, questions: Sequence[_Question]) -> list[_Gap]:
    return [
        gap
        for question in track(questions)
        for gap in _compare(ask(question), _ask_runtime(runtime, question), batch_of(question) or 0)
    ]


def session(path: Path) -> Any:
    """An onnxruntime session on the CPU that keeps quiet.

    Raises:
        ExportError: onnxruntime cannot load the file.
    """
    runtime = onnx_library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            "onnxruntime cannot load the exported model.",
            why=str(error).splitlines()[0][:300],
            fix="export float32 weights (model.float()), or name an opset that your onnxruntime knows (opset=18)",
        ) from error


def _questions(
    args: tuple[Any, ...], kwargs: dict[str, Any], batch_sizes: Sequence[int | None], seed: int
) -> Iterator[_Question]:
    generator = torch.Generator().manual_seed(seed)
    yield args, kwargs
    for batch in batch_sizes:
        yield draw((args, kwargs), batch, generator)


def _ask_torch(model: nn.Module, question: _Question) -> list[_Array]:
    # Clones: a forward that writes into its inputs must not change what the runtime is asked.
    args, kwargs = replaced(question, [tensor.clone() for tensor in tensor_leaves(question)])
    try:
        with torch.no_grad():
            answer = model(*args, **kwargs)
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} itself does not run at batch size {batch_of(question)}.",
            why=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
            fix="export_onnx(..., dynamic_batch=False) if its batch is fixed, or batch_sizes=(...) that it takes",
            model=type(model).__name__,
        ) from error
    tensors = [tensor.detach() for tensor in output_tensors(answer)]
    return [(t.float() if t.dtype == torch.bfloat16 else t).numpy() for t in tensors]


def _ask_runtime(runtime: Any, question: _Question) -> list[_Array]:
    asked = [tensor.numpy() for tensor in tensor_leaves(question)]
    names = [entry.name for entry in runtime.get_inputs()]
    if len(asked) != len(names):
        raise ExportError(
            f"the exported model has {len(names)} inputs, the example {len(asked)} tensors.",
            where={"inputs": ", ".join(names)},
            fix="pass only tensors that the model reads",
        )
    try:
        return [np.asarray(out) for out in runtime.run(None, dict(zip(names, asked, strict=True)))]
    except Exception as error:
        raise ExportError(
            f"onnxruntime fails at batch size {batch_of(question)}.",
            why=str(error).splitlines()[0][:300],
            fix="export_onnx(..., dynamic_batch=False)",
        ) from error


def _compare(wanted: list[_Array], given: list[_Array], batch: int) -> list[_Gap]:
    if len(wanted) != len(given):
        raise ExportError(
            f"the model answers with {len(wanted)} tensors, the exported one with {len(given)}.",
            fix="return each tensor once, and nothing but tensors",
        )
    gaps = []
    for index, (ours, theirs) in enumerate(zip(wanted, given, strict=True)):
        if ours.shape != theirs.shape:
            raise ExportError(
                f"output {index} has shape {theirs.shape} in onnxruntime and {ours.shape} in PyTorch.",
                where={"batch size": batch},
                fix="export_onnx(..., dynamic_batch=False), or read the batch size from x.shape[0]",
            )
        far, top = _difference(ours, theirs, index), _same_top(ours, theirs)
        gaps.append(_Gap(index, batch, *far, _cosine(ours, theirs), *top))
    return gaps


def _difference(ours: _Array, theirs: _Array, index: int) -> tuple[float, float]:
    """(absolute, relative to the largest finite magnitude); infinite where only one side is finite."""
    if ours.size == 0:
        return 0.0, 0.0
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(a)
    if not finite.any():
        raise ExportError(
            f"output {index} of the model holds no finite number, so nothing can be compared.",
            fix="pass example inputs that the model answers with finite numbers",
        )
    alike = np.array_equal(a[~finite], b[~finite], equal_nan=True) and np.isfinite(b[finite]).all()
    if not alike:
        return math.inf, math.inf
    largest = float(np.abs(a[finite] - b[finite]).max())
    scale = float(np.abs(a[finite]).max())
    return largest, (largest / scale if scale else (0.0 if largest == 0 else math.inf))


def _cosine(ours: _Array, theirs: _Array) -> float:
    """Of all elements as one vector, what is not finite left out; 1.0 for two of zeros."""
    a, b = (np.nan_to_num(x.astype(np.float64).ravel(), posinf=0, neginf=0) for x in (ours, theirs))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(np.array_equal(a, b))


def _same_top(ours: _Array, theirs: _Array) -> tuple[int, int]:
    """(rows with the same largest class, rows); (0, 0) for what does not look like logits."""
    if ours.ndim < 2 or not np.issubdtype(ours.dtype, np.floating):
        return 0, 0
    # A dense prediction keeps its classes where a picture keeps channels.
    axis = 1 if ours.ndim == 4 else -1
    if ours.shape[axis] < 2 or ours.size == 0:
        return 0, 0
    same = np.nan_to_num(ours).argmax(axis) == np.nan_to_num(theirs).argmax(axis)
    return int(same.sum()), int(same.size)


def _summary(gaps: list[_Gap]) -> Comparison:
    logits = next((gap.output for gap in gaps if gap.rows), None)
    rows = sum(gap.rows for gap in gaps if gap.output == logits)
    top = sum(gap.top for gap in gaps if gap.output == logits)
    return Comparison(
        max_abs=max((gap.max_abs for gap in gaps), default=0.0),
        max_rel=max((gap.max_rel for gap in gaps), default=0.0),
        cosine=min((gap.cosine for gap in gaps), default=1.0),
        top1=top / rows if rows else None,
        rows=rows,
        batch_sizes=tuple(sorted({gap.batch for gap in gaps})),
    )
