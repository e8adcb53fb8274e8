"""What a reader does with the page, in a real browser."""

import re
import xml.etree.ElementTree as ET
from importlib.resources import files

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graftlib.graph import trace
from graftlib.graph.parameter import Part
from graftlib.match import Mapping
from graftlib.view import view

pytestmark = pytest.mark.browser


def linked(standin):
    source = standin.by_hand(
        "Source", {f"stage.{i}.{n}": {"weight": (4, 4)} for i in range(3) for n in ("fc", "out")}
    )
    target = standin.by_hand(
        "Target",
        {"stem": {"weight": (4, 4)}, "head.a": {"weight": (2, 4)}, "head.b": {"weight": (2, 4)}},
    )
    by_fqn = {p.fqn: p for p in (*source.held, *target.held)}
    pairs = (
        standin.Pair(by_fqn["stage.0.fc.weight"], by_fqn["stem.weight"]),
        standin.Pair(by_fqn["stage.1.fc.weight"], by_fqn["head.a.weight"]),
        standin.Pair(by_fqn["stage.2.fc.weight"], by_fqn["head.a.weight"], "both"),
    )
    return view(source, target, standin.Mapping(source, target, pairs))


def node(page, label, graph="Source"):
    return page.locator(f'[role=tree][aria-label="{graph}"] .node').filter(
        has=page.locator(f'.label:text-is("{label}")')
    )


def test_links_stay_attached_while_modules_open_and_close(opened, standin):
    page = opened(linked(standin))
    stage = node(page, "stage")
    assert stage.get_attribute("aria-expanded") == "true"
    fold = node(page, "0 … 2")
    assert fold.get_attribute("aria-expanded") == "false"
    assert page.locator(".link").count() == 3  # three ways of one fold: to stem, to a, both with a
    fold.locator("[data-toggle]").click()
    assert page.locator(".link").count() == 3
    assert node(page, "1").count() == 1
    stage.locator("[data-toggle]").click()
    assert stage.get_attribute("aria-expanded") == "false"
    assert node(page, "1").count() == 0
    assert page.locator(".link").count() == 3
    node(page, "head", "Target").locator("[data-toggle]").click()
    assert page.locator(".link").count() == 3


def test_coinciding_links_become_one_line_with_a_count(opened, standin):
    source = standin.by_hand("S", {f"m.{i}": {"weight": (4, 4)} for i in range(3)})
    target = standin.by_hand("T", {"t": {"weight": (4, 4)}})
    pairs = tuple(standin.Pair(p, target.held[0]) for p in source.held)
    page = opened(view(source, target, standin.Mapping(source, target, pairs)))
    assert page.locator(".link").count() == 3
    node(page, "m", "S").locator("[data-toggle]").click()
    assert page.locator(".link").count() == 1
    assert page.locator(".link-count").text_content() == "3"
    page.locator("#legend button").click()
    assert page.locator(".link").count() == 0


def test_search_finds_marks_and_opens_the_way(opened, standin):
    page = opened(linked(standin))
    page.keyboard.press("/")
    page.keyboard.type("2 out")
    assert page.locator("#count").text_content() == "1 found"
    assert page.locator(".node.holds").count() == 1
    page.keyboard.press("Enter")
    assert page.locator(".node.found .label").text_content() == "out"
    assert "stage.2.out" in page.locator("#panel").text_content()
    page.keyboard.press("Escape")
    assert page.locator(".node.found").count() == 0
    page.fill("#search", "nothing like this")
    assert page.locator("#count").text_content() == "0 found"


def test_a_click_shows_details_and_a_pointer_a_hint(opened, standin):
    page = opened(linked(standin))
    stem = node(page, "stem", "Target")
    stem.locator(".label").hover(force=True)
    assert "16 parameters" in page.locator("#tip").text_content()
    assert "roles: weight" in page.locator("#tip").text_content()
    stem.locator(".box").click()
    details = page.locator("#panel").text_content()
    assert "stem.weight" in details
    assert "4 × 4 (out in), float32" in details
    assert "stage.0.fc.weight" in details
    page.locator("#panel button.go", has_text="stage.0.fc.weight").click()
    assert node(page, "fc").first.is_visible()


