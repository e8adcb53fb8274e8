"""The report page: what it says, that names stay text, and what a browser makes of it."""

import re
import xml.dom.minidom
from importlib.resources import files

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftlib import Mapping, attach, trace
from graftlib.graft import TransferWarning, report
from graftlib.graft.report import POINTS, chart
from graftlib_adapters import MergeNet

HOSTILE = "<img src=x onerror=alert(1)>\"'&"


def page(graft):
    return report.page(graft._reported())


def trained(world, adapter, steps=9, **options):
    optimizer = torch.optim.SGD(world.target.parameters(), lr=0.1)
    graft = attach(adapter, world.mapping, cycle=2, **options).follow(optimizer)
    world.train(optimizer, steps)
    return graft


class Hostile(nn.Module):
    """Names that are markup."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({HOSTILE: nn.Linear(4, 4), "{{7*7}}": nn.Linear(4, 4)})

    def forward(self, x):
        for part in self.parts.values():
            x = part(x)
        return x


@pytest.fixture
def hostile():
    torch.manual_seed(0)
    one, other = Hostile(), Hostile()
    x = torch.randn(3, 4)
    mapping = Mapping(trace(one, (x,)), trace(other, (x,)))
    for source, target in zip(
        mapping.source.parameters(kind="linear"),
        mapping.target.parameters(kind="linear"),
        strict=True,
    ):
        mapping.link(
            re.escape(source.layer).join(("re:", "")), re.escape(target.layer).join(("re:", ""))
        )
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    graft = attach(MergeNet(rank=2), mapping, cycle=1, record=True).follow(optimizer)
    for _ in range(3):
        other(x).square().mean().backward()
        optimizer.step()
    return graft


# ------------------------------------------------------------------------------------------------------- what it says


def test_every_matrix_and_link_has_its_charts(make_world):
    world = make_world(source=("conv2", "fc"), target=("hidden", "head"))
    graft = trained(world, MergeNet(rank=3), record=True)
    html = page(graft)
    for name in ("target:hidden.weight", "target:head.weight", "conv2.weight -&gt; hidden.weight"):
        assert name in html
    assert html.count("relative to the weights</figcaption>") == 2
    assert html.count("cosine between") >= 2
    assert html.count("(omega)</figcaption>") == 2
    assert html.count("singular values, before and after</figcaption>") == 2
    last = graft.history[-1].changes["target:hidden.weight"]
    assert f"{last.size:.4g}" in html
    omega = graft.history[-1].facts["conv2.weight -> hidden.weight"]
    assert len(omega) == 8
    assert all(f">{value:.4g}</span>" in html for value in omega)
    assert "were not recorded" not in html
    graft.detach()
    assert page(graft).count("<figure>") == html.count("<figure>"), "it stays readable after detach"


def test_without_transfers_or_records_it_says_so(world, nudge, tmp_path):
    graft = attach(nudge(), world.mapping)
    assert "No transfer has taken place" in page(graft)
    path = trained_path = graft.report(tmp_path / "x.html")
    assert path.read_text("utf-8") == page(graft)
    assert "<svg" not in trained_path.read_text("utf-8")
    graft.detach()
    assert "record=True" in page(trained(world, nudge(gate=0.1)))


def test_the_same_history_gives_the_same_bytes(world, nudge):
    graft = trained(world, nudge(gate=0.1), record=2)
    assert page(graft) == page(graft)


def test_a_skipped_transfer_is_in_the_table_and_in_no_line(world, nudge):
    graft = trained(world, nudge(gate=0.1))
    with torch.no_grad():
        world.source.conv2.weight.fill_(float("inf"))
    with pytest.warns(TransferWarning):
        world.train(next(iter(graft._followed)), 1)
    html = page(graft)
    assert "not finite" in html
    assert not re.search(r'points="[^"]*(nan|inf)', html)


def test_spectra_are_recorded_when_asked_for_and_match_torch(make_world):
    world = make_world()
    graft = trained(world, MergeNet(rank=3), record=2)
    kept = [bool(e.changes["target:hidden.weight"].spectrum) for e in graft.history]
    assert kept == [True, False, True, False, True]
    other = make_world()
    expected = torch.linalg.svdvals(other.target.hidden.weight.detach())
    found = graft.history[0].changes["target:hidden.weight"].spectrum.before
    torch.testing.assert_close(torch.tensor(found), expected)
    assert not any("spectrum" in str(e.to_dict()) for e in trained(other, MergeNet(rank=3)).history)


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=0, max_size=1300))
def test_a_line_keeps_its_ends_and_stays_inside_the_picture(values):
    drawn = chart("y", "x", {"a": list(enumerate(values))})
    finite = [v for v in values if v == v]
    assert (drawn is None) == (not finite)
    if drawn is None:
        return
    places = [tuple(map(float, p.split(","))) for p in drawn.lines[0].points.split()]
    assert len(places) == min(len(finite), POINTS)
    assert all(0 <= x <= 460 and 0 <= y <= 190 for x, y in places)
    assert drawn.lines[0].last == f"{finite[-1]:.4g}"
    assert bool(drawn.note) == (len(finite) > POINTS)


def test_ticks_tell_close_values_apart():
    drawn = chart("y", "x", {"a": [(0, 1.0), (1, 0.99996)]})
    assert [text for _, text in drawn.y_ticks] == ["0.99996", "0.99998", "1"]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_rounding_is_drawn_flat_and_a_change_is_not(logarithmic):
    def rise(values):
        (line,) = chart("y", "x", {"a": list(enumerate(values))}, logarithmic=logarithmic).lines
        heights = [float(point.split(",")[1]) for point in line.points.split()]
        return max(heights) - min(heights)

    assert rise([1.0, 1.0 - 3e-7, 1.0 + 2e-7]) < 1
    assert rise([2e-3, 2e-3 * (1 + 1e-6)]) < 1
    assert rise([1.0, 1.0 - 1e-4]) > 100
    assert rise([2e-3, 3e-3]) > 100


def test_higher_values_are_drawn_higher():
    """SVG counts downwards."""
    (line,) = chart("y", "x", {"a": [(0, 1.0), (1, 3.0)]}).lines
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in line.points.split())
    assert x1 > x0
    assert y1 < y0


# --------------------------------------------------------------------------------------------------- names stay text


def test_hostile_names_are_escaped(hostile):
    html = page(hostile)
    assert "<img" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "{{7*7}}" in html
    assert "<script" not in html
    xml.dom.minidom.parseString(
        re.sub(r"(?s)^.*?</head>|<style>.*?</style>", "<html>", html, count=1)
    )


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it_offline_and_without_complaint(chromium, hostile, tmp_path, scheme):
    opened = chromium.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 800})
    troubles, asked = [], []
    opened.on("console", lambda message: troubles.append(message.text))
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: asked.append(request.url))
    path = hostile.report(tmp_path / "x.html")
    opened.goto(path.as_uri())
    assert troubles == []
    assert asked == [path.as_uri()]
    assert opened.locator("section").count() == 2
    assert opened.locator("body > main").count() == opened.locator("body > *").count() == 1
    assert opened.locator("h2").first.text_content() == f"target:parts.{HOSTILE}.weight"
    assert opened.locator("img").count() == 0
    for line in opened.locator("figure > svg polyline").all():
        box = line.bounding_box()
        assert box["width"] > 50, "every line is drawn across the picture"
    colour = opened.locator("polyline.c0").first.evaluate("e => getComputedStyle(e).stroke")
    assert colour == ("rgb(47, 111, 222)" if scheme == "light" else "rgb(110, 162, 255)")
    for summary in opened.locator("summary").all():
        summary.click()
    words = opened.locator("details dt").all_text_contents()
    assert {*opened.locator("thead th").all_text_contents()} - {"before step", "matrix"} <= {*words}
    assert opened.locator("tbody tr").count() == len(hostile.history) * 2
    wide = opened.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, "nothing sticks out"
    opened.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(chromium, hostile, tmp_path, scheme):
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is missing")
    opened = chromium.new_page(color_scheme=scheme)
    opened.goto(hostile.report(tmp_path / "x.html").as_uri())
    for summary in opened.locator("summary").all():
        summary.click()
    opened.evaluate((files(axe.__name__) / "axe.min.js").read_text(encoding="utf-8"))
    tags = "'wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice', 'experimental'"
    run = f"axe.run({{runOnly: {{type: 'tag', values: [{tags}]}}}})"
    assert [found["id"] for found in opened.evaluate(run)["violations"]] == []
    opened.evaluate(
        "document.querySelector('main').replaceWith(...document.querySelector('main').children)"
    )
    assert "region" in [found["id"] for found in opened.evaluate(run)["violations"]]
    opened.close()
