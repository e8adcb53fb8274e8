"""`view`: the verb of this package, light to import. What it draws is in `page`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ..errors import GraftError

if TYPE_CHECKING:
    from .compare import Diff
    from .page import View

__all__ = ["view"]


def view(
    source: Any,
    target: Any = None,
    mapping: Any = None,
    *,
    overlay: Mapping[str, Any] | str | Iterable[str] | None = None,
    edit: Any = None,
    importance: Any = None,
    weights: bool = False,
    diff: bool | Diff = False,
    depth: int | None = None,
    title: str | None = None,
    theme: Literal["auto", "light", "dark"] = "auto",
    height: int = 640,
) -> View:
    """Look at one or two layer graphs and at what links them.

    Args:
        source: a `LayerGraph`, drawn on the left; or alone, with what it brings: a mapping; a graft, with its
            history; an assembly, with the origins of its layers; a `graftlib.graph.Outline`, where tracing failed.
        target: a second `LayerGraph`, drawn on the right; None for the mapping's own, or for none.
        mapping: a `Mapping` whose pairs are drawn as links; None for none.
        overlay: numbers to show as colours with a legend: name of a layer, a module or a parameter -> a finite number
            of any unit; in both models where both have the name, in one behind ``source:`` or ``target:``. Or several
            of these by their titles, among which the reader chooses. A closed module without a number of its own shows
            the largest inside. Names instead of numbers ask for what the library counts: ``"macs"`` (at the traced
            inputs), ``"parameters"``, ``"freedom"`` (the share of a weight's units that may be permuted), one or a
            list. A `Diff` and a `graftlib.slim.latency_of` give theirs as ``.overlay``; importances, histograms
            and the transfers of a graft add their own.
        edit: which units of axis classes stay, shown as a strip for each class and as an overlay of what goes: a
            `graftlib.slim.Edit` (``slim.edit``), or class -> the numbers of its units that stay.
        importance: what each unit is worth, shown in the strips: class -> (size,) numbers, as ``slim.importances``, or
            a function of a class that gives them, such as ``surgery.ranking("magnitude", graph, graph.model)``, asked
            for the classes of `edit`, or for all free ones of the source.
        weights: True reads all weights, so that the page can show a histogram of each parameter.
        diff: True compares the two models, a `Diff` is shown as it is: what differs stands in the overview, and an
            overlay shows how far the weights of each layer moved, by the norm of the first's.
        depth: how many levels of modules are open at first; None for as many as stay readable.
        title: of the page; None for the models' names.
        theme: of the page; ``"auto"`` follows the reader's system.
        height: of the frame in a notebook, in pixels.

    Raises:
        GraftError: an argument is no layer graph, the mapping is of other models, an overlay names nothing, an edit
            or importances are of other classes, or there is one model alone to compare.
    """
    from ..arguments import Positive, check
    from .page import View
    from .scene import build_scene

    themes = Literal["auto", "light", "dark"]
    check(
        GraftError,
        weights=(weights, bool),
        depth=(depth, int | None),
        title=(title, str | None),
        theme=(theme, themes),
        height=(height, Positive),
    )
    notes: tuple[str, ...] = getattr(source, "lines", ())
    if diff:
        compared = _compared(source, target, mapping) if diff is True else diff
        notes, overlay = compared.lines, overlay or compared.overlay
    scene = build_scene(
        source,
        target,
        mapping,
        overlay=overlay,
        edit=edit,
        importance=importance,
        weights=weights,
        depth=depth,
        title=title,
        notes=notes,
    )
    return View(scene, height, theme)


def _compared(source: Any, target: Any, mapping: Any) -> Diff:
    from .compare import diff as compare
    from .scene import build_scene

    build_scene(source, target, mapping)  # refuses what cannot be shown
    if mapping is None and hasattr(source, "source") and hasattr(source, "target"):
        source, target = source.source, source.target
    other = mapping.target if target is None and mapping is not None else target
    if other is None:
        raise GraftError(
            "diff=True compares two models, and there is one.", fix="view(a, b, diff=True)"
        )
    return compare(source, other)
