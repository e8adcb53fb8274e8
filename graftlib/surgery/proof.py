"""The proof of an edit: both models are run, as they are, in double precision, on inputs drawn by the graph's evidence.

In: a graph, its model, an edited one that is called alike. Out: how much the outputs differ, relative to the largest,
and whether a difference could have shown. Always true: neither model is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import GraftError
from ..graph import LayerGraph
from ..graph.axes import AxisClass
from ..graph.axes.check import TOLERANCE, control, jumps
from ..graph.axes.trial import Example, Trial, difference, without_numbers
from ..graph.capture import device_of, undisturbed
from ..graph.evidence import Evidence
from ..graph.recorder import quiet, to_device
from ..graph.structure import shell
from ..graph.tensors import output_tensors
from .edits import Rows, tensor_of
from .refusal import SurgeryError

__all__ = [
    "TOLERANCE",
    "Proof",
    "change",
    "fill",
    "must_stay",
    "prove",
    "run_trial",
    "trial_of",
    "unproven",
]

Prepare = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Proof:
    """What running both models says.

    Attributes:
        error: the largest difference of the outputs, relative to the largest number of the output that it is in.
        doubt: why that proves nothing; None where a wrong edit would have shown.
    """

    error: float
    doubt: str | None = None


def prove(
    graph: LayerGraph,
    model: nn.Module,
    edited: nn.Module,
    classes: Iterable[AxisClass],
    rows: Rows,
    prepare: Prepare,
) -> Proof:
    """Run both, and run the first again for each class with its weights shuffled: that has to show.

    Args:
        graph: by whose evidence the inputs are drawn.
        model: the one that was traced, or another of the same structure.
        edited: any model that takes these inputs.
        classes: the edited ones.
        rows: the edit, as in `edits.resize`. Where parameters that are zero everywhere hide a class (a classifier
            before its training), both models are run once more with numbers drawn in their places.
        prepare: a function of the edited model's copy in doubles, before it runs; may write to it.

    Raises:
        SurgeryError: one of them does not run on these inputs.
    """
    classes = list(classes)
    hidden: list[AxisClass] = []
    for zeros in (False, True):
        before, after = trial_of(graph, model), trial_of(graph, edited)
        if zeros:
            fill(after.model, before.model, rows, before.draw_zeros())
        prepare(after.model)
        outputs = run_trial(before, graph)
        error = difference(outputs, run_trial(after, graph))
        if blank := without_numbers(outputs):
            return Proof(error, f"output {blank[0]} holds no finite number")
        if error > TOLERANCE:
            return Proof(error)
        hidden = [each for each in classes if control(before, [each], outputs) <= 100 * TOLERANCE]
        if not hidden:
            return Proof(error)
    return Proof(error, f"the outputs do not depend on the units of {hidden[0].members[0]}")


def trial_of(
    graph: LayerGraph, model: nn.Module, *, drawn: bool = False, example: Example | None = None
) -> Trial:
    """A copy of any model that takes the graph's inputs, in doubles; norms and `example` as `Trial` has them."""
    return Trial(_Seen(graph, model), drawn=drawn, example=example)


def run_trial(trial: Trial, graph: LayerGraph) -> list[Tensor]:
    """The outputs of a trial.

    Raises:
        SurgeryError: the model does not run on these inputs.
    """
    try:
        return trial.run()
    except GraftError:
        raise
    except Exception as error:
        raise _not_run(graph, error) from error


def _not_run(graph: LayerGraph, error: Exception) -> SurgeryError:
    return SurgeryError(
        f"'{graph.name}' does not run on inputs drawn by the evidence of its trace.",
        where={"traced": ", ".join(f"{name} {shape}" for name, shape in graph.inputs.items())},
        why=f"{type(error).__name__}: {error}"[:300],
        fix="trace with an input as the model meets it: with values, and large enough to say their range",
    )


def unproven(what: str, why: str, **more: Any) -> SurgeryError:
    """The refusal of an edit of which a wrong one would have given the same on the traced input."""
    fix = (
        "trace with an input that shows it: trace(model, args) with values as the model meets them"
    )
    return SurgeryError(what, why=why, fix=fix, **more)


def change(
    graph: LayerGraph, model: nn.Module, edited: nn.Module, prepare: Prepare = lambda model: None
) -> float:
    """The largest difference of the outputs, as in `Proof`; infinite where an output holds no finite number.

    Args:
        graph: by whose evidence the inputs are drawn.
        model: as in `prove`.
        edited: as in `prove`.
        prepare: as in `prove`.
    """
    before, after = trial_of(graph, model), trial_of(graph, edited)
    prepare(after.model)
    return difference(before.run(), after.run())


def must_stay(graph: LayerGraph, model: nn.Module, edited: nn.Module) -> None:
    """Refuse an edit that should have kept the function, and did not; nothing is run of a model without values.

    Args:
        graph: by whose evidence the inputs are drawn.
        model: as in `prove`.
        edited: as in `prove`.

    Raises:
        SurgeryError: it gives something else, or does not run.
    """
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return
    try:
        before, after = trial_of(graph, model), trial_of(graph, edited)
        outputs = run_trial(before, graph)
        error = difference(outputs, run_trial(after, graph))
        wrong = error > TOLERANCE and not jumps(before, outputs, TOLERANCE, 0)
    except GraftError:
        # Not in doubles: what is quantised, what computes with single precision from elsewhere.
        outputs = _outputs(graph, model)
        error = difference(outputs, _outputs(graph, edited))
        wrong = error > max(
            (torch.finfo(t.dtype).eps ** 0.5 for t in outputs if t.is_floating_point()), default=0.0
        )
    if wrong and not without_numbers(outputs):
        raise SurgeryError(
            "units cannot be put in another order without a change of the function.",
            where={"relative change": f"{error:.1e}"},
            why="the forward pass reads something that is made from the weights and does not move with them: a cache "
            "in a closure, in a global or a class, or numbers that left torch (numpy, tolist)",
            fix="keep it in an attribute of the module, or make it anew in each forward pass",
        )


def _outputs(graph: LayerGraph, model: nn.Module) -> list[Tensor]:
    args, kwargs = to_device(graph.example, device_of(model))
    try:
        with undisturbed(), quiet():
            return output_tensors(shell(model)(*args, **kwargs))
    except Exception as error:
        raise _not_run(graph, error) from error


def fill(
    twin: nn.Module,
    model: nn.Module,
    rows: Rows,
    names: Iterable[str],
    old_name: Callable[[str], str] = lambda fqn: fqn,
) -> None:
    """Write into tensors of an edited model what the edit makes of those of the other, in place.

    Args:
        twin: of the edited model, in doubles.
        model: of the other, likewise.
        rows: the edit, as in `edits.resize`.
        names: FQNs in `model` of the tensors to carry over.
        old_name: what an FQN of `twin` is called in `model`.
    """
    wanted = {*names}
    for fqn, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
        old = old_name(fqn)
        if old in wanted:
            value = tensor_of(model, old).detach()
            for (name, axis), places in rows.items():
                value = value.index_select(axis, places) if name == old else value
            tensor.detach().copy_(value)


class _Seen:
    """A model with another one's graph: what a trial needs of a layer graph."""

    def __init__(self, graph: LayerGraph, model: nn.Module) -> None:
        self.model: nn.Module = model
        self.ops: fx.Graph = graph.ops
        self.evidence: Evidence = graph.evidence
