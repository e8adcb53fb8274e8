"""export_onnx: ship a model as one ONNX file that was proven before it got its name.

In: a model, a path, example inputs. Out: the file, its card, an `ExportReport`.
Always true: the model is left as it was, random generators included; the path holds either the new, proven file or
what it held before. The work is elsewhere: `detached` copies, `convert` converts, `proof` compares, `measure` times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import nn

from ..arguments import Seed, check
from ..disk import destination, place_all, scratch_folder, unwritable
from ..errors import ExportError, shown
from ..graph.tensors import tensor_leaves
from ..progress import part, pulse
from ..random_state import all_preserved
from .convert import convert
from .detached import detached, detached_tree
from .extras import onnx_library, require_onnx
from .measure import measure as take_measurement
from .probes import batch_of
from .proof import compare, prove, tolerance_for
from .quantize import calls_of, quantized
from .report import ExportReport, Quantized, TensorSpec

__all__ = ["export_onnx"]

ONE_FILE = 2_000_000_000  # bytes of weights; protobuf ends at 2 GiB and the graph needs room too
DIGITS = 8  # of the SHA-256 of the data, in their file's name


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
    metadata: Mapping[str, str] | None = None,
    quantize: str | None = None,
    data: Iterable[Any] | None = None,
    seed: int = 0,
) -> ExportReport:
    """Export `model` to ONNX, prove the file, and put it at `path`.

    Args:
        model: any `nn.Module`, in any mode, on any device; it is copied, never changed. While a live graft owns
            some of its parameters, its settled weights are shipped and the graft goes on.
        path: the file to write; its folder must exist; a link is written through. More than 2 GB of weights go to
            ``PATH.<8 digits of their SHA-256>.data`` beside it.
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
        metadata: texts by name that go into the file's ``metadata_props``.
        quantize: ``"int8"``: weights of products of matrices and of embeddings as 8-bit integers (onnxruntime's
            dynamic quantization, activations quantized as they come; convolutions stay in floats). ``"int8-static"``:
            those of convolutions, too, and activations by the ranges that they have on `data` (static quantization).
            The file in floats is proven as ever; how far int8 is from it and from the model is reported, and not
            bounded.
        data: inputs, each a tensor, a tuple of arguments, a mapping of keywords or (args, kwargs). Every fourth is held
            out, and what int8 changes is reported on these; ``"int8-static"`` is calibrated with the others. None:
            on drawn inputs.
        seed: of the inputs that the proof draws.

    Returns:
        The report; `print` it.

    Raises:
        ExportError: an argument is not what it should be, the path cannot be written, the model cannot be followed,
            or the file does not answer as the model does. Nothing is left half-written, and a file that was at `path`
            is still there.
        MissingExtraError: onnx, onnxscript or onnxruntime is missing.
    """
    check(
        ExportError,
        model=(model, (nn.Module,)),
        args=(args, (torch.Tensor, tuple, list)),
        kwargs=(kwargs, (Mapping, type(None))),
        dynamic_batch=(dynamic_batch, bool),
        source=(source, (nn.Module, type(None))),
        source_args=(source_args, (torch.Tensor, tuple, list, type(None))),
        source_kwargs=(source_kwargs, (Mapping, type(None))),
        tolerance=(tolerance, Annotated[float, Meta(ge=0)] | None),
        batch_sizes=(batch_sizes, list[int]),
        opset=(opset, Annotated[int, Meta(ge=1, le=1000)] | None),
        measure=(measure, bool),
        card=(card, bool),
        metadata=(metadata, dict[str, str] | None),
        quantize=(quantize, Literal["int8", "int8-static"] | None),
        data=(data, (Iterable, type(None))),
        seed=(seed, Seed),
    )
    if quantize == "int8-static" and data is None:
        raise ExportError(
            "quantize='int8-static' takes the ranges of activations from data, and there are none.",
            fix="give data=[batch, ...], a few batches, or quantize='int8'",
        )
    require_onnx()
    place = destination(path, error=ExportError)
    card_place = destination(place.with_suffix(".card.json"), error=ExportError)
    path = Path(path)
    example = _example(args, kwargs)
    other = _example(
        args if source_args is None else source_args,
        kwargs if source_kwargs is None else source_kwargs,
    )
    _require_batch(example, dynamic_batch, batch_sizes)
    with _workshop(place) as folder, all_preserved():
        twin = detached(model, graft)
        tolerance = tolerance_for(twin) if tolerance is None else tolerance
        most = 0.5 if source is not None and measure else 0.8  # converting takes nearly all
        with part(0.0, most), pulse():  # torch does not say how far it is
            built = _build(twin, folder / place.name, example, dynamic_batch, opset, metadata)
        asked: Any = {"batch_sizes": [*batch_sizes] if dynamic_batch else [None], "seed": seed}
        with part(most, most + 0.1):
            comparison = prove(twin, built, *example, tolerance=tolerance, **asked)
        int8, floats = None, built
        if quantize is not None:
            calls, held = calls_of(data, example[1]) if data is not None else ([], None)
            built = _small_file(floats, quantize, calls, folder)
            asked = {"calls": held} if held else asked
            int8 = Quantized(
                quantize,
                compare(twin, built, *example, **asked),
                compare(floats, built, *example, **asked),
                sum(size for _, size in _files(floats)),
                _measured(twin, floats, example, dynamic_batch) if measure else None,
            )
        report = _report(twin, built, path, dynamic_batch, comparison, tolerance)
        report = replace(report, quantized=int8)
        if measure:
            report = replace(report, target=_measured(twin, built, example, dynamic_batch))
            if source is not None:
                aside = folder / "source"
                aside.mkdir()
                big = detached(source)
                with part(0.6, 0.95), pulse():
                    file = _build(big, aside / "source.onnx", other, dynamic_batch, opset)
                report = replace(report, source=_measured(big, file, other, dynamic_batch))
        if card:
            report = replace(report, card=path.with_suffix(".card.json"))
        _put_in_place(report, built, place, card_place)
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
            f"batch_sizes={shown(tuple(batch_sizes))} proves nothing.",
            fix="name sizes of at least 1: (1, 2, 5)",
        )


def _build(
    twin: nn.Module,
    file: Path,
    example: Any,
    dynamic_batch: bool,
    opset: int | None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    program = convert(twin, *example, dynamic_batch=dynamic_batch, opset=opset)
    program.model.metadata_props.update(metadata or {})
    stored = [*twin.parameters(), *twin.buffers()]
    beside = sum(t.numel() * t.element_size() for t in stored) > ONE_FILE
    program.save(str(file), external_data=beside)
    if beside:
        _name_data(file)
    _check(file)
    return file


def _name_data(file: Path) -> None:
    """Name the data beside a model by what they are, so that no other model's data are ever in their place."""
    data = file.with_name(file.name + ".data")
    if not data.exists():
        return
    if not data.stat().st_size:  # every tensor was small enough for the model itself
        data.unlink()
        return
    name = f"{file.name}.{_sha256(data)[:DIGITS]}.data"
    onnx = onnx_library("onnx")
    model = onnx.load(str(file), load_external_data=False)
    for tensor in _tensors_of(model.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    file.write_bytes(model.SerializeToString(deterministic=True))
    data.rename(data.with_name(name))


def _tensors_of(graph: Any) -> Iterator[Any]:
    """All tensors that a graph stores, those of the graphs inside its nodes too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors_of(inner)


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


def _small_file(file: Path, how: str, calls: Sequence[Any], folder: Path) -> Path:
    """The file again in int8, under the same name in a folder of its own.

    Raises:
        ExportError: the data lie beside the file, or see `quantized`.
    """
    if _data_of(file):
        raise ExportError("a model of more than 2 GB is not quantized.", fix="quantize=None")
    aside = folder / "int8"
    aside.mkdir()
    return quantized(file, how, calls, aside / file.name)


def _measured(twin: nn.Module, file: Path, example: Any, dynamic_batch: bool) -> Any:
    size = sum(size for _, size in _files(file))
    return take_measurement(twin, file, example, size_bytes=size, dynamic_batch=dynamic_batch)


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
        parameters=sum(parameter.numel() for parameter in twin.parameters()),
        nodes=len(model.graph.node),
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        inputs=inputs,
        outputs=tuple(_spec(onnx, value) for value in model.graph.output),
        dynamic_batch=dynamic_batch,
        fixed_inputs=fixed,
        comparison=comparison,
        tolerance=tolerance,
        quantized=None,
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
    both = (file, *_data_of(file))
    return tuple((each.name, each.stat().st_size) for each in both)


def _data_of(file: Path) -> list[Path]:
    """Data files beside `file` that have the name of its data."""
    name = re.compile(re.escape(file.name) + rf"\.[0-9a-f]{{{DIGITS}}}\.data")
    return sorted(each for each in file.parent.iterdir() if name.fullmatch(each.name))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _put_in_place(report: ExportReport, built: Path, place: Path, card_place: Path) -> None:
    """The rename of the model is what counts: its data have a name of their own, and no card stands beside it then.

    What is seen after a kill at any point is the old model or the new one, whole, with its own card or with none.
    """
    data = _data_of(built)
    names = {file.name for file in data}
    old = [file for file in _data_of(place) if file.name not in names and file.is_file()]
    # Only what an export of ours wrote: the name holds the beginning of its own SHA-256.
    stale = [file for file in old if file.name.split(".")[-2] == _sha256(file)[:DIGITS]]
    moves: list[tuple[Path | bytes | None, Path]] = [
        *((file, place.with_name(file.name)) for file in data),
        *([(None, card_place)] if report.card is not None or _is_card(card_place) else []),
        (built, place),
        *((None, file) for file in stale),
    ]
    if report.card is not None:
        text = json.dumps(report.to_dict(), indent=2, sort_keys=True) + "\n"
        moves.append((text.encode("utf-8", "backslashreplace"), card_place))
    place_all(moves)


def _is_card(file: Path) -> bool:
    """Whether a file that is there is the card of some export, and no other file of that name."""
    try:
        return "sha256" in json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


@contextlib.contextmanager
def _workshop(place: Path) -> Iterator[Path]:
    """A temporary folder beside `place`: same disk, so that the last step is a rename."""
    try:
        with scratch_folder(place) as folder:
            yield folder
    except OSError as error:
        # ExportError is no OSError: what arrives here is the disk's own answer.
        raise unwritable(place, error, ExportError) from error
