"""A plan: every step of an assembly, accepted or refused, as plain JSON that can be read, cited and replayed.

An accepted step holds all that is needed to do it again to the bit: which source (with the fingerprint of its tensors),
which modules, the factor, and which source unit each unit reads. A plan that comes from a file is untrusted: every
field is checked, nothing in it is executed or opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta, Struct

from graftlib.arguments import check
from graftlib.disk import write_whole
from graftlib.documents import Count, Finite, Record, convert, read_json
from graftlib.errors import shown
from graftlib.reports import Table

from .alignment import Alignment
from .alignment_problem import ClassPair, Problem
from .errors import AssemblyError
from .permutation import Permutation

__all__ = ["FORMAT", "VERSION", "Plan", "Reads", "Step", "alignment_of", "reads_of"]

FORMAT = "graftlib assembly plan"
VERSION = 1


class Reads(Struct, frozen=True, forbid_unknown_fields=True):
    """Which source unit each unit of one class reads.

    Attributes:
        base: the first member of the base's class, in words: ``fc.weight[0]``.
        source: the first member of the source's class.
        sources: how many units the source's class has.
        units: one source unit for each base unit, -1 for none.
    """

    base: str
    source: str
    sources: Count
    units: tuple[Annotated[int, Meta(ge=-1, le=2**53)], ...]


class Step(Struct, frozen=True, forbid_unknown_fields=True):
    """One source looked at.

    Attributes:
        source: its name, for the reader.
        number: its place among the sources, from 0.
        fingerprint: SHA-256 of those of its tensors that took part.
        accepted: whether it was merged.
        reason: why, or why not.
        factor: the merging factor; 0 where refused.
        layers: the base's modules that were merged; None for all that are paired.
        before, after: the metric before, and of the best that was tried; None without `evaluate`.
        tried: how many merged models were measured.
        objective: of the alignment, larger is better; None where there was none.
        reads: of every pair of classes; empty where refused.
    """

    source: str
    number: Count
    fingerprint: str
    accepted: bool
    reason: str
    factor: Annotated[float, Meta(ge=0, le=1)] = 0.0
    layers: tuple[str, ...] | None = None
    before: Finite | None = None
    after: Finite | None = None
    tried: Count = 0
    objective: Finite | None = None
    reads: tuple[Reads, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        # JSON knows no infinities: a metric that is one becomes null, and tells nothing more than that.
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return plain

    def __str__(self) -> str:
        word = f"merged at {self.factor:g}" if self.accepted else "refused"
        where = "" if self.layers is None else f" into {len(self.layers)} modules"
        return f"{shown(self.source)}: {word}{where if self.accepted else ''}; {self.reason}"


@dataclass(frozen=True)
class Plan(Table):
    """All steps of an assembly.

    Attributes:
        base: class name of the base, for the reader.
        fingerprint: SHA-256 of the base's tensors.
        settings: what the steps were chosen by; `pad` and `pairing` among them are needed to replay.
        steps: in order.
        stopped: why there were no more; empty while it goes on.
    """

    base: str
    fingerprint: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    stopped: str = ""

    @property
    def accepted(self) -> tuple[Step, ...]:
        """The steps that made the model."""
        return tuple(step for step in self.steps if step.accepted)

    def without(self, steps: int) -> Plan:
        """The plan as it was before its last `steps` accepted steps.

        Raises:
            AssemblyError: there are not so many.
        """
        places = [i for i, step in enumerate(self.steps) if step.accepted]
        check(AssemblyError, steps=(steps, Count))
        if not 0 <= steps <= len(places):
            raise AssemblyError(
                f"{steps} steps cannot be undone.", why=f"{len(places)} were accepted"
            )
        cut = places[-steps] if steps else len(self.steps)
        stopped = f"{steps} accepted steps were undone" if steps else self.stopped
        return replace(self, steps=self.steps[:cut], stopped=stopped)

    def to_json(self) -> dict[str, Any]:
        """Plain values: strings, numbers, lists, dicts."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "base": self.base,
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
            "steps": [step.to_json() for step in self.steps],
            "stopped": self.stopped,
        }

    @property
    def text(self) -> str:
        """The plan as the JSON that `save` writes; ASCII."""
        return json.dumps(self.to_json(), ensure_ascii=True) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            AssemblyError: the file cannot be written.
        """
        write_whole(path, self.text, error=AssemblyError)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what `save` wrote.

        Raises:
            AssemblyError: the file is missing, damaged, of another format or version.
        """
        return cls._of(read_json(path, _File, what="plan", error=AssemblyError, fix=_FIX))

    @classmethod
    def from_json(cls, values: Any) -> Plan:
        """The inverse of `to_json`.

        Raises:
            AssemblyError: something is missing, of another type or out of range; all of it is named.
        """
        return cls._of(convert(values, _File, what="the plan", error=AssemblyError, fix=_FIX))

    @classmethod
    def _of(cls, file: _File) -> Plan:
        settings = {_RENAMED.get(name, name): value for name, value in file.settings.items()}
        return cls(file.base, file.fingerprint, settings, file.steps, file.stopped)

    def table(self) -> tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]:
        """A row for each source that was looked at, as in `Step`."""
        columns = (
            "source",
            "accepted",
            "factor",
            "before",
            "after",
            "tried",
            "objective",
            "reason",
        )
        return columns, (tuple(getattr(each, name) for name in columns) for each in self.steps)

    def __str__(self) -> str:
        head = f"{len(self.accepted)} of {len(self.steps)} steps merged into {self.base}"
        lines = [head, *(f"  {i:3d}  {step}" for i, step in enumerate(self.steps))]
        return "\n".join([*lines, *([f"  stopped: {self.stopped}"] if self.stopped else [])])


