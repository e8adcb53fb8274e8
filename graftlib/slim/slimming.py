"""The way from a budget to a small model: costs, groups, importances, widths, a prune, its edit and its report.

In: what `slim` is given. Out: a `Slim`. Always true: the sizes were proven to run together before a value was copied;
the report's costs are those of the small model, and its fidelity is that on samples that no fit learnt from.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta
from torch import Tensor, nn

from ..arguments import Positive, check
from ..errors import MatchError, nearest, shown
from ..graph import LayerGraph
from ..graph.axes import AxisClass
from ..graph.structure import unwrap
from ..progress import part
from ..surgery import SurgeryError, SurgeryWarning
from ..surgery.edits import editable
from ..surgery.fit import plan, ties
from ..surgery.importance import Importance
from ..surgery.lora import ranks
from ..surgery.order import Order
from ..surgery.prune import pruned
from ..surgery.recording import Batch, as_batches
from ..surgery.refit import REFITS
from ..surgery.tagged import Place
from ..surgery.whole_model import outer_classes
from .cache import Cache, digest_of_data
from .costs import Costs, costs_of
from .depths import by_depth
from .edit import Edit, digest
from .importance import Losses, importances
from .latency import latency_of, measured_ms, without_values
from .names import RANKINGS
from .report import SlimReport, fidelity_of
from .saving import metadata_of, save
from .widths import SOLVERS, Group, Widths, groups_of, limits_of, solve

if TYPE_CHECKING:
    from ..export.report import ExportReport

__all__ = ["Slim", "slimmed"]

_ROUNDS = 16


@dataclass(frozen=True)
class Slim:
    """A small model, how it was made, and what it is worth.

    Attributes:
        model: the same modules with smaller tensors.
        edit: which units stayed; it applies to the original again.
        report: before and after; ``print(slim)`` shows it.
        graph: of the original.
        importances: axis class -> (size,) doubles on the CPU, what its units were chosen by; larger is better.
    """

    model: nn.Module
    edit: Edit
    report: SlimReport
    graph: LayerGraph
    importances: Mapping[AxisClass, Tensor] = field(default_factory=dict, repr=False)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors``, ``edit.json``, and ``config.json`` where a Hugging Face config says the sizes.

        All or nothing; `graftlib.load` reads it back. No pickle is written. A model card, ``README.md``, says what was
        done, with hashes; one that somebody else wrote stays.

        Args:
            folder: made where it is missing; files of these names are replaced.

        Raises:
            SurgeryError: it cannot be written, or the model has no values.
        """
        save(self.model, self.edit, self.report, folder)

    def export_onnx(
        self, path: str | os.PathLike[str], args: Any = None, kwargs: Any = None, **options: Any
    ) -> ExportReport:
        """Export the small model, proven, with the edit in the file's metadata, and measured beside the original.

        Args:
            path: as for `graftlib.export_onnx`, and so are `options`.
            args: example inputs; None: such as were traced.
            kwargs: example keyword inputs.
            options: see `graftlib.export_onnx`; with ``source=None`` the original is not measured.

        Raises:
            ExportError: as `graftlib.export_onnx` does.
        """
        from ..export import export_onnx

        if args is None and kwargs is None:
            args, kwargs = self.graph.example
        options.setdefault("metadata", metadata_of(self.edit))
        options.setdefault("source", self.graph.model)
        return export_onnx(self.model, path, () if args is None else args, kwargs, **options)

    def __str__(self) -> str:
        return str(self.report)

    def _repr_html_(self) -> str:
        from ..view import view

        return view(self.graph, edit=self.edit, importance=self.importances)._repr_html_()


