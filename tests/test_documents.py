"""Untrusted documents: what is written comes back, what is wrong is named, all of it, and nothing costs much."""

import time
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from graftlib.documents import Count, Finite, Record, convert, read_json, read_yaml, to_yaml
from graftlib.errors import GraftError, MappingError


class Inner(Record):
    name: str
    count: Count = 0


class Outer(Record):
    kind: Literal["a", "b"]
    inner: list[Inner]
    named: dict[str, Inner] | None = None
    number: Finite | None = None
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0


class Anything(Record):
    values: object


def read(text, tmp_path, kind=Anything, reader=read_yaml):
    path = tmp_path / "x"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return reader(path, kind, what="thing", error=MappingError)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=()), max_size=5), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(trees)
def test_what_is_written_as_yaml_comes_back(tmp_path_factory, values):
    """Names are untrusted: they may look like numbers, dates or YAML, and hold half a letter."""
    text = to_yaml({"values": values})
    assert read(text, tmp_path_factory.mktemp("yaml")).values == values


def test_what_is_there_twice_is_written_twice(tmp_path):
    one = [1, 2]
    assert read(to_yaml({"values": [one, one]}), tmp_path).values == [one, one]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("yes", "yes"),
        ("2001-01-01", "2001-01-01"),
        ("1:30", "1:30"),
        ("~", None),
        ("'1'", "1"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path, text, value):
    assert read(f"values: {text}", tmp_path).values == value


def test_all_faults_are_named_at_once():
    with pytest.raises(GraftError) as error:
        convert(
            {
                "kind": "c",
                "inner": [{"nme": 1}, 3],
                "named": {"x": {"name": 2, "count": -1}},
                "share": 0,
                "zz": 1,
            },
            Outer,
            what="the thing",
        )
    assert set(error.value.faults) == {
        "kind", "inner[0].'nme'", "inner[0].name", "inner[1]", "named['x'].name", "named['x'].count", "share", "'zz'",
    }  # fmt: skip
    assert "nearest 'name'" in error.value.faults["inner[0].'nme'"]
    assert "'a' or 'b'" in error.value.faults["kind"]


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a [x]\nvalues: *a",
        "values: !!bool x",
        "values: !!timestamp x",
        "values: !!python/object/apply:os.system [x]",
        "values: 1\n---\nvalues: 2",
        "values: 1\nvalues: 2",
        "? [a]\n: 1",
        "values: " + "9" * 5000,
        "[" * 100_000,
        "values: " + "[" * 60 + "]" * 60,
        "values: " + "y" * 17_000_000,
        "values: [" + "1," * 1_000_000 + "]",
        "values: [" + '"\\ud800",' * 100_000 + "]",
        b"values: \xff",
        b"\x00",
    ],
    ids=range(15),
)
def test_a_document_that_is_refused_is_refused_soon_and_in_few_words(tmp_path, text):
    begin = time.process_time()
    with pytest.raises(MappingError) as error:
        read(text, tmp_path)
    assert time.process_time() - begin < 5
    assert len(str(error.value)) < 2000
    assert error.value.fix


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"values": NaN}',
        '{"values": 1, "values": 2}',
        '{"values": 1' + "0" * 5000 + "}",
    ],
)
def test_json_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(MappingError):
        read(text, tmp_path, reader=read_json)


def test_json_may_hold_half_a_letter(tmp_path):
    assert read('{"values": "\\ud800"}', tmp_path, reader=read_json).values == "\ud800"


def test_an_error_of_any_length_is_short():
    names = {f"{i}" * 2000: 1 for i in range(10)}
    with pytest.raises(GraftError) as error:
        convert(names, Inner, what="the thing")
    assert len(str(error.value)) < 10_000
