"""How long a forward pass takes at other sizes, from times that are measured on the machine at hand.

In: a layer graph. Out: a `Latency`, whose polynomial in the sizes of the axis classes is what `Costs` has for the
other costs. Each op of the traced pass runs alone, on tensors of its own shapes and layouts, at a grid of sizes of its
classes; through the times goes a sum of what it reads, makes and multiplies, with factors that are not negative. The
ops add up; two passes of the whole say by which factor they differ from what they take alone, and a constant.
Always true: at the traced sizes the prediction is the measured time. Times are the least of several runs, so that
what else the machine does counts little. They are kept in the user's cache, for this machine, torch and threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..disk import read_whole, write_whole
from ..errors import GraftError
from ..graph import LayerGraph
from ..graph.capture import device_of
from ..graph.macs import macs, short_name
from ..graph.ops import named_arguments
from ..graph.tensors import replaced, tensor_leaves
from ..reports import Table
from ..surgery import SurgeryError
from ..surgery.fit import plan
from ..surgery.recording import Twin
from ..surgery.scratch import reference_of, scratch
from ..surgery.stale import refresh_layers
from ..surgery.whole_model import outer_classes
from .costs import Polynomial, Reader

__all__ = ["Latency", "latency_of", "measured_ms", "without_values"]

_SHARES = (1.0, 0.7, 0.45, 0.25)  # of all classes of an op together
_ALONE = 0.4  # of one of them
_SECONDS = 0.02  # for each shape of an op
_MOST_BYTES = 64_000_000  # of the file of times
_KEEP = 5.0  # what was measured is saved every so many seconds, for a run that is stopped
_LEAST = 0.7  # an op in the pass takes no less than this of what it takes alone
_WHOLE = 0.3  # for the whole pass
_COPIES = (
    "contiguous",
    "clone",
    "reshape",
)  # of these it depends on the layout whether they do anything


@dataclass(frozen=True)
class Latency(Table):
    """What a pass takes.

    Attributes:
        total: milliseconds at any sizes of the classes.
        ops: (layer, op, shape of what it makes, milliseconds in the pass), in its order; views are not among them.
        constant: milliseconds of the pass at any sizes, such as calls of modules.
        fixed: ops that did not run at other sizes; their time is a constant, too.
        machine: what the times were taken on.
    """

    total: Polynomial
    ops: tuple[tuple[str, str, tuple[int, ...], float], ...]
    constant: float
    fixed: tuple[str, ...]
    machine: str

    @property
    def overlay(self) -> dict[str, dict[str, float]]:
        """For `graftlib.view`: milliseconds of each module's own ops in the pass."""
        spent: dict[str, float] = {}
        for layer, _, _, ms in self.ops:
            if layer:
                spent[layer] = spent.get(layer, 0.0) + ms
        return {"latency in ms": spent} if spent else {}

    def table(self) -> tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]:
        """A row for each op, as in `ops`."""
        return ("layer", "op", "shape", "ms"), self.ops

    def __str__(self) -> str:
        whole = self.constant + sum(ms for *_, ms in self.ops)
        width = max((len(layer) for layer, *_ in self.ops), default=0)
        lines = [f"latency {whole:.3f} ms on {self.machine}"]
        lines += [
            f"  {layer:<{width}}  {op:<28} {'x'.join(map(str, shape)):>20} {ms:10.4f} ms"
            for layer, op, shape, ms in self.ops
        ]
        lines.append(f"  {'':<{width}}  {'the rest':<28} {'':>20} {self.constant:10.4f} ms")
        if self.fixed:
            lines.append(f"  measured at these sizes only: {', '.join(self.fixed[:8])}")
        return "\n".join(lines)


def latency_of(graph: LayerGraph, model: nn.Module | None = None) -> Latency:
    """Measure a model's ops; seconds, and less once the cache knows them.

    Args:
        graph: from `graftlib.trace`, at the inputs (batch size included) that are timed.
        model: None is the traced one, else another of the same structure; what the whole pass is timed on.

    Raises:
        SurgeryError: the model is on the meta device.
    """
    model = graph.model if model is None else model
    if without_values(model):
        raise SurgeryError(
            "a model on the meta device cannot be timed.",
            fix="give it values: model.to_empty(device='cpu')",
        )
    reader, table = Reader(graph), _Table(device_of(model))
    sizes = [each.size for each in reader.reference.classes]
    total, ops, fixed = Polynomial({}), list[tuple[str, str, tuple[int, ...], float]](), list[str]()
    for node in graph.ops.nodes:
        if node.op != "call_function" or not _takes_time(node):
            continue
        fitted = _fitted(node, reader, table, sizes)
        if fitted is None:
            continue
        each, at_other_sizes = fitted
        total = total + each
        value = tensor_leaves(node.meta["val"])
        shape = tuple(value[0].shape) if value else ()
        ops.append((node.meta.get("module") or "", short_name(node), shape, each(sizes)))
        if not at_other_sizes:
            fixed.append(f"{short_name(node)} in '{node.meta.get('module')}'")
    table.save()
    factor, constant = _of_whole(model, graph, total)
    ops = [(layer, op, shape, ms * factor) for layer, op, shape, ms in ops]
    return Latency(total * factor + constant, tuple(ops), constant, tuple(fixed), table.machine)


