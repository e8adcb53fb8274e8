"""Whole numbers that remember what they were computed from: a size of a tensor, an attribute of a module.

In: a scratch model whose attributes were tagged, and a forward pass. Out: terms. A term is a whole number, or a tuple:
an attribute, a dimension of a tensor, or a sum, difference, product or quotient of two terms. Always true: a tagged
number computes, compares and prints as the number it is; once its log is closed, what is computed from it is plain.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..graph.skeleton import modules_of

__all__ = ["Log", "Place", "Shapes", "Tagged", "Term", "numbers", "places", "put", "tag"]

# A module's FQN, and the way from there: names of attributes, the last maybe followed by an index.
Place = tuple[str, tuple[str | int, ...]]
Term = Any


class Log:
    """Equations between terms that the forward pass asked about, as long as it is open.

    Attributes:
        open: whether numbers still remember.
        equal: pairs of terms that a comparison found equal.
    """

    def __init__(self) -> None:
        self.open = True
        self.equal: list[tuple[Term, Term]] = []


class Tagged(int):
    """A whole number with the term that it is the value of."""

    term: Term
    log: Log

    def __new__(cls, value: int, term: Term, log: Log) -> Tagged:
        """The number `value`."""
        tagged = super().__new__(cls, value)
        tagged.term = term
        tagged.log = log
        return tagged

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other) if isinstance(other, int) else NotImplemented
        if same is True and isinstance(other, Tagged) and self.log.open:
            self.log.equal.append((self.term, other.term))
        return same

    def __ne__(self, other: object) -> bool:
        same = self.__eq__(other)
        return same if same is NotImplemented else not same

    __hash__ = int.__hash__

    def __deepcopy__(self, memo: object) -> Tagged:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def _remembering(word: str, function: Callable[[int, int], Any], swapped: bool) -> Any:
    def method(self: Tagged, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        left, right = (other, self) if swapped else (self, other)
        value = function(int(left), int(right))
        if not self.log.open:
            return value
        terms = (getattr(left, "term", int(left)), getattr(right, "term", int(right)))
        return Tagged(value, (word, *terms), self.log)

    return method


for _word, _name, _function in (
    ("*", "mul", operator.mul),
    ("+", "add", operator.add),
    ("-", "sub", operator.sub),
    ("//", "floordiv", operator.floordiv),
):
    setattr(Tagged, f"__{_name}__", _remembering(_word, _function, swapped=False))
    setattr(Tagged, f"__r{_name}__", _remembering(_word, _function, swapped=True))


class Shapes(TorchFunctionMode):
    """While entered, sizes that are read off tensors are tagged, and the innermost call is known by its arguments.

    Args:
        log: of the numbers.
        source: what stands for a tensor in a term; None where it is not known.

    Attributes:
        call: the numbers among the arguments of the innermost call.
    """

    def __init__(self, log: Log, source: Callable[[Tensor], object | None]) -> None:
        super().__init__()
        self.log, self.source = log, source
        self.call: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SHAPES:
            return self._tagged(args[0], func(*args, **kwargs), args[1:], kwargs)
        if func in _PLAIN:
            return func(*args, **kwargs)
        outer, self.call = self.call, list(numbers((args, kwargs)))
        try:
            return func(*args, **kwargs)
        finally:
            self.call = outer

    def _tagged(self, tensor: Tensor, size: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        source = self.source(tensor)
        if source is None:
            return size
        if isinstance(size, int):
            dim = int(args[0] if args else kwargs["dim"]) % tensor.ndim
            return Tagged(size, ("of", source, dim), self.log)
        return torch.Size(Tagged(n, ("of", source, dim), self.log) for dim, n in enumerate(size))


_SHAPES = {Tensor.shape.__get__, Tensor.size}  # type: ignore[attr-defined]
_PLAIN = {
    getattr(Tensor, name).__get__ for name in ("dtype", "device", "ndim", "is_cuda", "layout")
} | {Tensor.dim, Tensor.is_floating_point}


def numbers(value: Any) -> Iterator[int]:
    """The whole numbers in nested arguments, in order; truth values are none."""
    if isinstance(value, int):
        if not isinstance(value, bool):
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, slice):
        yield from numbers((value.start, value.stop, value.step))


def tag(twin: nn.Module, original: nn.Module, log: Log) -> None:
    """Tag the whole numbers in the attributes of a scratch model, in place; what it shares with `original` stays."""
    sources = dict(original.named_modules())
    for path, module in twin.named_modules():
        own = sources.get(path)
        if own is None or own is module:
            continue
        for way, value in _attributes(module, own):
            _set(module, way, Tagged(value, ("at", (path, way)), log))


def places(model: nn.Module) -> dict[Place, int]:
    """Every attribute of a module, or of a plain object in it, that is a whole number."""
    return {
        (path, way): value
        for path, module in model.named_modules()
        for way, value in _attributes(module, None)
    }


def put(model: nn.Module, attributes: dict[Place, int]) -> None:
    """Set attributes, in place."""
    modules = dict(modules_of(model, every_name=True)) if attributes else {}
    for (path, way), value in attributes.items():
        _set(modules[path], way, value)


def _attributes(module: nn.Module, shared: nn.Module | None) -> list[tuple[tuple[Any, ...], int]]:
    tensors = [*module._parameters.values(), *module._buffers.values(), *module._modules.values()]
    if type(module).__module__.startswith("torch.nn.") and any(
        each is not None for each in tensors
    ):
        return []  # what these say is known by `stale`
    found: list[tuple[tuple[Any, ...], int]] = []
    for name, value in list(module.__dict__.items()):
        if name.startswith("_") or name == "training":
            continue
        mutual = shared is not None and shared.__dict__.get(name) is value
        _walk((name,), value, found, 0, mutual)
    return found


def _walk(way: tuple[Any, ...], value: Any, found: list[Any], depth: int, mutual: bool) -> None:
    if type(value) is int:
        if value > 1:
            found.append((way, value))
    elif type(value) in (tuple, list, torch.Size):
        if len(value) <= 8 and all(type(item) is int for item in value):
            found += [((*way, i), item) for i, item in enumerate(value) if item > 1]
    elif depth < 2 and not mutual and _is_record(value):
        for name, item in list(value.__dict__.items()):
            if not name.startswith("_"):
                _walk((*way, name), item, found, depth + 1, False)


def _is_record(value: Any) -> bool:
    if isinstance(value, (nn.Module, Tensor, type)) or callable(value):
        return False
    return hasattr(value, "__dict__") and not type(value).__module__.startswith("torch")


def _set(module: nn.Module, way: tuple[Any, ...], value: int) -> None:
    holder: Any = module
    *before, name = way
    place = name if isinstance(name, int) else None
    if place is not None:
        *before, name = before
    for word in before:
        holder = holder.__dict__[word]
    if place is not None:
        kind: Any = type(holder.__dict__[name])
        items = [*holder.__dict__[name]]
        items[place] = value
        value = kind(items)
    holder.__dict__[name] = value
