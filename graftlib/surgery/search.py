"""Which numbers of a config make its class build an edited model.

In: the config, what the model was and what it is. Out: path -> new value. No field is known by its name: every number
that equals an old size, or an attribute that changed, may have become the new one; every guess is built, on the meta
device, and compared. Always true: a field in the answer is needed: without it the class builds something else, or by
itself it makes what no other field touches by itself.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..graph.axes import AxisClass
from ..graph.capture import mute
from .fields import Path, lists, numbers, set_field, shown
from .signature import Signature, changes, signature

__all__ = ["Depths", "EmptyOnMeta", "Fields", "Search"]

Fields = Mapping[Path, Any]
# (FQN of a container, how many blocks it had, the old places of those that stand in it now)
Depths = Sequence[tuple[str, int, tuple[int, ...]]]
_Distance = tuple[int, int, int]
_BUILDS = 160  # for one config; one takes about a twentieth of a second for 30 layers
_PAIRED = 6  # steps that are tried two at a time
_MISSING = object()
_NOWHERE = (1 << 30, 0, 0)


class Search:
    """A config beside an edited model.

    Args:
        kind: the class of the model.
        config: as it was before the edit; not changed.
        old: signature of the model before the edit.
        new: signature of the edited model.
        sizes: class -> how many units it has now.
        depths: what containers hold other blocks now.

    Attributes:
        changed: whether any shape or attribute is another one.
        failure: why the class cannot be built from the old config; empty where it can.
    """

    def __init__(
        self,
        kind: Any,
        config: Any,
        old: Signature,
        new: Signature,
        sizes: Mapping[AxisClass, int],
        depths: Depths = (),
    ) -> None:
        self._kind, self._config, self._old, self._new = kind, config, old, new
        self._depths = depths
        self._built: dict[str, Signature | None] = {}
        self._kept: dict[str, Any] = {}
        self._distances: dict[str, _Distance] = {}
        self._foreign: frozenset[tuple[str, str]] = frozenset()
        self._goal = 3
        self.failure = ""
        self.changed = old != new
        if self.changed:
            every = [*changes(old, new), *_of_classes(sizes)]
            every += [(count, len(places), fqn) for fqn, count, places in depths]
            self._changes = Counter((a, b) for a, b, _ in every)
            self._where = every
            self._foreign = self._not_of_the_class()

    def build(
        self, fields: Fields, *, values: bool = False, listener: set[str] | None = None
    ) -> Any:
        """The class, built on the CPU from what would be saved with these fields.

        Args:
            fields: that are set.
            values: without them the parameters that are made empty stay on the meta device.
            listener: is given the names of fields that the class asks for and that its config has not.
        """
        candidate = copy.deepcopy(self._config)
        for path, value in fields.items():
            set_field(candidate, path, value)
        kind: Any = type(candidate)
        text = json.loads(candidate.to_json_string())
        loaded = kind.from_dict(getattr(kind, "_decode_special_floats", lambda each: each)(text))
        for name in ("_attn_implementation", "_experts_implementation"):
            if getattr(candidate, name, None) is not None:
                setattr(loaded, name, getattr(candidate, name))
        if listener is not None:
            loaded.__class__ = _listening(kind, listener)
        here = torch.get_default_device().type == "cpu"
        with (
            contextlib.nullcontext() if here else torch.device("cpu"),
            contextlib.nullcontext() if values else EmptyOnMeta(),
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(),
            mute("transformers"),
        ):
            warnings.simplefilter("ignore")
            return self._kind(loaded).eval()

    def built(self, fields: Fields) -> Any:
        """As `build`, without values; the search may have built it already."""
        return self._kept.get(_key(fields)) or self.build(fields)

    def distance(self, fields: Fields) -> _Distance:
        """How many axes of tensors, attributes that the edit changed, and others are not the edited model's."""
        key = _key(fields)
        if key not in self._distances:
            self._distances[key] = self._measured(fields)
        return self._distances[key]

    def _measured(self, fields: Fields) -> _Distance:
        if self._signature(fields) is None:
            return _NOWHERE
        tensors = edited = others = 0
        for key, (one, other) in self._differences(fields).items():
            if key[1]:
                stale = self._old.get(key, _MISSING) == other
                edited, others = edited + (not stale), others + stale
            elif _MISSING in (one, other) or len(one) != len(other):
                tensors += 4
            else:
                tensors += sum(a != b for a, b in zip(one, other, strict=True))
        return tensors, edited, others

    def run(self, *, stale: bool) -> Fields:
        """The fields that come nearest, in a bounded number of builds.

        Args:
            stale: attributes that the edit has not touched may be others; modules keep some that nobody reads.
        """
        self._goal = 2 if stale else 3
        exact = self._exact()
        best: Fields = {path: values[0] for path, values in exact.items()}
        if not self._reached(best):
            best = self._searched(exact)
        for path in [*best]:
            if not self._shown_alone(path, best):
                without = {p: v for p, v in best.items() if p != path}
                best = min((without, best), key=self.distance)  # the first of equals
        return best

    def _shown_alone(self, path: Path, fields: Fields) -> bool:
        """Whether a field by itself makes something as it should be which no other one touches by itself.

        From what was built already; a field of which this is not known may be needed as well.
        """
        first = self._built[_key({})]
        alone = {p: self._built.get(_key({p: value})) for p, value in fields.items()}
        others = [each for p, each in alone.items() if p != path]
        mine = alone[path]
        if first is None or mine is None or None in others:
            return False
        right = [k for k, v in mine.items() if v == self._new.get(k) != first.get(k)]
        return any(all(each and each.get(k) == first.get(k) for each in others) for k in right)

    def _searched(self, exact: Mapping[Path, list[Any]]) -> Fields:
        exact = self._effective(exact)
        likely = {path: values[0] for path, values in exact.items()}
        named = {path: value for path, value in likely.items() if self._same_names(path, value)}
        if self._reached(named):
            return named
        best = min((self._descended(each, exact) for each in ({}, likely)), key=self.distance)
        if not self._reached(best):
            asked = self._asked_for()
            start = {path: values[0] for path, values in asked.items()}
            best = min((best, self._descended(start, {**exact, **asked})), key=self.distance)
        if not self._reached(best):
            best = self._descended(best, _joined(exact, self._effective(self._scaled())))
        return self._by_layer(best, [p for p in exact if p in dict(numbers(self._config))])

    def _reached(self, fields: Fields) -> bool:
        return not any(self.distance(fields)[: self._goal])

    def _effective(self, options: Mapping[Path, list[Any]]) -> dict[Path, list[Any]]:
        """Without fields that change nothing of what is built, or that hold the number of something else."""
        first = self._signature({})
        return {
            path: values
            for path, values in options.items()
            if any(self._signature({path: value}) != first for value in values)
        }

    def _same_names(self, path: Path, value: float) -> bool:
        """Whether a field leaves the tensors that there are, unlike a number of layers; or is refused alone."""
        first, changed = self._signature({}), self._signature({path: value})
        return first is None or changed is None or first.keys() == changed.keys()

    def told(self, fields: Fields) -> str:
        """What stays different, and which fields hold an old size."""
        pairs = self._differences(fields)
        tensors = {key: pair for key, pair in pairs.items() if not key[1]} or pairs
        named = [
            f"'{'.'.join(filter(None, key))}' is {_shown(edited)} and would be {_shown(built)}"
            for key, (built, edited) in [*tensors.items()][:4]
        ]
        more = f" and {len(tensors) - 4} more" if len(tensors) > 4 else ""
        paths = [*map(shown, self._effective(self._exact()))]
        fields_in_words = f" Fields that hold an old size: {', '.join(paths[:8])}." if paths else ""
        return f"{'; '.join(named)}{more}.{fields_in_words}"

    # --- what is compared -----------------------------------------------------------------------------------------

    def _signature(self, fields: Fields) -> Signature | None:
        key = _key(fields)
        if key not in self._built:
            try:
                model = self.build(fields)
                self._built[key] = found = signature(model)
                if not fields or not _unequal(found, self._new, self._foreign):
                    self._kept[key] = model
            except Exception as error:  # the class may refuse a size in any way
                self._built[key] = None
                if not fields:
                    self.failure = f"{type(error).__name__}: {str(error)[:200]}"
        return self._built[key]

    def _differences(self, fields: Fields) -> dict[tuple[str, str], tuple[Any, Any]]:
        """(name, attribute) -> (what the class builds, what the edited model has), where they differ."""
        return _unequal(self._signature(fields) or {}, self._new, self._foreign)

    def _not_of_the_class(self) -> frozenset[tuple[str, str]]:
        """What the class did not build before the edit, either: a head that was put on, a flag that was set.

        Attributes are taken for such only where the old config says the old shapes.
        """
        first = self._signature({})
        if first is None:
            return frozenset()
        other = _unequal(first, self._old)
        resized = {key for key, pair in other.items() if not key[1] and _MISSING not in pair}
        return frozenset(key for key in other if not resized or not (key[1] or key in resized))

    # --- the search -----------------------------------------------------------------------------------------------

    def _exact(self) -> dict[Path, list[Any]]:
        """Path -> what its number became elsewhere, the most frequent first; a list over blocks -> without some."""
        became: dict[tuple[type, float], list[float]] = {}
        for (old, new), _ in self._changes.most_common():
            became.setdefault((type(old), old), []).append(new)
        paths = ((p, became.get((type(number), number))) for p, number in numbers(self._config))
        exact: dict[Path, list[Any]] = {path: values for path, values in paths if values}
        for path, entries in lists(self._config) if self._depths else ():
            values = [
                each
                for _, count, places in self._depths
                for each in _rearranged(entries, count, places)
            ]
            if values:
                exact[path] = values
        return exact

    def _scaled(self) -> dict[Path, list[float]]:
        """Path -> its number in proportion, or against it: an expansion says how much wider what stays is."""
        ratios = Counter[Fraction]()
        for (old, new), count in self._changes.items():
            if type(old) is type(new) is int and old > 0 and new > 0:
                ratios[Fraction(new, old)] += count
        options: dict[Path, list[float]] = {}
        for path, number in numbers(self._config):
            if number != number or number in (float("inf"), float("-inf")):
                continue
            common = [ratio for ratio, _ in ratios.most_common(2)]
            exact = [Fraction(number) * r for r in (*common, *(1 / r for r in common)) if number]
            if type(number) is int:
                options[path] = [int(value) for value in exact if value.denominator == 1]
            else:
                options[path] = [float(value) for value in exact]
        return {path: values for path, values in options.items() if values}

    def _asked_for(self) -> dict[Path, list[Any]]:
        """Fields that the config has not and the class asks for, where all modules that have such a number agree."""
        names: set[str] = set()
        with contextlib.suppress(Exception):  # some classes take configs of one very type
            self.build({}, listener=names)
        became: dict[str, set[Any]] = {}
        for (_, attribute), value in self._new.items():
            if attribute in names and type(value) in (int, float):
                became.setdefault(attribute, set()).add(value)
        return {(name,): [*values] for name, values in became.items() if len(values) == 1}

    def _descended(self, fields: Fields, options: Mapping[Path, list[Any]]) -> Fields:
        """By one field at a time; by two where no one helps alone."""
        best, improved = fields, True
        while improved and not self._reached(best):
            improved = False
            single: list[tuple[_Distance, Fields]] = []
            for step in _steps(options):
                trial = _with(best, step)
                if trial == best:
                    continue
                if len(self._built) >= _BUILDS:
                    return best
                single.append((self.distance(trial), step))
                if single[-1][0] < self.distance(best):
                    best, improved = trial, True
            if improved:
                continue
            single.sort(key=lambda each: each[0])
            harmless = [step for distance, step in single if distance != _NOWHERE][:_PAIRED]
            refused = [step for distance, step in single if distance == _NOWHERE][: 2 * _PAIRED]
            for one, other in (*combinations(harmless, 2), *combinations(refused, 2)):
                trial = _with(best, {**one, **other})
                if len(self._built) >= _BUILDS:
                    return best
                if self.distance(trial) < self.distance(best):
                    best, improved = trial, True
                    break
        return best

    def _by_layer(self, fields: Fields, paths: list[Path]) -> Fields:
        """Numbers that differ from layer to layer: as a list, or as what single layers have instead."""
        best = fields
        for layers, became in self._layers():
            for path in paths:
                if self._reached(best):
                    return best
                number = dict(numbers(self._config))[path]
                values = [became[i].get(number, number) for i in range(layers)]
                if len(set(values)) == 1 or not isinstance(path[-1], str):
                    continue
                single = (*path[:-1], "per_layer_config")
                overrides: dict[int, dict[str, Any]] = copy.deepcopy(best.get(single, {}))
                for i, value in enumerate(values):
                    overrides.setdefault(i, {})[path[-1]] = value
                bare = {p: v for p, v in best.items() if p != path}
                trials = ({**bare, path: values}, {**bare, single: overrides})
                best = min((best, *trials), key=self.distance)
        return best

    def _layers(self) -> Iterator[tuple[int, list[dict[float, float]]]]:
        """(number of layers, for each of them old -> new number) of each list of layers in which any changed."""
        lists: dict[str, int] = {}
        for fqn, _ in self._new:
            for head, place in _places(fqn):
                lists[head] = max(lists.get(head, 0), place + 1)
        for head, count in lists.items():
            became: list[dict[float, float]] = [{} for _ in range(count)]
            for old, new, fqn in self._where:
                for other, place in _places(fqn):
                    if other == head:
                        became[place].setdefault(old, new)
            if count > 1 and any(became):
                yield count, became