def _of_whole(model: nn.Module, graph: LayerGraph, alone: Polynomial) -> tuple[float, float]:
    """(factor, milliseconds): what the pass takes is the factor times its ops alone, and a constant.

    From two passes: at the traced sizes, and of a scratch model of less than half of all widths. In the pass an op
    finds other tensors in the processor's caches than it does alone; calls of modules take their time at any size.
    """
    now = [each.size for each in reference_of(graph).classes]
    whole, ops = measured_ms(model, graph), alone(now)
    asked = {each: _less(each.size, _ALONE) for each in outer_classes(graph)}
    asked = {each: size for each, size in asked.items() if size < each.size}
    factor = min(whole / ops, 1.0) if ops else 1.0
    try:
        half = plan(model, graph, asked, fixed=False) if asked else None
        if half is not None:
            twin = scratch(model, graph, half.sizes, half.attributes, kind="values")
            refresh_layers(twin, half.sizes)
            less = alone([half.sizes.get(each, each.size) for each in graph.axis_classes])
            if less < 0.8 * ops:
                factor = (whole - measured_ms(twin, graph)) / (ops - less)
    except Exception:  # a scratch model may raise anything: one pass has to do
        factor = min(whole / ops, 1.0) if ops else 1.0
    factor = min(max(factor, _LEAST), whole / ops) if ops else factor
    return factor, whole - factor * ops


def without_values(model: nn.Module) -> bool:
    """Whether a tensor of the model is on the meta device."""
    return any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def measured_ms(model: nn.Module, graph: LayerGraph) -> float:
    """Milliseconds of a forward pass on inputs such as were traced, in eval mode: the least of several runs."""
    twin = Twin(model).model
    args, kwargs = replaced(
        graph.example, [t.to(device_of(model)) for t in tensor_leaves(graph.example)]
    )
    return _least_ms(lambda: twin(*args, **kwargs), _WHOLE, device_of(model))


def _least_ms(run: Callable[[], Any], seconds: float, device: torch.device) -> float:
    """The least time of a run; of one thread on a CPU its own time, which other processes do not lengthen."""
    from torch.utils.benchmark import Timer

    threads = torch.get_num_threads()
    alone: Any = {"timer": time.thread_time} if device.type == "cpu" and threads == 1 else {}
    with torch.no_grad():
        run()
        timer = Timer("run()", globals={"run": run}, num_threads=threads, **alone)
        return 1e3 * min(timer.blocked_autorange(min_run_time=seconds).times)


# --- the time of an op ------------------------------------------------------------------------------------------------


def _takes_time(node: fx.Node) -> bool:
    """Whether an op computes or copies something."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or "dropout" in short_name(node):
        return False
    views = [r.alias_info is not None and not r.alias_info.is_write for r in schema.returns]
    return bool(views) and (not any(views) or short_name(node) in _COPIES)


def _fitted(
    node: fx.Node, reader: Reader, table: _Table, sizes: Sequence[int]
) -> tuple[Polynomial, bool] | None:
    """(milliseconds of an op as a polynomial, whether it ran at other sizes); None where it does not run alone."""
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    terms = [_elements(reader, each) for each in (*tensors, node)]
    terms.append(Polynomial({}) + macs(node, reader))
    basis = [Polynomial({(): 1})]
    basis += [each for each in terms if set(each.terms) - {()} and each not in basis]
    numbers = sorted({n for each in basis for factors in each.terms for n in factors})
    rows, times = list[list[float]](), list[float]()
    for at in _grid(sizes, numbers):
        ms = table.time(node, reader, at)
        if ms is None and at == list(sizes):
            return None
        if ms is not None:
            rows.append([each(at) for each in basis])
            times.append(ms)
    if len(times) < 2:
        return Polynomial({(): times[0]}), not numbers
    factors = _not_negative(np.array(rows), np.array(times))
    total = Polynomial({})
    for factor, each in zip(factors, basis, strict=True):
        total = total + each * float(factor)
    return total, True


def _elements(reader: Reader, node: fx.Node) -> Polynomial:
    total = Polynomial({(): 1})
    if not isinstance(node.meta["val"], Tensor):
        return total
    for size in reader.sizes(node):
        total = total * size
    return total


def _grid(sizes: Sequence[int], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Sizes of all classes: those of now, less of all that an op has, less of each of them."""
    points = [dict.fromkeys(numbers, share) for share in _SHARES]
    if len(numbers) > 1:
        points += [{number: _ALONE} for number in numbers]
    for shares in points if numbers else [{}]:
        yield [_less(size, shares.get(i, 1.0)) for i, size in enumerate(sizes)]


