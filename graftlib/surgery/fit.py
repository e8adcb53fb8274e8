"""Give a model tensors of other sizes, once it is proven that it is still what it was.

In: requested sizes of axis classes. Out: a `Plan`: sizes that go together, and the attributes of modules that follow
from them; and the edited model. Always true: no value is copied before a scratch model without values has run at these
sizes, gave outputs of the traced shapes, and had the axis classes of the traced one in their new sizes.
Elsewhere: scratch models (`scratch`), what the code asks of sizes (`equations`), attributes by name (`stale`).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import networkx as nx
import torch
from torch import fx, nn

from ..errors import TraceError
from ..graph import LayerGraph
from ..graph.axes import AxisClass, axis_classes
from ..graph.axes.classes import classes_of
from ..graph.axes.infer import infer
from ..graph.caches import drop_caches, shell_to_edit
from ..graph.capture import capture, device_of
from .edits import Rows, editable, resize, resized, tensor_of
from .equations import Equations, Sizes
from .refusal import SurgeryError
from .scratch import (
    Misfit,
    Reference,
    equations_of,
    grouped_rows,
    passage,
    reference_of,
    scratch,
    unaligned,
)
from .stale import labels, refresh_layers
from .tagged import Place, put

__all__ = ["Plan", "fitted", "plan", "ties"]

_KINDS = {"meta": "meta", "fake": "shapes"}
_RUNS = "the modules do not run with these sizes, or not as what they were."
_OUTPUTS = "the outputs would change their shape."
_CLASSES = "the modules run with these sizes, but not as what they were."


@dataclass(frozen=True)
class Plan:
    """Sizes that a model was proven to run with.

    Attributes:
        sizes: class -> how many units it will have.
        attributes: what modules are to say.
        refused: classes that were left as they are -> why.
    """

    sizes: dict[AxisClass, int]
    attributes: dict[Place, int]
    refused: dict[AxisClass, str] = field(default_factory=dict)


@dataclass
class _Learned:
    """What trials with a graph have shown.

    Attributes:
        reference: the pass that trials are compared with.
        equations: what the code asks of sizes; None until somebody had to know.
        refused: classes whose size the code holds -> why.
    """

    reference: Reference
    equations: Equations | None = None
    refused: dict[AxisClass, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Failure:
    what: str
    misfits: tuple[Misfit, ...]

    @property
    def why(self) -> str:
        return "; ".join(misfit.words for misfit in self.misfits[:2])[:400]


# What was learned goes when the graph goes.
_learned: weakref.WeakKeyDictionary[LayerGraph, _Learned] = weakref.WeakKeyDictionary()


def fitted(
    model: nn.Module,
    graph: LayerGraph,
    rows: Rows,
    sizes: Sizes,
    *,
    inplace: bool,
    finish: Callable[[nn.Module], None] | None = None,
    attributes: Mapping[Place, int] | None = None,
) -> nn.Module:
    """The model with new sizes.

    Args:
        model: to be edited, or copied.
        graph: of the model.
        rows: (FQN, axis) -> for each place of the new axis, the old place that it reads.
        sizes: class -> how many units it will have.
        inplace: edit the model itself; otherwise a copy.
        finish: is given the edited model, a copy first; it raises SurgeryError to refuse it.
        attributes: of a `Plan` for these sizes; without them the sizes are proven here.

    Raises:
        SurgeryError: the modules do not run with these sizes. The model is as it was.
    """
    if attributes is None:
        attributes = plan(model, graph, sizes, fixed=True).attributes
    edited = model
    if not inplace or finish is not None:
        edited = editable(model, graph, sizes, inplace=False, change=resized(model, rows))
        _tell(edited, sizes, attributes)
        if finish is not None:
            finish(edited)
    if inplace:
        drop_caches(model, graph, SurgeryError)
        resize(model, rows)
        _tell(model, sizes, attributes)
        if finish is not None:
            finish(model)
        edited = model
    return edited


def _tell(model: nn.Module, sizes: Sizes, attributes: Mapping[Place, int]) -> None:
    put(model, dict(attributes))
    refresh_layers(model, sizes)


def plan(model: nn.Module, graph: LayerGraph, requested: Sizes, *, fixed: bool) -> Plan:
    """The requested sizes, or as much of them as goes together, with the attributes that follow.

    Args:
        model: the traced one, or another of the same structure.
        graph: of it.
        requested: class -> how many units it shall have.
        fixed: these sizes and no others; else the nearest to them that go together, where a class that cannot change
            at all keeps its size.

    Raises:
        SurgeryError: the modules do not run with these sizes, or with none but those that they have.
    """
    if not (graph.evidence.args or graph.evidence.kwargs):
        what = "the edited model cannot be run: the graph keeps no example."
        raise _refusal(graph, requested, what, None)
    model = shell_to_edit(model, graph, SurgeryError)
    learned = _learned.get(graph)
    if learned is None:
        learned = _learned[graph] = _Learned(reference_of(graph))
    refused = {} if fixed else {c: why for c, why in learned.refused.items() if c in requested}
    sizes = {each: each.size if each in refused else size for each, size in requested.items()}
    if not fixed:
        sizes |= _aligned(learned.reference, sizes)
    by_name = True
    while True:
        attributes = _labels(model, graph, learned.reference, sizes) if by_name else {}
        if learned.equations is not None:
            if not fixed:
                sizes = _together(learned.equations, sizes, refused)
                if by_name:
                    attributes = _labels(model, graph, learned.reference, sizes)
            known, broken = learned.equations.attributes_for(sizes)
            attributes |= known
            if broken and fixed:
                why = "; ".join(learned.equations.words(one) for one in broken[:2])
                raise _refusal(graph, requested, _RUNS, f"the code asks that {why}")
        if not fixed and all(size == each.size for each, size in sizes.items()):
            if requested and sizes == dict(requested) and not refused:
                return Plan(sizes, {})  # nothing was to change
            by = dict.fromkeys(f"by {c.frozen_by}" for c in axis_classes(graph) if c.frozen_by)
            frozen = ", ".join(["all axes are frozen", *list(by)[:4]])
            why = next(iter(refused.values()), frozen)
            raise _refusal(
                graph, requested, f"none of the {len(requested)} free classes can be edited.", why
            )
        try:
            failure = _tried(model, graph, learned, sizes, attributes)
        except SurgeryError as error:  # layers of a recurrent module disagree
            if fixed:
                raise
            failure = _Failure(error.what, (Misfit(_recurrent(error, sizes), error.what),))
        if failure is None:
            return Plan(sizes, attributes, refused)
        if learned.equations is None:
            try:
                learned.reference, learned.equations = equations_of(model, graph)
                continue
            except Exception:
                # The forward pass does not take the example without what tracing knows; what fails is left.
                learned.equations = Equations(learned.reference.classes, (), {})
                continue
        left = _blamed(failure, sizes)
        if not left and by_name:
            by_name = False  # what a known name says may be the size of something else
            continue
        if fixed:
            raise _refusal(graph, requested, failure.what, failure.why)
        left = left or _half(sizes)
        for each in left:
            refused[each] = learned.refused[each] = failure.why
            sizes[each] = each.size


def ties(
    model: nn.Module, graph: LayerGraph, classes: Sequence[AxisClass]
) -> list[tuple[AxisClass, ...]]:
    """Groups of classes that the code ties: those of a group change in one proportion, each group by itself.

    Args:
        model: the traced one, or another of the same structure.
        graph: of it; what is learned is kept with it.
        classes: free ones. Those whose size the code holds are in no group.

    Raises:
        SurgeryError: none of them can change.
    """
    # Out of all proportion: where they go together like this, no two are tied.
    any_sizes = {
        each: max(each.size - 1 - i % max(each.size // 2, 1), 1) for i, each in enumerate(classes)
    }
    with suppress(SurgeryError):
        plan(model, graph, any_sizes, fixed=True)
        return [(each,) for each in classes]
    half = {each: max(each.size // 2, 1) for each in classes}
    plan(model, graph, half, fixed=False)
    learned = _learned[graph]
    loose = [each for each in half if each not in learned.refused]
    equations = learned.equations
    if equations is None:
        return [(each,) for each in loose]
    groups: nx.Graph[AxisClass] = nx.Graph()
    groups.add_nodes_from(loose)
    for each in loose:
        for one in equations.attributes_for({each: half[each]})[1]:
            groups.add_edges_from((each, other) for other in equations.classes_of(one))
    found = [tuple(c for c in classes if c in group) for group in nx.connected_components(groups)]
    return [
        group
        for group in sorted(found, key=lambda group: classes.index(group[0]) if group else -1)
        if group
        and set(group) <= set(loose)
        and not equations.attributes_for({each: half[each] for each in group})[1]
    ]


def _together(
    equations: Equations, requested: dict[AxisClass, int], refused: dict[AxisClass, str]
) -> dict[AxisClass, int]:
    sizes = equations.feasible(requested)
    for each, size in sizes.items():
        if size == each.size and requested[each] != size:
            refused[each] = "the code ties its size to others"
    return sizes


def _aligned(reference: Reference, sizes: Sizes) -> dict[AxisClass, int]:
    """Classes that are a row of a grouped product by themselves, with as many units as make whole multiples."""
    return {
        classes[0]: min(-(-sizes[classes[0]] // multiple) * multiple, classes[0].size)
        for _, row, multiple in grouped_rows(reference)
        if len(classes := reference.changed(row, reference.numbers(sizes))) == 1
        and reference.size(row, reference.numbers(sizes)) == sizes.get(classes[0])
    }


def _recurrent(error: SurgeryError, sizes: Sizes) -> tuple[AxisClass, ...]:
    """The classes of the hidden and projected units of the module that an error names."""
    start = f"{getattr(error, 'module', '')}.weight_h".lstrip(".")
    return tuple(c for c in sizes if any(m.fqn.startswith(start) for m in c.members))


def _blamed(failure: _Failure, sizes: Sizes) -> list[AxisClass]:
    every = [each for misfit in failure.misfits for each in misfit.classes]
    return [each for each in dict.fromkeys(every) if sizes.get(each, each.size) != each.size]


def _half(sizes: Sizes) -> list[AxisClass]:
    """Where nothing says which class is at fault: the latter half of those that change."""
    changed = [each for each, size in sizes.items() if size != each.size]
    return changed[len(changed) // 2 :]


def _labels(
    model: nn.Module, graph: LayerGraph, reference: Reference, sizes: Sizes
) -> dict[Place, int]:
    now = reference.numbers(sizes)
    lengths: dict[tuple[str, int], tuple[int, int]] = {}
    for each in sizes:
        for member in each.members:
            key = (member.fqn, member.axis)
            due = reference.shape(member.fqn, now)
            if key not in lengths and due is not None:
                old = tensor_of(model, member.fqn).shape[member.axis]
                lengths[key] = (old, due[member.axis] or old)
    changed = {key: ends for key, ends in lengths.items() if ends[0] != ends[1]}
    return labels(model, changed, sizes, reference.classes)


def _tried(
    model: nn.Module,
    graph: LayerGraph,
    learned: _Learned,
    sizes: Sizes,
    attributes: Mapping[Place, int],
) -> _Failure | None:
    """What stands against the sizes; None where a scratch model of these sizes has proven itself."""
    if misfits := unaligned(learned.reference, sizes):
        return _Failure(_RUNS, misfits)
    meta = graph.tracer == "meta"
    twin = _scratch(model, graph, sizes, attributes, _KINDS.get(graph.tracer, "values"))
    seen: fx.Graph | None
    if meta:
        passed = passage(twin, graph, learned.reference, sizes, meta=True)
        seen, misfits = passed.graph, passed.misfits
    else:
        seen, misfits = _captured(twin, graph)
        if misfits and learned.equations is not None:
            twin = _scratch(model, graph, sizes, attributes, "values")
            misfits = passage(twin, graph, learned.reference, sizes, meta=False).misfits or misfits
    if misfits or seen is None:
        return _Failure(_RUNS, misfits)
    outputs = tuple(tuple(val.shape) for val in seen.output_node().meta["val"])
    if outputs != graph.outputs:
        words = f"{graph.outputs} would become {outputs}"
        return _Failure(_OUTPUTS, (Misfit((), words),))
    real, saved = graph.tracer == "real", learned.reference.found.saved
    found = infer(model, seen, real=real, saved=saved)
    lost = _lost(learned.reference.classes, classes_of(found), sizes)
    return _Failure(_CLASSES, (Misfit(tuple(lost), _CLASSES),)) if lost is not None else None


def _scratch(
    model: nn.Module, graph: LayerGraph, sizes: Sizes, attributes: Mapping[Place, int], kind: str
) -> nn.Module:
    twin = scratch(model, graph, sizes, attributes, kind=kind)
    refresh_layers(twin, sizes)
    return twin


def _captured(twin: nn.Module, graph: LayerGraph) -> tuple[fx.Graph | None, tuple[Misfit, ...]]:
    args, kwargs = graph.example
    try:
        with torch.device("cpu"):
            home = device_of(graph.model)
            return capture(twin, args, kwargs, device=home, tracers=(graph.tracer,)).graph, ()
    except TraceError as error:
        answers: Mapping[str, str] = getattr(error, "answers", {})
        words = "; ".join(f"{tracer}: {answer}" for tracer, answer in answers.items())
        return None, (Misfit((), words[:400]),)


def _refusal(graph: LayerGraph, sizes: Sizes, what: str, why: str | None) -> SurgeryError:
    where = {
        f"{each.size} -> {size}{'' if i == 0 else f' ({i + 1})'}": ", ".join(
            map(str, each.members[:2])
        )
        for i, (each, size) in enumerate(list(sizes.items())[:6])
    }
    fix = "leave these classes as they are, or take the sizes in the model's own code from its tensors"
    return SurgeryError(what, where=where, why=why, fix=fix)


def _lost(
    before: Sequence[AxisClass], after: Iterable[AxisClass], sizes: Sizes
) -> list[AxisClass] | None:
    """The classes that are not there any more in their new sizes; None where all are, and no others.

    A view with -1 in it runs with any size: two heads of four may pass for four heads of two.
    """
    # A factor of one unit drops out, and the others move up.
    placed = min(sizes.values(), default=2) > 1
    due = {c: (sizes.get(c, c.size), _places(c, placed)) for c in before if c.free}
    wanted = Counter(key for key in due.values() if key[0] > 1)
    there = Counter((c.size, _places(c, placed)) for c in after if c.free and c.size > 1)
    if wanted == there:
        return None
    missing = wanted - there
    return [c for c, key in due.items() if key in missing]


def _places(each: AxisClass, placed: bool) -> frozenset[tuple[str, int, int]]:
    return frozenset((m.fqn, m.axis, m.position if placed else 0) for m in each.members)
