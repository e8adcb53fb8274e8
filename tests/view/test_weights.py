"""Histograms agree with the values, of any float dtype; what has no values has none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graftlib import trace
from graftlib.view import view
from graftlib.view.weights import BINS, histogram


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=50),
    st.sampled_from(["float16", "float32", "float64"]),
)
def test_all_values_are_counted_in_their_bins(values, dtype):
    tensor = torch.tensor(values, dtype=getattr(torch, dtype))
    found = histogram(tensor)
    assert sum(found.counts) == len(values)
    assert (found.low, found.high) == (float(tensor.min()), float(tensor.max()))
    assert found.mean == pytest.approx(float(tensor.double().mean()), abs=1e-9)
    assert found.std == pytest.approx(float(tensor.double().std(correction=0)), abs=1e-4)
    if found.high > found.low:
        edges = torch.linspace(found.low, found.high, BINS + 1, dtype=torch.float64)
        first = int((tensor.double() < edges[1]).sum())
        assert abs(found.counts[0] - first) <= int((tensor.double() == edges[1]).sum())


def test_what_is_not_finite_is_counted_apart():
    found = histogram(torch.tensor([0.0, float("nan"), float("inf"), 2.0]))
    assert (found.odd, found.zeros, found.high) == (2, 0.25, 2.0)
    assert histogram(torch.full((3,), float("nan"))) is None
    assert histogram(torch.zeros(3, dtype=torch.int8)) is None
    assert histogram(torch.zeros(3, device="meta")) is None


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_panel_shows_a_histogram_on_request(opened, hostile, theme):
    model = nn.Sequential()
    model.add_module(hostile[2].replace(".", ""), nn.Linear(2, 2))
    graph = trace(model, torch.zeros(1, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 3.0]]))
    assert '"lie":[0,0]' in view(graph).html
    page = opened(view(graph, weights=True, theme=theme))
    page.locator(".node .box").first.click()
    details = page.locator("#panel details").first
    assert details.get_attribute("open") is None
    details.locator("summary").click()
    assert "0 to 3, mean 1.25" in details.text_content()
    assert "25 % zeros" in details.text_content()
    assert details.locator(".bars").bounding_box()["height"] > 40
