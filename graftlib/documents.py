"""YAML and JSON that nobody vouches for, as records of declared types.

In: bytes or plain values, and a `msgspec.Struct` that says what they must be. Out: that record, or all that is wrong
with them at once. Always true: nothing is executed; size and depth are bounded; a field that the record does not know
is refused with the nearest that it knows; no value is turned into another type.

YAML is read in the plain part that JSON has too: mappings with text keys, lists, texts, numbers, true, false and null
(as its version 1.2 writes them). Aliases, which make ten lines into a billion, and tags, which name types, are refused.
"""

from __future__ import annotations

import json
import os
import re
import types
import typing
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar, Union

import msgspec
import yaml
from msgspec import Meta

from .disk import named, read_whole
from .errors import GraftError, closest, shown

__all__ = [
    "Count",
    "Finite",
    "FrozenRecord",
    "Record",
    "convert",
    "faults_of",
    "parse_json",
    "read_json",
    "read_yaml",
    "to_plain",
    "to_yaml",
]

MOST_BYTES = {"YAML": 16_000_000, "JSON": 128_000_000}
SLOW_BYTES = 200_000
"""Of YAML that only its slow reader takes."""
MOST_EVENTS = 600_000
"""Of YAML: a few seconds."""
DEEPEST = 40
"""How deep lists and mappings of YAML may stand in each other."""
MOST_FAULTS = 40
"""That one error lists."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
"""A number of things: no larger than every reader of JSON can say exactly."""
Finite = Annotated[float, Meta(ge=-1.7976931348623157e308, le=1.7976931348623157e308)]
"""A number that is neither infinite nor NaN."""


class Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a document must be: subclass it with typed fields."""


class FrozenRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A `Record` that does not change; subclasses say ``frozen=True`` again."""


# A name with a lone surrogate is compared with those of the fields as UTF-8, which it is not.
_REFUSALS = (msgspec.MsgspecError, UnicodeEncodeError, RecursionError, OverflowError)

R = TypeVar("R", bound=msgspec.Struct)


def read_yaml(
    path: str | os.PathLike[str],
    kind: type[R],
    *,
    what: str,
    error: type[GraftError] = GraftError,
    fix: str = "write it again with save",
) -> R:
    """Read a YAML file as a record.

    Args:
        path: of a regular file.
        kind: the record.
        what: it is, for the message: ``"mapping"``.
        error: the member of the family to raise.
        fix: what to do where the file is not what it should be.

    Raises:
        GraftError: the file cannot be read, is no such YAML, or is not what `kind` says; all faults at once, also as
            the attribute ``faults``.
    """
    return _read(path, kind, "YAML", _from_yaml, what, error, fix)


def read_json(
    path: str | os.PathLike[str],
    kind: type[R],
    *,
    what: str,
    error: type[GraftError] = GraftError,
    fix: str = "write it again with save",
) -> R:
    """Read a JSON file as a record; as `read_yaml`."""
    return _read(path, kind, "JSON", parse_json, what, error, fix)


def convert(
    values: Any,
    kind: type[R],
    *,
    what: str,
    error: type[GraftError] = GraftError,
    fix: str = "write it again with save",
) -> R:
    """Plain values as a record.

    Args:
        values: dicts, lists, texts, numbers, true, false and None.
        kind: the record.
        what: is not what it should be, for the message: ``"the mapping 'a.yaml'"``.
        error: the member of the family to raise.
        fix: what to do then.

    Raises:
        GraftError: `values` are not what `kind` says; all faults at once, also as the attribute ``faults``.
    """
    try:
        return msgspec.convert(values, kind)
    except Exception as first:  # msgspec's, or what a method of an object in `values` raises
        faults = dict(islice(faults_of(values, kind, ""), MOST_FAULTS)) or {"": str(first)}
    raise error(
        f"{what} is not what it should be.",
        where={at or "the whole": text for at, text in faults.items()},
        fix=fix,
        faults=faults,
    ) from None


def to_plain(value: Any) -> Any:
    """A record, or a nest of records, dicts and lists, as dicts and lists that `convert` takes back.

    What is neither, such as a tensor, stays the same object. Of a record with ``omit_defaults`` those are left out.

    >>> class Point(Record):
    ...     at: tuple[int, int]
    >>> to_plain([Point(at=(1, 2))])
    [{'at': [1, 2]}]
    """
    if isinstance(value, msgspec.Struct):
        omitted = value.__struct_config__.omit_defaults
        return {
            field.name: to_plain(getattr(value, field.name))
            for field in msgspec.structs.fields(value)
            if not (omitted and getattr(value, field.name) == _default(field))
        }
    if isinstance(value, dict):
        return {key: to_plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(one) for one in value]
    return value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    factory = field.default_factory
    return field.default if factory is msgspec.NODEFAULT else factory()


def to_yaml(values: Any) -> str:
    """Plain values as YAML that `read_yaml` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=100)


