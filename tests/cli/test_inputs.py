"""Example inputs: shapes from text, and tensors that models accept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib.cli.inputs import InputRequest, plain
from graftlib.cli.names import parse_shape
from graftlib.cli.options import DTYPES
from graftlib.errors import GraftError


@given(st.lists(st.integers(0, 10**12 - 1), min_size=1, max_size=6))
def test_a_shape_is_read_back(sizes: list[int]):
    assert parse_shape("x".join(map(str, sizes))) == tuple(sizes)


def test_a_scalar_has_no_axis():
    assert parse_shape("scalar") == ()


@pytest.mark.parametrize(
    "text", ["", "x", "2x", "2xx3", "-1x3", "2X3", "2 x 3", "²", "1" * 13, "2x3\n"]
)
def test_anything_else_is_refused(text: str):
    with pytest.raises(ValueError, match="is not a shape such as 2x3x32x32"):
        parse_shape(text)


@pytest.mark.parametrize("name", DTYPES)
def test_every_named_dtype_is_made(name: str):
    (tensor,) = plain(InputRequest(((2, 3),), getattr(torch, name)), (), "cpu")
    assert (tensor.shape, tensor.dtype) == ((2, 3), getattr(torch, name))


def test_the_default_serves_where_nothing_is_requested():
    assert [t.shape for t in plain(InputRequest(), (2, 3, 8, 8), "meta")] == [(2, 3, 8, 8)]
    assert [t.shape for t in plain(InputRequest(((1,), (4, 5))), (2, 3, 8, 8), "meta")] == [
        (1,),
        (4, 5),
    ]


def test_an_input_larger_than_the_memory_is_an_error_with_a_fix():
    huge = InputRequest(((10**6, 10**9),))
    assert plain(huge, (), "meta")[0].numel() == 10**15
    with pytest.raises(GraftError, match=r"cannot be made on cpu[\s\S]*--device meta"):
        plain(huge, (), "cpu")
