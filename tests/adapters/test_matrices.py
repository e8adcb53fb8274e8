"""What every adapter does to a matrix: the exact sum, the scale, the average over links."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib.graft import Link
from graftlib_adapters._matrices import add, averaged, rms


def bits(x):
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_zero_change_of_either_sign_keeps_the_bits(dtype, zero):
    w = torch.tensor([0.0, -0.0, 1.5, -1e-42, float("inf"), -float("inf")], dtype=dtype)
    assert torch.equal(bits(add(w, torch.full_like(w, zero))), bits(w))


def test_a_plain_sum_would_not():
    w = torch.tensor([-0.0])
    assert not torch.equal(bits(w + torch.zeros(1)), bits(w))


def test_add_is_the_sum_and_gradients_reach_both_where_the_change_is_zero():
    w, d = torch.randn(5, requires_grad=True), torch.tensor([0.0, 1, 2, 3, 4], requires_grad=True)
    assert torch.equal(add(w, d), w + d)
    add(w, d).sum().backward()
    assert torch.equal(w.grad, torch.ones(5))
    assert torch.equal(d.grad, torch.ones(5))


@given(st.integers(-60, 60))
def test_rms_survives_any_scale(exponent):
    w, scale = torch.randn(4, 6), 2.0**exponent
    assert rms(w * scale) == rms(w) * scale
    torch.testing.assert_close(rms(w), w.square().mean().sqrt())


def test_rms_of_zeros_is_zero_and_is_data():
    assert rms(torch.zeros(2, 3)) == 0
    assert not rms(torch.randn(2, 3, requires_grad=True)).requires_grad


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_links_into_one_target_are_averaged(written):
    links = [Link(0, i, f"l{n}") for n, i in enumerate(written)]
    changes = [torch.randn(2) for _ in links]
    mean = averaged(changes, links)
    assert set(mean) == set(written)
    for i, change in mean.items():
        said = [c for c, link in zip(changes, links, strict=True) if link.target == i]
        torch.testing.assert_close(change, sum(said) / len(said))