def _read(
    path: str | os.PathLike[str],
    kind: type[R],
    language: str,
    parse: Callable[[bytes], Any],
    what: str,
    error: type[GraftError],
    fix: str,
) -> R:
    what = f"the {what} {named(path)}"
    try:
        data = read_whole(path, limit=MOST_BYTES[language], error=error)
    except GraftError as refusal:
        raise error(f"{what} cannot be read.", why=refusal.why, fix=refusal.fix) from None
    try:
        values = parse(data)
    except (yaml.YAMLError, ValueError, RecursionError) as refusal:
        why = str(refusal) or type(refusal).__name__
        raise error(f"{what} cannot be read as {language}.", why=why, fix=fix) from None
    return convert(values, kind, what=what, error=error, fix=fix)


# --- all faults at once ---------------------------------------------------------------------------------------------


def faults_of(values: Any, kind: Any, at: str) -> Iterator[tuple[str, str]]:
    """Where `values` is not what `kind` says, and why: msgspec says the first fault, this looks on behind it."""
    try:
        msgspec.convert(values, kind)
        return
    except _REFUSALS as error:
        first = str(error).partition(" - at `")[0]
    except Exception:  # whatever the methods of a caller's object raise
        first = "Expected something else"
    found = False
    for where, value, inner in _inner(values, kind, at):
        for fault in faults_of(value, inner, where):
            found = True
            yield fault
    if isinstance(values, dict) and _is_record(kind):
        for name in _odd_names(values, _single(kind)):
            found = True
            yield name if at == "" else (f"{at}.{name[0]}", name[1])
    if not found and typing.get_origin(_single(kind)) is Literal:
        words = " or ".join(map(repr, typing.get_args(_single(kind))))
        yield at, f"expected {words}, got {shown(values, 80)}"
    elif not found:
        yield at, _sentence(first, values)


