"""Makers of damaged inputs, all from one seeded `random.Random`: the same seed makes the same inputs.

`damaged_text` spoils a good file byte by byte or word by word; `damaged_tree` spoils good plain values (or tensors) at
one place; `pattern` makes patterns of the pieces that patterns are made of; `VALUES` are arguments of every kind.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

WORDS = [
    "*a", "&a ", "!!int ", "!!timestamp ", "!!bool x", "!!python/object/apply:os.system [x]", "? ", "- ", ": ", "\n",
    "\n  ", "{", "}", "[", "]", ",", "|", ">", "'", '"', "\\", "\\ud800", "#", "%", "@", "`", "---\n", "...\n", "<<: ",
    "null", "~", "true", "yes", ".inf", "-.inf", ".nan", "1e999", "-1", "0x1F", "1_000", "9" * 5000, "1:30:30",
    "2001-99-99", "2001-01-01", "\x00", "\x1b[31m", "\u2028", "\ufeff", "\xa0", "é", "a" * 5000, "[" * 50, "{a: " * 50,
    "format", "version", "source", "target", "pairs", "shape",
    "kind", "steps", "reads", "units", "settings", "factors",
]  # fmt: skip

SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 7, 2**31, 2**53, 2**63, 2**70, 10**400, 0.0, -0.5, 0.5, 1.5, 1e308, -1e308, math.inf,
    -math.inf, math.nan, "", "x", "a" * 5000, "\x00", "\ud800", "a::b", "*", "*" * 50, "re:(a+)+b", "../../etc/passwd",
    "0.weight", "forward", "better", "1", "1e5", [], {}, [[]], [None], {"": None}, {"a": {"b": {}}}, [1, 2, 3],
]  # fmt: skip

PIECES = [
    "*", "**", "?", "a", "b", "aa", ".", "..", "0", "weight", "{i}", "{j}", "{i", "{}", "{0x}", "[ab]", "[!a]", "[a-z]",
    "[z-a]", "[", "]", "[^a]", "[[a]", "[a--b]", "[]",
    "[!]", "::", "::query", "::head[3]", "::head[" + "9" * 5000 + "]",
    "::group[0]", "re:", "(", ")", "(a+)+", "(?:", "(?P<i>",
    "(?P=i)", "\\", "\\1", "+", "{4294967296}", "{2,1}", "$",
    "^", "|", "(?<!a)", "(?i)", "\x00", "\ud800", "é", "a" * 500, "*a" * 30, "{a}{b}{c}{d}{e}",
    "(a|a)*", "((a*)*)*", "(.*)*x",
]  # fmt: skip


class Odd:
    """An object whose every conversion fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __str__(self) -> str:
        return "odd"

    def __index__(self) -> int:
        raise RuntimeError("no number")

    __float__ = __bool__ = __len__ = __iter__ = __index__  # type: ignore[assignment]


VALUES: list[Any] = [
    None, True, 0, 1, -1, 3, 2**63, 2**70, 10**400, -0.5, 0.5, 2.0, math.nan, math.inf, "", "x", "a" * 5000, "\ud800",
    "a\0b", b"bytes", [], [1], [0.5, "x"], [[]], (), ("a", "b"), {}, {"a": 1}, {1: 2}, {0: -1}, {0: "x"}, set(), object,
    object(), Odd(), int, len, nn.ReLU(), torch.zeros(3), torch.zeros(()), torch.zeros(2, 6),
    torch.zeros(2, 6, device="meta"),
    np.float32(0.5), np.int64(2), np.zeros(3), range(3), Path("x"), ..., 1j, ValueError("x"), torch.float32, slice(3),
]  # fmt: skip


def damaged_text(random: Random, text: str) -> bytes:
    """A good file with one to four faults."""
    data = text.encode("utf-8", "surrogatepass")
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(data) + 1)
        to = min(len(data), at + random.choice((1, 2, 5, 20, 100)))
        word = random.choice(WORDS).encode("utf-8", "surrogatepass")
        middle = (
            bytes([random.randrange(256)]),
            b"",
            data[at:to] * random.choice((2, 3, 50)),
            word,
        )
        rest = random.choice((data[at:], data[to:], data[to:], b""))
        data = data[:at] + random.choice(middle) + rest
    return data


def damaged_tree(random: Random, values: Any, scalars: list[Any] = SCALARS) -> Any:
    """A copy of plain values with one to three places spoilt: another value, a value more, a name less."""
    tree = copy.deepcopy(values)
    for _ in range(random.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            return random.choice(scalars)
        owner, key = random.choice(places)
        what = random.randrange(4)
        if what == 0:
            del owner[key]
        elif what == 1 and isinstance(owner, dict):
            owner[random.choice(["x", "", "a" * 300, "\ud800", 3])] = random.choice(scalars)
        elif what == 2 and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
        else:
            owner[key] = copy.deepcopy(random.choice(scalars))
    return tree


def _places(tree: Any) -> Any:
    keys = (
        tree.keys()
        if isinstance(tree, dict)
        else range(len(tree))
        if isinstance(tree, list)
        else ()
    )
    for key in list(keys):
        yield tree, key
        yield from _places(tree[key])


def pattern(random: Random) -> str:
    """One to eight pieces of patterns."""
    return "".join(random.choice(PIECES) for _ in range(random.randint(1, 8)))
