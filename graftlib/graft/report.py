"""What the adapter learned, as one HTML page that needs no network and no script.

In: a graft's history and plan. Out: a page: per written matrix the size and cosine of each transfer and its singular
values before and after, per link what the adapter reports of itself (omega) over time, and the transfers as a table.
Always true: names are untrusted text and are escaped; the page's policy allows its own style and nothing else; the same
history gives the same bytes; at most `POINTS` points a line and `ROWS` transfers are shown, and the page says where it
left some out.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from .cycle import TransferCycle
from .history import Change, Transfer
from .plan import Plan

__all__ = ["Reported", "chart", "page"]

POINTS = 500
ROUNDING = 1e-5  # values of float32 that differ by no more, relatively, are drawn as equal
ROWS = 200
WIDTH, HEIGHT, LEFT, BOTTOM = 460, 190, 64, 24

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart: its label, its colour's number, SVG points, and its last value as text."""

    label: str
    colour: int
    points: str
    dots: list[tuple[float, float, str]]
    last: str


@dataclass(frozen=True)
class Chart:
    """A picture ready to be drawn: lines, ticks at (pixel, text), and what the axes are."""

    title: str
    across: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    note: str


@dataclass(frozen=True)
class Reported:
    """What the report shows of a graft, attached or detached."""

    plan: Plan
    cycle: TransferCycle
    history: Sequence[Transfer]
    steps: int
    skipped: int
    fact_names: Sequence[str]


