"""A mapping as a YAML file, for people and for `Mapping.load`.

In and out: pairs. The file names both models, every linked parameter with its shape and kind, and the pairs.
Always true: a file appears whole or not at all; what is read is checked as untrusted text, and a file made for other
models is refused with everything that differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..disk import named, write_whole
from ..documents import Count, Record, read_yaml, to_yaml
from ..errors import GraftError, MappingError, shown
from ..graph.parameter import Parameter, split_address
from .hits import alike, viewable
from .pairing import Direction, Pair, exclude
from .report import Rule
from .views import matrix_shape

if TYPE_CHECKING:
    from ..graph import LayerGraph

__all__ = ["VERSION", "load", "save"]

VERSION = 1
_FORMAT = "graftlib mapping"


def save(path: str | Path, source: LayerGraph, target: LayerGraph, pairs: Sequence[Pair]) -> None:
    """Write `pairs`; see `Mapping.save`."""
    content = {
        "format": _FORMAT,
        "version": VERSION,
        "source": _model(source.name, [pair.source for pair in pairs]),
        "target": _model(target.name, [pair.target for pair in pairs]),
        "pairs": [
            {
                "source": pair.source.address,
                "target": pair.target.address,
                "direction": pair.direction,
                "rule": pair.rule,
            }
            for pair in pairs
        ],
    }
    write_whole(path, to_yaml(content), error=MappingError)


def load(path: str | Path, source: LayerGraph, target: LayerGraph) -> Rule:
    """Read the pairs for these two graphs; see `Mapping.load`."""
    content = read_yaml(path, _File, what="mapping", error=MappingError)
    faults = list(_unlisted(content))
    if faults:
        raise _refusal(path, "contradicts itself", faults, "write it again with save")
    differences = [
        *_differences("source", content.source, source),
        *_differences("target", content.target, target),
    ]
    if differences:
        raise _refusal(
            path,
            f"was made for other models than {source.name} and {target.name}",
            differences,
            "load it with the models it was made for, or link these two anew",
        )
    pairs, faults = _pairs(content.pairs, source, target)
    faults += [failure.what for failure in exclude(pairs, source, target)]
    if faults:
        raise _refusal(path, "holds pairs that cannot be", faults, "take them out of the file")
    return Rule(f"loaded from {Path(path).name}", tuple(pairs))


def _model(name: str, parameters: Sequence[Parameter]) -> dict[str, object]:
    described = {
        parameter.fqn: {"shape": [*parameter.shape], "kind": parameter.kind}
        for parameter in parameters
    }
    return {"model": name, "parameters": described}


def _refusal(path: str | Path, what: str, faults: Sequence[str], fix: str) -> MappingError:
    return MappingError(
        f"the mapping {named(path)} {what}.",
        where={"found": "\n".join(faults)},
        fix=fix,
        differences=tuple(faults),
    )


# --- what must be true of its content -----------------------------------------------------------------------------


class _Described(Record):
    """A parameter."""

    shape: tuple[Count, ...]
    kind: str


class _Model(Record):
    """One of the two models."""

    model: str
    parameters: dict[str, _Described]


class _Row(Record):
    """A pair."""

    source: str
    target: str
    direction: Direction
    rule: str


class _File(Record):
    """The whole file."""

    format: Literal["graftlib mapping"]
    version: Literal[1]
    source: _Model
    target: _Model
    pairs: list[_Row]


def _unlisted(content: _File) -> Iterator[str]:
    """Pairs of parameters that the file itself does not list."""
    for number, pair in enumerate(content.pairs):
        for side, address, model in (
            ("source", pair.source, content.source),
            ("target", pair.target, content.target),
        ):
            if split_address(address, model.parameters)[0] not in model.parameters:
                yield f"pair {number} names {shown(address)}, which '{side}' does not list"


def _differences(side: str, model: _Model, graph: LayerGraph) -> Iterator[str]:
    """Where the file's model is not the graph's: its name, its parameters' names, shapes, kinds."""
    if model.model.removeprefix("FSDP") != graph.name.removeprefix("FSDP"):
        yield (
            f"{side}: the model is {shown(graph.name)}, the file says {shown(model.model)} "
            "(edit the file's 'model:' line if that is only another name)"
        )
    known = {parameter.fqn: parameter for parameter in graph.parameters()}
    names = [parameter.fqn for parameter in viewable(graph)]
    for fqn, described in model.parameters.items():
        parameter = known.get(fqn)
        if parameter is None:
            near = ", ".join(map(shown, alike(fqn, names)))
            yield f"{side}: there is no {shown(fqn)}; nearest {near}"
            continue
        said, mine = described, tuple(parameter.shape)
        if said.shape != mine:
            yield f"{side}: {shown(fqn)} is {mine}, the file says {said.shape}"
        if said.kind != parameter.kind:
            yield f"{side}: the kind of {shown(fqn)} is {parameter.kind!r}, the file says {shown(said.kind)}"


def _pairs(
    rows: Sequence[_Row], source: LayerGraph, target: LayerGraph
) -> tuple[list[Pair], list[str]]:
    pairs, faults = [], []
    for row in rows:
        try:
            one, other = source.parameter(row.source), target.parameter(row.target)
            matrix_shape(one)
            matrix_shape(other)
        except GraftError as error:
            faults.append(str(error))
        else:
            pairs.append(Pair(one, other, row.direction, row.rule))
    return pairs, faults
