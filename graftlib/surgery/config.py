"""The config of an edited model: what `save_pretrained` writes, and what another process builds the model from.

In: an edited model, the sizes that changed. Out: its config with the new sizes, where a config can say them. Always
true: a field is set only where a model built from the new config (without values) has the edited model's shapes; a
model whose layers were narrowed differently has no such config, and keeps the old one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice, product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.axes import AxisClass, Member
from .edits import tensor_of
from .stale import HEADS, INNER, WIDTHS

__all__ = ["Sizes", "refresh_config", "sizes_changed"]

# name of a field -> old size -> the new ones that it may have
Sizes = Mapping[str, Mapping[int, set[int]]]
_TRIES = 16


def sizes_changed(
    model: nn.Module, rows: Mapping[tuple[str, int], Tensor], sizes: Mapping[AxisClass, int]
) -> Sizes:
    """What the fields of a config may have become; `model` is as it was before."""
    widths: dict[int, set[int]] = {}
    heads: dict[int, set[int]] = {}
    inner: dict[int, set[int]] = {}
    for (fqn, axis), places in rows.items():
        widths.setdefault(tensor_of(model, fqn).shape[axis], set()).add(len(places))
    blocks: dict[tuple[Any, ...], dict[int, int]] = {}
    for each, size in sizes.items():
        for m in each.members:
            blocks.setdefault(_block(m), {})[m.position] = size
    for (*_, factors), changed in blocks.items():
        if len(factors) > 1:
            now = [changed.get(i, size) for i, size in enumerate(factors)]
            inner.setdefault(factors[-1], set()).add(now[-1])
            for end in range(1, len(factors)):
                heads.setdefault(prod(factors[:end]), set()).add(prod(now[:end]))
    names = ((WIDTHS, widths), (HEADS, heads), (INNER, inner))
    return {name: found for words, found in names for name in words}


def _block(member: Member) -> tuple[Any, ...]:
    return member.fqn, member.axis, member.start, member.factors


def refresh_config(model: nn.Module, changed: Sizes) -> None:
    """Set the fields of ``model.config``, in place, where the new sizes can be said in them."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict") or _builds(model, config):
        return
    for fields in islice(_candidates(config, changed), _TRIES):
        candidate = copy.deepcopy(config)
        for name, size in fields.items():
            setattr(candidate, name, size)
        if _builds(model, candidate):
            for name, size in fields.items():
                setattr(config, name, size)
            return


def _candidates(config: Any, changed: Sizes) -> Iterator[dict[str, int]]:
    held = {name: config.__dict__.get(name) for name in changed}
    options = {
        name: [*sorted(changed[name][value] - {value}), value]
        for name, value in held.items()
        if type(value) is int and value in changed[name]
    }
    for sizes in product(*options.values()):
        yield dict(zip(options, sizes, strict=True))


def _builds(model: nn.Module, config: Any) -> bool:
    """Whether the model's class makes the model's shapes of a config."""
    kind: Any = type(model)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = kind(copy.deepcopy(config))
    except Exception:
        return False  # no class that is made from a config alone, or a size that it refuses
    return _shapes(built) == _shapes(model)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
