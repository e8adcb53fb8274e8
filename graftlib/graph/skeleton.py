"""A model without its tensors: names, shapes, and what its modules say of themselves.

In: a model. Out: what the records of its layers and parameters are made of, as it was at that moment: an edit of the
model later on changes nothing here, and no memory of its tensors is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

__all__ = ["ModuleFacts", "Skeleton", "TensorFacts", "modules_of"]


class ModuleFacts(NamedTuple):
    """What is kept of a module: its class, and what some of torch's own say of their weights."""

    kind: type[nn.Module]
    groups: int = 1
    transposed: bool = False
    mode: str = ""


class TensorFacts(NamedTuple):
    """What is kept of a parameter: the name under which the tensor comes first, its shape and dtype."""

    origin: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Skeleton:
    """A model without its tensors.

    Attributes:
        modules: FQN -> facts, under all the names that a module has.
        parameters: FQN -> facts, likewise, in the order of `named_parameters`.
    """

    modules: dict[str, ModuleFacts]
    parameters: dict[str, TensorFacts]

    @classmethod
    def of(cls, model: nn.Module) -> Skeleton:
        """That of a model as it is now."""
        first: dict[int, str] = {}
        modules: dict[str, ModuleFacts] = {}
        parameters: dict[str, TensorFacts] = {}
        for fqn, module in modules_of(model, every_name=True):
            fields = module.__dict__
            modules[fqn] = ModuleFacts(
                type(module),
                fields.get("groups", 1),
                fields.get("transposed", False),
                fields.get("mode", ""),
            )
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    own = f"{fqn}.{name}" if fqn else name
                    origin = first.setdefault(id(tensor), own)
                    parameters[own] = TensorFacts(origin, tuple(tensor.shape), tensor.dtype)
        return cls(modules, parameters)

    def within(self, module: str) -> list[str]:
        """The parameters of a module, and of the modules in it, under all names that they have there."""
        return self._within.get(module, [])

    @cached_property
    def _within(self) -> dict[str, list[str]]:
        within: dict[str, list[str]] = {}
        for fqn in self.parameters:
            around = fqn
            while around:
                around = around.rpartition(".")[0]
                within.setdefault(around, []).append(fqn)
        return within


def modules_of(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """(FQN, module) of a model and all in it, as `named_modules` gives them, at a fraction of its cost.

    Args:
        model: the root, whose name is ``""``.
        every_name: give a module once for each name that it has, not under its first one alone.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module | None]] = [("", model)]
    while waiting:
        fqn, module = waiting.pop()
        if module is None or (id(module) in seen and not every_name):
            continue
        seen.add(id(module))
        yield fqn, module
        if module._modules:
            prefix = f"{fqn}." if fqn else ""
            waiting += [(prefix + name, each) for name, each in [*module._modules.items()][::-1]]