class EmptyOnMeta(TorchFunctionMode):
    """Tensors that are made empty, as parameters are, have no values and get none; buffers, which are computed, do."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is torch.empty and named.get("device") is None:
            named["device"] = "meta"
        elif getattr(func, "__name__", "") in _DRAWS:
            tensor = args[0] if args else named.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **named)


# By name, as libraries put functions of their own in the place of torch's.
_DRAWS = {"fill_", "zero_", *(name for name in vars(nn.init) if name.endswith("_"))}


def _listening(kind: type, names: set[str]) -> type:
    """A class of configs that notes the names that it is asked for in vain."""

    def note(self: object, name: str) -> Any:
        names.add(name)
        raise AttributeError(name)

    return type(kind.__name__, (kind,), {"__getattr__": note})


def _rearranged(entries: list[Any], count: int, places: Sequence[int]) -> Iterator[list[Any]]:
    """What a list may be for other blocks: by block; or with the last one's number, or its name (``"stage4"``)."""
    if len(entries) == count:
        yield [entries[place] for place in places]
    named = re.compile(rf"(?<!\d){count}$")
    last: list[Any] = [
        named.sub(str(len(places)), each) if isinstance(each, str) else each for each in entries
    ]
    last = [len(places) if type(each) is int and each == count else each for each in last]
    if last != entries:
        yield last


