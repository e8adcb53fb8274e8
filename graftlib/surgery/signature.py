"""What two modules must agree in to be one model but for the values: shapes of tensors, and plain attributes.

In: a module. Out: a flat table of both, by name. A LoRA layer counts as the layer that it wraps, as it is again once it
is merged; its own matrices are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["Signature", "changes", "named_layers", "signature", "unsaved"]

# (FQN of a tensor, "") -> its shape; (FQN of a module, attribute) -> its value
Signature = Mapping[tuple[str, str], Any]
_PLAIN = (bool, int, float, str, type(None))
_INTERNAL = frozenset(vars(nn.Module()))


def named_layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(FQN, module) of all modules, those under an adapter of the `peft` library by the names of the bare model."""
    while hasattr(type(module), "adapter_layer_names") and "base_layer" in module._modules:
        module = module.get_submodule("base_layer")
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from named_layers(child, f"{prefix}.{name}" if prefix else name)


def signature(module: nn.Module) -> dict[tuple[str, str], Any]:
    """Shapes of parameters and buffers, and attributes that are numbers, texts, or lists and dicts of them."""
    entries: dict[tuple[str, str], Any] = {}
    for fqn, layer in named_layers(module):
        for name, tensor in {**layer._parameters, **layer._buffers}.items():
            if isinstance(tensor, Tensor):
                entries[f"{fqn}.{name}" if fqn else name, ""] = tuple(tensor.shape)
        for name, value in vars(layer).items():
            if name not in _INTERNAL and _plain(value):
                entries[fqn, name] = value
    return entries


def unsaved(module: nn.Module) -> dict[str, Tensor]:
    """FQN -> tensor, for buffers that a state dict leaves out and parameters that `save_pretrained` leaves out."""
    left_out = set(getattr(module, "_keys_to_ignore_on_save", None) or ())
    buffers = {
        f"{fqn}.{name}" if fqn else name: buffer
        for fqn, layer in named_layers(module)
        for name, buffer in layer._buffers.items()
        if buffer is not None and name in layer._non_persistent_buffers_set
    }
    return buffers | {
        name: parameter.detach()
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if name in left_out
    }


def _plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(_plain(key) and _plain(each) for key, each in value.items())
    return type(value) in _PLAIN


def changes(before: Signature, after: Signature) -> Iterator[tuple[float, float, str]]:
    """(old number, new number, FQN) of every axis, attribute and element of one that has another number now."""
    for key, old in before.items():
        new = after.get(key, old)
        if old != new:
            yield from ((a, b, key[0]) for a, b in _numbers(old, new) if a != b)


def _numbers(old: object, new: object) -> Iterator[tuple[float, float]]:
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        for one, other in zip(old, new, strict=True):
            yield from _numbers(one, other)
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() & new.keys():
            yield from _numbers(old[key], new[key])
    elif type(old) is type(new) and isinstance(old, (int, float)) and not isinstance(old, bool):
        yield old, new  # type: ignore[misc]
