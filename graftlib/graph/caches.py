"""Tensors that a forward pass makes from the weights and keeps for the next one.

A cache is a tensor in a plain attribute (also in dicts, lists and objects there) that the forward pass makes again
where it is missing, and from the weights alone. An edit of the weights leaves it as it was, and its reader answers
wrongly, so that caches are dropped from whatever is traced, checked or handed over. What the forward pass does not make
again, or makes from something else (positions, masks, what an earlier input left), is a constant: it stays, and freezes
the axes that it meets. Buffers are seen as what they are.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .._torch_private import StorageWeakRef, pytree
from ..errors import GraftError
from . import structure
from .capture import TURN, device_of, undisturbed
from .recorder import record, to_device
from .shapes import known_result
from .skeleton import modules_of
from .tensors import tensor_leaves

__all__ = [
    "Caches",
    "Place",
    "copy_to_edit",
    "drop_caches",
    "find_caches",
    "kept_tensors",
    "shell_to_edit",
    "without_caches",
]


class Traced(Protocol):
    """What of a layer graph an edit of its model must know."""

    _constants: frozenset[Place]

    @property
    def example(self) -> Example: ...


# (FQN of a module, name of its attribute)
Place = tuple[str, str]
Example = tuple[Sequence[Any], Mapping[str, Any]]

WEIGHTS, INPUTS = 1, 2
# Ops that look at the shape of a tensor, not at its values.
_SHAPE_ONLY = ("new_", "zeros_like", "ones_like", "empty_like", "full_like", "rand", "sym_")
_DEPTH = 4
_PLAIN = frozenset((str, int, float, bool, bytes, type(None), torch.dtype, torch.device))
_CONTAINERS = frozenset(
    (dict, OrderedDict, set, list, tuple)
)  # most of those in a module are empty, or hold numbers
_REGISTRIES = frozenset(("_parameters", "_buffers", "_modules"))


@dataclass(frozen=True)
class _Drop:
    """How a tensor is taken away: an attribute that holds one, and an entry of a dict or list that holds one."""

    attribute: str  # "none", "delete" or "empty": no elements
    entry: str


# As lazy attributes are written: `x = None`, no entry under this key, an entry of None, no attribute, no elements.
_WAYS = (
    _Drop("none", "delete"),
    _Drop("none", "none"),
    _Drop("delete", "delete"),
    _Drop("empty", "empty"),
)


@dataclass(frozen=True)
class Caches:
    """Where a model keeps what it made from its weights.

    Attributes:
        places: (module, attribute) -> how it is emptied so that the forward pass fills it again.
    """

    places: Mapping[Place, _Drop]

    def drop(self, model: nn.Module) -> None:
        """Empty them, in place; the next forward pass fills them again."""
        for (fqn, attribute), way in self.places.items():
            fields = model.get_submodule(fqn).__dict__
            if attribute in fields:
                _drop(fields, attribute, way)

    def without(self, model: nn.Module) -> nn.Module:
        """The model itself where there are none; otherwise its structure again, in eval mode, with them empty.

        The tensors are the model's own, under the same names.
        """
        if not self.places:
            return model
        twin = structure.shell(model)
        self.drop(twin)
        return twin


def find_caches(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Caches:
    """The caches of a model that may have run: what its forward pass makes again, from the weights alone.

    Costs nothing where no plain attribute holds a tensor; otherwise a forward pass without values, or several.
    """
    places = kept_tensors(model)
    if not places:
        return Caches({})
    probe = _Probe(model, (tuple(args), dict(kwargs or {})))
    ways, _ = _refilled(probe, places, lambda origin: origin == WEIGHTS, thorough=False)
    return Caches(ways)


def copy_to_edit(
    model: nn.Module,
    graph: Traced,
    error: type[GraftError],
    change: Callable[[Tensor], Tensor] = structure.own,
) -> nn.Module:
    """A copy of a model with tensors of its own, and without what an edit of them would make stale.

    Training flags stay. What refuses to be copied (a lock, an open file) is shared.

    Args:
        model: the traced one, or another of the same structure; already unwrapped.
        graph: it was traced to.
        error: what is raised.
        change: makes a tensor of the copy of one of the model.

    Raises:
        GraftError: (as `error`) an attribute that is read holds a tensor that was not there when the model was traced,
            and the forward pass does not make it again.
    """
    caches = _stale(model, graph, error)
    twin = structure.duplicate(model, change)
    caches.drop(twin)
    return twin


def shell_to_edit(model: nn.Module, graph: Traced, error: type[GraftError]) -> nn.Module:
    """The model over the same tensors without what an edit of them would make stale; the rest as for `copy_to_edit`."""
    return _stale(model, graph, error).without(model)


def drop_caches(model: nn.Module, graph: Traced, error: type[GraftError]) -> None:
    """Take away, in place, what an edit would make stale; arguments and errors as for `copy_to_edit`."""
    _stale(model, graph, error).drop(model)


def _stale(model: nn.Module, graph: Traced, error: type[GraftError]) -> Caches:
    """What runs have left in a model since it was traced."""
    places = [place for place in kept_tensors(model) if place not in graph._constants]
    if not places:
        return Caches({})
    probe = _Probe(model, graph.example)
    ways, rest = _refilled(probe, places, lambda origin: True, thorough=True)
    if rest:
        as_it_is = probe.run({})
        read = [place for place in rest if as_it_is is None or as_it_is.read(place)]
        if read:
            fqn, attribute = read[0]
            raise error(
                f"'{f'{fqn}.{attribute}'.lstrip('.')}' holds a tensor that was not there when the model was traced.",
                where={"module": f"{type(model.get_submodule(fqn)).__name__} '{fqn}'"},
                why="the forward pass reads it and does not make it again, so that it would outlive the weights that "
                "it may be made from",
                fix=f"set '{attribute}' back to what it was before the model ran, or trace the model again",
            )
    return Caches(ways)


def without_caches(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> nn.Module:
    """A model over the same tensors that makes anew what it keeps of its weights; see `Caches.without`."""
    return find_caches(model, args, kwargs).without(model)


def kept_tensors(model: nn.Module) -> list[Place]:
    """The attributes that hold tensors, themselves or inside of them, which are no parameters or buffers."""
    held = [
        ((fqn, name), list(_tensors(value)))
        for fqn, module in modules_of(model)
        for name, value in module.__dict__.items()
        if (kind := type(value)) not in _PLAIN
        and name not in _REGISTRIES
        and (kind not in _CONTAINERS or (value and not _PLAIN.issuperset(map(type, _items(value)))))
    ]
    if not any(tensors for _, tensors in held):
        return []
    registered = {id(t) for t in [*model.parameters(), *model.buffers()]}
    return [place for place, tensors in held if any(id(t) not in registered for t in tensors)]


# --- walking ----------------------------------------------------------------------------------------------------------


def _tensors(value: Any, depth: int = _DEPTH, seen: set[int] | None = None) -> Iterator[Tensor]:
    """The tensors in a value, in dicts, lists, tuples and plain objects."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        yield value
    elif depth and type(value) not in _PLAIN and id(value) not in seen:
        seen.add(id(value))
        for item in _inside(value):
            yield from _tensors(item, depth - 1, seen)