def _less(size: int, share: float) -> int:
    step = 8 if size >= 32 else 1
    return size if share == 1 else max(round(size * share / step), 1) * step


def _not_negative(rows: np.ndarray[Any, Any], times: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Least squares of the relative error with factors of 0 or more: what would be negative is left out."""
    rows = rows / times[:, None]
    scale = np.abs(rows).max(0)
    kept = list(range(rows.shape[1]))
    factors = np.zeros(rows.shape[1])
    while kept:
        solved = np.linalg.lstsq(rows[:, kept] / scale[kept], np.ones(len(times)), rcond=1e-9)[0]
        if (solved >= 0).all():
            factors[kept] = solved / scale[kept]
            break
        kept.pop(int(solved.argmin()))
    return factors


class _Table:
    """Times of ops by what they are called with; read from the cache and written to it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        chip = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
        self.machine = f"{chip}, torch {torch.__version__}, {torch.get_num_threads()} threads"
        self.path = _cache() / f"{hashlib.sha256(self.machine.encode()).hexdigest()[:16]}.json"
        self.times: dict[str, float | None] = self._read()
        self.known, self.saved = len(self.times), time.monotonic()

    def _read(self) -> dict[str, float | None]:
        try:
            content = json.loads(read_whole(self.path, limit=_MOST_BYTES))
            if content["machine"] != self.machine:
                return {}
            return {
                str(call): ms
                for call, ms in content["ms"].items()
                if ms is None or (type(ms) in (int, float) and 0 <= ms < math.inf)
            }
        except (GraftError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def save(self) -> None:
        """Keep what is new; a cache that cannot be written is none."""
        if len(self.times) == self.known:
            return
        self.known, self.saved = len(self.times), time.monotonic()
        content = {"machine": self.machine, "ms": {**self._read(), **self.times}}
        with contextlib.suppress(OSError, GraftError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(content))

    def time(self, node: fx.Node, reader: Reader, sizes: Sequence[int]) -> float | None:
        """Milliseconds of an op where the classes have these sizes; None where it does not run so."""
        shapes = {
            each: tuple(int(size(sizes)) for size in reader.sizes(each))
            for each in (node, *node.all_input_nodes)
            if isinstance(each.meta.get("val"), Tensor)
        }
        named = {**named_arguments(node.target, node.args, node.kwargs), **_sized(node, shapes)}
        call = f"{node.target} {fx.node.map_arg(named, lambda each: _word(each, shapes))}"
        if call not in self.times:
            tensors = dict(fx.node.map_arg(named, lambda each: self._made(each, shapes)))
            op: Any = node.target
            positional = [
                tensors.pop(a.name)
                for a in op._schema.arguments
                if a.name in tensors and not a.kwarg_only
            ]
            try:
                self.times[call] = _least_ms(
                    lambda: op(*positional, **tensors), _SECONDS, self.device
                )
            except Exception:  # an op may raise anything at sizes that are not its own
                self.times[call] = None
            if time.monotonic() - self.saved > _KEEP:
                self.save()
        return self.times[call]

    def _made(self, node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> Any:
        """A tensor of ones in the layout of the traced one; other values as they are."""
        value = node.meta["val"]
        if node not in shapes:
            return value
        order, shape = _order(value), shapes[node]
        fill = torch.ones if value.is_floating_point() else torch.zeros
        flat = fill([shape[i] for i in order], dtype=value.dtype, device=self.device)
        return flat.permute([order.index(i) for i in range(value.ndim)])


def _order(value: Tensor) -> list[int]:
    """Its dimensions as they lie in memory."""
    strides = value.stride()
    return sorted(range(value.ndim), key=lambda i: (-strides[i], i))


def _word(node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> str:
    """A tensor in the name of a call."""
    value: Any = node.meta.get("val")
    if node not in shapes:
        return str(value)
    order = _order(value)
    layout = "" if order == sorted(order) else f" {order}"
    return f"{str(value.dtype).removeprefix('torch.')}{list(shapes[node])}{layout}"


def _sized(node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> dict[str, Any]:
    """Arguments that say sizes, as they are at these."""
    named = named_arguments(node.target, node.args, node.kwargs)
    name, out = short_name(node), shapes.get(node, ())
    if name in ("layer_norm", "rms_norm"):
        return {"normalized_shape": list(out[len(out) - len(named["normalized_shape"]) :])}
    if name == "reshape":
        return {"shape": list(out)}
    if named.get("groups", 1) != 1 and isinstance(named.get("weight"), fx.Node):
        weight = shapes[named["weight"]]
        channels = out[1] if "transpose" in name else shapes[named["input"]][1]
        return {"groups": channels // weight[1]}
    return {}


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "graftlib" / "latency"


def _processor() -> str:
    """The name that Linux gives to the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return ""
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
    )