_Setting = str | bool | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Finite | None

_FIX = "use the plan as it was saved"
_RENAMED = {"score": "objective", "patience": "max_refusals", "judged_by": "chosen_by"}
"""Settings of earlier plans -> what they are called now."""


class _File(Record):
    """A plan as it stands in its file."""

    format: Literal["graftlib assembly plan"]
    version: Literal[1]
    base: str
    fingerprint: str
    settings: dict[str, _Setting | list[str | Finite]]
    steps: tuple[Step, ...]
    stopped: str


def reads_of(alignment: Alignment) -> tuple[Reads, ...]:
    """An alignment as it stands in a plan."""
    return tuple(
        Reads(
            *_key(alignment.problem.classes[number]),
            permutation.sources,
            tuple(permutation.reads.tolist()),
        )
        for number, permutation in sorted(alignment.permutations.items())
    )


def alignment_of(problem: Problem, step: Step) -> Alignment:
    """The alignment that a step holds.

    Args:
        problem: of the same base and source as then.
        step: accepted.

    Raises:
        AssemblyError: the classes are not those of the plan.
    """
    reads = {(each.base, each.source): each for each in step.reads}
    permutations: dict[int, Permutation] = {}
    wrong: dict[str, object] = {}
    for number, pair in enumerate(problem.classes):
        each = reads.pop(_key(pair), None)
        if each is None or len(each.units) != pair.bases or each.sources != pair.sources:
            wrong["class"] = f"{_key(pair)[0]} ({pair.bases} units)"
            break
        units = torch.tensor(each.units, dtype=torch.int64, device="cpu")
        permutations[number] = Permutation(units, each.sources)
    if reads and not wrong:
        wrong["unknown classes"] = ", ".join(base for base, _ in list(reads)[:3])
    if wrong:
        raise AssemblyError(
            f"the step of {shown(step.source)} was made for other models.",
            where=wrong,
            fix="replay it with the base, sources and mapping that it was made with",
        )
    return Alignment(problem, permutations, step.objective or 0.0, ())


def _key(pair: ClassPair) -> tuple[str, str]:
    """The first members of both classes, in words."""
    return str(pair.base.members[0]), str(pair.source.members[0])
