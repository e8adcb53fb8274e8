"""What an export proved and what it costs to run: frozen records that print themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..reports import Report

__all__ = ["Comparison", "ExportReport", "Measurement", "Quantized", "TensorSpec"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the file: `shape` holds sizes, and names where a size may vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Comparison:
    """PyTorch's answer against onnxruntime's, over every output of every probe.

    Attributes:
        max_abs: largest absolute difference; 0.0 for outputs that must be equal and are.
        max_rel: largest of (absolute difference / largest finite magnitude PyTorch gave in that output).
        cosine: the least cosine of one output of one probe, all its elements as one vector, -1.0 to 1.0.
        top1: share of rows with the same largest class, 0.0 to 1.0; None where no output looks like logits.
        rows: how many rows `top1` was counted over.
        batch_sizes: the batch sizes that were run, in order.
    """

    max_abs: float
    max_rel: float
    cosine: float
    top1: float | None
    rows: int
    batch_sizes: tuple[int, ...]


@dataclass(frozen=True)
class Quantized:
    """What int8 weights changed; the report's `comparison` is that of the file before, in floats.

    Attributes:
        how: ``"int8"`` or ``"int8-static"``.
        torch: PyTorch's answers against those of the int8 file.
        floats: the answers of the file in floats against those of the int8 file.
        float_bytes: of the file in floats, with its external data.
        float_target: what the file in floats costs to run; None when it was not measured.
    """

    how: str
    torch: Comparison
    floats: Comparison
    float_bytes: int
    float_target: Measurement | None = None


@dataclass(frozen=True)
class Measurement:
    """One ONNX file in onnxruntime's CPU provider, in a process of its own.

    Attributes:
        name: the model's class name.
        parameters: elements of the PyTorch model's parameters, tied ones once.
        size_bytes: of the ONNX file with its external data.
        median_ms: median time of one `run`, milliseconds, after warming up.
        p90_ms: 90th percentile of the same runs, milliseconds.
        runs: how many runs were timed.
        batch: rows of one run.
        threads: intra-op threads of the session.
        memory_bytes: growth of the resident set of a fresh process, from just before the session is made
            until the last run; weights, arena and activations, without Python and onnxruntime themselves.
    """

    name: str
    parameters: int
    size_bytes: int
    median_ms: float
    p90_ms: float
    runs: int
    batch: int
    threads: int
    memory_bytes: int


@dataclass(frozen=True)
class ExportReport(Report):
    """An export that held. `print` it, or take `to_dict()`.

    Attributes:
        path: the ONNX file.
        files: every file that was written, the model first, with their sizes in bytes; the card is not listed.
        sha256: of the ONNX file (external data apart).
        model: the class name of the exported model.
        parameters: elements of its parameters, tied ones once.
        nodes: nodes of the ONNX graph.
        opset: version of the default operator set.
        inputs, outputs: of the file, in order.
        dynamic_batch: whether the first axis may vary.
        fixed_inputs: inputs whose first axis is not the batch and stays as in the example.
        comparison: the proof.
        tolerance: the largest `comparison.max_rel` that would have been accepted.
        quantized: what int8 changed; None where the file is in floats.
        target: what the file costs to run; None when it was not measured.
        source: the same for the source model, where one was given.
        card: the JSON file holding `to_dict()`; None when none was asked for.
        versions: of torch, onnx and onnxruntime.
    """

    path: Path
    files: tuple[tuple[str, int], ...]
    sha256: str
    model: str
    parameters: int
    nodes: int
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dynamic_batch: bool
    fixed_inputs: tuple[str, ...]
    comparison: Comparison
    tolerance: float
    quantized: Quantized | None
    target: Measurement | None
    source: Measurement | None
    card: Path | None
    versions: dict[str, str]

    @property
    def size_bytes(self) -> int:
        """All files together, without the card."""
        return sum(size for _, size in self.files)

    @property
    def max_abs_difference(self) -> float:
        """Largest absolute difference between PyTorch and onnxruntime."""
        return self.comparison.max_abs

    @property
    def max_rel_difference(self) -> float:
        """Largest difference relative to the output's largest magnitude."""
        return self.comparison.max_rel

    @property
    def top1_agreement(self) -> float | None:
        """Share of rows with the same largest class; None where no output looks like logits."""
        return self.comparison.top1

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for `json.dumps`."""
        record: dict[str, Any] = _plain(asdict(self))
        record["size_bytes"] = self.size_bytes
        record["files"] = [{"name": name, "bytes": size} for name, size in self.files]
        return record

    def __str__(self) -> str:
        rows = [
            ("files", ", ".join(f"{name} {_bytes(size)}" for name, size in self.files)),
            ("sha256", self.sha256),
            ("graph", f"{self.nodes:,} nodes, opset {self.opset}, {self.parameters:,} parameters"),
            ("inputs", _specs(self.inputs)),
            ("outputs", _specs(self.outputs)),
            ("batch", self._batch()),
            ("proof", self._proof()),
        ]
        rows += [(self.quantized.how, self._int8())] if self.quantized else []
        rows += [("costs", self._costs()), ("measured", self._how())] if self.target else []
        rows += [("card", str(self.card))] if self.card else []
        width = max(len(label) for label, _ in rows) + 2
        indent = "\n" + " " * (width + 2)
        lines = [f"{self.model} exported to {self.path}"]
        lines += [f"  {label:<{width}}{text}".replace("\n", indent) for label, text in rows]
        return "\n".join(lines)

    def _batch(self) -> str:
        fixed = f"; fixed first axis: {', '.join(self.fixed_inputs)}" if self.fixed_inputs else ""
        return ("dynamic" if self.dynamic_batch else "fixed") + fixed

    def _proof(self) -> str:
        c = self.comparison
        sizes = ", ".join(map(str, c.batch_sizes))
        return (
            f"largest difference {c.max_abs:.2e} absolute, {c.max_rel:.2e} relative "
            f"(allowed {self.tolerance:.0e}), batch sizes {sizes}"
        ) + (f"\n{_top(c)}" if c.rows else "")

    def _int8(self) -> str:
        assert self.quantized is not None
        pairs = (("PyTorch", self.quantized.torch), ("the floats", self.quantized.floats))
        times = f"{self.quantized.float_bytes / self.size_bytes:.2f}x"
        lines = [f"{times} smaller than in floats"]
        for name, c in pairs:
            top = f", {_top(c)}" if c.rows else ""
            lines.append(f"against {name}: cosine {c.cosine:.4f}, {c.max_rel:.2e} relative{top}")
        return "\n".join(lines)

    def _costs(self) -> str:
        """What each file costs, side by side; shares are of the first."""
        floats = self.quantized.float_target if self.quantized else None
        name = f"target, {self.quantized.how}" if self.quantized else "target"
        files = [("source", self.source), ("target", floats), (name, self.target)]
        known = [(name, file) for name, file in files if file is not None]
        several, first = len(known) > 1, known[0][1]
        head = ["", "parameters", "file", "median", "p90", "more memory"]
        lines = [[*head, "share of the file, of the time" if several else ""]]
        for name, m in known:
            shares = f"{m.size_bytes / first.size_bytes:.3f}, {m.median_ms / first.median_ms:.3f}"
            times = [f"{m.median_ms:.3g} ms", f"{m.p90_ms:.3g} ms"]
            counts = [f"{m.parameters:,}", _bytes(m.size_bytes), *times, _bytes(m.memory_bytes)]
            lines.append([name, *counts, shares if several else ""])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(map(str.rjust, line[1:], widths[1:]))]).rstrip()
            for line in lines
        )

    def _how(self) -> str:
        assert self.target is not None
        t = self.target
        return (
            f"onnxruntime on CPU, {t.threads} thread, batch {t.batch}, {t.runs} runs, fresh process;\n"
            "more memory: rise of its resident memory from before the session to the last run"
        )


def _specs(specs: tuple[TensorSpec, ...]) -> str:
    shown = "\n".join(map(str, specs[:8]))
    return shown if len(specs) <= 8 else f"{shown}\nand {len(specs) - 8} more"


def _top(comparison: Comparison) -> str:
    return f"top-1 agreement {100 * (comparison.top1 or 0):.2f} % of {comparison.rows:,} rows"


def _bytes(size: float) -> str:
    """Decimal units, three digits.

    >>> _bytes(14_235_000)
    '14.2 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
