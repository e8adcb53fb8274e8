"""What an edit keeps and what units are worth stand beside the axis classes, unit by unit."""

import base64

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import graftlib
from graftlib import GraftError, surgery, trace
from graftlib.view import view
from graftlib.view.data import scene_data


class Chain(nn.Module):
    """A convolution, its norm and a reader, under names that would be markup."""

    def __init__(self, names=("a", "norm", "b"), width=12):
        super().__init__()
        self.names = names
        for name, layer in zip(
            names,
            (nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Conv2d(width, 5, 1)),
            strict=True,
        ):
            self.add_module(name, layer)

    def forward(self, x):
        a, norm, b = (self.get_submodule(name) for name in self.names)
        return b(torch.relu(norm(a(x))))


def graph(**options):
    torch.manual_seed(0)
    return trace(Chain(**options), torch.zeros(1, 3, 2, 2))


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 11), min_size=1))
def test_the_page_says_of_each_unit_whether_it_stays(kept):
    traced = graph()
    each = traced.axis_class("a")
    scene = view(traced, edit={each: sorted(kept)}).scene
    (row,) = scene_data(scene)["units"]
    bits = "".join(f"{byte:08b}" for byte in base64.b64decode(row[2]))
    assert {unit for unit in range(12) if bits[unit] == "1"} == kept
    shares = {} if not scene.overlays else dict(scene.overlays[0].values)
    paths = {scene.trees[g].nodes[i].path: share for (g, i), share in shares.items()}
    gone = pytest.approx(1 - len(kept) / 12)
    assert paths == {"a": gone, "norm": gone, "b": gone}


def test_a_slim_model_brings_its_edit_and_its_importances():
    traced = graph()
    slim = graftlib.slim(traced, budget={"params": 0.5}, multiple_of=1)
    (units,) = view(traced, edit=slim.edit, importance=slim.importances).scene.units
    each = traced.axis_class("a")
    assert [u for u, stays in enumerate(units.kept) if stays] == list(slim.edit.kept[each])
    assert units.importance == tuple(slim.importances[each].tolist())
    rank = surgery.ranking("magnitude", traced, traced.model)
    assert view(traced, importance=rank).scene.units[0].importance == units.importance


def test_a_ranking_is_asked_for_the_source_alone():
    traced, other = (
        graph(),
        trace(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.zeros(1, 2)),
    )
    rank = surgery.ranking("magnitude", traced, traced.model)
    units = view(traced, other, importance=rank).scene.units
    assert [each.place[0] for each in units] == [0]


def test_both_models_show_the_class_where_both_have_it():
    first, second = graph(), graph()
    each = first.axis_class("a")
    assert [u.place[0] for u in view(first, second, edit={each: [0]}).scene.units] == [0, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (lambda g, c: {"edit": 0.5}, "axis classes"),
        (lambda g, c: {"edit": {"a": [0]}}, "axis classes"),
        (lambda g, c: {"edit": {c: [12]}}, "between 0 and 11"),
        (lambda g, c: {"edit": {graph(width=8).axis_class("a"): [1]}}, "none of the models"),
        (lambda g, c: {"importance": {c: [1.0]}}, "12 units"),
        (lambda g, c: {"importance": {c: [float("nan")] * 12}}, "12 units"),
    ],
)
def test_what_is_not_of_the_model_is_refused(options, words):
    traced = graph()
    with pytest.raises(GraftError, match=words):
        view(traced, **options(traced, traced.axis_class("a")))


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_strip_shows_what_is_kept_and_what_it_is_worth(opened, hostile, theme):
    names = [name.replace(".", "") for name in hostile[:3]]
    traced = graph(names=names)
    each = traced.axis_class(traced.layers[0].name)
    worth = {each: [*map(float, range(11)), 15.0]}
    page = opened(view(traced, edit={each: [0, 4, 5, 11]}, importance=worth, theme=theme))
    panel = page.locator("#panel")
    assert "4 of 12 units kept in 1 axis class" in panel.text_content()
    assert "12 → 4" in panel.text_content()
    page.locator("#panel button.go", has_text="alert(1)").click()
    strip = page.locator("#panel canvas")
    assert strip.get_attribute("aria-label") == "4 of 12 units kept, importance 0 to 15"
    strip.hover(position={"x": 4 * 4 + 1, "y": 8})
    assert page.locator("#panel .unit").text_content() == "unit 4, kept, importance 4"
    strip.hover(position={"x": 6 * 4 + 1, "y": 8})
    assert page.locator("#panel .unit").text_content() == "unit 6, dropped, importance 6"
    assert panel.locator("details p").text_content() == "1 to 3, 6 to 10"
    seen = "canvas => [...canvas.getContext('2d').getImageData(0, 8, 96, 1).data]"
    alpha = strip.evaluate(seen)[3::4]
    pixels = [alpha[6 * 8 + 2], alpha[11 * 8 + 2]]
    assert pixels == [0, 255]  # what goes is low, what stays is high
    assert "share of weights dropped" in page.locator("#scale").text_content()
    assert page.locator("#panel img, #panel script").count() == 0