def _of_classes(sizes: Mapping[AxisClass, int]) -> Iterator[tuple[float, float, str]]:
    """(old, new, FQN) of the number of units of each class, and of the products of factors that they are in."""
    blocks: dict[tuple[Any, ...], dict[int, int]] = {}
    for each, size in sizes.items():
        for m in each.members:
            blocks.setdefault(m.block, {})[m.position] = size
    for (fqn, _, _, factors), changed in blocks.items():
        now = [changed.get(i, size) for i, size in enumerate(factors)]
        for start, end in combinations(range(len(factors) + 1), 2):
            old, new = prod(factors[start:end]), prod(now[start:end])
            if old != new:
                yield old, new, fqn


def _unequal(
    one: Signature, other: Signature, without: frozenset[tuple[str, str]] = frozenset()
) -> dict[tuple[str, str], tuple[Any, Any]]:
    keys = [key for key in {**other, **one} if key not in without]
    pairs = {key: (one.get(key, _MISSING), other.get(key, _MISSING)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _steps(options: Mapping[Path, list[Any]]) -> Iterator[Fields]:
    for path, values in options.items():
        for value in (*values, _MISSING):
            yield {path: value}


def _with(fields: Fields, step: Fields) -> Fields:
    return {path: value for path, value in {**fields, **step}.items() if value is not _MISSING}


def _joined(
    one: Mapping[Path, list[Any]], other: Mapping[Path, list[Any]]
) -> dict[Path, list[Any]]:
    joined = {path: [*values] for path, values in one.items()}
    for path, values in other.items():
        known = joined.setdefault(path, [])
        known += [value for value in values if value not in known]
    return joined


def _places(fqn: str) -> Iterator[tuple[str, int]]:
    """(FQN of a list of modules, place in it) for each list that a name goes through."""
    words = fqn.split(".")
    for i, word in enumerate(words):
        if word.isdecimal():
            yield ".".join(words[:i]), int(word)


def _key(fields: Fields) -> str:
    return repr(sorted((str(path), repr(value)) for path, value in fields.items()))


def _shown(value: object) -> str:
    return "missing" if value is _MISSING else repr(value)