def _inner(values: Any, kind: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    """The parts of `values`, each with what it should be."""
    kind = _single(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if _is_record(kind) and isinstance(values, dict):
        for field in msgspec.structs.fields(kind):
            if field.name in values:
                yield f"{at}.{field.name}".lstrip("."), values[field.name], field.type
    elif origin is dict and isinstance(values, dict):
        for key, value in values.items():
            yield f"{at}[{shown(key, 80)}]", value, arguments[1]
    elif origin in (list, tuple) and isinstance(values, list):
        kinds = [each for each in arguments if each is not ...]
        for number, value in enumerate(values):
            yield f"{at}[{number}]", value, kinds[min(number, len(kinds) - 1)]


def _odd_names(values: dict[Any, Any], kind: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for name in values:
        if name not in fields:
            near = closest(str(name), list(fields), n=1) if isinstance(name, str) else []
            yield shown(name, 80), "is unknown" + "".join(f"; nearest {each!r}" for each in near)
    for name, field in fields.items():
        if field.required and name not in values:
            yield name, "is missing"


def _single(kind: Any) -> Any:
    """What a value that is there should be: without bounds, and without None."""
    if typing.get_origin(kind) is Annotated:
        return _single(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (Union, types.UnionType):
        nothing = (type(None), msgspec.UnsetType)
        others = [each for each in typing.get_args(kind) if each not in nothing]
        return _single(others[0]) if len(others) == 1 else kind
    return kind


def _is_record(kind: Any) -> bool:
    kind = _single(kind)
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


_WORDS = {
    "object": "mapping of names",
    "array": "list",
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "null": "nothing",
}


def _sentence(text: str, value: Any) -> str:
    """What msgspec says, in the words of a person who writes YAML, with the value."""
    plain = re.sub(
        r"`([\w |]+)`",
        lambda words: " or ".join(_WORDS.get(word, word) for word in words[1].split(" | ")),
        text,
    )
    if value is not None and not isinstance(value, (str, int, float, list, dict)):
        plain = f"{plain.partition(', got')[0]}, got {type(value).__name__}"
    scalar = isinstance(value, (str, int, float))
    return plain[:1].lower() + plain[1:] + (f": {shown(value, 80)}" if scalar else "")


# --- JSON -----------------------------------------------------------------------------------------------------------


def parse_json(data: str | bytes) -> Any:
    """JSON as plain values: no name twice in an object, no number that JSON has not.

    Not msgspec's own reader: names in a model may hold lone surrogates, which it does not take.

    Raises:
        ValueError: it is no such JSON.
        RecursionError: it is too deep.
    """

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(values := dict(pairs)) < len(pairs):
            raise ValueError("an object holds a name twice")
        return values

    text = data if isinstance(data, str) else data.decode("utf-8")
    return json.loads(text, parse_constant=refuse, object_pairs_hook=mapping)


# --- YAML -----------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_PLAIN = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{
        sign + word: float(sign + word[1:])
        for sign in ("", "+", "-")
        for word in (".inf", ".Inf", ".INF")
    },
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_MOST_DIGITS = 400


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_plain` would take for something else, and writes out what is there twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(_NUMBER.pattern + r"\Z"), list("-+.0123456789")
)


def _from_yaml(data: bytes) -> Any:
    text = data.decode("utf-8")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        loader = yaml.SafeLoader  # a lone surrogate in a name: the quick reader does not take it
    if loader is yaml.SafeLoader and len(text) > SLOW_BYTES:
        raise ValueError(f"it is too large: more than {SLOW_BYTES:,} letters")
    reader = _Events()
    for number, event in enumerate(yaml.parse(text, Loader=loader)):
        if number > MOST_EVENTS:
            raise ValueError(f"it is too large: more than {MOST_EVENTS // 2:,} entries")
        try:
            reader.take(event)
        except ValueError as error:
            mark: Any = event.start_mark
            raise ValueError(
                f"{error}, in line {mark.line + 1}, column {mark.column + 1}"
            ) from None
    return reader.value


class _Events:
    """Puts the events of one document together; without recursion, so that nothing is too deep for it."""

    def __init__(self) -> None:
        self._document: list[Any] = []
        self._open: list[Any] = [self._document]
        self._names: list[str | None] = [None]  # of what comes next, in each that is open

    @property
    def value(self) -> Any:
        return self._document[0] if self._document else None

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.DocumentStartEvent) and self._document:
            raise ValueError("there is a second document")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases (*name) are not read; write the value out")
        if isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._names.pop()
        elif isinstance(event, yaml.NodeEvent):
            if event.tag is not None:  # type: ignore[attr-defined]
                raise ValueError(f"tags ({shown(event.tag, 40)}) are not read")  # type: ignore[attr-defined]
            self._node(event)

    def _node(self, event: Any) -> None:
        around, scalar = self._open[-1], isinstance(event, yaml.ScalarEvent)
        if isinstance(around, dict) and self._names[-1] is None:
            if not scalar:
                raise ValueError("a name is text, not a list or a mapping")
            if event.value in around:
                raise ValueError(f"{shown(event.value, 80)} is there twice")
            self._names[-1] = event.value
            return
        if scalar:
            value = _plain(event.value) if event.implicit[0] else event.value
        elif len(self._open) > DEEPEST:
            raise ValueError(f"it is more than {DEEPEST} levels deep")
        else:
            value = {} if isinstance(event, yaml.MappingStartEvent) else []
        if isinstance(around, dict):
            around[self._names[-1]], self._names[-1] = value, None
        else:
            around.append(value)
        if not scalar:
            self._open.append(value)
            self._names.append(None)


def _plain(text: str) -> Any:
    """What a text without quotes means."""
    if text in _PLAIN:
        return _PLAIN[text]
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits is not read")
    return float(text) if "." in text or "e" in text.lower() else int(text)
