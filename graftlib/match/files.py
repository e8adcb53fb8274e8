"""A mapping as a YAML file, for people and for `Mapping.load`.

In and out: pairs. The file names both models, every linked parameter with its shape and kind, and the pairs.
Always true: a file appears whole or not at all; what is read is checked as untrusted text, and a file made for other
models is refused with everything that differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..disk import write_whole
from ..errors import GraftError, MappingError
from ..graph.parameter import Parameter
from .hits import alike, quoted, viewable
from .pairing import DIRECTIONS, Pair, exclude
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
    text = yaml.safe_dump(content, sort_keys=False, width=100)
    write_whole(Path(path), text, error=MappingError)


def load(path: str | Path, source: LayerGraph, target: LayerGraph) -> Rule:
    """Read the pairs for these two graphs; see `Mapping.load`."""
    path = Path(path)
    content = _read(path)
    faults = list(_malformed(content))
    if faults:
        raise _refusal(
            path, "is not a mapping that can be read", faults, "write it again with save"
        )
    differences = [
        *_differences("source", content["source"], source),
        *_differences("target", content["target"], target),
    ]
    if differences:
        raise _refusal(
            path,
            f"was made for other models than {source.name} and {target.name}",
            differences,
            "load it with the models it was made for, or link these two anew",
        )
    pairs, faults = _pairs(content["pairs"], source, target)
    faults += [refused.what for refused in exclude(pairs, source, target)]
    if faults:
        raise _refusal(path, "holds pairs that cannot be", faults, "take them out of the file")
    return Rule(f"loaded from {path.name}", tuple(pairs))


def _model(name: str, parameters: Sequence[Parameter]) -> dict[str, object]:
    described = {
        parameter.fqn: {"shape": [*parameter.shape], "kind": parameter.kind}
        for parameter in parameters
    }
    return {"model": name, "parameters": described}


# --- the file -----------------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MappingError(
            f"the mapping {quoted(str(path))} cannot be read.",
            why=error.strerror or str(error),
            fix="give the path of a file that save wrote",
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MappingError(
            f"the mapping {quoted(str(path))} is not YAML.",
            why=str(error) or type(error).__name__,
            fix="write it again with save",
        ) from None


def _refusal(path: Path, what: str, faults: Sequence[str], fix: str) -> MappingError:
    return MappingError(
        f"the mapping {quoted(str(path))} {what}.",
        where={"found": "\n".join(faults)},
        fix=fix,
        differences=tuple(faults),
    )


# --- what must be true of its content -----------------------------------------------------------------------------


def _malformed(content: Any) -> Iterator[str]:
    """Everything in the file that is not as `save` writes it."""
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        yield f"it does not begin with 'format: {_FORMAT}'"
        return
    version = content.get("version")
    if version != VERSION or isinstance(version, bool):
        yield f"version is {version!r}, and this graftlib reads version {VERSION}"
        return
    for side in ("source", "target"):
        yield from _malformed_model(side, content.get(side))
    pairs = content.get("pairs")
    if not isinstance(pairs, list):
        yield "'pairs' is not a list"
        return
    for number, pair in enumerate(pairs):
        yield from _malformed_pair(number, pair, content)


def _malformed_model(side: str, model: Any) -> Iterator[str]:
    if not isinstance(model, dict) or not isinstance(model.get("model"), str):
        yield f"'{side}' does not name a model"
        return
    parameters = model.get("parameters")
    if not isinstance(parameters, dict):
        yield f"'{side}' does not list its parameters"
        return
    for name, described in parameters.items():
        shape = described.get("shape") if isinstance(described, dict) else None
        sizes = isinstance(shape, list) and all(type(size) is int for size in shape)
        if not isinstance(name, str) or not sizes or not isinstance(described.get("kind"), str):
            yield f"'{side}' does not give shape and kind of {name!r}"


def _malformed_pair(number: int, pair: Any, content: dict[str, Any]) -> Iterator[str]:
    words = ("source", "target", "direction", "rule")
    if not isinstance(pair, dict) or not all(isinstance(pair.get(word), str) for word in words):
        yield f"pair {number} does not give {', '.join(words)} as text"
        return
    if pair["direction"] not in DIRECTIONS:
        yield f"pair {number} has direction {pair['direction']!r}, not one of {', '.join(DIRECTIONS)}"
    for side in ("source", "target"):
        model = content.get(side)
        known = model.get("parameters") if isinstance(model, dict) else None
        if isinstance(known, dict) and _fqn(pair[side]) not in known:
            yield f"pair {number} names {pair[side]!r}, which '{side}' does not list"


def _differences(side: str, model: dict[str, Any], graph: LayerGraph) -> Iterator[str]:
    """Where the file's model is not the graph's: its name, its parameters' names, shapes, kinds."""
    if model["model"].removeprefix("FSDP") != graph.name.removeprefix("FSDP"):
        yield (
            f"{side}: the model is {graph.name!r}, the file says {model['model']!r} "
            "(edit the file's 'model:' line if that is only another name)"
        )
    known = {parameter.fqn: parameter for parameter in graph.parameters()}
    names = [parameter.fqn for parameter in viewable(graph)]
    for fqn, described in model["parameters"].items():
        parameter = known.get(fqn)
        if parameter is None:
            near = ", ".join(map(quoted, alike(fqn, names)))
            yield f"{side}: there is no {fqn!r}; nearest {near}"
            continue
        shape, kind = tuple(described["shape"]), described["kind"]
        if shape != tuple(parameter.shape):
            yield f"{side}: {fqn!r} is {tuple(parameter.shape)}, the file says {shape}"
        if kind != parameter.kind:
            yield f"{side}: the kind of {fqn!r} is {parameter.kind!r}, the file says {kind!r}"


def _pairs(
    rows: list[dict[str, str]], source: LayerGraph, target: LayerGraph
) -> tuple[list[Pair], list[str]]:
    pairs, faults = [], []
    for row in rows:
        try:
            one, other = source.parameter(row["source"]), target.parameter(row["target"])
            matrix_shape(one)
            matrix_shape(other)
        except GraftError as error:
            faults.append(str(error))
        else:
            pairs.append(Pair(one, other, row["direction"], row["rule"]))
    return pairs, faults


def _fqn(address: str) -> str:
    return address.partition("::")[0]
