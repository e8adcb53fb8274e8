"""What a reader does with the page, in a real browser."""

import pytest
import torch

from graftlib.view import view

pytestmark = pytest.mark.browser

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><b onclick=alert(2)>",
    "\"'<img src=x onerror=alert(3)>",
    "a\u2028b",
    "{{7*7}}",
]


@pytest.fixture
def opened(chromium, tmp_path):
    """Open a view from the disk; everything that the page complains of or asks for fails the test."""
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    troubles, asked = [], []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))

    def open_view(shown):
        path = shown.save(tmp_path / "x.html")
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        asked[:] = [url for url in asked if url != path.as_uri()]
        return page

    yield open_view
    page.close()
    assert troubles == []
    assert asked == []


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


def test_hostile_names_stay_text(opened, standin):
    source = standin.by_hand(HOSTILE[0], {name: {"weight": (2, 3)} for name in HOSTILE})
    target = standin.by_hand("T", {"t": {"weight": (2, 3)}})
    pairs = tuple(standin.Pair(p, target.held[0], rule=HOSTILE[1]) for p in source.held)
    page = opened(view(source, target, standin.Mapping(source, target, pairs)))
    labels = page.locator("[role=tree] .label").all_text_contents()
    assert HOSTILE[0] in labels
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
    assert page.evaluate("document.title") == f"{HOSTILE[0]} to T"


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


SCALE = "+document.querySelector('#picture > g').getAttribute('transform').match(/scale\\(([^)]+)/)[1]"


def thousands(standin, unlike):
    """5,000 layers that repeat with a period of three under three containers, or of which no two are alike."""
    if unlike:
        return standin.by_hand("Unlike", {f"l{i}": {"weight": (4, i + 1)} for i in range(5000)})
    names = [f"{kind}.{i}" for i in range(1667) for kind in ("convs", "bns", "acts")][:5000]
    return standin.by_hand("Period", {n: {} if "act" in n else {"weight": (4, 4)} for n in names})


@pytest.mark.parametrize("unlike", [False, True])
def test_five_thousand_layers_are_few_boxes_at_any_depth(opened, standin, unlike):
    page = opened(view(thousands(standin, unlike)))
    assert 4 <= page.locator(".node").count() <= 42
    assert page.locator(".model-facts").text_content().startswith("5,000 layers")
    for _ in range(3):  # into the last box, and again
        before = page.locator(".node").count()
        page.locator(".node[aria-expanded=false] [data-toggle]").last.dispatch_event("click")
        assert page.locator(".node").count() - before <= 40
    page.fill("#search", "l4321" if unlike else "convs.1234")
    page.keyboard.press("Enter")
    chosen = page.locator(".node.chosen .label").text_content()
    assert chosen == ("l4321" if unlike else "convs.1234")


def test_all_of_five_thousand_layers_are_drawn_in_few_pieces(opened, standin):
    page = opened(view(thousands(standin, True)))
    for _ in range(3):
        page.click("#expand")
    assert page.locator("#picture *").count() < 1500  # from afar: one path for many boxes
    boxes = page.evaluate("[...document.querySelectorAll('.card')].map(e => e.getAttribute('d').split('M').length - 1)")
    assert sum(boxes) == 5000
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
    page.wait_for_function("seen => ![...document.querySelectorAll('.node .label')].every(e => seen.includes(e.textContent))", arg=sorted(names))


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
    assert page.locator(".node").count() > before
    page.click("#collapse")
    page.click("#fit")
    assert page.locator(".link").count() >= 5
