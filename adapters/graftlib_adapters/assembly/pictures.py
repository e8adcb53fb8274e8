"""What pictures share: a figure without a window, names drawn to the letter, the same bytes for the same content."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

from graftlib.errors import optional

from .curve import Curve

__all__ = ["curves_png", "figure", "png", "texts"]


def figure(width: float, height: float) -> Any:
    """A matplotlib figure of `width` by `height` inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    what = "pictures are drawn by matplotlib, which cannot be imported."
    drawn = optional("matplotlib.figure", what, "assembly")
    picture = drawn.Figure(figsize=(width, height), layout="constrained")
    optional("matplotlib.backends.backend_agg", what, "assembly").FigureCanvasAgg(picture)
    return picture


def png(picture: Any) -> bytes:
    """A figure as PNG; the same bytes for the same figure."""
    out = io.BytesIO()
    picture.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def texts(names: Iterable[str]) -> list[str]:
    """Names as matplotlib draws them to the letter: a dollar sign would begin a formula."""
    return [ascii(name)[1:-1].replace("$", r"\$") for name in names]


def curves_png(curves: Mapping[str, Curve], title: str = "") -> bytes:
    """Metrics over the merging factor, one line a curve; what is not finite leaves a gap."""
    picture = figure(6.4, 4.0)
    axes = picture.add_subplot()
    for name, curve in curves.items():
        values = [s if math.isfinite(s) else math.nan for s in curve.scores]
        style = "-" if curve.pad == "zero" else "--"
        axes.plot(curve.factors, values, style, marker=".", markersize=4, label=texts([name])[0])
    axes.set_xlabel("merging factor: 0 is the base")
    axes.set_ylabel("metric, larger is better")
    axes.set_title(texts([title])[0], fontsize=9)
    axes.legend(fontsize=7)
    return png(picture)
