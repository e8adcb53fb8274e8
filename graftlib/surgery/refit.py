"""Make the layers that read narrowed units give again what they gave before, as well as they can.

In: a model, the same model narrowed, inputs. Out: the narrowed model with new weights and biases in those layers,
fitted one after another in the order in which they run, so that each sees what the ones before it now make. Always
true: on the given inputs no fit has a larger squared error than the weights it began with, and nothing else changes.
What cannot be fitted (a weight that an op reads which is no plain product or convolution) is left, and named.
Elsewhere: a layer as a least-squares problem (`consumers`), what is heard of a forward pass (`listen`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..graph import LayerGraph
from ..graph.axes import AxisClass
from .consumers import Use, use_of
from .edits import tensor_of
from .listen import Batch, Op, Twin
from .refusal import SurgeryWarning
from .scores import reads

__all__ = ["REFITS", "reestimate", "refitted"]

# Numbers that the patches of a convolution may hold at once.
_CHUNK = 2**23
Rows = Mapping[tuple[str, int], Tensor]
Pairs = Iterator[tuple[Use, Use]]


def refitted(
    model: nn.Module,
    slim: nn.Module,
    graph: LayerGraph,
    kept: Sequence[AxisClass],
    rows: Rows,
    batches: Sequence[Batch],
    *,
    how: str,
    ridge: float,
) -> None:
    """Fit, in place, the layers of `slim` that read the narrowed classes.

    Args:
        model: as it was before.
        slim: the same, narrowed; its weights are written.
        graph: of `model`.
        kept: the narrowed classes.
        rows: (FQN, axis) -> the places that stayed.
        batches: inputs for both, on their device.
        how: a name in `REFITS`.
        ridge: see `narrow`.

    Warns:
        SurgeryWarning: layers that read the classes and could not be fitted.
    """
    readers = {m.fqn for each in kept for m in each.members if reads(graph, m)}
    before, after = Twin(model), Twin(slim)
    uses = _uses(after, batches[0])
    left = sorted(fqn for fqn in readers if uses.get(fqn) is None)
    for fqn in [fqn for fqn, count in uses.items() if count and fqn in readers]:
        places = rows.get((fqn, _out_axis(graph, fqn)))
        pairs = _pairs(before, after, fqn, batches)
        try:
            REFITS[how](slim, after, fqn, pairs, places, ridge)
        except _UnlikeError:
            left.append(fqn)
    if left:
        warnings.warn(
            f"{len(left)} of {len(readers)} layers were not refitted, as what they read cannot be gathered: "
            + ", ".join(f"'{fqn}'" for fqn in left[:8]),
            SurgeryWarning,
            stacklevel=3,
        )


class _UnlikeError(Exception):
    """The two models use this weight on different rows."""


def _out_axis(graph: LayerGraph, fqn: str) -> int:
    return graph.parameter(fqn).axes.index("out")


def _uses(twin: Twin, batch: Batch) -> dict[str, int | None]:
    """FQN -> how often it is used, in the order of the uses; None where an op reads it that cannot be fitted."""
    found: dict[str, int | None] = {}

    def hear(op: Op) -> None:
        use = use_of(op)
        for tensor in _tensors([*op[1], *op[2].values()]):
            fqn = twin.names.get(id(tensor))
            if fqn is None or not tensor.ndim > 1:
                continue
            fits = use is not None and use.weight is tensor
            known = found.get(fqn, 0)
            found[fqn] = known + 1 if fits and known is not None else None

    twin.run(batch, hear)
    return found


def _tensors(values: Sequence[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _pairs(before: Twin, after: Twin, fqn: str, batches: Sequence[Batch]) -> Pairs:
    """The uses of one weight in both models, input by input."""
    for batch in batches:
        old, new = _gathered(before, fqn, batch), _gathered(after, fqn, batch)
        if len(old) != len(new):
            raise _UnlikeError
        yield from zip(old, new, strict=True)


def _gathered(twin: Twin, fqn: str, batch: Batch) -> list[Use]:
    found: list[Use] = []

    def hear(op: Op) -> None:
        use = use_of(op)
        if use is not None and twin.names.get(id(use.weight)) == fqn:
            found.append(use)

    twin.run(batch, hear)
    return found


def _blocks(pairs: Pairs, places: Tensor | None) -> Iterator[tuple[Use, Tensor, Tensor, Tensor]]:
    """(use, x (groups, rows, features), wanted (rows, out), given (rows, out)) in doubles, in pieces that fit."""
    for old, new in pairs:
        if old.input.shape[:-1] != new.input.shape[:-1] and old.stored != "conv":
            raise _UnlikeError
        if old.stored == "conv" and old.input.shape[2:] != new.input.shape[2:]:
            raise _UnlikeError
        samples = max(len(new.input), 1)
        positions = (
            new.output.numel() // samples // (new.weight.shape[0] if new.stored == "conv" else 1)
        )
        features = new.weight[0].numel() * new.groups if new.stored == "conv" else 1
        step = max(_CHUNK // max(positions * features, 1), 1)
        for start in range(0, samples, step):
            wanted = old.results(start, start + step)
            if places is not None:
                wanted = wanted.index_select(1, places.to(wanted.device))
            x, given = new.rows(start, start + step), new.results(start, start + step)
            yield new, _wide(x), _wide(wanted), _wide(given)


def _wide(tensor: Tensor) -> Tensor:
    """In doubles, on its device; on the CPU where the device has none."""
    return tensor.to("cpu", torch.float64) if tensor.device.type == "mps" else tensor.double()


def _least_squares(
    slim: nn.Module, twin: Twin, fqn: str, pairs: Pairs, places: Tensor | None, ridge: float
) -> None:
    """W + D^T with the D that has the least |X D - (Y - X W^T - b)|^2 + lambda |D|^2.

    X are the rows that the narrowed layer reads, with a column of ones where it has a bias; Y what the layer gave
    before, on the kept units. D = 0 is the narrowed layer as it is, so the solution's error is never larger.
    """
    gram: Tensor | None = None
    moment: Tensor | None = None
    use: Use | None = None
    for use, x, wanted, given in _blocks(pairs, places):
        if use.bias is not None:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        missing = (wanted - given).reshape(len(wanted), use.groups, -1).transpose(0, 1)
        square, product = x.transpose(1, 2) @ x, x.transpose(1, 2) @ missing
        gram = square if gram is None else gram + square
        moment = product if moment is None else moment + product
    if use is None or gram is None or moment is None:
        return
    features = use.matrix(use.weight).shape[2]
    change = _solve(gram, moment, features, ridge)  # (groups, features + bias, out)
    weight = tensor_of(slim, fqn)
    with torch.no_grad():
        matrix = use.matrix(weight.detach()).double() + change[:, :features].transpose(1, 2).to(
            weight.device
        )
        weight.copy_(use.unmatrix(matrix))
        if use.bias is not None:
            bias = tensor_of(slim, twin.names[id(use.bias)])
            bias.add_(change[:, features].reshape(-1).to(bias.device))


def _solve(gram: Tensor, moment: Tensor, features: int, ridge: float) -> Tensor:
    """(gram + lambda I)^-1 moment, by group; lambda is `ridge` times the mean square of a feature, none on the bias."""
    diagonal = gram.diagonal(dim1=1, dim2=2)[:, :features]
    strength = (ridge * diagonal.mean(1, keepdim=True)).clamp_min(1e-100)  # all units may be dead
    penalty = torch.zeros(gram.shape[:2], dtype=gram.dtype, device=gram.device)
    penalty[:, :features] = strength
    solution: Tensor = torch.linalg.solve(gram + torch.diag_embed(penalty), moment)
    return solution


def _rescale(
    slim: nn.Module, twin: Twin, fqn: str, pairs: Pairs, places: Tensor | None, ridge: float
) -> None:
    """One number for the layer: what it gives, without its bias, has the mean square that it had before."""
    old = new = 0.0
    for use, _, wanted, given in _blocks(pairs, places):
        bias = 0.0 if use.bias is None else _wide(use.bias.detach())
        old += float((wanted - bias).square().sum())
        new += float((given - bias).square().sum())
    if old > 0 and new > 0:
        with torch.no_grad():
            tensor_of(slim, fqn).mul_((old / new) ** 0.5)


Refit = Callable[[nn.Module, Twin, str, Pairs, "Tensor | None", float], None]
REFITS: dict[str, Refit] = {"least-squares": _least_squares, "rescale": _rescale}


def reestimate(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Take the running statistics of all batch norms anew, as plain means over the inputs; in place, nothing else."""
    twin = Twin(model).model
    norms = {
        name: module
        for name, module in twin.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    }
    for module in norms.values():
        module.reset_running_stats()
        module.momentum = None
        module.train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for args, kwargs in batches:
            twin(*args, **kwargs)
        for name, module in norms.items():
            held = model.get_submodule(name)
            for buffer in ("running_mean", "running_var"):
                tensor_of(held, buffer).copy_(tensor_of(module, buffer))