def test_everything_is_reached_by_keys(opened, standin):
    page = opened(linked(standin))
    page.locator("[role=tree] .node[tabindex='0']").first.focus()
    label = lambda: page.evaluate("document.activeElement.querySelector('.label')?.textContent")  # noqa: E731
    assert label() == "stage"
    page.keyboard.press("ArrowDown")
    assert label() == "0 … 2"
    page.keyboard.press("Enter")
    assert node(page, "2").count() == 1
    assert label() == "0 … 2"
    page.keyboard.press("ArrowLeft")
    assert node(page, "2").count() == 0
    page.keyboard.press("Tab")
    assert label() == "stem"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("End")
    assert label() == "b"


def test_hostile_names_stay_text(opened, standin, hostile):
    source = standin.by_hand(hostile[0], {name: {"weight": (2, 3)} for name in hostile})
    target = standin.by_hand("T", {"t": {"weight": (2, 3)}})
    pairs = tuple(standin.Pair(p, target.held[0], rule=hostile[1]) for p in source.held)
    page = opened(view(source, target, standin.Mapping(source, target, pairs)))
    labels = page.locator("[role=tree] .label").all_text_contents()
    assert hostile[0] in labels
    assert "a\u2028b" in labels
    page.fill("#search", "alert")
    page.keyboard.press("Enter")
    for box in page.locator(".node .box").all():
        box.click(force=True)
    assert page.locator("#panel b, #panel img, svg image, #results img").count() == 0
    assert (
        page.locator("body script:not([type])").count()
        == page.evaluate("document.scripts.length") - 1
    )
    assert page.evaluate("document.title") == f"{hostile[0]} to T"


def test_the_policy_stops_an_injected_script(chromium, standin, tmp_path):
    shown = linked(standin)
    path = tmp_path / "x.html"
    path.write_text(
        shown.html.replace("</body>", "<script>document.title='owned'</script></body>"),
        encoding="utf-8",
    )
    page = chromium.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    assert page.title() == "Source to Target"
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_differ_and_both_draw(chromium, standin, tmp_path, scheme):
    page = chromium.new_page(color_scheme=scheme)
    page.goto(linked(standin).save(tmp_path / "x.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(246, 247, 249)") == (scheme == "light")
    assert page.locator(".node").count() > 3
    page.close()


SCALE = (
    "+document.querySelector('#picture > g').getAttribute('transform').match(/scale\\(([^)]+)/)[1]"
)


# How many boxes are drawn from afar, where all of a module are one path.
FAR_BOXES = """[...document.querySelectorAll('.card')]
  .reduce((sum, card) => sum + card.getAttribute('d').split('M').length - 1, 0)"""


def thousands(standin, unlike):
    """5,000 layers that repeat with a period of three under three containers, or of which no two are alike."""
    if unlike:
        return standin.by_hand("Unlike", {f"l{i}": {"weight": (4, i + 1)} for i in range(5000)})
    names = [f"{kind}.{i}" for i in range(1667) for kind in ("convs", "bns", "acts")][:5000]
    return standin.by_hand("Period", {n: {} if "act" in n else {"weight": (4, 4)} for n in names})


@pytest.mark.parametrize("unlike", [False, True])
def test_five_thousand_layers_are_few_boxes_at_any_depth(opened, standin, unlike):
    page = opened(view(thousands(standin, unlike)))
    assert 1 <= page.locator(".node").count() <= 42
    assert page.locator(".model-facts").text_content().startswith("5,000 layers")
    for _ in range(3):  # into the last box, and again
        before = page.locator(".node").count()
        page.locator(".node[aria-expanded=false] [data-toggle]").last.dispatch_event("click")
        assert page.locator(".node").count() - before <= 40
    page.fill("#search", "l4321" if unlike else "convs.1234")
    page.keyboard.press("Enter")
    chosen = page.locator(".node.chosen .label").text_content()
    assert chosen == ("l4321" if unlike else "convs.1234")


def test_all_of_five_thousand_layers_are_drawn_in_few_pieces(opened, standin, until):
    page = opened(view(thousands(standin, True)))
    for _ in range(3):
        page.click("#expand")
    assert page.locator("#picture *").count() < 1500  # from afar: one path for many boxes
    assert page.evaluate(FAR_BOXES) == 5000
    page.fill("#search", "l2500")
    page.keyboard.press("Enter")
    assert page.evaluate(SCALE) >= 0.75
    assert 5 < page.locator(".node").count() < 500  # from near: what is in view
    names = set(page.locator(".node .label").all_text_contents())
    box = page.locator("#sheet").bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 300)
    page.mouse.down()
    page.mouse.move(box["x"] - 900, box["y"] + 300, steps=4)
    page.mouse.up()
    until(
        page,
        "seen => ![...document.querySelectorAll('.node .label')].every(e => seen.includes(e.textContent))",
        sorted(names),
    )


