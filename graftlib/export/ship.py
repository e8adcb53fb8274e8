"""export_onnx: ship a model as one ONNX file that was proven before it got its name.

In: a model, a path, example inputs. Out: the file, its card, an `ExportReport`.
Always true: the model is left as it was, random generators included; the path holds either the new, proven file or
what it held before. The work is elsewhere: `detached` copies, `convert` converts, `proof` compares, `measure` times.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ExportError
from ..graph.tensors import tensor_leaves
from .convert import convert
from .detached import detached, detached_tree, undisturbed
from .extras import onnx_library, require_onnx
from .measure import measure as take_measurement
from .probes import batch_of
from .proof import prove, tolerance_for
from .report import ExportReport, TensorSpec

__all__ = ["export_onnx"]

ONE_FILE = 2_000_000_000  # bytes of weights; protobuf ends at 2 GiB and the graph needs room too


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    args: tuple[Any, ...] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_batch: bool = True,
    source: nn.Module | None = None,
    source_args: tuple[Any, ...] | torch.Tensor | None = None,
    source_kwargs: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
    batch_sizes: Sequence[int] = (1, 2, 5),
    graft: Any = None,
    opset: int | None = None,
    measure: bool = True,
    card: bool = True,
    seed: int = 0,
) -> ExportReport:
    """Export `model` to ONNX, prove the file, and put it at `path`.

    Args:
        model: any `nn.Module`, in any mode, on any device; it is copied, never changed. While a live graft owns
            some of its parameters, its settled weights are shipped and the graft goes on.
        path: the file to write; its folder must exist. More than 2 GB of weights go to ``PATH.data`` beside it.
        args: example inputs; one tensor may stand for itself.
        kwargs: example keyword inputs.
        dynamic_batch: leave the first axis open on every input that shares the first input's batch size.
        source: another model, exported to a temporary folder only, to be measured beside this one.
        source_args: example inputs of `source`; None for `args`.
        source_kwargs: example keyword inputs of `source`; None for `kwargs`.
        tolerance: largest accepted difference relative to the largest magnitude of an output; None for 1e-4 with
            float32 weights, and by dtype otherwise.
        batch_sizes: sizes to prove the file at, next to the example's own; unused when the batch is fixed.
        graft: the live graft to settle; None finds those that own parameters of `model`.
        opset: version of ONNX's operator set; None for torch's choice.
        measure: time the file and watch its memory in a process of its own (about 2 s a model).
        card: write the report beside the file as ``.card.json``.
        seed: of the inputs that the proof draws.

    Returns:
        The report; `print` it.

    Raises:
        ExportError: the path cannot be written, the model cannot be followed, or the file does not answer as the
            model does. Nothing is left half-written, and a file that was at `path` is still there.
        MissingExtraError: onnx, onnxscript or onnxruntime is missing.
    """
    require_onnx()
    path = Path(path)
    example = _example(args, kwargs)
    other = _example(
        args if source_args is None else source_args,
        kwargs if source_kwargs is None else source_kwargs,
    )
    _require_batch(example, dynamic_batch, batch_sizes)
    with _workshop(path) as folder, undisturbed():
        twin = detached(model, graft)
        tolerance = tolerance_for(twin) if tolerance is None else tolerance
        built = _build(twin, folder / path.name, example, dynamic_batch, opset)
        comparison = prove(
            twin,
            built,
            *example,
            batch_sizes=[*batch_sizes] if dynamic_batch else [None],
            tolerance=tolerance,
            seed=seed,
        )
        report = _report(twin, built, path, dynamic_batch, comparison, tolerance)
        if measure:
            report = replace(report, target=_measured(twin, built, example, dynamic_batch))
            if source is not None:
                aside = folder / "source"
                aside.mkdir()
                big = detached(source)
                file = _build(big, aside / "source.onnx", other, dynamic_batch, opset)
                report = replace(report, source=_measured(big, file, other, dynamic_batch))
        finished = [built.with_name(name) for name, _ in reversed(report.files)]
        if card:
            report = replace(report, card=path.with_suffix(".card.json"))
            finished.append(_write_card(report, folder))
        _move_all(finished, path.parent, folder)
    return report


def _example(
    args: tuple[Any, ...] | torch.Tensor, kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    copied: tuple[tuple[Any, ...], dict[str, Any]] = detached_tree((args, dict(kwargs or {})))
    return copied


def _require_batch(example: Any, dynamic_batch: bool, batch_sizes: Sequence[int]) -> None:
    if not tensor_leaves(example):
        raise ExportError(
            "there is no example input.",
            why="the exporter follows one run of the model",
            fix="export_onnx(model, path, (torch.randn(1, 3, 224, 224),)) with inputs that the model takes",
        )
    if any(tensor.device.type == "meta" for tensor in tensor_leaves(example)):
        raise ExportError(
            "an example input has no values.", fix="pass tensors on the CPU, not on meta"
        )
    if not dynamic_batch:
        return
    if batch_of(example) is None:
        raise ExportError(
            "no example input has an axis, so there is no batch to leave open.",
            fix="export_onnx(..., dynamic_batch=False)",
        )
    if not batch_sizes or any(size < 1 for size in batch_sizes):
        raise ExportError(
            f"batch_sizes={tuple(batch_sizes)} proves nothing.",
            fix="name sizes of at least 1: (1, 2, 5)",
        )


def _build(
    twin: nn.Module, file: Path, example: Any, dynamic_batch: bool, opset: int | None
) -> Path:
    program = convert(twin, *example, dynamic_batch=dynamic_batch, opset=opset)
    _write_program(program, file, external_data=_weight_bytes(twin) > ONE_FILE)
    _check(file)
    return file


def _write_program(program: Any, file: Path, *, external_data: bool) -> None:
    program.save(str(file), external_data=external_data)


def _check(file: Path) -> None:
    try:
        onnx_library("onnx.checker").check_model(str(file), full_check=True)
    except Exception as error:
        if isinstance(error, OSError | MemoryError):
            raise
        raise ExportError(
            "onnx.checker refuses the exported model.",
            why=str(error).splitlines()[0][:300],
            fix="name another operator set (opset=18), or bring torch, onnx and onnxscript up to date",
        ) from error


def _measured(twin: nn.Module, file: Path, example: Any, dynamic_batch: bool) -> Any:
    return take_measurement(
        file,
        *example,
        name=type(twin).__name__,
        parameters=_parameter_count(twin),
        size_bytes=sum(size for _, size in _files(file)),
        dynamic_batch=dynamic_batch,
    )


def _report(
    twin: nn.Module, file: Path, path: Path, dynamic_batch: bool, comparison: Any, tolerance: float
) -> ExportReport:
    onnx = onnx_library("onnx")
    model = onnx.load(str(file), load_external_data=False)
    inputs = tuple(_spec(onnx, value) for value in model.graph.input)
    fixed = tuple(
        i.name for i in inputs if dynamic_batch and i.shape and isinstance(i.shape[0], int)
    )
    return ExportReport(
        path=path,
        files=_files(file),
        sha256=_sha256(file),
        model=type(twin).__name__,
        parameters=_parameter_count(twin),
        nodes=len(model.graph.node),
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        inputs=inputs,
        outputs=tuple(_spec(onnx, value) for value in model.graph.output),
        dynamic_batch=dynamic_batch,
        fixed_inputs=fixed,
        comparison=comparison,
        tolerance=tolerance,
        target=None,
        source=None,
        card=None,
        versions={
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            "onnxruntime": onnx_library("onnxruntime").__version__,
        },
    )


def _spec(onnx: Any, value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or int(d.dim_value) for d in tensor.shape.dim)
    return TensorSpec(value.name, onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), shape)


def _files(file: Path) -> tuple[tuple[str, int], ...]:
    """The model and, where there is one, its external data."""
    both = (file, file.with_name(file.name + ".data"))
    return tuple((found.name, found.stat().st_size) for found in both if found.exists())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _weight_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def _write_card(report: ExportReport, folder: Path) -> Path:
    assert report.card is not None
    file = folder / report.card.name
    file.write_text(json.dumps(report.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return file


@contextlib.contextmanager
def _workshop(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`: same disk, so that the last step is a rename."""
    if path.is_dir():
        raise ExportError(
            f"'{path}' is a folder.", fix=f"name a file in it: '{path / 'model.onnx'}'"
        )
    if not path.parent.is_dir():
        raise ExportError(
            f"the folder of '{path}' does not exist.",
            fix=f"create it first: Path({str(path.parent)!r}).mkdir(parents=True)",
            path=path,
        )
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield folder
    except OSError as error:
        # ExportError is no OSError: what arrives here is the disk's own answer.
        raise _disk_error(path, error) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _disk_error(path: Path, error: OSError) -> ExportError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = f"free some space on the disk of '{path.parent}', or name a path on another disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = f"name a path that you may write to; '{path.parent}' is not one"
    else:
        fix = "name another path"
    return ExportError(
        f"'{path}' cannot be written; what was there before is unchanged.",
        why=f"{type(error).__name__}: {error.strerror or error}",
        fix=fix,
        path=path,
        errno=error.errno,
    )


def _move_all(finished: list[Path], parent: Path, folder: Path) -> None:
    """Rename every file to its place; if one refuses, put back what the others replaced."""
    kept = folder / "kept"
    kept.mkdir()
    done: list[tuple[Path, Path | None]] = []
    try:
        for file in finished:
            _flush(file)
        for file in finished:
            place = parent / file.name
            old: Path | None = None
            if place.exists():
                old = kept / file.name
                _keep(place, old)
            done.append((place, old))
            file.replace(place)
    except OSError:
        for place, old in reversed(done):
            if old is not None:
                old.replace(place)
            else:
                place.unlink(missing_ok=True)
        raise


def _keep(place: Path, old: Path) -> None:
    """A second name for the old file, so that its place is never empty; a copy where links are not known."""
    try:
        os.link(place, old)
    except OSError:
        shutil.copy2(place, old)


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
