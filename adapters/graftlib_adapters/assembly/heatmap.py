"""Pictures of many walks: one cell for each ordered pair of a base and a source, as PNG and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftlib.disk import write_whole

from .errors import AssemblyError
from .pictures import figure, png, texts

__all__ = ["HeatMap"]


@dataclass(frozen=True)
class HeatMap:
    """A number for each (base, source).

    Attributes:
        title: one line.
        measure: what a cell is, with its unit.
        bases: names of the rows.
        sources: names of the columns.
        cells: (base, source) -> number; those that are absent were not measured.
        better: ``"low"`` or ``"high"``: what is drawn light.
        facts: anything that the reader of the JSON needs: seeds, tolerances, data sets.

    >>> heat = HeatMap("mean loss", "nats", ("a", "b"), ("a", "b"), {("a", "a"): 0.1, ("a", "b"): 0.4})
    >>> heat.rows(), heat.missing
    (((0.1, 0.4), (None, None)), 2)
    """

    title: str
    measure: str
    bases: tuple[str, ...]
    sources: tuple[str, ...]
    cells: Mapping[tuple[str, str], float]
    better: str = "low"
    facts: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        unknown = [
            key for key in self.cells if key[0] not in self.bases or key[1] not in self.sources
        ]
        if unknown:
            raise AssemblyError(
                f"{len(unknown)} cells belong to no row and column.", where={"first": unknown[0]}
            )

    @property
    def missing(self) -> int:
        """How many cells were not measured."""
        return len(self.bases) * len(self.sources) - len(self.cells)

    def rows(self) -> tuple[tuple[float | None, ...], ...]:
        """One row a base; None where nothing was measured."""
        return tuple(
            tuple(self.cells.get((base, source)) for source in self.sources) for base in self.bases
        )

    def to_json(self) -> str:
        """The whole record; numbers that are not finite become null."""
        rows = [
            [value if value is not None and math.isfinite(value) else None for value in row]
            for row in self.rows()
        ]
        record = {
            "title": self.title,
            "measure": self.measure,
            "better": self.better,
            "bases": list(self.bases),
            "sources": list(self.sources),
            "rows": rows,
            "missing": self.missing,
            "facts": dict(self.facts or {}),
        }
        return json.dumps(record, indent=1, ensure_ascii=True) + "\n"

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write ``path`` as PNG and, beside it, the same name with ``.json``.

        Returns:
            both paths.

        Raises:
            MissingExtraError: matplotlib is not installed.
            GraftError: the folder cannot be written to.
        """
        picture = Path(path).with_suffix(".png")
        record = picture.with_suffix(".json")
        content = _drawn(self)
        write_whole(record, self.to_json(), error=AssemblyError)
        write_whole(picture, content, error=AssemblyError)
        return picture, record


def _drawn(heat: HeatMap) -> bytes:
    size = 2.5 + 0.26 * max(len(heat.bases), len(heat.sources))
    picture = figure(size + 1, size)
    axes = picture.add_subplot()
    values = [[math.nan if v is None else v for v in row] for row in heat.rows()]
    # Light is better, as in the papers that draw these.
    shades = "viridis" if heat.better == "high" else "viridis_r"
    image = axes.imshow(values, cmap=shades, aspect="auto")
    axes.set_xticks(range(len(heat.sources)), texts(heat.sources), rotation=90, fontsize=7)
    axes.set_yticks(range(len(heat.bases)), texts(heat.bases), fontsize=7)
    axes.set_xlabel("source")
    axes.set_ylabel("base")
    axes.set_title(texts([heat.title])[0], fontsize=9)
    picture.colorbar(image, ax=axes, label=texts([heat.measure])[0])
    return png(picture)