def test_two_real_models_fit_in_a_small_page(opened, standin):
    torchvision = pytest.importorskip("torchvision")
    x = torch.randn(1, 3, 32, 32)
    source = standin.by_fx(torchvision.models.resnet50(), x)
    target = standin.by_fx(torchvision.models.mobilenet_v2(), x)
    shown = view(source, target, standin.convs_linked(source, target))
    assert len(shown.html.encode()) < 350_000
    page = opened(shown)
    before = page.locator(".node").count()
    page.click("#expand")
    assert page.evaluate(FAR_BOXES) > before  # from afar they are few elements
    assert {"layer1", "features"} <= set(page.locator(".far-name").all_text_contents())
    heights = page.evaluate(
        "[...document.querySelectorAll('.far-name, .model-name')].map(e => e.getBoundingClientRect().height)"
    )
    assert min(heights) > 9  # and names can be read
    page.click("#collapse")
    page.click("#fit")
    assert page.locator(".link").count() >= 5


# ---------------------------------------------------------------------------------------- where things lie

# On the screen: every box as [label, x, y, width, height]; every edge as [first point, last point].
BOXES = """[...document.querySelectorAll('.node')].map(node => {
  const r = node.querySelector('.box').getBoundingClientRect();
  return [node.querySelector('.label').textContent, r.x, r.y, r.width, r.height];
})"""
EDGES = """[...document.querySelectorAll('.edge')].flatMap(edge => {
  const on = edge.getScreenCTM();
  return edge.getAttribute('d').split('M').slice(1).map(d => {
    const n = d.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
    const at = (x, y) => { const p = new DOMPoint(x, y).matrixTransform(on); return [p.x, p.y]; };
    return [at(n[0], n[1]), at(n.at(-2), n.at(-1))];
  });
})"""


def joined(page):
    """{(label, label)}: which boxes the edges join, by where the edges begin and end."""
    boxes = page.evaluate(BOXES)

    def box_at(point):
        x, y = point
        near = [
            b
            for b in boxes
            if b[1] - 2 <= x <= b[1] + b[3] + 2 and b[2] - 2 <= y <= b[2] + b[4] + 2
        ]
        return min(near, key=lambda b: b[3] * b[4])[0] if near else None

    return {(box_at(start), box_at(end)) for start, end in page.evaluate(EDGES)}