def _items(container: Any) -> Iterable[Any]:
    return [*container, *container.values()] if isinstance(container, dict) else container


def _holds(value: Any) -> bool:
    return any(True for _ in _tensors(value))


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, deque)):
        return list(value)
    return list(_fields(value).values())


def _fields(value: Any) -> dict[str, Any]:
    """The attributes of a plain object; none of a module, a class or a function."""
    if isinstance(value, (nn.Module, type, FunctionType, MethodType, BuiltinFunctionType)):
        return {}
    fields = getattr(value, "__dict__", None)
    return fields if isinstance(fields, dict) else {}


def _drop(fields: dict[str, Any], name: str, way: _Drop, depth: int = _DEPTH) -> None:
    """Take the tensors of one attribute away, in place."""
    value = fields[name]
    if isinstance(value, (Tensor, tuple)):
        if way.attribute == "delete":
            del fields[name]
        else:
            fields[name] = _emptied(value, way.attribute)
    elif isinstance(value, MutableMapping):
        for key in [key for key, item in value.items() if _holds(key) or _holds(item)]:
            if way.entry == "delete" or _holds(key):
                del value[key]
            else:
                value[key] = _emptied(value[key], way.entry)
    elif isinstance(value, (list, deque)):
        items = [
            _emptied(item, way.entry) if _holds(item) else item
            for item in value
            if way.entry != "delete" or not _holds(item)
        ]
        value.clear()
        value.extend(items)
    elif depth:
        inner = _fields(value)
        for key in [key for key, item in inner.items() if _holds(item)]:
            _drop(inner, key, way, depth - 1)


def _emptied(value: Any, way: str) -> Any:
    if way == "none" or not isinstance(value, Tensor):
        return None
    return value.new_empty(0)


# --- running ----------------------------------------------------------------------------------------------------------


class _Outcome:
    """A model after a run, and where the tensors come from."""

    def __init__(self, model: nn.Module, origins: _Origins) -> None:
        self._model, self._origins = model, origins
        self._registered = {id(t) for t in [*model.parameters(), *model.buffers()]}

    def origins(self, place: Place) -> list[int]:
        """The origin of each tensor that a place holds now, and did not before the run."""
        fqn, attribute = place
        value = self._model.get_submodule(fqn).__dict__.get(attribute)
        before = self._origins.places
        new = [t for t in _tensors(value) if id(t) not in self._registered and id(t) not in before]
        return [self._origins.of(tensor) for tensor in new]

    def read(self, place: Place) -> bool:
        """Whether an op read a tensor that the place held before the run."""
        return place in self._origins.read