def slimmed(
    graph: LayerGraph,
    *,
    budget: Mapping[str, float],
    data: Iterable[Any] | None,
    importance: str | Importance | None,
    losses: Losses | None,
    ranking: str,
    solver: str,
    multiple_of: int,
    minimum: float,
    keep: str | Sequence[str],
    refit: str | None,
    statistics: bool,
    depth: bool,
    cache: Cache | None,
    model: nn.Module | None,
) -> Slim:
    """See `graftlib.slim`."""
    check(
        SurgeryError,
        graph=(graph, (LayerGraph,)),
        budget=(budget, (Mapping,)),
        data=(data, (Iterable, type(None))),
        importance=(importance, (str, Callable, type(None))),
        losses=(losses, (Callable, type(None))),
        ranking=(ranking, (str,)),
        solver=(solver, (str,)),
        multiple_of=(multiple_of, Positive),
        minimum=(minimum, Annotated[float, Meta(ge=0, le=1)]),
        keep=(keep, str | list[str]),
        refit=(refit, str | None),
        statistics=(statistics, bool),
        depth=(depth, bool),
        cache=(cache, (Cache, type(None))),
        model=(model, (nn.Module, type(None))),
    )
    for name, value, known in (
        ("ranking", ranking, RANKINGS),
        ("solver", solver, tuple(SOLVERS)),
        ("refit", refit, tuple(REFITS)),
    ):
        if value is not None and value not in known:
            words = f"there is no {name} {shown(value)}."
            raise SurgeryError(
                words, near=nearest(value, known), fix=f"use one of {', '.join(known)}"
            )
    model = unwrap(graph.model if model is None else model, SurgeryError)
    batches = None if data is None else as_batches(data)
    if depth and batches is None:
        raise SurgeryError(
            "which blocks are worth least is measured on data, and there are none.",
            fix="give data=[batch, ...], or depth=False",
        )
    plain = losses is None and (importance is None or isinstance(importance, str))
    whole = _Whole(
        graph, model, _costs(graph, model, budget), batches, cache if plain and batches else None
    )
    limits = limits_of(budget, whole.costs)
    keep = [keep] if isinstance(keep, str) else list(keep)

    def narrowed(graph: LayerGraph, model: nn.Module, keep: Sequence[str], order: Order) -> Slim:
        """A model, or what is left of it without blocks, brought to the budget by its widths."""
        editable(model, graph, graph.axis_classes, inplace=True)
        tied = _may_change(model, graph, keep)
        asked = [each for group in tied for each in group]
        with part(0.1, 0.3):
            worth = whole.measured(
                [importance, ranking, order],
                asked,
                lambda: (
                    _by_default(graph, model, asked, batches, ranking)
                    if importance is None
                    else importances(graph, model, asked, importance, batches, losses)
                ),
            )
        rules: Any = {"multiple_of": multiple_of, "minimum": minimum, "ranking": ranking}
        costs = _costs(graph, model, budget) if order else whole.costs
        solved = functools.partial(
            solve, costs=costs, limits=limits, ranking=ranking, solver=solver
        )
        widths, attributes = _widths(model, graph, tied, worth, rules, solved)
        kept = {each: _best(worth[each], n) for each, n in widths.sizes.items() if n < each.size}
        fitted = 0.5 if batches is None else 0.9
        with part(0.4, fitted):
            small = (
                pruned(model, graph, kept, attributes, batches, refit=refit, statistics=statistics)
                if kept
                else editable(model, graph, [], inplace=False)
            )
        edit = Edit.of(model, graph, {c: u.tolist() for c, u in kept.items()}, attributes)
        with part(fitted, 1.0):
            return whole.report(small, edit, widths, order, worth)

    small = (
        by_depth(graph, model, batches, keep, narrowed, _error)
        if depth and batches is not None
        else narrowed(graph, model, keep, {})
    )
    measured = _measured(model, small.model, graph)
    return replace(small, report=replace(small.report, measured_ms=measured))


def _error(small: Slim) -> float:
    return 0.0 if small.report.fidelity is None else small.report.fidelity.error


def _costs(graph: LayerGraph, model: nn.Module, budget: Mapping[str, float]) -> Costs:
    costs = costs_of(graph)
    timed = "latency_ms" in budget
    return replace(costs, latency_ms=latency_of(graph, model).total) if timed else costs


def _widths(
    model: nn.Module,
    graph: LayerGraph,
    tied: Sequence[tuple[AxisClass, ...]],
    worth: Mapping[AxisClass, Tensor],
    rules: Mapping[str, Any],
    solved: Callable[[list[Group]], Widths],
) -> tuple[Widths, dict[Place, int]]:
    """Sizes that meet the budget and go together, and what modules say then; what the code ties is held in turn.

    Where torch's kernels for grouped experts want whole multiples, only these are considered.
    """
    coarse: set[AxisClass] = set()
    for _ in range(_ROUNDS):
        tied = [group for group in tied if all(each in worth for each in group)]
        free = {each: worth[each] for group in tied for each in group}
        widths = solved(groups_of(model, graph, tied, free, coarse=coarse, **rules))
        sizes = {each: n for each, n in widths.sizes.items() if n < each.size}
        if not sizes:
            return widths, {}
        feasible = plan(model, graph, sizes, fixed=False)
        wrong = {each for each, n in feasible.sizes.items() if n != sizes[each]}
        if not wrong:
            return widths, feasible.attributes
        rounded = wrong - coarse - feasible.refused.keys()
        coarse |= rounded
        tied = [group for group in tied if (wrong - rounded).isdisjoint(group)]
    raise SurgeryError(
        "no sizes were found that meet the budget and go together.",
        fix="keep= the layers whose code ties their sizes, or give a larger budget",
    )


