"""Units of biases on which the function provably does not depend.

Two cases are known: a bias of keys adds one number to every score of a softmax row, which softmax does not see; a bias
before an instance norm is subtracted with the mean. Units are followed by number (`provenance`) through ops that only
move elements; whatever else reads them sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..ops import arguments, does, name_of, spec, words
from ..provenance import NOTHING, Inexact, along, moved, thin
from ..walk import follow

__all__ = ["blind_parts"]

_SCALES = words("mul div to dropout alias contiguous")
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
    parts = {
        (fqn, 0): frozenset(units - seen[fqn]) for fqn, units in blind.items() if fqn not in visible
    }
    return {key: units for key, units in parts.items() if units}


def _bias(node: fx.Node) -> fx.Node | None:
    """The 1-D bias of a linear layer or a convolution; None for other nodes."""
    makes = spec(node).features
    if makes is None or makes.bias is None or len(node.args) <= makes.bias:
        return None
    bias = node.args[makes.bias]
    if isinstance(bias, fx.Node) and bias.op == "get_attr" and bias.meta["val"].ndim == 1:
        return bias
    return None


def _followed(node: fx.Node, units: int) -> tuple[set[int], set[int]]:
    """(units that reach only what is blind to them, units that something sees); no unit of the first: all are seen."""
    value = node.meta["val"]
    if spec(node).kind == "conv":
        alone = all(_forgets_means(user, node) for user in node.users)
        return set(range(units)) if alone and node.users else set(), set()
    # A quick no for most layers: their results are not moved about at all.
    if value.numel() > _MOST or not any(does(user) == "moves" for user in node.users):
        return set(), set()
    hidden: set[int] = set()
    seen: set[int] = set()
    start: Any = along(torch.arange(units, device="cpu"), -1, value.shape)
    for user, here, numbers, carried in follow(node, start, _moved):
        if not carried:
            alike = isinstance(numbers, Tensor) and _adds_to_every_score(user, here, numbers)
            (hidden if alike else seen).update(_units(numbers))
    return hidden - seen, seen


def _moved(user: fx.Node, here: fx.Node, numbers: Any) -> Any:
    """What an op that only moves elements makes of the numbers; None for other ops."""
    single = user.all_input_nodes == [here] and not name_of(user).startswith("view_as")
    if does(user) != "moves" or not single:
        return None
    try:
        return moved(user, {here: numbers})
    except Inexact:
        return None


def _units(numbers: Any) -> Iterator[int]:
    for tensor in numbers if isinstance(numbers, (list, tuple)) else [numbers]:
        # As `torch.unique`, which sorts.
        counts = torch.bincount(thin(tensor, keep=-1).flatten() - NOTHING)
        yield from (counts.nonzero().flatten() + NOTHING).tolist()


def _adds_to_every_score(user: fx.Node, here: fx.Node, numbers: Tensor) -> bool:
    """Whether `here` holds keys, and the bias in it is the same at every position."""
    if name_of(user) == "scaled_dot_product_attention":
        keys = user.args[1] is here and here not in (user.args[0], user.args[2])
        return keys and _same_along(numbers, -2)
    place = {"matmul": 1, "bmm": 1, "baddbmm": 2}.get(name_of(user))
    if place is None or [i for i, node in enumerate(user.args) if node is here] != [place]:
        return False
    return _same_along(numbers, -1) and _into_softmax(user)


def _same_along(numbers: Tensor, dim: int) -> bool:
    return numbers.stride(dim) == 0 or bool((numbers == numbers.narrow(dim, 0, 1)).all())


def _into_softmax(scores: fx.Node) -> bool:
    """Whether the scores only become the rows of a softmax, scaled or with something added on the way."""
    ends = [(user, here) for user, here, _, on in follow(scores, True, _still_scores) if not on]
    return bool(ends) and all(
        name_of(user) == "softmax" and user.args[1] in (-1, here.meta["val"].ndim - 1)
        for user, here in ends
    )


def _still_scores(user: fx.Node, scores: fx.Node, known: bool) -> bool | None:
    """True where each row of `user` is a row of scores, scaled or with something added; None where it is not."""
    name, shape = name_of(user), scores.meta["val"].shape
    others = [node for node in user.all_input_nodes if node is not scores]
    scaled = name in _SCALES and not any(node.meta["val"].ndim for node in others)
    if name in ("view", "reshape", "unflatten"):
        scaled = user.meta["val"].shape[-1] == shape[-1]
    shifted = name == "add" and user.meta["val"].shape == shape
    return True if (scaled or shifted) and user.args[0] is scores else None


def _forgets_means(user: fx.Node, here: fx.Node) -> bool:
    if user.op != "call_function" or user.args[0] is not here:
        return False
    named = arguments(user)
    if name_of(user) == "instance_norm":
        return named["use_input_stats"] is True
    channels = here.meta["val"].shape[1] if here.meta["val"].ndim > 1 else 0
    return name_of(user) == "group_norm" and named["num_groups"] == channels
