"""What every edit shares: which class is meant, whether it may be edited, new tensors in the place of old ones.

In: a model, the graph that it (or one of the same structure) was traced to. Out: checked requests, and tensors replaced
under all their names. Always true: nothing is written before everything was checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..arguments import check
from ..errors import nearest, shown
from ..graph import LayerGraph
from ..graph.axes import AxisClass, axes_of, axis_classes
from ..graph.axes.classes import constant_sizes
from ..graph.caches import copy_to_edit
from ..graph.skeleton import modules_of
from ..graph.structure import own, unwrap
from ..reports import Report
from .refusal import SurgeryError

__all__ = [
    "Preview",
    "Request",
    "Rows",
    "alike",
    "editable",
    "model_of",
    "must_be_traced",
    "owners_of",
    "preview",
    "requested",
    "resize",
    "resized",
    "rows_of",
    "tensor_of",
    "whole_numbers",
]

T = TypeVar("T")
# A class of the graph, its number in ``graph.axis_classes``, or a glob of layers: the classes that they make.
Request = AxisClass | int | str
Rows = dict[tuple[str, int], Tensor]


@dataclass(frozen=True)
class Preview(Report):
    """What each request of an edit hits.

    Attributes:
        hits: request -> the classes that it means, all of them free.
    """

    hits: Mapping[Request, tuple[AxisClass, ...]]

    def __str__(self) -> str:
        lines = []
        for request, classes in self.hits.items():
            name = request.members[0].fqn if isinstance(request, AxisClass) else request
            lines.append(f"{name}  {len(classes)} {'class' if len(classes) == 1 else 'classes'}")
            for each in classes:
                others = f" and {len(each.members) - 1} more" if len(each.members) > 1 else ""
                lines.append(f"  {each.size} units of {each.members[0]}{others}")
        return "\n".join(lines)


def preview(graph: LayerGraph, requests: Iterable[Request]) -> Preview:
    """What an edit with these requests would change: the same for `permute`, `widen` and `prune`; nothing is run.

    Args:
        graph: from `graftlib.trace`.
        requests: classes, their numbers in ``graph.axis_classes``, or globs of layers (the classes that they make); the
            mapping that the edit takes, too.

    Raises:
        SurgeryError: a class is frozen, or is none of the graph's; a glob hits nothing, or two ask for one class.
    """
    classes = axis_classes(graph)
    hits: dict[Request, tuple[AxisClass, ...]] = {}
    asked: set[AxisClass] = set()
    for request in requests:
        hits[request] = tuple(map(_free, _meant(graph, classes, request)))
        for each in asked.intersection(hits[request]):
            raise SurgeryError(
                f"{shown(request)} asks for {each.size} units that another rule asks for.",
                where=_named(each),
                why="layers that add up, or read and write one stream, share an axis class",
                fix="ask for each class once",
            )
        asked.update(hits[request])
    return Preview(hits)


def requested(graph: LayerGraph, requests: Mapping[Request, T]) -> dict[AxisClass, T]:
    """What is asked for, by class; raises as `preview` does."""
    hits = preview(graph, requests).hits
    return {each: requests[key] for key, classes in hits.items() for each in classes}


def _named(each: AxisClass) -> dict[str, str]:
    return {"members": ", ".join(map(str, each.members[:3]))}


def _meant(graph: LayerGraph, classes: Sequence[AxisClass], key: object) -> list[AxisClass]:
    if isinstance(key, str):
        return _outputs_of(graph, key)
    if isinstance(key, int):
        if not 0 <= key < len(classes):
            raise SurgeryError(
                f"there is no axis class {key}.",
                why=f"'{graph.name}' has {len(classes)}",
                fix="look at graph.axis_classes",
            )
        return [classes[key]]
    if not isinstance(key, AxisClass):
        raise SurgeryError(
            f"{shown(key)} is no axis class.",
            fix="take one of graph.axis_classes, its number there, or a glob of layers",
        )
    if key not in classes:
        raise SurgeryError(
            f"a class of {key.size} units is none of this graph's.",
            where=_named(key),
            fix="take it from the axis_classes of the graph that you pass",
        )
    return [key]


def _outputs_of(graph: LayerGraph, pattern: str) -> list[AxisClass]:
    """The classes that the layers which `pattern` hits make, each once."""
    hits = [each for each in graph.parameters(pattern) if each.axes]
    if not hits:
        raise SurgeryError(
            f"{shown(pattern)} hits no layer.",
            near=lambda: nearest(
                pattern, list(dict.fromkeys(each.layer for each in graph.parameters()))
            ),
            fix="name layers as in model.named_modules(), with globs",
        )
    return list(dict.fromkeys(graph.axis_class(each.fqn) for each in hits))


def _free(each: AxisClass) -> AxisClass:
    if not each.free:
        raise SurgeryError(
            f"the {each.size} units of '{each.members[0].fqn}' cannot be edited.",
            where=_named(each),
            why=f"their order is frozen by {each.frozen_by}",
            fix="edit a class that is free",
        )
    return each


def model_of(
    graph: LayerGraph, model: nn.Module | None, inplace: bool = False, **arguments: Any
) -> nn.Module:
    """The model that a verb is to edit, out of its wrappers; None is the traced one.

    Args:
        graph: as the verb was given it, like the others.
        model: likewise.
        inplace: likewise.
        arguments: the verb's further ones, as for `check`.

    Raises:
        SurgeryError: an argument is not what it should be, or the model is a ScriptModule.
    """
    check(
        SurgeryError,
        graph=(graph, (LayerGraph,)),
        model=(model, (nn.Module, type(None))),
        inplace=(inplace, bool),
        **arguments,
    )
    return unwrap(graph.model if model is None else model, SurgeryError)


def editable(
    model: nn.Module,
    graph: LayerGraph,
    classes: Iterable[AxisClass],
    inplace: bool,
    change: Callable[[Tensor], Tensor] = own,
) -> nn.Module:
    """The model itself, or a copy with what `change` makes of its tensors, once these are known to be the graph's.

    Raises:
        SurgeryError: a tensor has another shape than the graph says, or is missing; or the model holds what a run
            made from its weights, and cannot be made to make it again.
    """
    must_be_traced(model, graph, (m.fqn for each in classes for m in each.members))
    return model if inplace else copy_to_edit(model, graph, SurgeryError, change)


def must_be_traced(model: nn.Module, graph: LayerGraph, names: Iterable[str]) -> None:
    """Raise SurgeryError where tensors of these names have other shapes than in the graph's model, or are missing."""
    wrong = []
    for fqn in dict.fromkeys(names):
        shape = _shape(model, fqn)
        known = shape if model is graph.model else _shape(graph.model, fqn)
        if shape != known:
            is_missing = f"'{fqn}' is missing"
            wrong.append(is_missing if shape is None else f"'{fqn}' {shape} instead of {known}")
    if wrong:
        raise SurgeryError(
            f"the model is not the one that was traced: {len(wrong)} tensors differ.",
            where={"first": "; ".join(wrong[:3])},
            fix="trace this model, and edit it by its own graph",
        )


