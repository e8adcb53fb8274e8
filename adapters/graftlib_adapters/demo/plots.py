"""curves.png: how plain and grafted training went, and what the transfers did.

In: the curves of one seed. Out: one picture of four panels. Not here: any figure that the table prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .training import Curve

__all__ = ["draw_curves"]

INK, GRID = "#333333", "#e4e4e4"
COLOURS = {"plain": "#5b6770", "grafted": "#0b7a75", "random source": "#d1733a"}
PAIRING_COLOURS = ["#0b7a75", "#3a6fb0", "#8c5aa8", "#d1733a"]


def draw_curves(
    path: Path,
    curves: Mapping[str, Curve],
    *,
    source_accuracy: float,
    pairings: Sequence[str],
    title: str,
) -> None:
    """Draw `curves` into a PNG file.

    Args:
        path: of the file.
        curves: one curve for each of `COLOURS`; the transfers are those of ``"grafted"``.
        source_accuracy: of the source on the same held-out images, 0.0 to 1.0.
        pairings: names of the values that the adapter reports per layer; empty where it reports none.
        title: one line above all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no window and no global state, whatever backend is set
    figure.suptitle(title, fontsize=12, color=INK, parse_math=False)
    (loss, accuracy), (omega, size) = figure.subplots(2, 2)
    _draw_loss(loss, curves)
    _draw_accuracy(accuracy, curves, source_accuracy)
    _draw_omega(omega, curves["grafted"].history, pairings)
    _draw_sizes(size, curves["grafted"].history)
    for axes in (loss, accuracy, omega, size):
        _plain_style(axes)
    figure.savefig(path, format="png")


def _draw_loss(axes: Any, curves: Mapping[str, Curve]) -> None:
    for name, curve in curves.items():
        axes.plot(curve.steps, curve.loss, **_line(name))
    axes.set(
        title="training loss", xlabel="optimizer steps", ylabel="cross-entropy, nats", yscale="log"
    )
    axes.legend(frameon=False)


def _draw_accuracy(axes: Any, curves: Mapping[str, Curve], source: float) -> None:
    axes.axhline(100 * source, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="source")
    for name, curve in curves.items():
        axes.plot(curve.steps, [100 * share for share in curve.accuracy], **_line(name))
    axes.set(title="accuracy on held-out images", xlabel="optimizer steps", ylabel="percent")
    axes.legend(frameon=False, loc="lower right")


def _draw_omega(axes: Any, history: Sequence[Mapping[str, Any]], pairings: Sequence[str]) -> None:
    axes.set(
        title="omega: weight of each pairing",
        xlabel="optimizer steps",
        ylabel="omega, mean over links",
    )
    told = [entry for entry in history if entry["facts"]]
    if not told or not pairings:
        axes.text(0.5, 0.5, "this adapter reports no omega", ha="center", transform=axes.transAxes)
        return
    steps = [entry["step"] for entry in told]
    each = [
        [sum(values) / len(values) for values in zip(*e["facts"].values(), strict=True)]
        for e in told
    ]
    for i, values in enumerate(zip(*each, strict=True)):
        layer, pairing = divmod(i, len(pairings))
        colour = PAIRING_COLOURS[pairing % len(PAIRING_COLOURS)]
        style = ["-", (0, (4, 2)), (0, (1, 1.5))][layer % 3]
        label = f"{pairings[pairing]}, layer {layer + 1}"
        axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.6, label=label)
    axes.legend(
        frameon=False,
        fontsize=8,
        ncols=2,
        title="target, source by rows or columns",
        title_fontsize=8,
    )


def _draw_sizes(axes: Any, history: Sequence[Mapping[str, Any]]) -> None:
    axes.set(
        title="size of each transfer", xlabel="optimizer steps", ylabel="change / weights, percent"
    )
    for i, name in enumerate(history[0]["changes"] if history else ()):
        done = [
            (e["step"], 100 * e["changes"][name]["size"]) for e in history if "skipped" not in e
        ]
        colour = PAIRING_COLOURS[i % len(PAIRING_COLOURS)]
        label = name.removeprefix("target:").replace("$", r"\$")
        steps, sizes = [step for step, _ in done], [size for _, size in done]
        axes.plot(steps, sizes, color=colour, marker="o", markersize=2.5, linewidth=1, label=label)
    if history:
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)


def _line(name: str) -> dict[str, Any]:
    return {"label": name, "color": COLOURS[name], "linewidth": 2.2 if name == "grafted" else 1.5}


def _plain_style(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.title.set(fontsize=10.5, color=INK)
