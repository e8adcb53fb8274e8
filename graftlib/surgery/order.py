"""Fewer or more children in containers, as data: an **order** of the old names, as they shall stand.

In: a model, an order: a name that is missing is left out, one that stands twice is copied. Out: the model so, with what
counts the children: their names, the places that they hold (``layer_idx``), attributes above (``num_layers``); and what
every tensor was called before.
Elsewhere: whether it still computes what it should (`depth`, `experts`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from ..graph.structure import duplicate, own
from .blocks import inside, joined
from .search import Depths

__all__ = ["Order", "depths_of", "new_names", "old_name", "order_of", "rearrange", "renamed"]

# FQN of a container -> the old names of its children, as they shall stand.
Order = Mapping[str, tuple[str, ...]]
_PLACES = re.compile(r"_?(layer|block)?_?(idx|id|index|number)")
_COUNTS = re.compile(r"(num_|n_)?(hidden_)?(layers?|blocks?)|depth")


def order_of(model: nn.Module, times: Mapping[str, int]) -> Order:
    """The order in which some children stand so many times (by FQN; 0 leaves one out) and their siblings once."""
    containers = dict.fromkeys(fqn.rpartition(".")[0] for fqn in times)
    return {
        container: tuple(
            name
            for name in model.get_submodule(container)._modules
            for _ in range(times.get(joined(container, name), 1))
        )
        for container in containers
    }


def depths_of(model: nn.Module, order: Order) -> Depths:
    """For each container how many children it had, and which of them stand in it now."""
    olds = {container: [*model.get_submodule(container)._modules] for container in order}
    return tuple(
        (container, len(olds[container]), tuple(olds[container].index(name) for name in names))
        for container, names in order.items()
    )


def rearrange(model: nn.Module, order: Order) -> None:
    """Let the containers hold what the order says, in place; places and counts follow."""
    for container in sorted(order, key=lambda fqn: -fqn.count(".")):
        module = model.get_submodule(container)
        olds: dict[str, nn.Module] = dict(module._modules)  # type: ignore[arg-type]
        places = _places_in([*olds.values()])
        names = order[container]
        news = dict[str, nn.Module]()
        for name, old in zip(new_names([*olds], names), names, strict=True):
            again = any(olds[old] is each for each in news.values())
            news[name] = duplicate(olds[old], own) if again else olds[old]
        module._modules.clear()
        module._modules.update(news)
        for place, each in enumerate(news.values()):
            for inner, part in each.named_modules():
                for attribute in [*vars(part)]:
                    if (inner, attribute) in places:
                        vars(part)[attribute] = place + places[inner, attribute]
        if len(names) != len(olds):
            _count(model, container, len(olds), len(names))


def _places_in(modules: Sequence[nn.Module]) -> dict[tuple[str, str], int]:
    """(name of a module in a block, attribute) -> the number of the first block, where it counts the blocks."""
    firsts: dict[tuple[str, str], set[int]] = {}
    for place, module in enumerate(modules):
        for inner, part in module.named_modules():
            for attribute, value in vars(part).items():
                if type(value) is int and _PLACES.fullmatch(attribute):
                    firsts.setdefault((inner, attribute), set()).add(value - place)
    return {key: first.pop() for key, first in firsts.items() if len(first) == 1}


def _count(model: nn.Module, container: str, old: int, new: int) -> None:
    """Attributes that said how many blocks a container has, of it and above it, up to the next container."""
    words = container.split(".") if container else []
    for end in range(len(words), -1, -1):
        part = model.get_submodule(".".join(words[:end]))
        if end < len(words) and isinstance(part, (nn.ModuleList, nn.Sequential)):
            return
        for name, value in vars(part).items():
            if type(value) is int and value == old and _COUNTS.fullmatch(name):
                vars(part)[name] = new


def new_names(olds: Sequence[str], names: Sequence[str]) -> list[str]:
    """Of children in another order: numbers are counted anew; a copy with a name of its own has a number behind it."""
    numbered = [re.fullmatch(r"(.*?)(\d+)", name) for name in olds]
    first = numbered[0]
    if first and all(
        each and each[1] == first[1] and int(each[2]) == int(first[2]) + i
        for i, each in enumerate(numbered)
    ):
        return [f"{first[1]}{int(first[2]) + i}" for i in range(len(names))]
    news = list[str]()
    for i, name in enumerate(names):
        count = names[:i].count(name)
        news.append(f"{name}_{count}" if count else name)
    return news


def renamed(model: nn.Module, order: Order) -> Iterator[tuple[str, str, bool]]:
    """(new FQN, old FQN, whether it is a copy) of every child of the containers; `model` is as it was."""
    for container, names in order.items():
        olds = [*model.get_submodule(container)._modules]
        for i, new in enumerate(new_names(olds, names)):
            copied = names[i] in names[:i]
            yield joined(container, new), joined(container, names[i]), copied


def old_name(fqn: str, names: Sequence[tuple[str, str, bool]]) -> str:
    """What an FQN of the edited model was before; `names` as from `renamed`."""
    for new, old, _ in names:
        if inside(fqn, new):
            return f"{old}{fqn[len(new) :]}"
    return fqn
