"""The tensors of a value: one notion for what a forward pass takes and for what it gives out.

Registered pytrees are opened as torch opens them; below them mappings, sequences, and objects by their attributes:
dataclasses, namespaces, batches, `UserDict`, distributions. Inside an object that is no registered pytree, a tensor
that stands in several places is one tensor; a value is never changed.
A cache that a language model fills and is handed again (a `transformers` ``Cache``) is the state of a loop, and counts
neither as input nor as output.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import itertools
import struct
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from .._torch_private import pytree
from ..errors import TraceError

__all__ = ["Flat", "is_plain", "output_tensors", "replaced", "tensor_leaves"]

# In none of these can a tensor hide.
_BARE = (
    type(None),
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    range,
    slice,
    type,
    enum.Enum,
    PurePath,
    types.ModuleType,
    types.BuiltinFunctionType,
    weakref.ref,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    torch.SymInt,
    torch.SymFloat,
    torch.SymBool,
    torch.Generator,
)


@dataclasses.dataclass(frozen=True, eq=False)
class _Key:
    """A key of a mapping that holds a tensor: nothing can take its place."""

    key: Any


_WORD = struct.calcsize("P")
_CACHES = {("transformers.cache_utils", "Cache")}


def tensor_leaves(value: Any) -> list[Tensor]:
    """The tensors of `value`, in order."""
    return [leaf for _, leaf, _ in _walk(value, "") if isinstance(leaf, Tensor)]


def output_tensors(value: Any) -> list[Tensor]:
    """The tensors of what a forward pass gave out, in order.

    Raises:
        TraceError: a part of it cannot be opened, and may hold what the model computed.
    """
    tensors: list[Tensor] = []
    for path, leaf, owner in _walk(value, ""):
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif not _is_bare(leaf):
            raise _unseen(path, leaf, owner)
    return tensors


def is_plain(value: Any) -> bool:
    """Whether torch's pytrees alone see every tensor of `value`."""
    leaves = pytree.tree_leaves(value)
    return all(isinstance(leaf, Tensor) or not tensor_leaves(leaf) for leaf in leaves)


def replaced(value: Any, tensors: Iterable[Tensor]) -> Any:
    """`value` again: its containers copied, and `tensors` in the places of its own.

    Args:
        value: stays as it is.
        tensors: as many as `tensor_leaves` gives, in that order.

    Raises:
        TraceError: an object in it refuses to be copied.
    """
    leaves, spec = pytree.tree_flatten(value)
    source = iter(tensors)
    return pytree.tree_unflatten([_filled(leaf, source) for leaf in leaves], spec)


def _filled(leaf: Any, source: Iterator[Tensor]) -> Any:
    if isinstance(leaf, Tensor):
        return next(source)
    if isinstance(leaf, _BARE) and not _is_bound(leaf):
        return leaf
    inner = tensor_leaves(leaf)
    memo = dict(zip(map(id, inner), itertools.islice(source, len(inner)), strict=True))
    try:
        return copy.deepcopy(leaf, memo)
    except Exception as error:
        name = type(leaf).__name__
        raise TraceError(
            f"an input of type '{name}' cannot be copied, and no forward pass is run on the original.",
            why=f"{type(error).__name__}: {error}"[:200],
            fix=f"pass its tensors, make copy.deepcopy work, or {_register(type(leaf))}",
            type=type(leaf),
        ) from error