def test_a_frame_that_was_hidden_shows_the_whole_picture(chromium, standin, until):
    page = chromium.new_page(viewport={"width": 1000, "height": 900})
    troubles = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    shown = linked(standin)
    page.set_content(f"<div id=cell style='display:none'>{shown._repr_html_()}</div>")
    until(page, "document.querySelector('iframe').getAttribute('srcdoc').length > 0")
    frame = page.frames[1]
    frame.wait_for_selector("html[data-ready]", state="attached")
    page.evaluate("document.getElementById('cell').style.display = ''")
    for width in (1000, 700, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        until(
            frame,
            """() => {
              const sheet = document.getElementById('sheet').getBoundingClientRect();
              const boxes = [...document.querySelectorAll('.node .box')].map(e => e.getBoundingClientRect());
              const left = Math.min(...boxes.map(r => r.left)) - sheet.left;
              const right = sheet.right - Math.max(...boxes.map(r => r.right));
              const low = sheet.bottom - Math.max(...boxes.map(r => r.bottom));
              return sheet.width > 0 && boxes.length > 3 && left > 0 && low > 0 && Math.abs(left - right) < 80;
            }""",
        )
    assert troubles == []
    page.close()


@pytest.mark.parametrize("height", [None, 300, 900])
def test_a_frame_is_as_high_as_was_asked_for(chromium, standin, height):
    graph = standin.by_hand("M", {"a": {}, "b": {}})
    shown = view(graph) if height is None else view(graph, height=height)
    page = chromium.new_page(viewport={"width": 1000, "height": 1200})
    page.set_content(f"<!doctype html>{shown._repr_html_()}")
    border = 2
    assert page.locator("iframe").bounding_box()["height"] == (height or 640) + border
    sheet = page.frame_locator("iframe").locator("html[data-ready] #sheet").bounding_box()
    assert 100 < sheet["height"] <= (height or 640)
    page.close()


@pytest.mark.parametrize(("width", "beside"), [(900, False), (1280, True)])
def test_details_leave_room_for_both_models(chromium, standin, until, width, beside):
    page = chromium.new_page(viewport={"width": width, "height": 700})
    page.set_content(linked(standin)._repr_html_())
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for()
    until(page.frames[1], "document.querySelectorAll('[role=tree]').length === 2")
    shown = "document.getElementById('panel').checkVisibility()"  # once the frame's size is known
    until(page.frames[1], shown if beside else f"!{shown}")
    if not beside:
        frame.locator("#side").click()
        assert frame.locator("#panel").is_visible()
        until(page.frames[1], "document.querySelectorAll('[role=tree]').length === 1")
    page.close()


class Zipped(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(count))
        self.bns = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(count))

    def forward(self, x):
        for conv, bn in zip(self.convs, self.bns, strict=True):
            x = torch.relu(bn(conv(x)))
        return x


def test_containers_that_alternate_are_drawn_in_the_order_of_execution(opened):
    page = opened(view(trace(Zipped(3), torch.randn(1, 4, 2, 2))))
    labels = page.locator(".node .label").all_text_contents()
    assert labels == [name for i in range(3) for name in (f"convs.{i}", f"bns.{i}", "relu")]
    edges = joined(page)
    assert ("convs.0", "bns.0") in edges
    assert ("relu", "convs.1") in edges
    assert ("bns.0", "convs.0") not in edges
    assert len(page.evaluate(EDGES)) == 8  # one after the other, none to and fro


def test_an_arrow_ends_at_the_layer_inside_an_open_container(opened, standin):
    graph = standin.by_hand(
        "M",
        {
            "stem": {"weight": (4, 4)},
            "body.a": {"weight": (4, 4)},
            "body.b": {"weight": (4, 4)},
            "head": {"weight": (4, 4)},
        },
    )
    page = opened(view(graph))
    assert joined(page) == {("stem", "a"), ("a", "b"), ("b", "head")}
    node(page, "body", "M").locator("[data-toggle]").click()
    assert joined(page) == {("stem", "body"), ("body", "head")}