@dataclass(frozen=True)
class _Whole:
    """The original: its costs, and the inputs that a small model is compared with it on."""

    graph: LayerGraph
    model: nn.Module
    costs: Costs
    batches: list[Batch] | None
    cache: Cache | None

    @functools.cached_property
    def source(self) -> str:
        return digest(self.model.state_dict(keep_vars=True))

    @functools.cached_property
    def data(self) -> str:
        return digest_of_data(self.batches or ())

    def measured(
        self,
        facts: Sequence[Any],
        classes: Sequence[AxisClass],
        work: Callable[[], dict[AxisClass, Tensor]],
    ) -> dict[AxisClass, Tensor]:
        """Importances: what `work` gives, or the cache has."""
        if self.cache is None:
            return work()
        return self.cache.importances([self.source, self.data, *facts], classes, work)

    def report(
        self,
        small: nn.Module,
        edit: Edit,
        widths: Widths,
        order: Order,
        worth: Mapping[AxisClass, Tensor],
    ) -> Slim:
        """The result of an edit."""
        edit = edit.without(self.model, order).with_config(self.model, small)
        edit = replace(edit, source=self.source)
        batches = self.batches if edit.kept or order else None
        fidelity = None if batches is None else fidelity_of(self.model, small, batches)
        rows = tuple((_layer(each), each.size, n) for each, n in widths.sizes.items())
        report = SlimReport(
            self.graph.name, self.costs.at(), widths, rows, fidelity, dropped=edit.dropped
        )
        # Without blocks the classes are those of another graph.
        return Slim(small, edit, report, self.graph, {} if order else worth)


def _by_default(
    graph: LayerGraph,
    model: nn.Module,
    classes: Sequence[AxisClass],
    batches: Sequence[Batch] | None,
    ranking: str,
) -> dict[AxisClass, Tensor]:
    """Measured where there are data; by magnitude the classes that cannot be, or all where they compete."""
    measured: dict[AxisClass, Tensor] = {}
    if batches is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SurgeryWarning)
            measured = importances(graph, model, classes, "wanda", batches)
    if ranking != "uniform" and len(measured) < len(classes):
        measured = {}
    rest = [each for each in classes if each not in measured]
    return measured | importances(graph, model, rest, "magnitude", None)


def _best(worth: Tensor, count: int) -> Tensor:
    best: Tensor = worth.topk(count).indices.sort().values
    return best


def _measured(model: nn.Module, small: nn.Module, graph: LayerGraph) -> tuple[float, float] | None:
    if without_values(model):
        return None
    return measured_ms(model, graph), measured_ms(small, graph)


def _layer(each: AxisClass) -> str:
    fqn, _, leaf = each.members[0].fqn.rpartition(".")
    return fqn if leaf in ("weight", "bias") else each.members[0].fqn


def _may_change(
    model: nn.Module, graph: LayerGraph, keep: Sequence[str]
) -> list[tuple[AxisClass, ...]]:
    """The groups of classes that may change: not the ranks of adapters, nor what is to be kept."""
    fixed: set[AxisClass] = set(ranks(model, graph.axis_classes))
    for pattern in keep:
        hits = [each for each in graph.parameters(pattern) if each.axes]
        if not hits:
            raise SurgeryError(
                f"keep={shown(pattern)} hits no layer.",
                near=nearest(pattern, [p.fqn for p in graph.parameters()]),
                fix="name layers as in model.named_modules(), with globs",
            )
        for each in hits:
            try:
                fixed.add(graph.axis_class(each.fqn))
            except MatchError:
                continue  # several classes lie side by side there, or none
    outer = [each for each in outer_classes(graph) if each not in fixed]
    if not outer:
        raise SurgeryError(
            "no axis class may change.",
            why="all are frozen or kept",
            fix="keep fewer layers; graph.axis_classes says what freezes the others",
        )
    groups = ties(model, graph, outer_classes(graph))
    return [group for group in groups if fixed.isdisjoint(group)]
