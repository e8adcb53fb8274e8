"""Words of our own making are not used: what is named with them has a name in the field.

Read are identifiers, split at underscores and capitals, comments, docstrings, messages and pages. Left out are
`docs/benchmarks` and the keys of what was published there, the keys of plan files of before, vendored libraries, and
the changelog, which has to say what a thing was called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

COINED = {
    "rung rungs ladder ladders": "tracer, tracing backends; stage of a search",
    "flight flights lesson lessons": "pending transfer, run, adapter update",
    "giver givers receiver receivers": "source, target; in assembly: base",
    "ledger ledgers": "cache, log, run files",
    "hear hears heard hearing hearer hearsay overhear ear ears": "record, read",
    "untold": "undetermined",
    "wish wishes wished": "request, requested",
    "rival rivals player players": "baseline, network",
    "stranger strangers": "independently trained model; untrusted file",
    "patience": "tolerance, max_refusals",
    "bear bears borne bearable": "tolerate",
    "seat seats": "linked matrix",
    "hoped hopes": "upper bound",
    "verdict verdicts judge judges": "result, permutation test",
}
"""Words -> what to say. Plain words that have another use (cut, slot, found, live, room, silent, arm) are not here."""

# Keys of documents that were written with these words, and a word that seeds a generator: as string literals alone.
KEYS = [
    *("givers", "players", "player", "rungs", "verdict", "classes_wished", "rival", "patience"),
    *("mlp: strangers", "{name}: strangers", "strangers"),
]

WORD = {word: instead for words, instead in COINED.items() for word in words.split()}
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
LITERAL = re.compile("(['\"])(" + "|".join(map(re.escape, KEYS)) + r")\1")


def coined(text: str) -> Iterator[tuple[int, str]]:
    """Line and word, for each coined word that is no key."""
    for number, line in enumerate(text.splitlines(), 1):
        for part in PART.findall(LITERAL.sub("", line)):
            if part.lower() in WORD:
                yield number, part.lower()


def ours() -> list[Path]:
    """Our own code and pages."""
    suffixes = {".py", ".md", ".js", ".css", ".j2", ".toml", ".yml", ".yaml"}
    folders = ["graftlib", "adapters", "docs", "tests", "examples"]
    inside = [path for name in folders for path in (ROOT / name).rglob("*")]
    return [
        path
        for path in [*inside, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
        if path.suffix in suffixes
        and not {"vendor", "__pycache__"} & {*path.parts}
        and not path.is_relative_to(ROOT / "docs" / "benchmarks")
        and path != Path(__file__).resolve()
    ]


def test_no_word_is_coined():
    seen = [
        f"{path.relative_to(ROOT)}:{number}: {word} (say: {WORD[word]})"
        for path in ours()
        for number, word in coined(path.read_text("utf-8"))
    ]
    assert not seen, "\n".join(seen)


def test_code_and_pages_are_read():
    names = {str(path.relative_to(ROOT)) for path in ours()}
    assert {"README.md", "graftlib/graph/trace.py", "docs/axes.md", "tests/conftest.py"} <= names
    assert {"examples/benchmarks/tables.py", "graftlib/view/assets/viewer.js"} <= names
    assert not any("vendor" in name or name.startswith("docs/benchmarks") for name in names)


@pytest.mark.parametrize(
    "planted",
    [
        "def giver_of(link):",
        "class LastRung:",
        "SEATS = 3",
        'raise GraftError("the wishes do not fit")',
        "# nothing is heard here",
        "Merging strangers does not help.",
        'found["verdict"] = verdict(rows)',
    ],
)
def test_a_planted_word_is_seen(planted: str):
    assert [number for number, _ in coined(f"x = 1\n{planted}\n")] == [2]


@pytest.mark.parametrize(
    "plain", ['row["verdict"]', "heart, learned, forbear, overheard", "swishes", "trunglow"]
)
def test_a_key_and_a_longer_word_are_not(plain: str):
    assert not [*coined(plain)]
