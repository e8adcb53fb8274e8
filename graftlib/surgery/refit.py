"""Make the layers that read pruned units give again what they gave before, as well as they can.

In: a model, the same model pruned, inputs. Out: the pruned model with new weights and biases in those layers,
fitted one after another in the order in which they run, so that each sees what the ones before it now make. Both
models go over the inputs once, in step: every input stops at each layer until that layer is fitted.
Always true: a part of the inputs is held out; a layer's fit stays only where its squared error falls there, and on
what the whole model gives there the fitted model is clearly nearer to the old one than the unfitted one; if need be,
fits are taken back, the last ones first. Nothing else changes.
What cannot be fitted (a weight that an op reads which is no plain product or convolution) is left, and named.
Elsewhere: a layer as a least-squares problem (`consumers`), how a forward pass is recorded and stopped (`listen`), what
is held out (`holdout`).
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .._torch_private import BatchNorm
from ..graph import LayerGraph
from ..graph.axes import AxisClass
from ..graph.tensors import tensor_leaves
from ..progress import part, track
from .consumers import Use, use_of
from .edits import Rows, tensor_of
from .holdout import Distance, Holdout
from .importance import reads
from .recording import Batch, Op, Twin, Walk, alone, called
from .refusal import SurgeryWarning

__all__ = ["REFITS", "RIDGES", "reestimate", "refitted"]

# Numbers that the patches of a convolution may hold at once.
_CHUNK = 2**23
# Ridges that are tried, in units of the mean square of a feature, the strongest first.
RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6)
# What is missing is rounding where its share of the squares is below the first; a fit is worth while where the
# held-out error falls by more than the second share of it.
_ROUNDING, _FALL = 1e-10, 1e-3
# With fewer rows for each feature a fit is said to be made of little.
_FEW = 2
# (number of the batch, the use before, the use now)
Pairs = Iterator[tuple[int, Use, Use]]


def refitted(
    model: nn.Module,
    slim: nn.Module,
    graph: LayerGraph,
    kept: Sequence[AxisClass],
    rows: Rows,
    batches: Sequence[Batch],
    *,
    how: str,
    ridge: float | None,
) -> None:
    """Fit, in place, the layers of `slim` that read the pruned classes.

    Args:
        model: as it was before.
        slim: the same, pruned; its weights are written.
        graph: of `model`.
        kept: the pruned classes.
        rows: (FQN, axis) -> the places that stayed.
        batches: inputs for both, on their device.
        how: a name in `REFITS`.
        ridge: see `prune`; None: chosen for each layer.

    Warns:
        SurgeryWarning: layers that read the classes and could not be fitted, or were fitted to few rows; fits that
            did the whole model no good and were taken back.
    """
    readers = {m.fqn for each in kept for m in each.members if reads(graph, m)}
    holdout = Holdout(batches)
    with alone():
        uses, biases = _uses(Twin(slim), batches[0])
        fitting = _Fitting(slim, biases, holdout, ridge)
        with part(0.0, 0.1):
            unfitted = _distance(model, slim, batches, holdout)
        order = [fqn for fqn, count in uses.items() if count and fqn in readers]
        with part(0.1, 1.0):
            fits, fitted = _in_step(
                model, slim, order, uses, batches, fitting, REFITS[how], rows, graph
            )
        count = len(fitting.fits)
        if how != "rescale":  # a rescaled layer keeps a mean square, and may well be further off
            _take_back(model, slim, batches, fitting, unfitted, fitted)
    left = [fqn for fqn in sorted(readers) if fqn not in fits]
    _tell(fitting, readers, left, count - len(fitting.fits))


class _UnlikeError(Exception):
    """The two models use this weight on different rows."""


@dataclass
class _Fitting:
    """What the fits of one call share, and their record.

    Attributes:
        fits: name of the weight -> the tensors that its fit wrote, by name, as they were before.
        few: name -> (rows, features), where there were few.
        biases: name of a weight -> that of the bias beside it.
    """

    slim: nn.Module
    biases: Mapping[str, str]
    holdout: Holdout
    ridge: float | None
    fits: list[dict[str, Tensor]] = field(default_factory=list)
    few: dict[str, tuple[int, int]] = field(default_factory=dict)

    @torch.no_grad()
    def write(self, changes: Mapping[str, Tensor]) -> None:
        """Put new values in the place of tensors, and remember the old ones."""
        self.fits.append({name: tensor_of(self.slim, name).clone() for name in changes})
        for name, values in changes.items():
            tensor_of(self.slim, name).copy_(values)

    @torch.no_grad()
    def take_back(self, left: int) -> None:
        """Undo all fits but the first ones."""
        while len(self.fits) > left:
            for name, values in self.fits.pop().items():
                tensor_of(self.slim, name).copy_(values)


def _in_step(
    model: nn.Module,
    slim: nn.Module,
    order: Sequence[str],
    uses: Mapping[str, int | None],
    batches: Sequence[Batch],
    fitting: _Fitting,
    refit: Refit,
    rows: Rows,
    graph: LayerGraph,
) -> tuple[set[str], Distance]:
    """Both models go over all inputs, from one layer to the next; (what was fitted, how far the results are)."""
    waiting = set(order)
    gathered: set[str] = set()
    distance = Distance()

    def stops(names: Mapping[int, str], op: Op) -> tuple[str, Use] | None:
        use = use_of(op)
        fqn = None if use is None else names.get(id(use.weight))
        return (fqn, use) if use is not None and fqn in waiting else None

    with contextlib.ExitStack() as stack:
        walks = [tuple(Walk(each, batch, stops) for each in (model, slim)) for batch in batches]
        for walk in (walk for both in walks for walk in both):
            stack.callback(walk.close)
        layers = track(itertools.count(), len(order) + 1)  # the last one is the end
        while True:
            next(layers)
            here = []
            for number, (before, after) in enumerate(walks):
                here.append((before.advance(), after.advance()))
                if here[-1] == (None, None):
                    _add(distance, fitting.holdout, number, before.result, after.result)
                    before.result = after.result = None
            names = {stop and stop[0] for both in here for stop in both}
            if names == {None}:
                return gathered, distance
            if len(names) > 1:
                waiting.clear()  # the models go different ways: what is left cannot be compared
                continue
            (fqn,) = names
            waiting.discard(fqn)
            if uses[fqn] == 1:
                pairs: Pairs = ((i, b[1], a[1]) for i, (b, a) in enumerate(here))
            else:
                pairs = _apart(model, slim, fqn, batches)
            places = rows.get((fqn, graph.parameter(fqn).axes.index("out")))
            try:
                refit(fitting, fqn, pairs, places)
                gathered.add(fqn)
            except _UnlikeError:
                pass


def _add(distance: Distance, holdout: Holdout, number: int, before: object, after: object) -> None:
    for place, (old, new) in enumerate(
        zip(tensor_leaves(before), tensor_leaves(after), strict=True)
    ):
        distance.add(place, old, new, holdout, number)


def _distance(
    model: nn.Module, slim: nn.Module, batches: Sequence[Batch], holdout: Holdout
) -> Distance:
    """How far the pruned model is from what it was, on what is held out."""
    distance, twins = Distance(), (Twin(model), Twin(slim))
    for number, batch in enumerate(track(batches)):
        if holdout.concerns(number):
            before, after = (called(twin.model, batch) for twin in twins)
            _add(distance, holdout, number, before, after)
    return distance


def _take_back(
    model: nn.Module,
    slim: nn.Module,
    batches: Sequence[Batch],
    fitting: _Fitting,
    unfitted: Distance,
    fitted: Distance,
) -> None:
    """Take fits back, the last ones first, until the model is clearly nearer than it was without them."""
    count = left = len(fitting.fits)
    while left and not fitted.clearly_below(unfitted):
        left = left // 2 if left < count else 3 * count // 4
        fitting.take_back(left)
        fitted = _distance(model, slim, batches, fitting.holdout)


def _tell(fitting: _Fitting, readers: set[str], left: Sequence[str], undone: int) -> None:
    """Warn of layers that could not be fitted, of few rows, of fits that were taken back."""
    warned = []
    if left:
        warned.append(
            f"{len(left)} of {len(readers)} layers were not refitted, as what they read cannot be gathered: "
            + ", ".join(f"'{fqn}'" for fqn in left[:8])
        )
    if fitting.few:
        fqn, (rows, features) = min(fitting.few.items(), key=lambda item: item[1][0] / item[1][1])
        warned.append(
            f"layers with fewer than {_FEW} rows of `data` for each feature: {len(fitting.few)} ('{fqn}': {rows} rows, "
            f"{features} features). Their fit says little of other inputs; more inputs fit better."
        )
    if undone:
        warned.append(
            f"{undone} of {len(fitting.fits) + undone} fits were taken back: on the inputs that were held out the "
            "model came no nearer to what it was by them. More inputs fit better."
        )
    for text in warned:
        warnings.warn(text, SurgeryWarning, stacklevel=4)


def _uses(twin: Twin, batch: Batch) -> tuple[dict[str, int | None], dict[str, str]]:
    """The uses of weights, in their order, and the biases beside them.

    FQN -> how often it is used, None where an op reads it that cannot be fitted; FQN -> FQN of the bias.
    """
    counts: dict[str, int | None] = {}
    biases: dict[str, str] = {}

    def count(op: Op) -> None:
        use = use_of(op)
        for tensor in tensor_leaves((op[1], op[2])):
            fqn = twin.names.get(id(tensor))
            if fqn is None or not tensor.ndim > 1:
                continue
            fits = use is not None and use.weight is tensor
            known = counts.get(fqn, 0)
            if use is not None and use.bias is not None:
                bias = twin.names.get(id(use.bias), "")
                fits = fits and bool(bias) and biases.setdefault(fqn, bias) == bias
            counts[fqn] = known + 1 if fits and known is not None else None

    twin.run(batch, count)
    return counts, biases


def _apart(model: nn.Module, slim: nn.Module, fqn: str, batches: Sequence[Batch]) -> Pairs:
    """All uses of a weight that is used more than once: by passes of their own, as they come one after another."""
    before, after = Twin(model), Twin(slim)
    for number, batch in enumerate(track(batches)):
        old, new = _gathered(before, fqn, batch), _gathered(after, fqn, batch)
        if len(old) != len(new):
            raise _UnlikeError
        yield from ((number, *both) for both in zip(old, new, strict=True))


def _gathered(twin: Twin, fqn: str, batch: Batch) -> list[Use]:
    uses: list[Use] = []

    def gather(op: Op) -> None:
        use = use_of(op)
        if use is not None and twin.names.get(id(use.weight)) == fqn:
            uses.append(use)

    twin.run(batch, gather)
    return uses


@dataclass(frozen=True)
class _Block:
    """Some rows of a use: x (groups, rows, features), what the old model gave, what this one gives (rows, out)."""

    use: Use
    x: Tensor
    wanted: Tensor
    given: Tensor
    parts: tuple[Tensor, Tensor]  # numbers of the rows to learn from, and of those held out


def _blocks(pairs: Pairs, places: Tensor | None, holdout: Holdout) -> Iterator[_Block]:
    """In doubles, in pieces that fit."""
    for number, old, new in pairs:
        if old.input.shape[:-1] != new.input.shape[:-1] and old.stored != "conv":
            raise _UnlikeError
        if old.stored == "conv" and old.input.shape[2:] != new.input.shape[2:]:
            raise _UnlikeError
        samples = max(len(new.input), 1)
        out = new.weight.shape[0 if new.stored != "in out" else 1]
        positions = new.output.numel() // samples // out
        held_out = holdout.rows(number, samples * positions)
        features = new.weight[0].numel() * new.groups if new.stored == "conv" else 1
        step = max(_CHUNK // max(positions * features, 1), 1)
        for start in range(0, samples, step):
            wanted = old.results(start, start + step)
            if places is not None:
                wanted = wanted.index_select(1, places.to(wanted.device))
            x, given = _wide(new.rows(start, start + step)), _wide(new.results(start, start + step))
            mask = held_out[start * positions : (start + step) * positions]
            # Counted on the CPU: on an accelerator the host would wait for it.
            parts = tuple(part.nonzero().flatten().to(x.device) for part in (~mask, mask))
            yield _Block(new, x, _wide(wanted), given, (parts[0], parts[1]))


def _wide(tensor: Tensor) -> Tensor:
    """In doubles, on its device; on the CPU where the device has none."""
    return tensor.to("cpu", torch.float64) if tensor.device.type == "mps" else tensor.double()


class _Moments:
    """X^T X, X^T R and |R|^2 over some rows, where R is what is missing."""

    def __init__(self) -> None:
        self.rows = 0
        self.gram: Tensor | float = 0.0  # (groups, features, features)
        self.moment: Tensor | float = 0.0  # (groups, features, out)
        self.missing: Tensor | float = 0.0
        self.wanted: Tensor | float = 0.0

    def add(self, x: Tensor, missing: Tensor, wanted: Tensor) -> None:
        """Rows: x (groups, rows, features), missing (groups, rows, out), wanted (rows, out).

        The sums stay on the device, so that the host need not wait for it.
        """
        self.rows += x.shape[1]
        self.gram = x.transpose(1, 2) @ x + self.gram
        self.moment = x.transpose(1, 2) @ missing + self.moment
        self.missing = missing.square().sum() + self.missing
        self.wanted = wanted.square().sum() + self.wanted

    def change(self, solution: Tensor) -> float:
        """By how much the squared error grows when X D is added."""
        return float((solution * (torch.as_tensor(self.gram) @ solution - 2 * self.moment)).sum())


def _gathered_moments(
    blocks: Iterator[_Block], rows: Callable[[_Block], Tensor]
) -> tuple[Use | None, _Moments, _Moments]:
    """(the last use, moments of the rows to learn from, of those held out); `rows` gives (groups, rows, features)."""
    use, learnt, held_out = None, _Moments(), _Moments()
    for block in blocks:
        use, x, missing = block.use, rows(block), block.wanted - block.given
        missing = missing.reshape(len(missing), len(x), -1).transpose(0, 1)
        for moments, samples in zip((learnt, held_out), block.parts, strict=True):
            moments.add(x[:, samples], missing[:, samples], block.wanted[samples])
    return use, learnt, held_out


def _rows_read(block: _Block) -> Tensor:
    """What a layer reads, with a column of ones where it has a bias."""
    bias = block.use.bias is not None
    return torch.cat([block.x, block.x.new_ones(*block.x.shape[:2], 1)], 2) if bias else block.x


def _least_squares(fitting: _Fitting, fqn: str, pairs: Pairs, places: Tensor | None) -> None:
    """W + D^T with the D that has the least |X D - (Y - X W^T - b)|^2 + lambda |D|^2.

    X are the rows that the pruned layer reads, with a column of ones where it has a bias; Y what the layer gave
    before, on the kept units. D = 0 is the pruned layer as it is. Lambda is the one that is best on held-out rows.
    """
    use, learnt, held_out = _gathered_moments(_blocks(pairs, places, fitting.holdout), _rows_read)
    if use is None:
        return
    features = use.matrix(use.weight).shape[2]
    if learnt.rows < _FEW * features:
        fitting.few[fqn] = (learnt.rows, features)
    if not learnt.rows or not held_out.rows:
        return
    solution = _solution(learnt, held_out, features, fitting.ridge)
    if solution is None:
        return
    weight = tensor_of(fitting.slim, fqn).detach()
    matrix = use.matrix(weight).double() + solution[:, :features].transpose(1, 2).to(weight.device)
    changes = {fqn: use.unmatrix(matrix)}
    if use.bias is not None:
        name = fitting.biases[fqn]
        bias = tensor_of(fitting.slim, name).detach()
        changes[name] = bias + solution[:, features].reshape(-1).to(bias.device)
    fitting.write(changes)


def _solution(
    learnt: _Moments, held_out: _Moments, features: int, ridge: float | None
) -> Tensor | None:
    """The D of the ridge that leaves the least held-out error; None where none is below that of D = 0 by a thousandth.

    The error has one valley in the ridge, so the search ends once it has grown twice.
    """
    if float(held_out.missing) <= _ROUNDING * float(held_out.wanted):
        return None
    best, least, grown = None, -_FALL * float(held_out.missing), 0
    for strength in RIDGES if ridge is None else (ridge,):
        solution = _solve(learnt, features, strength)
        error = float("inf") if solution is None else held_out.change(solution)
        if error < least:
            best, least, grown = solution, error, 0
        else:
            grown += 1
        if grown == 2 and best is not None:
            break
    return best


def _solve(moments: _Moments, features: int, ridge: float) -> Tensor | None:
    """(gram + lambda I)^-1 moment, by group; lambda is `ridge` times the mean square of a feature, none on the bias."""
    gram, moment = torch.as_tensor(moments.gram), torch.as_tensor(moments.moment)
    diagonal = gram.diagonal(dim1=1, dim2=2)[:, :features]
    strength = (ridge * diagonal.mean(1, keepdim=True)).clamp_min(1e-100)  # all units may be dead
    penalty = torch.zeros(gram.shape[:2], dtype=gram.dtype, device=gram.device)
    penalty[:, :features] = strength
    solution, failed = torch.linalg.solve_ex(gram + torch.diag_embed(penalty), moment)
    ok = not bool(failed.any()) and bool(solution.isfinite().all())
    return solution if ok else None


def _rescale(fitting: _Fitting, fqn: str, pairs: Pairs, places: Tensor | None) -> None:
    """One number for the layer: what it gives, without its bias, has the mean square that it had before."""
    old = new = 0.0
    for block in _blocks(pairs, places, fitting.holdout):
        bias = 0.0 if block.use.bias is None else _wide(block.use.bias.detach())
        old += float((block.wanted - bias).square().sum())
        new += float((block.given - bias).square().sum())
    if old > 0 and new > 0:
        fitting.write({fqn: tensor_of(fitting.slim, fqn).detach() * (old / new) ** 0.5})


def _bias(fitting: _Fitting, fqn: str, pairs: Pairs, places: Tensor | None) -> None:
    """The bias alone: the mean of what is missing (FLAP, An et al. 2024, eq. 6); few rows are enough for it."""
    blocks = _blocks(pairs, places, fitting.holdout)
    use, learnt, held_out = _gathered_moments(blocks, lambda b: b.x.new_ones(1, len(b.given), 1))
    if use is None or use.bias is None or not learnt.rows or not held_out.rows:
        return
    mean = torch.as_tensor(learnt.moment) / learnt.rows  # (1, 1, out)
    if held_out.change(mean) < -_FALL * float(held_out.missing):
        name = fitting.biases[fqn]
        bias = tensor_of(fitting.slim, name).detach()
        fitting.write({name: bias + mean.flatten().to(bias.device)})


Refit = Callable[[_Fitting, str, Pairs, "Tensor | None"], None]
REFITS: dict[str, Refit] = {
    "least-squares": _least_squares,
    "bias": _bias,
    "rescale": _rescale,
}


def reestimate(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Take the running statistics of all batch norms anew, as plain means over the inputs; in place, nothing else."""
    twin = Twin(model).model
    norms = {
        name: module
        for name, module in twin.named_modules()
        if isinstance(module, BatchNorm) and module.track_running_stats
    }
    for module in norms.values():
        module.reset_running_stats()
        module.momentum = None
        module.train()
    with alone():
        for batch in track(batches):
            called(twin, batch)
        for name, module in norms.items():
            held = model.get_submodule(name)
            for buffer in ("running_mean", "running_var"):
                tensor_of(held, buffer).copy_(tensor_of(module, buffer))