class Skipping(nn.Module):
    """What leaves the relu is pooled, and read again beside what comes back: as in a U-Net."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skip = torch.relu(self.down(x))
        y = self.up(F.max_pool2d(skip, 2))
        return self.head(torch.cat([skip, F.interpolate(y, scale_factor=2.0)], 1))


def test_a_skip_is_drawn_from_the_op_that_it_leaves(opened):
    page = opened(view(trace(Skipping(), torch.randn(1, 2, 4, 4))))
    edges = joined(page)
    # On, and to where both come together.
    assert {b for a, b in edges if a == "relu"} == {"max_pool2d", "upsample_nearest2d+cat"}
    assert not any("relu+" in name for edge in edges for name in edge)


def test_long_chains_wrap_into_columns_that_can_be_read(opened, standin):
    graph = standin.by_hand("Chain", {f"l{i}": {"weight": (4, i + 1)} for i in range(36)})
    page = opened(view(graph))
    boxes = page.evaluate(BOXES)
    assert len(boxes) == 36
    assert page.evaluate(SCALE) > 0.7  # text of more than eight pixels
    assert len({round(x + w / 2) for _, x, _, w, _ in boxes}) > 1
    sheet = page.locator("#sheet").bounding_box()
    assert all(sheet["y"] <= y and y + h <= sheet["y"] + sheet["height"] for *_, y, _, h in boxes)
    assert {(f"l{i}", f"l{i + 1}") for i in range(35)} == joined(page)


def test_a_phone_shows_one_model_at_a_time(chromium, standin, tmp_path, until):
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.goto(linked(standin).save(tmp_path / "x.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    assert page.locator("[role=tree]").count() == 1
    assert node(page, "stage").count() == 1
    assert page.locator(".link").count() == 2  # that they go on elsewhere is seen, by direction
    assert page.locator(".link-count").all_text_contents() == ["2"]
    assert page.evaluate(SCALE) > 0.7
    page.locator("#models button", has_text="Target").click()
    assert page.locator("[role=tree]").get_attribute("aria-label") == "Target"
    assert page.locator("#models button[aria-pressed=true]").text_content() == "Target"
    page.set_viewport_size({"width": 1200, "height": 800})
    until(page, "document.querySelectorAll('[role=tree]').length === 2")
    page.close()


# The counts of links on the screen, without the rim that keeps them readable on a line.
COUNTS = """[...document.querySelectorAll('.link-count')].map(count => {
  const r = count.getBBox(), on = count.getScreenCTM(), p = new DOMPoint(r.x, r.y).matrixTransform(on);
  return {x: p.x, y: p.y, width: r.width * on.a, height: r.height * on.d};
})"""


def test_a_phone_keeps_counts_and_legends_apart(chromium, standin, tmp_path):
    names = [f"l{i}" for i in range(6)]
    source, target = (
        standin.by_hand(name, {each: {"weight": (4, i + 1)} for i, each in enumerate(names)})
        for name in ("Source", "Target")
    )
    ways = ("forward", "backward", "both", "forward")
    pairs = tuple(
        standin.Pair(p, q, ways[(i + j) % 4])
        for i, p in enumerate(source.held)
        for j, q in enumerate(target.held)
    )
    shown = view(
        source,
        target,
        standin.Mapping(source, target, pairs),
        overlay={"a title that takes some room": {"l0": 1, "l1": 2}},
    )
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.goto(shown.save(tmp_path / "x.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    for name in ("Source", "Target"):
        page.locator("#models button", has_text=name).click()
        counts = page.locator(".link-count")
        single = page.locator(".link").count() - counts.count()
        assert sum(map(int, counts.all_text_contents())) + single == 36
        boxes = page.evaluate(COUNTS)
        boxes += [page.locator(each).bounding_box() for each in ("#legend", "#scale")]
        for i, one in enumerate(boxes):
            for other in boxes[:i]:
                apart = [
                    one[at] + one[size] <= other[at] + 1 or other[at] + other[size] <= one[at] + 1
                    for at, size in (("x", "width"), ("y", "height"))
                ]
                assert any(apart)
        lowest = max(y + h for *_, y, _, h in page.evaluate(BOXES))
        assert lowest <= page.locator("#legend").bounding_box()["y"]
    page.close()


def packed(standin):
    graph = standin.by_hand(
        "Packed",
        {f"blocks.{i}.attn.{n}": {"weight": (12, 4)} for i in range(3) for n in ("qkv", "proj")},
    )
    for i, each in enumerate(graph.held):
        if "qkv" in each.fqn:
            names = ("query", "key", "value")
            parts = {
                n: Part(0, range(4 * j, 4 * j + 4), 2, f"attention.{n}")
                for j, n in enumerate(names)
            }
            graph.held[i] = standin.parameter(
                each.fqn, (12, 4), role="attention.fused", parts=parts
            )
    return graph


@pytest.mark.parametrize(
    ("query", "hits"),
    [
        ("blocks.0.attn.qkv.weight::query", 1),
        ("blocks.0.attn.qkv.weight::que", 1),
        ("qkv.weight::value.head[1]", 3),
        ("qkv.weight::value.head[2]", 0),
        ("blocks.*.qkv::key", 3),
        ("proj.weight::key", 0),
        ("attention.value", 3),
        ("12 × 4", 6),
        ("12x4 proj", 3),
        ("(12, 4)", 6),
        ("(12, 5)", 0),
        ("blocks.*.proj", 3),
        ("blocks.{i}.attn.proj", 3),
        ("blocks.[!1].attn.proj.weight", 2),
        (r"re:blocks\.\d\.attn\.q\D+", 3),
        (r"re:blocks\.(?P<i>\d)\.attn\.proj", 3),
        ("re:blocks[", 0),
    ],
)
def test_search_finds_addresses_roles_shapes_and_globs(packed_page, query, hits):
    packed_page.fill("#search", query)
    labels = packed_page.locator("#results button").all_text_contents()
    assert sum("attn." in label for label in labels) == hits


@pytest.fixture(scope="module")
def packed_page(chromium, standin, tmp_path_factory):
    page = chromium.new_page()
    page.goto(view(packed(standin)).save(tmp_path_factory.mktemp("packed") / "x.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    page.close()


def test_the_page_prints_addresses_that_search_finds(opened, standin):
    page = opened(view(packed(standin)))
    page.fill("#search", "blocks.1.attn.qkv")
    page.keyboard.press("Enter")
    assert (
        "blocks.1.attn.qkv.weight::query (attention.query)" in page.locator("#panel").text_content()
    )


def test_search_finds_every_address_that_is_printed(opened, standin):
    page = opened(view(packed(standin)))
    printed = set()
    for name in ("qkv", "proj"):
        page.fill("#search", f"blocks.2.attn.{name}")
        page.keyboard.press("Enter")
        printed |= set(re.findall(r"blocks[\w.:\[\]]+", page.locator("#panel").inner_text()))
    assert {"blocks.2.attn.qkv.weight::value", "blocks.2.attn.proj.weight"} <= printed
    for address in printed:
        page.fill("#search", address)
        assert int(page.locator("#count").text_content().split()[0]) >= 1, address


AXE = """axe.run({runOnly: {type: 'tag', values: [
  'wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice', 'experimental'
]}})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(chromium, standin, tmp_path, scheme):
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    page = chromium.new_page(color_scheme=scheme)
    page.goto(linked(standin).save(tmp_path / "x.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    node(page, "stem", "Target").locator(".box").click()
    assert [found["id"] for found in page.evaluate(AXE)["violations"]] == []
    page.evaluate("document.querySelector('.node').setAttribute('aria-label', 'another name')")
    assert "label-content-name-mismatch" in [
        found["id"] for found in page.evaluate(AXE)["violations"]
    ]
    page.close()


def test_what_is_read_on_a_box_begins_its_name(opened, standin):
    page = opened(linked(standin))
    for box in page.locator(".node").all():
        seen = " ".join(box.locator("text").all_text_contents()).split()
        assert " ".join(filter(None, seen)) in box.get_attribute("aria-label")


# ---------------------------------------------------------------------------------------- what it tells


class Convs(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, 5, 1)

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x))))


