"""An edit as data: which blocks and units stay, in names, to be applied again and to be read by anybody.

In: a prune. Out: an `Edit`, JSON and back. It applies to the model that it was made of, to another checkpoint of the
same architecture, to a state dict, to a low-rank adapter of the large model, and to an optimizer's state.
Always true: everything is checked before anything is written: the shapes of all tensors concerned are those of the
model that the edit was made of. An edit only selects; weights that were fitted to data are not a part of it.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..arguments import check
from ..disk import write_whole
from ..documents import Count, Record, convert, parse_json, read_json
from ..errors import shown
from ..graph import LayerGraph, structure
from ..graph.axes import AxisClass, Member
from ..graph.axes.classes import constant_sizes
from ..surgery import SurgeryError
from ..surgery.blocks import inside
from ..surgery.edits import alike, resize, tensor_of
from ..surgery.fields import Path as Way
from ..surgery.fields import lists, numbers, set_field
from ..surgery.fields import shown as shown_way
from ..surgery.order import Order, new_names, rearrange
from ..surgery.stale import refresh_layers
from ..surgery.tagged import Place, put

__all__ = ["Edit", "digest", "digest_of", "raw"]

T = TypeVar("T", bound="nn.Module | Mapping[str, Tensor]")
_FORMAT, _VERSION = "graftlib edit", 1
# What wrappers put in front of the names of a model.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")
_LORA = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.[^.]+)*$"
)


@dataclass(frozen=True)
class Shape:
    """A tensor that an edit changes.

    Attributes:
        shape: before the edit.
        axes: the word of each axis, as in `Parameter.axes`; empty for a buffer.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Edit:
    """Which blocks and units stay. Two edits are equal where their documents are.

    All names but those in `blocks` are of the model without the blocks that are left out.

    Attributes:
        model: the name of the model's class.
        kept: axis class -> the numbers of its units that stay, ascending.
        tensors: FQN -> what it was, for each tensor that a class lies on.
        aliases: FQN -> the FQN in `tensors` that is the same tensor under another name.
        constants: (FQN of a buffer that is not saved, axis) -> its new size; the buffer is the same all along it.
        attributes: (FQN of a module, way to an attribute) -> the number that it says after the edit.
        config: (FQN of a module, way in its config) -> what it says after the edit, of Hugging Face models.
        source: SHA-256 of the model's state dict before the edit (see `digest`); empty where it had no values.
        blocks: FQN of a container -> the name of each of its blocks -> its new name; None for one that is left out.
    """

    model: str
    kept: Mapping[AxisClass, tuple[int, ...]]
    tensors: Mapping[str, Shape]
    aliases: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[tuple[str, int], int] = field(default_factory=dict)
    attributes: Mapping[Place, int] = field(default_factory=dict)
    config: Mapping[tuple[str, Way], Any] = field(default_factory=dict)
    source: str = ""
    blocks: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: LayerGraph,
        kept: Mapping[AxisClass, Sequence[int]],
        attributes: Mapping[Place, int],
    ) -> Edit:
        """The edit that keeps these units of `model`, which `graph` is of; `attributes` of its `Plan`; no `source`."""
        words = {each.fqn: each.axes for each in graph.parameters()}
        concerned = dict.fromkeys(m.fqn for each in kept for m in each.members)
        tensors = {
            fqn: Shape(tuple(tensor_of(model, fqn).shape), words.get(fqn, ())) for fqn in concerned
        }
        first = {id(tensor_of(model, fqn)): fqn for fqn in concerned}
        aliases = {
            name: first[id(tensor)]
            for name, tensor in model.state_dict(keep_vars=True).items()
            if id(tensor) in first and name not in concerned
        }
        return cls(
            graph.name,
            {each: tuple(int(unit) for unit in units) for each, units in kept.items()},
            tensors,
            aliases,
            constant_sizes(graph, {each: len(units) for each, units in kept.items()}),
            dict(attributes),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edit) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.sha256)

    def without(self, model: nn.Module, order: Order) -> Edit:
        """The same, after `order` left out blocks of `model`, which had all."""
        blocks: dict[str, dict[str, str | None]] = {}
        for container, names in order.items():
            olds = list(model.get_submodule(container)._modules)
            news = dict(zip(names, new_names(olds, names), strict=True))
            blocks[container] = {old: news.get(old) for old in olds}
        return replace(self, blocks=blocks)

    @property
    def dropped(self) -> tuple[str, ...]:
        """FQNs of the blocks that are left out."""
        return tuple(
            f"{container}.{old}" if container else old
            for container, names in self.blocks.items()
            for old, new in names.items()
            if new is None
        )

    def renamed(self, name: str) -> str | None:
        """What a tensor or module is called once the blocks are left out; None where it is in one of them."""
        for container, names in self.blocks.items():
            prefix = f"{container}." if container else ""
            old, dot, rest = name.removeprefix(prefix).partition(".")
            if name.startswith(prefix) and old in names:
                new = names[old]
                return None if new is None else f"{prefix}{new}{dot}{rest}"
        return name

    def _left(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """By their new names, those that are not in blocks which are left out."""
        named = ((self.renamed(name), each) for name, each in tensors.items())
        return {name: each for name, each in named if name is not None}

    @property
    def sizes(self) -> dict[AxisClass, int]:
        """Axis class -> how many of its units stay."""
        return {each: len(units) for each, units in self.kept.items()}

    def rows(self) -> dict[tuple[str, int], Tensor]:
        """(FQN, axis) -> (n,) int64, the places that stay: where classes meet on an axis, those that all keep.

        Of a constant axis the first place, as often as it is long.
        """
        masks: dict[tuple[str, int], Tensor] = {}
        for each, units in self.kept.items():
            mine = torch.zeros(each.size, dtype=torch.bool, device="cpu")
            mine[list(units)] = True
            for m in each.members:
                length = self.tensors[m.fqn].shape[m.axis]
                mask = masks.setdefault(
                    (m.fqn, m.axis), torch.ones(length, dtype=torch.bool, device="cpu")
                )
                shape = [each.size if i == m.position else 1 for i in range(len(m.factors))]
                mask[m.start : m.start + prod(m.factors)] &= (
                    mine.view(shape).expand(m.factors).flatten()
                )
        rows = {key: mask.nonzero().flatten() for key, mask in masks.items()}
        return rows | {key: alike(size) for key, size in self.constants.items()}

    def cuts(self, name: str) -> Mapping[int, Tensor]:
        """Axis -> (n,) int64, the places that stay, of a tensor by any of its names."""
        return self._cuts.get(self.aliases.get(name, name), {})

    @functools.cached_property
    def _cuts(self) -> dict[str, dict[int, Tensor]]:
        by_axis: dict[str, dict[int, Tensor]] = {}
        for (fqn, axis), places in self.rows().items():
            by_axis.setdefault(fqn, {})[axis] = places
        return by_axis

    def apply(self, target: T, *, inplace: bool = False) -> T:
        """The same edit of another model or of tensors by name.

        Args:
            target: a model of the architecture that the edit was made of, or its `torch.optim.swa_utils.AveragedModel`
                (an EMA, a SWA), which stays one; or a state dict of one (names may begin
                with ``module.`` or ``_orig_mod.``); or the state dict of a low-rank adapter of the `peft` library
                for one, whose matrices lose the inputs and outputs that the weights beside them lose: the adapter of
                the edited model is then the edit of the adapted one. (Not so with DoRA where inputs go: refused.)
            inplace: edit a model itself; otherwise a copy is made. A state dict is never changed.

        Returns:
            the model, or a new dict whose unchanged tensors are the same objects.

        Raises:
            SurgeryError: a tensor is missing or has another shape than the edit says; all of them are named.
        """
        if isinstance(target, nn.Module):
            edited: Any = self._of_model(target, inplace)
        else:
            edited = self._of_state(target)
        result: T = edited
        return result

    def _of_model(self, model: Any, inplace: bool) -> Any:
        if isinstance(model, AveragedModel):
            averaged = model if inplace else structure.duplicate(model, structure.own)
            self._of_model(averaged.module, inplace=True)
            return averaged
        model = structure.unwrap(model, SurgeryError)
        if any(hasattr(type(each), "adapter_layer_names") for each in model.modules()):
            raise SurgeryError(
                "an edit does not apply to a model with adapters in it.",
                fix="apply it to the base model, and to get_peft_model_state_dict(model)",
            )
        self._check_blocks(model)
        self._check(self._left({**dict(model.named_buffers()), **dict(model.named_parameters())}))
        self._check_attributes(model)
        if not inplace:
            model = structure.duplicate(model, structure.own)
        order = {
            fqn: [old for old, new in names.items() if new is not None]
            for fqn, names in self.blocks.items()
        }
        rearrange(model, {fqn: tuple(names) for fqn, names in order.items()})
        resize(model, self.rows())
        put(model, dict(self.attributes))
        refresh_layers(model, self.sizes)
        for (fqn, way), value in self.config.items():
            set_field(model.get_submodule(fqn).config, way, value)
        return model

    def _of_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        plain = {}
        for full in state:
            old = _WRAPPERS.sub("", full)
            new = self.renamed(old)
            if new is not None:  # an adapter of a table may carry the table itself
                plain[new.replace(".base_layer.", ".")] = (full, full.removesuffix(old) + new)
        adapters = {n: found for n in plain if (found := _LORA.match(n))}
        if not adapters:
            self._check({name: state[full] for name, (full, _) in plain.items()})
        edited: dict[str, Tensor] = {}
        faults: dict[str, str] = {}
        for name, (full, new) in plain.items():
            tensor = state[full]
            cuts = self.cuts(name)
            if name in adapters:
                cuts, fault = self._of_adapter(adapters[name], tensor)
                faults |= {full: fault} if fault else {}
            edited[new] = tensor if faults else _selected(tensor, cuts)
        if faults:
            raise _unlike(self.model, faults)
        return edited

    def _of_adapter(self, found: re.Match[str], tensor: Tensor) -> tuple[Mapping[int, Tensor], str]:
        """(axis -> the places that stay, what is wrong) of one tensor of a low-rank adapter."""
        fqn = f"{found['module'].removesuffix('.base_layer')}.weight"
        fqn = self.aliases.get(fqn, fqn)
        if not self.cuts(fqn):
            return {}, ""
        shape, words = self.tensors[fqn].shape, self.tensors[fqn].axes
        reading = found["part"] in ("lora_A", "lora_embedding_A")
        named = ("in", "entry") if reading else ("out", "dim")
        axis = next((words.index(word) for word in named if word in words), -1)
        if axis < 0:
            return {}, f"the axes of '{fqn}' are {' '.join(words)}"
        mine = 1 if reading else 0
        if found["part"] == "lora_magnitude_vector":
            if any(w in ("in", "entry") and a in self.cuts(fqn) for a, w in enumerate(words)):
                return {}, (
                    f"scales norms over inputs of '{fqn}' that go: merge the adapter first, then edit"
                )
            mine = tuple(tensor.shape).index(shape[axis]) if shape[axis] in tensor.shape else -1
        if not 0 <= mine < tensor.ndim or tensor.shape[mine] != shape[axis]:
            return {}, f"{tuple(tensor.shape)} beside '{fqn}' {shape}"
        places = self.cuts(fqn).get(axis)
        return ({} if places is None else {mine: places}), ""

    def apply_optimizer(self, state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
        """An optimizer's state for the edited model: what is kept for a parameter is edited as the parameter is.

        Args:
            state: ``optimizer.state_dict()``; not changed.
            model: the unedited one whose parameters the optimizer was given, all of them, in the order of
                ``model.parameters()``, or by names (``param_names`` in its groups).

        Returns:
            a new state, with tensors of its own, for an optimizer of the edited model's parameters in the same order.

        Raises:
            SurgeryError: the optimizer has other parameters, or keeps tensors of another shape than theirs.
        """
        self._check(self._left(dict(model.state_dict(keep_vars=True))))
        owned = dict(model.named_parameters())
        numbers_of = [n for group in state["param_groups"] for n in group["params"]]
        named = [n for group in state["param_groups"] for n in group.get("param_names", ())]
        names = [_WRAPPERS.sub("", name) for name in named] or list(owned)
        if len(names) != len(numbers_of) or not owned.keys() >= set(names):
            raise SurgeryError(
                f"the optimizer has {len(numbers_of)} parameters, and the model {len(owned)}.",
                fix="make the optimizer from model.named_parameters(), so that it knows their names",
            )
        edited: dict[Any, Any] = {}
        news = {number: self.renamed(name) for number, name in zip(numbers_of, names, strict=True)}
        for number, name in zip(numbers_of, names, strict=True):
            if news[number] is None:
                continue
            cuts, shape = self.cuts(str(news[number])), owned[name].shape
            edited[number] = {}
            for key, value in state["state"].get(number, {}).items():
                if cuts and isinstance(value, Tensor) and value.ndim:
                    if value.shape != shape:
                        fault = f"{tuple(value.shape)}, not {tuple(shape)}"
                        raise _unlike(self.model, {f"{key} of '{name}'": fault})
                    value = _selected(value, cuts)
                edited[number][key] = value.clone() if isinstance(value, Tensor) else value
        groups = []
        for group in state["param_groups"]:
            left = [n for n in group["params"] if news[n] is not None]
            words = {"param_names": [news[n] for n in left]} if "param_names" in group else {}
            groups.append({**group, "params": left, **words})
        kept = {n: each for n, each in edited.items() if n in state["state"]}
        return {**state, "state": kept, "param_groups": groups}

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        faults = {}
        for fqn, due in self.tensors.items():
            names = [fqn, *(name for name, first in self.aliases.items() if first == fqn)]
            there = [name for name in names if name in tensors]
            if not there:
                faults[fqn] = "is missing"
            for name in there:
                if tuple(tensors[name].shape) != due.shape:
                    faults[name] = f"{tuple(tensors[name].shape)}, not {due.shape}"
        if faults:
            raise _unlike(self.model, faults)

    def _check_blocks(self, model: nn.Module) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        faults = {
            f"the blocks of '{fqn}'": "are others than the edit knows"
            for fqn, names in self.blocks.items()
            if fqn not in modules or [*modules[fqn]._modules] != [*names]
        }
        if faults:
            raise _unlike(self.model, faults)

    def _check_attributes(self, model: nn.Module) -> None:
        """Only numbers that are there are set, whatever the document says."""
        modules = self._left(dict(model.named_modules(remove_duplicate=False)))
        buffers = self._left(dict(model.named_buffers()))
        faults = {}
        for (fqn, axis), size in self.constants.items():
            shape = buffers[fqn].shape if fqn in buffers else ()
            if axis >= len(shape) or size > shape[axis]:
                faults[f"axis {axis} of the buffer '{fqn}'"] = f"has no {size} units"
        for (fqn, way), _ in self.attributes.items():
            if type(_at(vars(modules[fqn]) if fqn in modules else {}, way)) is not int:
                faults[f"'{fqn}' {'.'.join(map(str, way))}"] = "is no whole number"
        faults |= self._config_faults(modules)
        if faults:
            raise _unlike(self.model, faults)

    def _config_faults(self, modules: Mapping[str, nn.Module]) -> dict[str, str]:
        """What the configs have not, or do not take: a class may check what it is set to, so copies are set first."""
        copies: dict[int, Any] = {}
        faults = {}
        for (fqn, way), value in self.config.items():
            config = vars(modules[fqn]).get("config") if fqn in modules else None
            at = f"{shown_way(way)} of the config of '{fqn}'"
            if not hasattr(config, "to_dict"):
                faults[at] = "there is no config"
                continue
            try:
                if id(config) not in copies:
                    copies[id(config)] = copy.deepcopy(config)
                tried = copies[id(config)]
                old = _at(vars(tried), way)
                if old is _NOTHING:
                    old = _private_list(tried, way)
                if not (_may_add(tried, way, value) if old is _NOTHING else _follows(old, value)):
                    faults[at] = f"is not to be set to {shown(value, 80)}"
                    continue
                set_field(tried, way, value)
            except Exception as refusal:  # whatever a config's class raises
                faults[at] = f"takes no {shown(value, 80)}: {str(refusal)[:200]}"
        return faults

    # As a document ------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The edit as a versioned JSON document; the same text for the same edit."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "model": self.model,
            "source": self.source,
            "classes": [
                {
                    "size": each.size,
                    "keep": list(units),
                    "members": [
                        {
                            "fqn": m.fqn,
                            "axis": m.axis,
                            "start": m.start,
                            "factors": list(m.factors),
                            "position": m.position,
                        }
                        for m in each.members
                    ],
                }
                for each, units in self.kept.items()
            ],
            "tensors": {
                fqn: {"shape": list(t.shape), "axes": list(t.axes)}
                for fqn, t in self.tensors.items()
            },
            "aliases": dict(self.aliases),
            "constants": [
                {"fqn": fqn, "axis": axis, "size": size}
                for (fqn, axis), size in self.constants.items()
            ],
            "attributes": [
                {"module": module, "way": list(way), "value": value}
                for (module, way), value in self.attributes.items()
            ],
            "config": [
                {"module": module, "way": list(way), "value": value}
                for (module, way), value in self.config.items()
            ],
            "blocks": {container: dict(names) for container, names in self.blocks.items()},
        }
        return json.dumps(content, separators=(",", ":")) + "\n"

    @property
    def sha256(self) -> str:
        """Of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file, whole or not at all.

        Raises:
            SurgeryError: the path cannot be written.
        """
        write_whole(path, self.to_json(), error=SurgeryError)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read what `save` wrote.

        Raises:
            SurgeryError: the file cannot be read, or is no edit; all faults at once.
        """
        return cls._of_document(read_json(path, _File, what="edit", error=SurgeryError))

    @classmethod
    def from_json(cls, text: str) -> Edit:
        """Read what `to_json` gave.

        Raises:
            SurgeryError: the text is no edit; all faults at once.
        """
        check(SurgeryError, text=(text, (str,)))
        try:
            values = parse_json(text)
        except (ValueError, RecursionError) as refusal:
            raise SurgeryError("the edit cannot be read as JSON.", why=str(refusal)) from None
        return cls._of_document(convert(values, _File, what="the edit", error=SurgeryError))

    @classmethod
    def _of_document(cls, content: _File) -> Edit:
        faults = dict(_contradictions(content))
        if faults:
            raise SurgeryError(
                "the edit contradicts itself.", where=faults, fix="write it again with save"
            )
        kept = {
            AxisClass(
                each.size,
                tuple(
                    Member(m.fqn, m.axis, m.start, tuple(m.factors), m.position)
                    for m in each.members
                ),
            ): tuple(each.keep)
            for each in content.classes
        }
        tensors = {f: Shape(tuple(t.shape), tuple(t.axes)) for f, t in content.tensors.items()}
        return cls(
            content.model,
            kept,
            tensors,
            content.aliases,
            {(c.fqn, c.axis): c.size for c in content.constants},
            {(a.module, tuple(a.way)): a.value for a in content.attributes},
            {(c.module, tuple(c.way)): c.value for c in content.config},
            content.source,
            content.blocks,
        )

    def with_config(self, before: nn.Module, after: nn.Module) -> Edit:
        """The same, with what the configs of the edited model say otherwise than those of the model before."""
        changed: dict[tuple[str, Way], Any] = {}
        configs = {fqn: vars(m).get("config") for fqn, m in after.named_modules()}
        seen: set[int] = set()
        for fqn, config in configs.items():
            if not hasattr(config, "to_dict") or id(config) in seen:
                continue
            seen.add(id(config))
            earlier = vars(before.get_submodule(fqn))["config"]
            old, new = dict(numbers(earlier)), dict(numbers(config))
            entries = dict(lists(earlier))
            for way, each in lists(config):
                if _plain(each) and entries.get(way) != each:
                    changed[fqn, way] = each
            for way in dict.fromkeys(way[:1] for way in new if old.get(way) != new[way]):
                whole = getattr(config, str(way[0]))
                if _plain(whole):
                    changed[fqn, way] = whole
                else:
                    changed |= {
                        (fqn, w): n for w, n in new.items() if w[:1] == way and old.get(w) != n
                    }
        return replace(self, config=changed)

    def __str__(self) -> str:
        lines = [f"edit of {self.model}: {len(self.kept)} axis classes"]
        lines += [f"  without {', '.join(self.dropped)}"] if self.dropped else []
        rows = [(str(each.members[0]), each.size, len(units)) for each, units in self.kept.items()]
        width = max((len(name) for name, _, _ in rows), default=0)
        lines += [f"  {name:<{width}}  {old:>6} -> {new}" for name, old, new in rows]
        return "\n".join(lines)


_NOTHING = object()


def _at(holder: Any, way: Sequence[str | int]) -> Any:
    """What lies at the end of a way through attributes and lists; `_NOTHING` where nothing does."""
    for word in way:
        try:
            inner: Any = holder if isinstance(holder, (list, tuple, dict)) else vars(holder)
            holder = inner[word]
        except (LookupError, TypeError):
            return _NOTHING
        if isinstance(word, str) and word.startswith("_"):
            return _NOTHING
    return holder


def _private_list(config: object, way: Way) -> Any:
    """A list under a private name: a backbone of transformers has its stages there; `_NOTHING` where there is none."""
    values = vars(config).get(str(way[0])) if len(way) == 1 else None
    return values if isinstance(values, list) else _NOTHING


def _may_add(config: object, way: Way, value: object) -> bool:
    """Whether a config may get a field: a number under a name that it has not (a size that was left to follow)."""
    name = way[0] if len(way) == 1 else None
    return (
        hasattr(config, "to_dict")
        and isinstance(name, str)
        and name.isidentifier()
        and not name.startswith("_")
        and not hasattr(config, name)
        and type(value) in (int, float)
    )


def _follows(old: object, new: object) -> bool:
    """Whether a config may say `new` for `old`: other numbers, in a name too, entries of lists that were there."""
    if isinstance(old, str) and isinstance(new, str):
        return re.sub(r"\d+", "0", old) == re.sub(r"\d+", "0", new)
    if isinstance(old, str) or isinstance(new, str):
        return False
    if isinstance(old, bool) or isinstance(new, bool):
        return type(old) is type(new)
    if isinstance(new, (int, float)):
        return old is None or isinstance(old, (int, float))
    if isinstance(new, list):
        if old is None:
            old = [0]
        return isinstance(old, (list, tuple)) and all(
            any(_follows(each, one) for each in old) for one in new
        )
    if isinstance(new, dict) and (old is None or isinstance(old, dict)):
        return all(_follows((old or {}).get(name), one) for name, one in new.items())
    return old is None and new is None


def _plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(each) for key, each in value.items())
    return isinstance(value, (bool, int, float, str, type(None)))


def _selected(tensor: Tensor, cuts: Mapping[int, Tensor]) -> Tensor:
    for axis, places in cuts.items():
        tensor = tensor.index_select(axis, places.to(tensor.device))
    return tensor


def _unlike(model: str, faults: Mapping[str, str]) -> SurgeryError:
    return SurgeryError(
        f"this is not the {model} that the edit was made of: {len(faults)} tensors or settings differ.",
        where=dict(list(faults.items())[:8]),
        fix="apply it to a model of the same architecture and sizes, before any other edit",
        faults=dict(faults),
    )


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state dict: names, dtypes, shapes, SHA-256 of values, by name; "" on the meta device."""
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    if any(tensor.is_meta for tensor in tensors.values()):
        return ""
    return digest_of(
        (n, str(t.dtype), t.shape, hashlib.sha256(raw(t)).hexdigest()) for n, t in tensors.items()
    )


def digest_of(rows: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """What `digest` gives, from (name, dtype, shape, SHA-256 of the values) of each tensor."""
    text = json.dumps(sorted([name, dtype, [*shape], sha] for name, dtype, shape, sha in rows))
    return hashlib.sha256(text.encode()).hexdigest()


def raw(tensor: Tensor) -> Any:
    """The bytes of a tensor's values, for a hash or a file; no copy where they lie in one piece on the CPU."""
    values = tensor.detach().to("cpu").contiguous().flatten()
    return values.view(torch.uint8).numpy().data if values.numel() else b""


class _Member(Record):
    """A part of one axis of one tensor."""

    fqn: str
    axis: Count
    start: Count
    factors: list[Count]
    position: Count


class _Class(Record):
    """An axis class and the units that stay."""

    size: Count
    keep: list[Count]
    members: list[_Member]


class _Shape(Record):
    """A tensor before the edit."""

    shape: list[Count]
    axes: list[str]


class _Constant(Record):
    """The size of a constant axis after the edit."""

    fqn: str
    axis: Count
    size: Count


class _Number(Record):
    """What an attribute says after the edit."""

    module: str
    way: list[str | int]
    value: Count


class _Setting(Record):
    """What a config says after the edit."""

    module: str
    way: list[str | int]
    value: Any


class _File(Record):
    """The whole document."""

    format: Literal["graftlib edit"]
    version: Literal[1]
    model: str
    source: str
    classes: list[_Class]
    tensors: dict[str, _Shape]
    aliases: dict[str, str]
    attributes: list[_Number]
    config: list[_Setting]
    constants: tuple[_Constant, ...] = ()
    blocks: dict[str, dict[str, str | None]] = msgspec.field(default_factory=dict)


def _contradictions(content: _File) -> Iterator[tuple[str, str]]:
    for number, each in enumerate(content.classes):
        at = f"classes[{number}]"
        if not each.members:
            yield at, "has no members"
        if sorted(set(each.keep)) != each.keep or not each.keep or each.keep[-1] >= each.size:
            yield f"{at}.keep", f"is no ascending list of units of {each.size}"
        for m in each.members:
            shape = content.tensors[m.fqn].shape if m.fqn in content.tensors else []
            fits = (
                m.axis < len(shape)
                and m.position < len(m.factors)
                and m.factors[m.position] == each.size
                and m.start + prod(m.factors) <= shape[m.axis]
            )
            if not fits:
                yield f"{at}.members", f"{shown(m.fqn)} axis {m.axis} holds no such units"
    for name, first in content.aliases.items():
        if first not in content.tensors:
            yield f"aliases[{name!r}]", f"there is no tensor {shown(first)}"
    for container, names in content.blocks.items():
        kept = [old for old, new in names.items() if new is not None]
        news = [new for new in names.values() if new is not None]
        nested = [
            c for c in content.blocks if c != container and (not container or inside(c, container))
        ]
        if not kept or news != new_names([*names], kept) or nested or "" in names:
            yield f"blocks[{shown(container)}]", "are no blocks under new numbers"
    both: list[_Number | _Setting] = [*content.attributes, *content.config]
    for said in both:
        if not said.way:
            yield f"attributes of {shown(said.module)}", "a way has no steps"
