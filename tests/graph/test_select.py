"""Patterns over names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlib.errors import MatchError
from graftlib.graph import select

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
