"""A published table as sets of axes, and what our classes say about the same axes.

In: a YAML file of this folder. Out: `Table`; `differences` between it and `Ours`, the classes of a graph, in words.
An axis is the pair (parameter, axis number). Published spaces are compared with our free classes both ways: every
space is one class over whole axes, or a product of the classes that the table's part `ours` names; and there is no
free class that no space explains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any

import yaml

from graftlib.graph import LayerGraph
from graftlib.graph.axes import AxisClass, axis_classes

FOLDER = Path(__file__).parent
Axis = tuple[str, int]


@dataclass(frozen=True)
class Finer:
    """A class of ours that is a factor of published spaces.

    Attributes:
        of: the spaces.
        units: how many.
        axes: that it moves.
        frozen: something fixes its order.
    """

    of: tuple[str, ...]
    units: int
    axes: frozenset[Axis]
    frozen: bool = False


@dataclass(frozen=True)
class Table:
    """What is published about one model, and how ours differs.

    Attributes:
        spaces: name -> the axes that share one permutation.
        ours: name -> a finer class.
        beyond: patterns of our members that are not in what is published.
    """

    spaces: Mapping[str, frozenset[Axis]]
    ours: Mapping[str, Finer] = field(default_factory=dict)
    beyond: tuple[str, ...] = ()

    @property
    def whole(self) -> dict[str, frozenset[Axis]]:
        """The spaces that should be one class each."""
        finer = {space for each in self.ours.values() for space in each.of}
        return {name: axes for name, axes in self.spaces.items() if name not in finer}


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def source(name: str) -> dict[str, str]:
    found: dict[str, str] = _read(name)["source"]
    return found


def read(name: str) -> Table:
    """The table of a file, with spaces that are added to each other made one."""
    found = _read(name)
    spaces = {space: _axes(entries) for space, entries in found["spaces"].items()}
    for together, parts in found.get("joined", {}).items():
        spaces[together] = frozenset().union(*(spaces.pop(part) for part in parts))
    ours = {
        word: Finer(tuple(e["of"]), e["units"], _axes(e["axes"]), e.get("frozen", False))
        for word, e in found.get("ours", {}).items()
    }
    return Table(spaces, ours, tuple(found.get("beyond", ())))


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return found


def _axes(entries: Iterable[str]) -> frozenset[Axis]:
    pairs = (entry.rsplit(" ", 1) for entry in entries)
    return frozenset((fqn, int(axis)) for fqn, axis in pairs)


class Ours:
    """The classes of a graph, as the comparison needs them.

    Args:
        graph: whose classes.
        beyond: patterns of members that are left out.
    """

    def __init__(self, graph: LayerGraph, beyond: tuple[str, ...] = ()) -> None:
        self.shapes = {k: v.shape for k, v in graph.model.state_dict(keep_vars=True).items()}
        self.free: list[tuple[frozenset[Axis], int, bool]] = []
        self.fixed: set[tuple[str, int, int]] = set()
        self.units: dict[Axis, set[int]] = {}
        for each in axis_classes(graph):
            self._count(each)
            kept = [m for m in each.members if not any(fnmatch(m.fqn, p) for p in beyond)]
            if each.free and kept:
                axes = frozenset((m.fqn, m.axis) for m in kept)
                self.free.append((axes, each.size, self._is_whole(each)))
            elif kept:
                self.fixed.update((m.fqn, m.axis, each.size) for m in kept)

    def _count(self, each: AxisClass) -> None:
        for m in each.members:
            run = range(m.start, m.start + prod(m.factors))
            self.units.setdefault((m.fqn, m.axis), set()).update(run)

    def _is_whole(self, each: AxisClass) -> bool:
        return all(
            m.start == 0 and m.factors == (self.shapes[m.fqn][m.axis],) == (each.size,)
            for m in each.members
        )


def differences(table: Table, ours: Ours) -> list[str]:
    """Where the published table and our classes differ, in words; an empty list where they agree."""
    expected = {name: (axes, None) for name, axes in table.whole.items()}
    expected |= {n: (e.axes, e.units) for n, e in table.ours.items() if not e.frozen}
    # A list, as sets of axes may recur: heads and units of heads of values move the same axes.
    left = list(ours.free)
    found = []
    for name, (axes, units) in expected.items():
        match = [each for each in left if each[0] == axes and units in (None, each[1])]
        if not match:
            found.append(f"no free class is the published '{name}'")
            continue
        left.remove(match[0])
        if units is None and not match[0][2]:
            found.append(f"'{name}' is a part of its axes only")
    found += [f"nothing published is the class of {min(axes)}" for axes, *_ in left]
    return found + _unfrozen(table, ours) + _uncovered(table, ours)


def _unfrozen(table: Table, ours: Ours) -> list[str]:
    """Frozen factors of the table that are not frozen units of the same number on every axis."""
    return [
        f"'{name}' is not {each.units} frozen units of {axis}"
        for name, each in table.ours.items()
        if each.frozen
        for axis in each.axes
        if (*axis, each.units) not in ours.fixed
    ]


def _uncovered(table: Table, ours: Ours) -> list[str]:
    """Published axes of which some unit is in none of our classes."""
    return [
        f"some units of {fqn}[{axis}] are in no class"
        for axes in table.spaces.values()
        for fqn, axis in sorted(axes)
        if len(ours.units.get((fqn, axis), ())) != ours.shapes[fqn][axis]
    ]
