"""Which names does a pattern mean?

Shell globs whose ``*`` also crosses dots; ``{name}`` captures one component between dots, or a part of one, the same
text wherever the same name stands; ``re:`` introduces a regular expression for the whole name (that of the `regex`
library, which knows what `re` knows), whose named groups are captures. A pattern that means a module means its
``weight``.
Patterns and names may both be untrusted, so none takes more than seconds. A glob is matched without
going back, and in a bounded number of steps where a capture stands in it twice; a regular expression has a
bounded time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from ..errors import MatchError, shown

__all__ = ["Hit", "select", "split_pattern"]

MSG_SYNTAX = "write a shell glob with {captures}, or 're:' and a regular expression"
LONGEST = 20_000
"""Letters of a glob: an exact name is one, too."""
LONGEST_EXPRESSION = 1_000
MOST_PIECES = 200
"""Stars, captures and the texts between them, where there are captures."""
MOST_STEPS = 500_000
"""In which the captures of one pattern are looked for, over all names; one name takes as many as it has pieces."""
MOST_LETTERS = 2_000_000_000
"""Letters of the names times letters of the glob."""
MOST_SECONDS = 0.5
"""That one regular expression may take, over all names; each takes microseconds."""

_Match = Callable[[str], "dict[str, str] | None"]


@dataclass(frozen=True)
class Hit:
    """One name that a pattern meant, and what each capture stood for in it."""

    name: str
    captures: dict[str, str] = field(default_factory=dict)


def select(pattern: str, names: Iterable[str]) -> list[Hit]:
    """The names that `pattern` hits; an empty list where there are none.

    Raises:
        MatchError: the pattern is no text, not well formed, too long, or there are too many ways to match it.

    Examples:
        >>> [hit.name for hit in select("layer{i}.*", ["layer1.conv.weight", "fc.weight"])]
        ['layer1.conv.weight']
        >>> select("fc", ["fc.weight", "fc.bias"])
        [Hit(name='fc.weight', captures={})]
    """
    match = _matcher(pattern)
    hits = []
    for name in names:
        captures = match(name)
        if captures is None and name.endswith(".weight"):
            captures = match(name.removesuffix(".weight"))
        if captures is not None:
            hits.append(Hit(name, captures))
    return hits


def split_pattern(pattern: str, names: Collection[str]) -> tuple[str, str | None]:
    """The pattern of the name, and the part behind ``::``; None where there is none.

    A name may hold ``::`` itself, so what means one of `names` as it stands is not split.

    >>> split_pattern("h.*.attn.c_attn::value.head[3]", ["h.0.attn.c_attn.weight"])
    ('h.*.attn.c_attn', 'value.head[3]')
    >>> split_pattern("re:block(?::x|y)", [])  # these colons belong to the regular expression
    ('re:block(?::x|y)', None)
    >>> split_pattern("a::b", ["a::b.weight"])
    ('a::b', None)
    """
    if not isinstance(pattern, str):
        raise _malformed(pattern, "a pattern is text")
    base, colons, part = pattern.rpartition("::")
    if not colons or (pattern.startswith("re:") and not re.fullmatch(r"[\w.]+(\[\d+\])?", part)):
        return pattern, None
    if any("::" in name for name in names) and select(pattern, names):
        return pattern, None
    return base, part


def _matcher(pattern: str) -> _Match:
    """Name -> captures; None where the pattern does not hit it."""
    if not isinstance(pattern, str):
        raise _malformed(pattern, "a pattern is text")
    expression = pattern.startswith("re:")
    longest = LONGEST_EXPRESSION if expression else LONGEST
    if len(pattern) > longest:
        raise _malformed(pattern, f"it has {len(pattern):,} letters, and {longest:,} are read")
    if expression:
        return _Expression(pattern)
    pieces = _pieces(pattern)
    if any(isinstance(piece, _Capture) for piece in pieces):
        return _Capturing(pattern, pieces)
    return _Glob(pattern, pieces)


def _malformed(pattern: object, why: str) -> MatchError:
    return MatchError(
        f"the pattern {shown(pattern)} is not well formed.",
        why=why,
        fix=MSG_SYNTAX,
        pattern=pattern,
    )


def _endless(pattern: str) -> MatchError:
    return MatchError(
        f"the pattern {shown(pattern)} can be matched in too many ways.",
        why="each star, capture or repeat multiplies the ways to match those before it",
        fix="use fewer of them, or name the layers one by one",
        pattern=pattern,
    )


# --- regular expressions --------------------------------------------------------------------------------------------


class _Expression:
    """A regular expression, within a time for all names together."""

    def __init__(self, pattern: str) -> None:
        import regex

        self._pattern, self._left = pattern, MOST_SECONDS
        try:
            self._expression: Any = regex.compile(pattern.removeprefix("re:"), regex.DOTALL)
        except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise _malformed(pattern, str(error) or type(error).__name__) from None

    def __call__(self, name: str) -> dict[str, str] | None:
        begin = monotonic()
        try:
            match = self._expression.fullmatch(name, timeout=max(self._left, 1e-3))
        except (TimeoutError, RecursionError, MemoryError):
            raise _endless(self._pattern) from None
        self._left -= monotonic() - begin
        if match is None:
            return None
        return {key: text for key, text in match.groupdict().items() if text is not None}


# --- globs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Letters:
    """Neighbours that each stand for one letter, as a regular expression."""

    text: str
    count: int


@dataclass(frozen=True)
class _Star:
    pass


@dataclass(frozen=True)
class _Capture:
    name: str


_Piece = _Letters | _Star | _Capture
_CAPTURE = re.compile(r"\{([^{}]*)\}")


def _pieces(pattern: str) -> list[_Piece]:
    """The glob, with neighbouring letters joined and neighbouring stars one."""
    pieces: list[_Piece] = []
    letters: list[str] = []
    for piece in _tokens(pattern):
        if isinstance(piece, str):
            letters.append(piece)
            continue
        if letters:
            pieces.append(_Letters("".join(letters), len(letters)))
            letters = []
        if not (isinstance(piece, _Star) and pieces and isinstance(pieces[-1], _Star)):
            pieces.append(piece)
    if letters:
        pieces.append(_Letters("".join(letters), len(letters)))
    return pieces


def _tokens(pattern: str) -> Iterator[str | _Star | _Capture]:
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        capture = _CAPTURE.match(pattern, at) if letter == "{" else None
        end = pattern.find("]", at + 2 + pattern.startswith("[!", at)) if letter == "[" else -1
        if capture:
            yield _capture(capture[1], pattern)
            at = capture.end()
        elif end > 0:
            yield _set(pattern[at + 1 : end], pattern)
            at = end + 1
        else:
            yield _Star() if letter == "*" else "." if letter == "?" else re.escape(letter)
            at += 1


def _capture(name: str, pattern: str) -> _Capture:
    if not name.isidentifier():
        raise MatchError(
            f"the pattern {shown(pattern)} is not well formed.",
            why=f"'{{{name}}}' is no name for a capture",
            fix="give it a name that starts with a letter: {block}",
            pattern=pattern,
        )
    return _Capture(name)


def _set(inner: str, pattern: str) -> str:
    """``a-z_`` or ``!a-z_`` as a regular expression for one letter."""
    sign, inner = ("^", inner[1:]) if inner.startswith("!") else ("", inner)
    items, at = [], 0
    while at < len(inner):
        last = inner[at + 2] if inner[at + 1 : at + 2] == "-" and at + 2 < len(inner) else inner[at]
        if last < inner[at]:
            raise _malformed(
                pattern, f"[{shown(inner, 40)}] has a range that ends before it begins"
            )
        items.append(f"{re.escape(inner[at])}-{re.escape(last)}")
        at += 3 if inner[at + 1 : at + 2] == "-" and at + 2 < len(inner) else 1
    return f"[{sign}{''.join(items)}]"


class _Glob:
    """A glob without captures: each star takes as little as it can and never gives it back.

    That loses nothing. What stands between two stars has one length, so the first place where it fits leaves the most
    for the rest.
    """

    def __init__(self, pattern: str, pieces: list[_Piece]) -> None:
        self._pattern, self._left = pattern, MOST_LETTERS
        self._between: list[tuple[re.Pattern[str], int]] = []
        texts = [_Letters("", 0)]
        for piece in pieces:
            if isinstance(piece, _Letters):
                texts[-1] = piece
            else:
                texts.append(_Letters("", 0))
        self._between = [(re.compile(each.text, re.DOTALL), each.count) for each in texts]
        self._shortest = sum(each.count for each in texts)

    def __call__(self, name: str) -> dict[str, str] | None:
        if len(name) < self._shortest:
            return None
        (first, at), *rest = self._between
        if not rest:
            return {} if first.fullmatch(name) else None
        if not first.match(name):
            return None
        self._left -= len(name) * self._shortest
        if self._left < 0:
            raise _endless(self._pattern)
        for part, count in rest[:-1]:
            place = part.search(name, at)
            if place is None:
                return None
            at = place.start() + count
        last, count = rest[-1]
        end = len(name) - count
        return {} if end >= at and last.fullmatch(name, end) else None


class _Capturing:
    """A glob with captures, which take as much as they can, as stars do, and give it back where the rest needs it.

    From the end to the beginning it is worked out at which letters of a name what is left of the glob fits, so that on
    the way forth no step is ever taken back. Only where a later capture must repeat an earlier one does it take tries:
    those are remembered, and counted.
    """

    def __init__(self, pattern: str, pieces: list[_Piece]) -> None:
        if len(pieces) > MOST_PIECES:
            raise _malformed(pattern, f"it has more than {MOST_PIECES} stars, captures and texts")
        self._pattern, self._left = pattern, MOST_STEPS
        self._pieces = pieces
        self._letters = [
            re.compile(piece.text, re.DOTALL) if isinstance(piece, _Letters) else None
            for piece in pieces
        ]
        names = [piece.name if isinstance(piece, _Capture) else None for piece in pieces]
        self._repeated = [
            [name for name in dict.fromkeys(names[:i]) if name is not None and name in names[i:]]
            for i in range(len(pieces) + 1)
        ]

    def __call__(self, name: str) -> dict[str, str] | None:
        first = self._letters[0]
        if first is not None and not first.match(name):
            return None
        fits = self._fitting(name)
        captures: dict[str, str] = {}
        return captures if self._taken(name, fits, 0, 0, captures, set()) else None

    def _fitting(self, name: str) -> list[bytearray]:
        """[piece][letter]: 1 where that piece and all behind it fit from that letter to the end of the name."""
        fits = [bytearray(len(name) + 1)]
        fits[0][-1] = 1
        for piece, letters in zip(reversed(self._pieces), reversed(self._letters), strict=True):
            ends, here = fits[-1], bytearray(len(name) + 1)
            if isinstance(piece, _Star):
                farthest = ends.rfind(1) + 1
                here[:farthest] = b"\1" * farthest
            else:
                end = ends.rfind(1)
                while end > 0:
                    if isinstance(piece, _Capture):
                        begin = name.rfind(".", 0, end) + 1
                        here[begin:end] = b"\1" * (end - begin)
                    elif letters and end >= piece.count and letters.match(name, end - piece.count):
                        here[end - piece.count] = 1
                    end = ends.rfind(1, 0, end)
            fits.append(here)
        return fits[::-1]

    def _taken(
        self,
        name: str,
        fits: list[bytearray],
        number: int,
        at: int,
        captures: dict[str, str],
        failed: set[tuple[object, ...]],
    ) -> bool:
        if number == len(self._pieces):
            return at == len(name)
        key = (number, at, *(captures[one] for one in self._repeated[number]))
        if key in failed:
            return False
        for end, new in self._ends(name, fits[number + 1], number, at, captures):
            self._left -= 1
            if self._left < 0:
                raise _endless(self._pattern)
            if new is not None:
                captures[new] = name[at:end]
            if self._taken(name, fits, number + 1, end, captures, failed):
                return True
            if new is not None:
                del captures[new]
        failed.add(key)
        return False

    def _ends(
        self, name: str, fits: bytearray, number: int, at: int, captures: dict[str, str]
    ) -> Iterator[tuple[int, str | None]]:
        """Where a piece that begins at `at` may end, the farthest first, and the capture that it sets."""
        piece, new = self._pieces[number], None
        first, last = at, len(name)
        if isinstance(piece, _Letters):
            first = last = at + piece.count
        elif isinstance(piece, _Capture) and piece.name in captures:
            first = last = at + len(captures[piece.name])
            if not name.startswith(captures[piece.name], at):
                return
        elif isinstance(piece, _Capture):
            dot = name.find(".", at)
            first, last, new = at + 1, len(name) if dot < 0 else dot, piece.name
        end = fits.rfind(1, first, last + 1)
        while end >= 0:
            yield end, new
            end = fits.rfind(1, first, end)
