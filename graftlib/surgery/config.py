"""The config of an edited model: what `save_pretrained` writes, and what another process builds the model from.

In: a model as it was and as it is, and the new sizes of its classes. Out: its config with the new numbers, where a
config can say them; where it cannot, a `SurgeryWarning`, and the config stays.
Always true: a field is set only where the class, built without values from what would be saved, has the edited model's
shapes and attributes, or, where attributes differ, runs the same ops on the example.
Elsewhere: which fields they are (`search`), what is compared (`signature`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TraceError
from ..graph import LayerGraph
from ..graph.axes import AxisClass
from ..graph.capture import capture
from .fields import Path, numbers, set_field
from .refusal import SurgeryWarning
from .search import Fields, Search
from .signature import Signature, named_layers, signature

__all__ = ["ConfigState", "config_state", "refresh_config"]


@dataclass(frozen=True)
class ConfigState:
    """The parts of a model that have a config of their own, as they were before an edit.

    Attributes:
        graph: of the model.
        configs: FQN of a part -> a copy of its config.
        signatures: FQN of a part -> its shapes and attributes.
        inner: FQN of a part -> FQN of a module in it that holds a config -> the numbers of that config.
    """

    graph: LayerGraph
    configs: Mapping[str, Any]
    signatures: Mapping[str, Signature]
    inner: Mapping[str, Mapping[str, Mapping[Path, float]]]


def config_state(model: nn.Module, graph: LayerGraph) -> ConfigState:
    """What `refresh_config` must know of a model before it is edited."""
    parts = dict(_configured(model))
    return ConfigState(
        graph,
        {fqn: copy.deepcopy(part.config) for fqn, part in parts.items()},
        {fqn: signature(part) for fqn, part in parts.items()},
        {
            fqn: {name: dict(numbers(config)) for name, config in _configs(part)}
            for fqn, part in parts.items()
        },
    )


def refresh_config(
    edited: nn.Module, before: ConfigState, sizes: Mapping[AxisClass, int], *, stacklevel: int = 3
) -> None:
    """Set the numbers of the configs of an edited model, in place, where a config can say the new sizes.

    Args:
        edited: its configs are set, those of modules inside of it as well.
        before: `config_state` of the model before the edit.
        sizes: class -> how many units it has now.
        stacklevel: of the warning; 3 is the caller of the function that calls this one.

    Warns:
        SurgeryWarning: no config says the sizes; it names the tensors and the fields.
    """
    for fqn, part in _configured(edited):
        if fqn not in before.configs:
            continue
        problem = _refresh(edited, fqn, part, before, sizes)
        if problem:
            warnings.warn(
                f"the config of '{type(part).__name__}' cannot say what was edited: {problem} What save_pretrained "
                "writes, from_pretrained does not read back as this model; save the module itself (torch.save).",
                SurgeryWarning,
                stacklevel=stacklevel,
            )


def _configured(model: nn.Module, fqn: str = "") -> Iterator[tuple[str, Any]]:
    """(FQN, module) of the outermost modules whose class is built from a config of theirs."""
    kind = getattr(type(model), "config_class", None)
    config = vars(model).get("config")
    if isinstance(kind, type) and isinstance(config, kind) and hasattr(config, "to_json_string"):
        yield fqn, model
        return
    for name, child in model.named_children():
        yield from _configured(child, f"{fqn}.{name}" if fqn else name)


def _configs(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """(FQN of a module, its config), each config once."""
    seen: set[int] = set()
    for name, layer in named_layers(part):
        config = vars(layer).get("config")
        if hasattr(config, "to_dict") and id(config) not in seen:
            seen.add(id(config))
            yield name, config


def _refresh(
    edited: nn.Module,
    fqn: str,
    part: Any,
    before: ConfigState,
    sizes: Mapping[AxisClass, int],
) -> str | None:
    """Why the config cannot say the edit; None where it does."""
    search = Search(type(part), before.configs[fqn], before.signatures[fqn], signature(part), sizes)
    fields: Fields = {}
    if search.changed:
        if search.failure:
            return f"the class cannot be built from its config alone ({search.failure})."
        fields = search.run()
        tensors, attributes = search.distance(fields)
        if tensors or (attributes and not _run_alike(edited, fqn, part, search, fields, before)):
            return search.told(fields)
        _adopt(part, search.build({}), search.build(fields), fields, before.inner[fqn])
    return _remade(part, fqn, search, fields, sizes)


def _adopt(
    part: Any,
    old: nn.Module,
    new: nn.Module,
    fields: Fields,
    before: Mapping[str, Mapping[Path, float]],
) -> None:
    """The numbers of a part's configs are those of the class built anew, where the fields change them."""
    for path, value in fields.items():
        set_field(part.config, path, value)
    olds, news = dict(_configs(old)), dict(_configs(new))
    for name, config in _configs(part):
        if not (name in olds and name in news and name in before):
            continue
        was, now = dict(numbers(olds[name])), dict(numbers(news[name]))
        for path, number in list(numbers(config)):
            wanted = now.get(path) if was.get(path) != now.get(path) else before[name].get(path)
            if wanted is not None and wanted != number:
                set_field(config, path, wanted)


def _run_alike(
    edited: nn.Module, fqn: str, part: Any, search: Search, fields: Fields, before: ConfigState
) -> bool:
    """Whether the built part runs the same ops, with the same numbers in them, on the example."""
    real = before.graph.real  # what was seen on values alone is seen so again
    built: nn.Module = search.build(fields, device="cpu" if real else "meta")
    if real:
        built.load_state_dict(part.state_dict(), strict=False)
    try:
        mine = _ops(edited, before.graph)
        if not fqn:
            return mine == _ops(built, before.graph)
        owner, _, name = fqn.rpartition(".")
        around = edited.get_submodule(owner)
        try:
            around._modules[name] = built
            return mine == _ops(edited, before.graph)
        finally:
            around._modules[name] = part
    except TraceError:
        return False


def _ops(model: nn.Module, graph: LayerGraph) -> list[tuple[str, ...]]:
    args, kwargs = graph._example
    with torch.device("cpu"):
        seen = capture(model, args, kwargs, rungs=(graph.rung,))
    return [(n.op, str(n.target), str(n.args), str(n.kwargs)) for n in seen.graph.nodes]


def _remade(
    part: nn.Module, fqn: str, search: Search, fields: Fields, sizes: Mapping[AxisClass, int]
) -> str | None:
    """Which edited buffers are not saved, and are others in a model that is built anew."""
    prefix = f"{fqn}." if fqn else ""
    edited = {m.fqn.removeprefix(prefix) for each in sizes for m in each.members}
    saved = part.state_dict().keys()
    buffers = {n: b for n, b in part.named_buffers() if n in edited and n not in saved}
    if not buffers or any(buffer.is_meta for buffer in buffers.values()):
        return None
    anew = dict(search.build(fields, device="cpu").named_buffers())
    other = [n for n, b in buffers.items() if not _equal(b, anew.get(n))]
    if not other:
        return None
    return f"{', '.join(map(repr, other[:4]))} is not saved, and is made anew with other values."


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(one.detach().cpu(), other.to(one.dtype))