def _shape(model: nn.Module, fqn: str) -> tuple[int, ...] | None:
    try:
        return tuple(tensor_of(model, fqn).shape)
    except AttributeError:
        return None


def whole_numbers(values: object) -> Tensor:
    """(n,) int64 on the CPU.

    Raises:
        SurgeryError: `values` are no list of whole numbers.
    """
    try:
        numbers = torch.as_tensor(values, device="cpu")
    except Exception as error:  # whatever the methods of a caller's object raise
        raise SurgeryError(
            f"{shown(values)} is no list of units.",
            why=str(error).partition("\n")[0][:200],
            fix="give their numbers: [0, 2, 5]",
        ) from None
    whole = numbers.numel() == 0 or not (
        numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool
    )
    if numbers.ndim != 1 or not whole:
        raise SurgeryError(
            f"{shown(values)} is no list of units.", fix="give their numbers: [0, 2, 5]"
        )
    return numbers.to(torch.int64)


def tensor_of(model: nn.Module, fqn: str) -> Tensor:
    """A parameter or buffer by name; AttributeError where there is none."""
    *path, name = fqn.split(".")
    for word in path:
        if word not in model._modules:
            raise AttributeError(fqn)
        model = model._modules[word]  # type: ignore[assignment]
    parameter = model._parameters.get(name)
    tensor: Tensor | None = parameter if parameter is not None else model._buffers.get(name)
    if not isinstance(tensor, Tensor):
        raise AttributeError(fqn)
    return tensor


def owners_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str, bool]]]:
    """`id` of a tensor -> (module, name, whether it is a parameter) of every place that holds it."""
    owners: dict[int, list[tuple[nn.Module, str, bool]]] = {}
    for _, module in modules_of(model):
        for name, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append((module, name, True))
        for name, buffer in module._buffers.items():
            owners.setdefault(id(buffer), []).append((module, name, False))
    return owners


def rows_of(graph: LayerGraph, units: Mapping[AxisClass, Tensor]) -> Rows:
    """(FQN, axis) -> for each place of the axis that holds these units of classes, the old place that it reads.

    Buffers that are the same everywhere along an axis, and are not saved, follow.
    """
    keys = dict.fromkeys((m.fqn, m.axis) for each in units for m in each.members)
    trees = {fqn: axes_of(graph, fqn) for fqn in dict.fromkeys(fqn for fqn, _ in keys)}
    rows = {(fqn, axis): trees[fqn][axis].positions(units) for fqn, axis in keys}
    followers = constant_sizes(graph, {each: len(places) for each, places in units.items()})
    return rows | {key: alike(size) for key, size in followers.items()}


def alike(size: int) -> Tensor:
    """(size,) int64: the places that an axis reads along which its tensor is the same everywhere."""
    return torch.zeros(size, dtype=torch.int64, device="cpu")


def resize(model: nn.Module, rows: Mapping[tuple[str, int], Tensor]) -> None:
    """Give tensors other sizes, in place, under all the names that they have.

    Args:
        model: whose tensors are replaced.
        rows: (FQN, axis) -> for each place of the new axis, the old place that it reads.
    """
    change = resized(model, rows)
    owners = owners_of(model)
    for fqn in dict.fromkeys(fqn for fqn, _ in rows):
        old = tensor_of(model, fqn)
        new: Any = change(old)
        for module, name, is_parameter in owners[id(old)]:
            tensors: dict[str, Any] = module._parameters if is_parameter else module._buffers
            tensors[name] = new


def resized(model: nn.Module, rows: Mapping[tuple[str, int], Tensor]) -> Callable[[Tensor], Tensor]:
    """Makes of each tensor of the model its own copy, of another size where `rows` (as in `resize`) says so."""
    axes: dict[int, dict[int, Tensor]] = {}
    for (fqn, axis), places in sorted(rows.items(), key=lambda item: item[0]):
        axes.setdefault(id(tensor_of(model, fqn)), {})[axis] = places

    def change(tensor: Tensor) -> Tensor:
        if id(tensor) not in axes:
            return own(tensor)
        values = tensor.detach()
        for axis, places in axes[id(tensor)].items():
            values = values.index_select(axis, places.to(values.device))
        return (
            nn.Parameter(values, tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else values
        )

    return change
