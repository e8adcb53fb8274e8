"""What reaches the terminal: harmless text, valid JSON, whole files."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlib.cli.console import _plain, printable, say_json, working

ANY_TEXT = st.text(st.characters(codec=None))  # lone surrogates included


@given(ANY_TEXT)
def test_printable_text_moves_no_cursor_and_always_encodes(text: str):
    shown_text = printable(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown_text)
    assert "\x1b" not in shown_text
    shown_text.encode("utf-8")


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_ordinary_text_is_left_alone(text: str):
    assert printable(text) == text


@pytest.mark.parametrize("trap", ["\x1b[2J", "\r", "\x9b31m", "\u202egnp.exe", "\udcff", "\x00"])
def test_each_trap_is_spelled_out(trap: str):
    assert printable(f"a{trap}b") != f"a{trap}b"
    assert printable(f"a{trap}b").startswith("a\\")


@dataclass(frozen=True)
class Record:
    loss: float
    shape: tuple[int, ...]


def test_json_knows_records_and_has_no_nan(capsys: pytest.CaptureFixture[str]):
    say_json(
        {"record": Record(float("nan"), (2, 3)), "infinite": [float("inf")], "path": Path("x")}
    )
    assert json.loads(capsys.readouterr().out) == {
        "record": {"loss": None, "shape": [2, 3]},
        "infinite": [None],
        "path": "x",
    }


@given(st.recursive(st.none() | st.booleans() | st.integers() | ANY_TEXT, st.lists))
def test_plain_values_stay(value: object):
    assert _plain(value) == value


def test_what_a_library_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]):
    with working("[bold]not markup"):
        print("chatter")
    sys.stdout.write("result")
    out, err = capsys.readouterr()
    assert out == "result"
    assert "chatter" in err