def _walk(
    value: Any, path: str, seen: set[int] | None = None, owner: type | None = None
) -> Iterator[tuple[str, Any, type | None]]:
    """(path, leaf, type of the object it is in) for whatever is no container.

    Args:
        value: anything.
        path: words that lead to it.
        seen: what was met inside the object that is no pytree; None outside of one.
        owner: the type of that object.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, _BARE) and tensor_leaves(key):
                yield path, _Key(key), type(value)
    if isinstance(value, _BARE) and not _is_bound(value):
        yield path, value, owner
        return
    if seen is None and not isinstance(value, Tensor):
        parts, spec = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
        if not spec.is_leaf():
            words = list(value) if isinstance(value, Mapping) else []
            for i, part in enumerate(parts):
                word = words[i] if len(words) == len(parts) else i
                yield from _walk(part, f"{path}[{word!r}]")
            return
        seen, owner = set(), type(value)
    if seen is not None:
        if id(value) in seen or _is_cache(value):
            return
        seen.add(id(value))
    children = None if isinstance(value, Tensor) else _children(value)
    if children is None:
        yield path, value, owner
        return
    for word, child in children:
        yield from _walk(child, path + word, seen, owner)
    if _holds_more(value):
        yield path, value, owner


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """(word, child) for all that an object holds; None where it cannot be opened."""
    if isinstance(value, (Iterator, types.FunctionType)):
        return None
    children: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        children += [(f"[{key!r}]", child) for key, child in value.items()]
    elif isinstance(value, Sequence):
        children += [(f"[{i}]", child) for i, child in enumerate(value)]
    elif isinstance(value, types.MethodType) or _is_bound(value):
        children += [(".__self__", value.__self__)]
    elif not _names(value) and not hasattr(value, "__dict__"):
        return None
    return children + [(f".{name}", getattr(value, name)) for name in _names(value)]


def _names(value: Any) -> list[str]:
    """The attributes that an object itself holds, in a ``__dict__`` or in slots."""
    names = list(getattr(value, "__dict__", ()))
    for kind in type(value).__mro__:
        names += _slots(kind)
    return [name for name in names if hasattr(value, name) and not name.startswith("__")]


def _slots(kind: type) -> Sequence[str]:
    slots = kind.__dict__.get("__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)


def _holds_more(value: Any) -> bool:
    """Whether an object written in C, such as a `functools.partial`, has a part that no attribute shows."""
    if isinstance(value, (Tensor, Mapping, Sequence, types.MethodType)) or _is_bound(value):
        return False
    slots = sum(len(_slots(kind)) for kind in type(value).__mro__)
    return type(value).__basicsize__ > object.__basicsize__ + _WORD * (
        slots + 2
    )  # attributes, weak references


def _is_bound(value: Any) -> bool:
    """Whether it is a method of a tensor, such as ``y.add``."""
    return isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, Tensor)


def _is_cache(value: Any) -> bool:
    return any((kind.__module__, kind.__name__) in _CACHES for kind in type(value).__mro__)


def _is_bare(value: Any) -> bool:
    return isinstance(value, _BARE) or (
        isinstance(value, types.FunctionType) and not value.__closure__
    )


def _unseen(path: str, value: Any, owner: type | None) -> TraceError:
    name = type(value).__name__
    why = "what leaves the model fixes the order of its units, so all of it has to be seen"
    if isinstance(value, Iterator):
        why = "it computes only when it is read"
    if isinstance(value, _Key):
        name = f"{owner.__name__ if owner else 'mapping'} with a tensor in a key"
    return TraceError(
        f"the forward pass gives out a '{name}', whose tensors cannot be seen.",
        where={"output": path or "the whole"},
        why=why,
        fix="give tuples, lists or dicts of tensors"
        + (f"; or {_register(owner)}" if owner else ""),
        type=type(value),
    )


def _register(kind: type) -> str:
    if dataclasses.is_dataclass(kind):
        return f"register the type: torch.export.register_dataclass({kind.__name__})"
    return (
        "register the type: torch.utils._pytree.register_pytree_node"
        f"({kind.__name__}, flatten, unflatten)"
    )


class Flat(nn.Module):
    """A model that takes the tensors of its arguments one by one, and gives out those of its results as a tuple.

    Args:
        model: is called.
        args: positional arguments; the tensors in them are the first ones it takes.
        kwargs: arguments by name.
    """

    def __init__(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        # In a closure: an attribute that holds tensors would be taken for a part of the model.
        value = (tuple(args), dict(kwargs))
        self._filled: Callable[[Iterable[Tensor]], Any] = lambda tensors: replaced(value, tensors)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the model."""
        args, kwargs = self._filled(tensors)
        return tuple(output_tensors(self.model(*args, **kwargs)))
