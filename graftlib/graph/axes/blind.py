"""Units of biases on which the function provably does not depend.

In: a graph in the normal form. Out: (FQN, axis) -> units. Two cases are known: a bias of keys adds one number to every
score of a softmax row, which softmax does not see; a bias before an instance norm is subtracted with the mean.
Always true: units are followed by number through ops that only move elements; whatever else reads them sees them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from .lookahead import overload

__all__ = ["blind_parts"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MOVES = _words(
    """
    view reshape permute transpose t unflatten flatten squeeze unsqueeze contiguous clone alias
    select unbind split split_with_sizes chunk slice detach movedim swapaxes getitem expand to
    narrow
    """
)
_SCALES = _words(
    """
    mul div to dropout alias contiguous
    """
)
# Larger results than this are not followed: their members go unmarked.
_MOST = 4_000_000


def blind_parts(graph: fx.Graph) -> Mapping[tuple[str, int], frozenset[int]]:
    """(FQN of a bias, 0) -> the units that no output depends on."""
    blind: dict[str, set[int]] = {}
    seen: dict[str, set[int]] = {}
    visible: set[str] = set()
    for node in graph.nodes:
        bias = _bias(node)
        if bias is None:
            continue
        units = range(int(bias.meta["val"].shape[0]))
        hidden, read = _followed(node, len(units))
        if not hidden:
            visible.add(str(bias.target))
            continue
        blind.setdefault(str(bias.target), set()).update(hidden)
        # Another reader of the same bias sees all of it.
        others = units if len(bias.users) > 1 else ()
        seen.setdefault(str(bias.target), set()).update(read, others)
    found = {
        (fqn, 0): frozenset(units - seen[fqn]) for fqn, units in blind.items() if fqn not in visible
    }
    return {key: units for key, units in found.items() if units}


def _name(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    return overload(node).removeprefix("aten.").partition(".")[0]


def _bias(node: fx.Node) -> fx.Node | None:
    """The 1-D bias of a linear layer or a convolution; None for other nodes."""
    name = _name(node) if node.op == "call_function" else ""
    place = {"linear": 2, "addmm": 0, "conv1d": 2, "conv2d": 2, "conv3d": 2}.get(name)
    if place is None or len(node.args) <= place:
        return None
    bias = node.args[place]
    if isinstance(bias, fx.Node) and bias.op == "get_attr" and bias.meta["val"].ndim == 1:
        return bias
    return None


def _followed(node: fx.Node, units: int) -> tuple[set[int], set[int]]:
    """(units that reach only what is blind to them, units that something sees); no unit of the first: all are seen."""
    value = node.meta["val"]
    if _name(node).startswith("conv"):
        alone = all(_forgets_means(user, node) for user in node.users)
        return set(range(units)) if alone and node.users else set(), set()
    if value.numel() > _MOST or not any(_leads_to_keys(user) for user in node.users):
        return set(), set()
    numbers = torch.arange(units, dtype=torch.int32, device="cpu").expand(value.shape)
    hidden: set[int] = set()
    seen: set[int] = set()
    queue: list[tuple[fx.Node, Any]] = [(node, numbers)]
    while queue:
        here, numbers = queue.pop()
        for user in here.users:
            moved = _moved(user, here, numbers)
            if moved is not None:
                queue.append((user, moved))
            elif isinstance(numbers, Tensor) and _adds_to_every_score(user, here, numbers):
                hidden.update(_units(numbers))
            else:
                seen.update(_units(numbers))
    return hidden - seen, seen


def _leads_to_keys(user: fx.Node) -> bool:
    """A quick no for most layers: their results are not moved about at all."""
    return user.op == "call_function" and _name(user) in _MOVES


def _units(numbers: Any) -> Iterator[int]:
    for tensor in numbers if isinstance(numbers, (list, tuple)) else [numbers]:
        yield from torch.unique(_thin(tensor)).tolist()


def _thin(numbers: Tensor) -> Tensor:
    """One position of every dimension that is expanded."""
    for dim, stride in enumerate(numbers.stride()):
        if stride == 0 and numbers.shape[dim] > 1:
            numbers = numbers.narrow(dim, 0, 1)
    return numbers


def _moved(user: fx.Node, here: fx.Node, numbers: Any) -> Any:
    """What an op that only moves elements makes of the numbers; None for other ops."""
    if user.op != "call_function" or _name(user) not in _MOVES or user.all_input_nodes != [here]:
        return None
    if user.target is operator.getitem:
        return numbers[user.args[1]]
    if _name(user) in ("to", "contiguous", "clone", "alias", "detach"):
        return numbers
    if _name(user) in ("view", "reshape", "flatten", "unflatten"):
        return numbers.reshape(user.meta["val"].shape)
    return user.target(numbers, *user.args[1:], **user.kwargs)  # type: ignore[operator]


def _adds_to_every_score(user: fx.Node, here: fx.Node, numbers: Tensor) -> bool:
    """Whether `here` holds keys, and the bias in it is the same at every position."""
    name = _name(user) if user.op == "call_function" else ""
    if name == "scaled_dot_product_attention":
        keys = user.args[1] is here and here not in (user.args[0], user.args[2])
        return keys and _same_along(numbers, -2)
    place = {"matmul": 1, "bmm": 1, "baddbmm": 2}.get(name)
    if place is None or [i for i, node in enumerate(user.args) if node is here] != [place]:
        return False
    return _same_along(numbers, -1) and _into_softmax(user)


def _same_along(numbers: Tensor, dim: int) -> bool:
    return numbers.stride(dim) == 0 or bool((numbers == numbers.narrow(dim, 0, 1)).all())


def _into_softmax(scores: fx.Node) -> bool:
    """Whether the scores only become the rows of a softmax, scaled or with something added on the way."""
    if not scores.users:
        return False
    for user in scores.users:
        name = _name(user) if user.op == "call_function" else ""
        if name == "softmax" and user.args[1] in (-1, scores.meta["val"].ndim - 1):
            continue
        others = [node for node in user.all_input_nodes if node is not scores]
        scaled = name in _SCALES and not any(node.meta["val"].ndim for node in others)
        if name in ("view", "reshape", "unflatten"):
            scaled = user.meta["val"].shape[-1] == scores.meta["val"].shape[-1]
        shifted = name == "add" and user.meta["val"].shape == scores.meta["val"].shape
        if not ((scaled or shifted) and user.args[0] is scores and _into_softmax(user)):
            return False
    return True


def _forgets_means(user: fx.Node, here: fx.Node) -> bool:
    if user.op != "call_function" or user.args[0] is not here:
        return False
    if _name(user) == "instance_norm":
        return user.args[5] is True
    channels = here.meta["val"].shape[1] if here.meta["val"].ndim > 1 else 0
    return _name(user) == "group_norm" and bool(user.args[1] == channels)
