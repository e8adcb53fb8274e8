"""What opens is in sight, on every screen. `GRAFTLIB_PICTURES=FOLDER` keeps a picture of each, to look at."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from graftlib import Mapping, slim, trace
from graftlib.graph import outline
from graftlib.view import view

from .test_browser import BOXES, Skipping, Zipped, linked, thousands
from .test_outline import EndsInTheMiddle

pytestmark = pytest.mark.browser


def two_models(standin):
    models = pytest.importorskip("torchvision").models
    graphs = (
        trace(make().eval(), torch.zeros(1, 3, 64, 64))
        for make in (models.resnet50, models.mobilenet_v2)
    )
    return view(Mapping(*graphs).auto())


def convs():
    layers = [nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 12, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(12, 4, 1))


def pruning_plan(standin):
    torch.manual_seed(0)
    graph = trace(convs(), torch.zeros(2, 3, 8, 8))
    small = slim(graph, budget={"params": 0.5}, data=torch.randn(64, 3, 8, 8).split(16))
    return view(graph, edit=small.edit, importance=small.importances, weights=True)


def difference(standin):
    first, second = (trace(convs(), torch.zeros(2, 3, 8, 8)) for _ in range(2))
    second.model.load_state_dict(first.model.state_dict())
    with torch.no_grad():
        second.model[3].weight.mul_(1.2)
    return view(first, second, diff=True)


SCENES = {
    "two-models": two_models,
    "linked": linked,
    "five-thousand": lambda standin: view(thousands(standin, True)),
    "period": lambda standin: view(thousands(standin, False)),
    "zip": lambda standin: view(trace(Zipped(3), torch.randn(1, 4, 2, 2))),
    "skip": lambda standin: view(trace(Skipping(), torch.randn(1, 2, 4, 4))),
    "plan": pruning_plan,
    "diff": difference,
    "outline": lambda standin: view(outline(EndsInTheMiddle(), torch.zeros(2, 4))),
}
SCREENS = {
    "light": (1280, 800, "light"),
    "dark": (1280, 800, "dark"),
    "phone": (390, 800, "light"),
    "notebook": (900, 700, "light"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    kept = os.environ.get("GRAFTLIB_PICTURES")
    place = Path(kept) if kept else tmp_path_factory.mktemp("pictures")
    place.mkdir(parents=True, exist_ok=True)
    return place


SHEET = """(() => {
  const r = document.getElementById('sheet').getBoundingClientRect();
  return [r.left, r.top, r.right, r.bottom];
})()"""


def in_sight(frame):
    """Whether all boxes lie on the sheet, none of it beyond its edge."""
    left, top, right, bottom = frame.evaluate(SHEET)
    boxes = frame.evaluate(BOXES)
    return bool(boxes) and all(
        left <= x and x + w <= right and top <= y and y + h <= bottom for _, x, y, w, h in boxes
    )


@pytest.mark.parametrize("scene", SCENES)
def test_what_opens_is_in_sight(chromium, standin, folder, scene):
    shown, seen = SCENES[scene](standin), set()
    for screen, (width, height, scheme) in SCREENS.items():
        page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        if screen == "notebook":
            page.set_content(shown._repr_html_())
            page.wait_for_function("window.frames.length === 1")
            frame = page.frames[1]
        else:
            page.goto(shown.save(folder / f"{scene}.html").as_uri())
            frame = page.main_frame
        frame.wait_for_selector("html[data-ready]", state="attached")
        seen.add(page.screenshot(path=folder / f"{scene}-{screen}.png"))
        assert in_sight(frame)
        if screen == "light":
            for _ in range(10):
                page.keyboard.press("+")
            assert not in_sight(frame)  # else nothing could fail
        page.close()
    assert len(seen) == len(SCREENS)
