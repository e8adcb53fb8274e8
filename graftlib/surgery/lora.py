"""Ranks of low-rank adapters of the `peft` library: they are the adapter's settings, no units of the model.

In: a model and axis classes. Out: which classes are ranks. After an edit of one, asked for by hand, the settings that
`peft` saves follow: `r`, and `lora_alpha` so that the adapter's scale stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import isclose, sqrt
from typing import Any

from torch import nn

from ..graph.axes import AxisClass
from ..graph.skeleton import modules_of

__all__ = ["ranks", "refresh_ranks"]


def ranks(model: nn.Module, classes: Iterable[AxisClass]) -> set[AxisClass]:
    """The classes that lie within adapters alone."""
    inside = tuple(
        f"{fqn}.{name}." if fqn else f"{name}."
        for fqn, layer in modules_of(model)
        if "base_layer" in layer._modules
        for name in getattr(type(layer), "adapter_layer_names", ())
    )
    return {
        each for each in classes if inside and all(m.fqn.startswith(inside) for m in each.members)
    }


def refresh_ranks(model: nn.Module) -> None:
    """Set `r` and `lora_alpha` of LoRA layers, in place, and of the configs that `peft` saves, by the tensors."""
    settings: dict[str, dict[str, tuple[int, float]]] = {}
    changed = False
    layer: Any
    for fqn, layer in modules_of(model):
        if "base_layer" not in layer._modules or not hasattr(layer, "lora_alpha"):
            continue
        for adapter, old in layer.r.items():
            rank = _rank(layer, adapter)
            if rank is None:
                continue
            if rank != old:
                rooted = not isclose(layer.scaling[adapter], layer.lora_alpha[adapter] / old)
                layer.lora_alpha[adapter] *= sqrt(rank / old) if rooted else rank / old
                layer.r[adapter] = rank
                changed = True
            settings.setdefault(adapter, {})[fqn] = rank, layer.lora_alpha[adapter]
    for fqn, module in modules_of(model) if changed else ():
        configs = vars(module).get("peft_config")
        if configs:  # of the outermost, which the modules inside share
            for adapter, config in configs.items():
                _say(config, fqn, settings.get(adapter, {}))
            return


def _rank(layer: Any, adapter: str) -> int | None:
    for name, axis in (("lora_A", 0), ("lora_embedding_A", 0)):
        matrices = layer._modules.get(name, getattr(layer, name, {}))
        if adapter in matrices:
            matrix = matrices[adapter]
            return int(getattr(matrix, "weight", matrix).shape[axis])
    return None


def _say(config: Any, fqn: str, layers: dict[str, tuple[int, float]]) -> None:
    """The rank and alpha that most layers have, and a pattern for each of the others."""
    common = Counter(layers.values()).most_common(1)
    if not common:
        return
    (config.r, config.lora_alpha), _ = common[0]
    prefix = f"{fqn}.model." if fqn else "model."
    others = {
        name.removeprefix(prefix): each for name, each in layers.items() if each != common[0][0]
    }
    config.rank_pattern = {name: rank for name, (rank, _) in others.items()}
    config.alpha_pattern = {name: alpha for name, (_, alpha) in others.items()}
