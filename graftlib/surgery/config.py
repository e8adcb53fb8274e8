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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TraceError
from ..graph import LayerGraph
from ..graph.axes import AxisClass
from ..graph.capture import capture, device_of
from .fields import Path, numbers, set_field
from .refusal import SurgeryWarning
from .search import Depths, Fields, Search
from .signature import Signature, named_layers, signature, unsaved

__all__ = ["ConfigState", "config_problems", "config_state", "refresh_config", "warn_of"]


@dataclass(frozen=True)
class ConfigState:
    """The parts of a model that have a config of their own, as they were before an edit.

    Attributes:
        graph: of the model.
        configs: FQN of a part -> a copy of its config.
        signatures: FQN of a part -> its shapes and attributes.
        unsaved: FQN of a part -> name -> copies of its tensors that are not saved.
        inner: FQN of a part -> FQN of a module in it that holds a config -> the numbers of that config.
    """

    graph: LayerGraph
    configs: Mapping[str, Any]
    signatures: Mapping[str, Signature]
    unsaved: Mapping[str, Mapping[str, Tensor]]
    inner: Mapping[str, Mapping[str, Mapping[Path, float]]]


def config_state(model: nn.Module, graph: LayerGraph) -> ConfigState:
    """What `refresh_config` must know of a model before it is edited."""
    parts = dict(_configured(model))
    return ConfigState(
        graph,
        {fqn: copy.deepcopy(part.config) for fqn, part in parts.items()},
        {fqn: signature(part) for fqn, part in parts.items()},
        {
            fqn: {name: b.clone() for name, b in unsaved(part).items()}
            for fqn, part in parts.items()
        },
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
    warn_of(config_problems(edited, before, sizes), stacklevel=stacklevel + 1)


def warn_of(problems: Iterable[tuple[str, str]], *, stacklevel: int = 3) -> None:
    """Say what `config_problems` gives; `stacklevel` as for `refresh_config`."""
    for kind, problem in problems:
        warnings.warn(
            f"the config of '{kind}' cannot say what was edited: {problem} What save_pretrained "
            "writes, from_pretrained does not read back as this model; save the module itself (torch.save).",
            SurgeryWarning,
            stacklevel=stacklevel,
        )


def config_problems(
    edited: nn.Module, before: ConfigState, sizes: Mapping[AxisClass, int], depths: Depths = ()
) -> Iterator[tuple[str, str]]:
    """As `refresh_config`, for models with other numbers of blocks too; gives (class name, why no config says it)."""
    for fqn, part in _configured(edited):
        if fqn in before.configs:
            problem = _refresh(edited, fqn, part, before, sizes, depths)
            if problem:
                yield type(part).__name__, problem


def _configured(model: nn.Module, fqn: str = "") -> Iterator[tuple[str, Any]]:
    """(FQN, module) of the outermost modules whose class is built from a config of theirs."""
    kind = getattr(type(model), "config_class", None)
    config = vars(model).get("config")
    # One class may serve several types of configs (LlamaForCausalLM those of InternLM3).
    if isinstance(kind, type) and hasattr(config, "to_json_string"):
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
    depths: Depths,
) -> str | None:
    """Why the config cannot say the edit; None where it does."""
    search = Search(
        type(part), before.configs[fqn], before.signatures[fqn], signature(part), sizes, depths
    )
    fields: Fields = {}
    if search.changed:
        if search.failure:
            return f"the class cannot be built from its config alone ({search.failure})."
        fields = search.run(stale=True)
        if not _proven(edited, fqn, part, search, fields, before):
            fields = search.run(stale=False)
            if any(search.distance(fields)):
                return search.told(fields)
    if not search.changed and not unsaved(part):
        return None
    # Parameters that are not saved are drawn or computed when the class is built, which takes values.
    if getattr(part, "_keys_to_ignore_on_save", None):
        first, anew = search.build({}, values=True), search.build(fields, values=True)
    else:
        first, anew = search.built({}), search.built(fields)
    if search.changed:
        _adopt(part, first, anew, fields, before.inner[fqn])
    return _remade(part, first, anew, before.unsaved[fqn])


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


def _proven(
    edited: nn.Module, fqn: str, part: Any, search: Search, fields: Fields, before: ConfigState
) -> bool:
    """Whether the built part is the edited one, or runs the same ops, with the same numbers, on the example."""
    tensors, *attributes = search.distance(fields)
    if tensors or not any(attributes):
        return not tensors
    valued = before.graph.tracer not in ("meta", "fake")
    built: nn.Module = search.build(fields, values=valued)
    if valued:
        built.load_state_dict(part.state_dict(), strict=False)
    try:
        mine = _ops(edited, before.graph, device_of(edited))
        if not fqn:
            return mine == _ops(built, before.graph, device_of(edited))
        owner, _, name = fqn.rpartition(".")
        around = edited.get_submodule(owner)
        try:
            around._modules[name] = built
            return mine == _ops(edited, before.graph, device_of(part))
        finally:
            around._modules[name] = part
    except TraceError:
        return False


def _ops(model: nn.Module, graph: LayerGraph, device: torch.device) -> list[tuple[str, ...]]:
    args, kwargs = graph.example
    with torch.device("cpu"):
        seen = capture(model, args, kwargs, device=device, tracers=(graph.tracer,))
    return [(n.op, str(n.target), str(n.args), str(n.kwargs)) for n in seen.graph.nodes]


def _remade(
    part: nn.Module, old: nn.Module, new: nn.Module, before: Mapping[str, Tensor]
) -> str | None:
    """Which tensors are not saved, and are others in a model that is built anew than in the edited one."""
    mine = {name: tensor for name, tensor in unsaved(part).items() if not tensor.is_meta}
    if not mine:
        return None
    anew, first = unsaved(new), unsaved(old)
    other = [
        name
        for name, tensor in mine.items()
        if name in anew
        and not _equal(tensor, anew[name])
        # What had values of its own before is the user's affair.
        and _equal(before.get(name), first.get(name))
    ]
    if not other:
        return None
    named = ", ".join(map(repr, other[:4]))
    return f"tensors that are not saved are computed anew, and come out as others: {named}."


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape or other.is_meta:
        return False
    return torch.allclose(one.cpu().double(), other.double(), rtol=1e-4, equal_nan=True)
