"""What reaches the terminal: results on stdout, all else on stderr, names made harmless.

In: text that may hold names from models and files, which are untrusted. Out: the same text without control
characters, so that a layer's name cannot move the cursor or colour the prompt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from ..progress import bar

__all__ = ["complain", "printable", "say", "say_json", "say_preview", "working"]

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""`text` with control characters, bidirectional overrides and lone surrogates spelled out.

    >>> print(printable("conv\x1b[31m"))
    conv\x1b[31m
    """
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def say(thing: object) -> None:
    """Print a result on stdout."""
    typer.echo(printable(str(thing)))


def complain(text: str) -> None:
    """Print a warning or an error on stderr."""
    typer.echo(printable(text), err=True)


def say_json(thing: object) -> None:
    """Print one JSON document on stdout; a `str` is taken as JSON already and checked.

    Numbers that JSON does not know (NaN, infinities) become null.
    """
    value = json.loads(thing) if isinstance(thing, str) else thing
    typer.echo(json.dumps(_plain(value), indent=2, ensure_ascii=True, allow_nan=False))


def say_preview(headline: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Say what a command would do.

    Args:
        headline: in words.
        facts: as JSON has them; in words are those under ``sources``, ``executes`` and ``writes``.
        as_json: whether to print the facts.
    """
    if as_json:
        say_json(facts)
        return
    say(headline)
    for verb, key in (("read", "sources"), ("execute", "executes"), ("write", "writes")):
        for path in facts.get(key, ()):
            say(f"would {verb} {path}")


def _plain(value: Any) -> Any:
    """`value` in the types of JSON; records become objects, what is unknown becomes its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return str(value)


@contextlib.contextmanager
def working(task: str) -> Iterator[None]:
    """Show a bar on stderr while the block runs: percent and time left where the work says how far it is.

    What a library or a user's factory prints meanwhile goes to stderr: stdout carries results and nothing else.
    """
    with contextlib.redirect_stdout(sys.stderr), bar(task):
        yield
