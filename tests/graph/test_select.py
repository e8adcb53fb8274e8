"""Patterns over names."""

import contextlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlib.errors import MatchError
from graftlib.graph import select
from graftlib.graph.parameter import split_address
from graftlib.graph.select import split_pattern

words = st.text("abw01_", min_size=1, max_size=4)
names = st.lists(words, min_size=1, max_size=4).map(".".join)
NAMES = [
    "layer4.0.conv2.weight",
    "layer4.1.conv2.weight",
    "layer4.1.conv2.bias",
    "fc.weight",
    "fc.bias",
]


def hits(pattern, given=NAMES):
    return [hit.name for hit in select(pattern, given)]


@given(st.lists(names, unique=True))
def test_a_star_hits_everything_in_order(many):
    assert hits("*", many) == many


@given(st.lists(names, unique=True, min_size=1))
def test_a_name_hits_itself(many):
    assert many[0] in hits(many[0], many)


@given(st.lists(words, min_size=1, max_size=4))
def test_a_capture_is_exactly_one_component(parts):
    """As many captures as components hit; one less, or one more, does not."""
    name = ".".join(parts)
    holes = [f"{{c{i}}}" for i in range(len(parts))]
    (hit,) = select(".".join(holes), [name])
    assert hit.captures == {f"c{i}": part for i, part in enumerate(parts)}
    assert not select(".".join([*holes, "{more}"]), [name])


def test_a_star_crosses_dots():
    assert hits("layer4.*.weight") == NAMES[:2]
    assert hits("l*2.bias") == ["layer4.1.conv2.bias"]


def test_a_capture_stays_inside_its_component():
    (hit,) = select("layer{i}.1.{m}.bias", NAMES)
    assert hit.captures == {"i": "4", "m": "conv2"}
    assert not select("{everything}", NAMES[:3])


def test_a_capture_used_twice_is_the_same_text():
    assert hits("{i}.{i}", ["1.1", "1.2"]) == ["1.1"]


def test_a_module_means_its_weight():
    assert hits("fc") == ["fc.weight"]
    assert hits("layer4.{i}.conv2") == NAMES[:2]


def test_a_regular_expression_is_for_the_whole_name():
    (hit,) = select(r"re:fc\.(?P<leaf>bias)", NAMES)
    assert hit.captures == {"leaf": "bias"}
    assert not select("re:c.bias", NAMES)


def test_classes_and_question_marks():
    assert hits("layer4.[01].conv?.weight") == NAMES[:2]
    assert hits("layer4.[!0].conv2.weight") == NAMES[1:2]


def test_letters_of_regular_expressions_are_letters():
    assert hits("fc+weight") == []
    assert hits("a(b)", ["a(b)"]) == ["a(b)"]


@pytest.mark.parametrize("pattern", ["re:(", "{0x}", "{}", "{a b}"])
def test_a_pattern_that_is_not_well_formed_says_so(pattern):
    with pytest.raises(MatchError, match="not well formed") as error:
        select(pattern, NAMES)
    assert "fix" in str(error.value)


# --- untrusted patterns ------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    ["*", "?", "a", "b", ".", "0", "[ab]", "[!a]", "{i}", "{j}", "aa", "weight"]
)
texts = st.text("ab.0", max_size=12)


def plainly(pattern, name):
    """The captures by a regular expression that goes back as often as it likes; None where it does not hit."""
    text, seen = "", set()
    for piece in re.findall(r"\{\w+\}|\[[^\]]+\]|\*|.", pattern):
        if piece[0] == "{":
            key = piece[1:-1]
            text += f"(?P={key})" if key in seen else rf"(?P<{key}>[^.]+)"
            seen.add(key)
        elif piece[0] == "[":
            text += piece.replace("[!", "[^")
        else:
            text += {"*": ".*", "?": "."}.get(piece) or re.escape(piece)
    match = re.fullmatch(text, name, re.DOTALL)
    return None if match is None else match.groupdict()


@given(st.lists(pieces, max_size=7).map("".join), st.lists(texts | names, max_size=6))
def test_a_glob_means_what_its_plain_expression_means(pattern, many):
    """...the captures too: which of several ways to match is taken is a promise."""
    wanted = []
    for name in many:
        captures = plainly(pattern, name)
        if captures is None and name.endswith(".weight"):
            captures = plainly(pattern, name.removesuffix(".weight"))
        wanted += [] if captures is None else [(name, captures)]
    assert [(hit.name, hit.captures) for hit in select(pattern, many)] == wanted


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 12 + "*b",
        "*a" * 5000 + "*b",
        "{a}{b}{c}{d}{e}{f}{g}x",
        "*{a}*{b}*{c}*{d}*x",
        "{i}*" * 6 + "{i}{i}x",
        "[" * 20_000,
        "re:(a+)+b",
        "re:(a|a)*b",
        "re:.*.*.*.*.*.*.*x",
    ],
)
def test_no_pattern_goes_on_for_ever(pattern):
    begin = time.process_time()
    with contextlib.suppress(MatchError):
        assert select(pattern, ["a" * 60, "a" * 2000, "a.a.a.a", "b" * 300]) == []
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "pattern",
    [
        "re:a{4294967296}",
        "re:" + "(" * 5000,
        "re:" + "(" * 500,
        "a" * 30_000,
        "[z-a]",
        "{a}*" * 300,
        None,
        3,
        b"fc",
    ],
)
def test_a_pattern_that_cannot_be_read_is_refused_in_few_words(pattern):
    with pytest.raises(MatchError) as error:
        select(pattern, NAMES)
    assert len(str(error.value)) < 1500
    assert error.value.fix


def test_colons_in_a_name_are_the_names():
    known = ["a::b.weight", "c.weight"]
    assert split_pattern("a::b", known) == ("a::b", None)
    assert split_pattern("a::b::query", known) == ("a::b", "query")
    assert split_pattern("c::query", known) == ("c", "query")
    assert split_address("a::b::head[3]", known) == ("a::b", "head[3]")