def coupled(page, graph):
    return set(
        page.locator(f'[role=tree][aria-label="{graph}"] .node.coupled .label').all_text_contents()
    )


def test_an_axis_lights_up_all_that_is_coupled_in_both_models(opened, until):
    first, second = (trace(Convs(width), torch.randn(1, 3, 2, 2)) for width in (4, 6))
    second.model.__class__ = type("Other", (Convs,), {})
    page = opened(view(Mapping(first, second).link("a", "a")))
    node(page, "a", "Convs").locator(".box").click()
    page.locator("#panel .axis", has_text="out 4").first.hover()
    assert coupled(page, "Convs") == {"a", "norm", "b"}
    assert coupled(page, "Other") == {"a", "norm", "b"}
    page.mouse.move(5, 5)
    until(page, "document.querySelectorAll('.coupled').length === 0")
    page.locator("#panel .axis", has_text="out 4").first.click()
    told = page.locator("#panel").text_content()
    assert "4 coupled units, free" in told
    assert "tied by batch_norm in 'norm'" in told
    assert "b.weight" in told
    node(page, "b", "Convs").locator(".box").click()
    page.locator("#panel .axis.frozen", has_text="out 5").first.click()
    assert "frozen by the output" in page.locator("#panel").text_content()
    assert coupled(page, "Convs") == {"b"}