class _Probe:
    """Runs copies of a model, without values where that is possible."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        self._model, self._example = model, example
        self._meta = True
        self._checked = False

    def run(self, ways: Mapping[Place, _Drop]) -> _Outcome | None:
        """The outcome of a run after `ways` were dropped; None where the model does not run without them."""
        outcome = self._try(ways)
        if outcome is None and self._meta and not self._checked:
            self._checked = True
            if self._try({}) is None:  # it needs values
                self._meta = False
                outcome = self._try(ways)
        return outcome

    def _try(self, ways: Mapping[Place, _Drop]) -> _Outcome | None:
        home = torch.device("meta") if self._meta else device_of(self._model)
        change = structure.like_meta if self._meta else structure.alias
        twin = structure.rebuild(self._model, change)
        Caches(ways).drop(twin)
        args, kwargs = (
            structure.copy_value(self._example, change)
            if self._meta
            else to_device(self._example, home)
        )
        weights = [*twin.parameters(), *twin.buffers()]
        inputs = tensor_leaves((args, kwargs))
        origins = _Origins(weights, inputs, _by_place(twin))
        try:
            with TURN, undisturbed(), home:
                record(twin, args, kwargs, origins)
        except Exception:  # a model may raise anything
            return None
        return _Outcome(twin, origins)


def _by_place(model: nn.Module) -> dict[Place, list[Tensor]]:
    return {
        (fqn, name): list(_tensors(model.get_submodule(fqn).__dict__[name]))
        for fqn, name in kept_tensors(model)
    }


class _Origins:
    """Follows which tensors are made from the weights, and which from the inputs; by memory, so that views count."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        inputs: Sequence[Tensor],
        kept: Mapping[Place, Sequence[Tensor]],
    ) -> None:
        # The weak reference keeps the address from being used again.
        self._known: dict[int, tuple[int, StorageWeakRef]] = {}
        self.places = {id(t): place for place, tensors in kept.items() for t in tensors}
        self._alive = kept
        self.read: set[Place] = set()
        for tensor in weights:
            self._mark(tensor, WEIGHTS)
        for tensor in inputs:
            self._mark(tensor, INPUTS)

    def of(self, tensor: Tensor) -> int:
        """`WEIGHTS`, `INPUTS`, both (their sum) or neither (0)."""
        storage = _storage(tensor)
        return self._known.get(storage.cdata, (0, None))[0] if storage is not None else 0

    def _mark(self, tensor: Tensor, origin: int) -> None:
        storage = _storage(tensor)
        if storage is not None:
            self._known[storage.cdata] = (self.of(tensor) | origin, storage)

    def __call__(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], compute: Callable[[], Any]
    ) -> Any:
        operands = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        known: Any = known_result(func, args, kwargs)
        result = compute() if known is None else known
        self.read.update(self.places[id(t)] for t in operands if id(t) in self.places)
        if not func._schema.name.removeprefix("aten::").startswith(_SHAPE_ONLY):
            origin = 0
            for tensor in operands:
                origin |= self.of(tensor)
            if origin:
                written = operands[:1] if func._schema.is_mutable else []
                for leaf in [*pytree.tree_leaves(result), *written]:
                    if isinstance(leaf, Tensor):
                        self._mark(leaf, origin)
        return result


def _storage(tensor: Tensor) -> StorageWeakRef | None:
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):
        return None  # sparse, quantised: no memory of its own to follow


def _refilled(
    probe: _Probe, places: Sequence[Place], right: Callable[[int], bool], *, thorough: bool
) -> tuple[dict[Place, _Drop], list[Place]]:
    """(place -> the way to drop it so that it is filled again, from what is `right`; the other places)."""
    ways: dict[Place, _Drop] = {}

    def filled(outcome: _Outcome, place: Place) -> bool:
        return any(map(right, outcome.origins(place)))

    first = probe.run(dict.fromkeys(places, _WAYS[0]))
    if first is not None:
        ways = {place: _WAYS[0] for place in places if filled(first, place)}
    if first is None or thorough:
        for kind in _kinds(probe._model, [place for place in places if place not in ways]):
            for way in _WAYS:
                outcome = probe.run({**ways, **dict.fromkeys(kind, way)})
                again = [] if outcome is None else [p for p in kind if filled(outcome, p)]
                if again:
                    ways.update(dict.fromkeys(again, way))
                    break
    return ways, [place for place in places if place not in ways]


def _kinds(model: nn.Module, places: Sequence[Place]) -> list[list[Place]]:
    """Places that are alike, in modules of one class: what holds for one holds for all."""
    kinds: OrderedDict[tuple[type, str], list[Place]] = OrderedDict()
    for fqn, attribute in places:
        kinds.setdefault((type(model.get_submodule(fqn)), attribute), []).append((fqn, attribute))
    return list(kinds.values())