def page(graft: Reported) -> str:
    """The report of a graft."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = "\n" + _asset("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    source, target = graft.plan.mapping.source.name, graft.plan.mapping.target.name
    html = environment.get_template("report.html.j2").render(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        title=f"{source} to {target}",
        facts=_facts(graft),
        targets=[_target(graft, i) for i in graft.plan.targets],
        rows=_rows(graft.history),
        left_out=max(0, len(graft.history) - ROWS),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        bottom=BOTTOM,
    )
    # Lone surrogates are legal in a Python name and in no file.
    return html.encode("utf-8", "backslashreplace").decode("utf-8")


def chart(
    title: str, across: str, lines: dict[str, Points], *, logarithmic: bool = False
) -> Chart | None:
    """A chart of labelled lines; None where no line has a finite point.

    Args:
        title: what is up the y axis.
        across: what is along the x axis.
        lines: label -> (x, y) points, in the order of x; those that are not finite are left out.
        logarithmic: draw y on a logarithmic scale; points that are not positive are left out.
    """
    finite = {
        label: [
            (float(x), math.log10(y) if logarithmic else float(y))
            for x, y in points
            if math.isfinite(y) and (y > 0 or not logarithmic)
        ]
        for label, points in lines.items()
    }
    thinned = {label: _thin(points) for label, points in finite.items() if points}
    if not thinned:
        return None
    x_low, x_high = _span([x for points in thinned.values() for x, _ in points])
    heights = [y for points in thinned.values() for _, y in points]
    largest = 1.0 if logarithmic else max(map(abs, heights))
    y_low, y_high = _span(heights, ROUNDING * largest)

    def at(x: float, y: float) -> tuple[float, float]:
        across_ = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - 10)
        up = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - 10)
        return round(across_, 1), round(up, 1)

    def text(y: float) -> str:
        return f"{10**y if logarithmic else y:.4g}"

    drawn = []
    for colour, (label, points) in enumerate(thinned.items()):
        places = [(*at(x, y), f"{label}: {text(y)} at {across} {x:g}") for x, y in points]
        path = " ".join(f"{x},{y}" for x, y, _ in places)
        dots = places if len(places) <= 60 else places[-1:]
        drawn.append(Line(label, colour % 8, path, dots, text(points[-1][1])))
    left_out = sum(len(finite[label]) - len(points) for label, points in thinned.items())
    return Chart(
        title,
        across,
        drawn,
        [(at(x, y_low)[0], f"{x:g}") for x in (x_low, x_high)],
        _ticks([y_low, (y_low + y_high) / 2, y_high], lambda y: at(x_low, y)[1], logarithmic),
        f"{left_out} points between are not drawn" if left_out else "",
    )


def _ticks(
    heights: list[float], place: Callable[[float], float], logarithmic: bool
) -> list[tuple[float, str]]:
    """Where the ticks stand and what they say, with as many digits as tell them apart."""
    values = [10**y if logarithmic else y for y in heights]
    texts: list[str] = []
    for digits in range(3, 10):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(texts):
            break
    return [(place(y), text) for y, text in zip(heights, texts, strict=True)]


def _facts(graft: Reported) -> list[tuple[str, str]]:
    cycle = graft.cycle
    return [
        ("links", str(len(graft.plan.links))),
        ("steps of the target", f"{graft.steps:,}"),
        ("transfers", f"{sum(not each.skipped for each in graft.history):,}"),
        ("skipped", f"{graft.skipped:,}"),
        ("cycle", f"every {cycle.every}, from {cycle.start}, to {cycle.stop or 'the end'}"),
    ]


def _target(graft: Reported, i: int) -> dict[str, Any]:
    """All that is known of one matrix that is written."""
    matrix, history = graft.plan.matrices[i], graft.history
    mine = [(t.step, t.changes[matrix.name]) for t in history if matrix.name in t.changes]
    links = [link for link in graft.plan.links if link.target == i]
    signal = graft.plan.tensors[i].name
    sizes: Points = [(step, change.size) for step, change in mine]
    cosines: Points = [(step, change.cosine) for step, change in mine]
    signals: Points = [(t.step, t.signal[signal]) for t in history if signal in t.signal]
    charts = [
        chart("size of the change, relative to the weights", "step", {"size": sizes}),
        chart("cosine between the weights before and after", "step", {"cosine": cosines}),
        chart("norm of what the adapter was updated from", "step", {"signal": signals}),
        _spectra(mine),
    ]
    return {
        "name": matrix.name,
        "shape": " × ".join(map(str, matrix.shape)),
        "rank": "whole" if matrix.rank is None else str(matrix.rank),
        "charts": [drawn for drawn in charts if drawn is not None],
        "recorded": any(change.spectrum for _, change in mine),
        "links": [
            {
                "name": link.name,
                "source": graft.plan.matrices[link.source].name,
                "chart": _learned(graft, link.name),
            }
            for link in links
        ],
    }


def _learned(graft: Reported, link: str) -> Chart | None:
    """The facts that the adapter reported of one link, over time."""
    reported = [(t.step, t.facts[link]) for t in graft.history if link in t.facts]
    count = max((len(values) for _, values in reported), default=0)
    names = graft.fact_names
    labels = names if len(names) == count else [f"value {k + 1}" for k in range(count)]
    lines = {
        label: [(float(step), values[k]) for step, values in reported if k < len(values)]
        for k, label in enumerate(labels)
    }
    return chart("what the adapter reports of the link (omega)", "step", lines)


def _spectra(mine: Sequence[tuple[int, Change]]) -> Chart | None:
    """Singular values before the first and after the last transfer that was recorded."""
    recorded = [(step, change.spectrum) for step, change in mine if change.spectrum]
    if not recorded:
        return None
    (first, start), (last, end) = recorded[0], recorded[-1]
    lines: dict[str, Points] = {
        f"before step {first}": [(i, float(s)) for i, s in enumerate(start.before, 1)],
        f"after step {last}": [(i, float(s)) for i, s in enumerate(end.after, 1)],
    }
    return chart("singular values, before and after", "number", lines, logarithmic=True)


def _rows(history: Sequence[Transfer]) -> list[dict[str, str]]:
    """The last transfers, one row a written matrix."""
    return [
        {
            "transfer": str(transfer.number),
            "step": str(transfer.step),
            "matrix": name,
            "size": f"{change.size:.4g}",
            "cosine": f"{change.cosine:.6f}",
            "skipped": transfer.skipped or "",
        }
        for transfer in history[-ROWS:]
        for name, change in transfer.changes.items()
    ]


def _thin(points: Points) -> Points:
    """At most `POINTS` of them, evenly spread, the first and the last among them."""
    if len(points) <= POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]


def _span(values: Sequence[float], rounding: float = 0.0) -> tuple[float, float]:
    """The least and the largest value, apart even where they coincide but for `rounding`."""
    low, high = min(values), max(values)
    if high - low > rounding:
        return low, high
    room = max(abs(low) * 0.01, 1000 * rounding) or 1.0
    return low - room, high + room


def _asset(name: str) -> str:
    return files(__package__).joinpath(f"assets/{name}").read_text(encoding="utf-8")