def test_an_overlay_colours_layers_and_has_a_legend(opened, standin):
    graph = standin.by_hand(
        "M",
        {"a": {"weight": (2, 2)}, "b.c": {"weight": (2, 2)}, "b.d": {"weight": (2, 2)}, "e": {}},
    )
    page = opened(
        view(
            graph,
            overlay={"MACs": {"a": 10, "b.c.weight": 250.5, "b.d": 100 / 3}, "rank": {"a": 1}},
        )
    )

    def fill(label):
        return node(page, label, "M").locator(".box").evaluate("box => getComputedStyle(box).fill")

    assert page.locator("#scale").text_content() == "MACs10250.5"
    assert len({fill("a"), fill("c"), fill("d"), fill("e")}) == 4
    node(page, "d", "M").locator(".box").click()
    assert "MACs33.3333" in page.locator("#panel").text_content()
    assert "33.33333" not in page.locator("#panel").text_content()
    node(page, "b", "M").locator("[data-toggle]").click()
    node(page, "b", "M").locator(".label").hover(force=True)
    assert "MACs 250.5" in page.locator("#tip").text_content()  # the largest inside
    page.select_option("#legend select", label="no overlay")
    assert fill("a") == fill("e")
    assert page.locator("#scale").is_hidden()


def test_a_deep_link_opens_at_what_was_chosen(chromium, standin, tmp_path, until):
    page = chromium.new_page()
    page.goto(linked(standin).save(tmp_path / "x.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    page.fill("#search", "stage.1.out")
    page.keyboard.press("Enter")
    address = page.evaluate("location.href")
    assert address.endswith("#source:stage.1.out")
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    assert page.locator(".node.chosen .label").text_content() == "out"
    page.evaluate("location.hash = '#target:head.a'")
    until(page, "document.querySelector('.node.chosen .label').textContent === 'a'")
    page.evaluate("location.hash = '#target:%E0%A4%A'")  # what cannot be read is nothing
    page.evaluate("location.hash = '#elsewhere'")
    assert page.locator(".node.chosen .label").text_content() == "a"
    page.close()


def test_what_is_shown_can_be_kept(opened, standin, hostile):
    source = standin.by_hand(hostile[0], {name: {"weight": (2, 3)} for name in hostile})
    page = opened(view(source))
    with page.expect_download() as kept:
        page.locator("#panel button", has_text="SVG").click()
    root = ET.parse(kept.value.path()).getroot()
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert hostile[1] in words
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
        "svg",
        "g",
        "path",
        "rect",
        "text",
    }
    assert "var(" not in kept.value.path().read_text()
    with page.expect_download() as kept:
        page.locator("#panel button", has_text="PNG").click()
    assert kept.value.path().read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_theme_that_was_asked_for_is_not_the_systems(chromium, standin, tmp_path, theme):
    page = chromium.new_page(color_scheme="dark" if theme == "light" else "light")
    shown = view(standin.by_hand("M", {"a": {}}), theme=theme, title="A title")
    page.goto(shown.save(tmp_path / "x.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(246, 247, 249)") == (theme == "light")
    assert page.title() == "A title"
    page.close()


def test_a_diff_says_in_the_overview_what_differs(opened):
    first, second = (trace(Convs(4), torch.randn(1, 3, 2, 2)) for _ in range(2))
    page = opened(view(first, second, diff=True))
    assert "Convs by Convs: unrelated" in page.locator("#panel").text_content()
    assert "change" in page.locator("#scale").text_content()


def test_a_map_of_the_whole_shows_and_moves_the_window(opened, standin, hostile):
    graph = standin.by_hand(
        "M", {f"{hostile[i % 5]}{i}".replace(".", ""): {"weight": (4, i + 1)} for i in range(36)}
    )
    page = opened(view(graph))
    assert page.locator("#map").is_hidden()  # all is in sight
    for _ in range(8):
        page.keyboard.press("+")
    frame = page.locator("#map div").bounding_box()
    whole = page.locator("#map canvas").bounding_box()
    assert frame["width"] < 0.5 * whole["width"]
    inks = page.evaluate(
        """() => {
          const canvas = document.querySelector('#map canvas');
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          return new Set(Array.from({length: data.length / 4}, (_, i) => data.slice(4 * i, 4 * i + 4).join())).size;
        }"""
    )
    assert inks > 1
    for x, y in ((0.2, 0.3), (0.8, 0.9)):
        page.mouse.click(whole["x"] + x * whole["width"], whole["y"] + y * whole["height"])
        frame = page.locator("#map div").bounding_box()
        assert abs(frame["x"] + frame["width"] / 2 - whole["x"] - x * whole["width"]) < 20
    page.click("#fit")
    assert page.locator("#map").is_hidden()
