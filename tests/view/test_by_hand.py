"""A mapping that is drawn by hand is the mapping that its copied text makes, whatever the names are."""

from importlib.resources import files

import pytest
import torch
from torch import nn

from graftlib import GraftError, Mapping, trace
from graftlib.errors import MatchError
from graftlib.view import view
from graftlib.view.data import scene_data

pytestmark = pytest.mark.browser

NAMES = ["re:[*]{i}", "a\u2028b é\u0085", "\"'<img src=x onerror=alert(3)>\\"]


class Named(nn.Module):
    """Linear layers one after the other, and a norm, under any names."""

    def __init__(self, names, width):
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        for name in self.names:
            x = torch.relu(self.get_submodule(name)(x))
        return self.norm(x)


class Other(Named):
    """The same under another class's name."""


def two(names=NAMES):
    return tuple(
        trace(kind(names, width), torch.zeros(1, width)) for kind, width in ((Named, 4), (Other, 6))
    )


def box(page, graph, label):
    return (
        page.locator(f'[role=tree][aria-label="{graph}"] .node')
        .filter(has=page.locator(f".label:text-is({label})"))
        .locator(".box")
    )


def drag(page, one, other):
    a, b = one.bounding_box(), other.bounding_box()
    page.keyboard.down("Shift")
    page.mouse.move(a["x"] + 20, a["y"] + 20)
    page.mouse.down()
    page.mouse.move(b["x"] + 20, b["y"] + 20, steps=3)
    assert page.locator(".rubber").count() == 1
    page.mouse.up()
    page.keyboard.up("Shift")
    assert page.locator(".rubber").count() == 0


def test_a_link_is_drawn_and_its_python_and_yaml_make_it(opened, tmp_path):
    source, target = two()
    page = opened(view(source, target))
    boxes = [
        page.locator(f'[role=tree][aria-label="{name}"] .node .box') for name in ("Named", "Other")
    ]
    pairs = []
    for place, direction in ((0, "forward"), (2, "both"), (4, "backward")):
        drag(page, boxes[0].nth(place), boxes[1].nth(place))
        page.select_option("#panel label:has-text('Direction') select", label=direction)
        assert (
            "4 × 4 and 6 × 6 can be linked." in page.locator("#panel [role=status]").text_content()
        )
        page.locator("#panel button", has_text="Add").click()
        pairs.append((f"{NAMES[place // 2]}.weight",) * 2 + (direction,))
    assert page.locator(".link").count() == 3
    page.locator("#panel button", has_text="Copy YAML").click()
    text = page.locator("#panel textarea").input_value()
    path = tmp_path / "mapping.yaml"
    path.write_text(text, encoding="utf-8")
    loaded = Mapping.load(path, source, target)
    page.locator("#panel button", has_text="Copy Python").click()
    names = {"Mapping": Mapping, "source": source, "target": target}
    exec(page.locator("#panel textarea").input_value(), names)
    for mapping in (loaded, names["mapping"]):
        assert [(p.source.address, p.target.address, p.direction) for p in mapping.pairs] == pairs
    page.locator("#panel button", has_text="Remove").first.click()
    assert page.locator(".link").count() == 2


def test_what_cannot_be_linked_says_why_as_the_library_does(opened):
    source, target = two(["a", "b"])
    page = opened(view(source, target))
    why = page.locator("#panel [role=status]")
    drag(page, box(page, "Named", '"a"'), box(page, "Other", '"norm"'))
    assert page.locator("#panel button", has_text="Add").is_disabled()
    with pytest.raises(GraftError) as refused:
        Mapping(source, target).link("a.weight", "norm.weight")
    assert refused.value.why in why.text_content()
    drag(page, box(page, "Named", '"a"'), box(page, "Other", '"b"'))
    page.select_option("#panel label:has-text('Target') select", label="b.bias")
    with pytest.raises(GraftError) as refused:
        Mapping(source, target).link("a.weight", "b.bias")
    assert refused.value.why in why.text_content()
    page.select_option("#panel label:has-text('Target') select", label="b.weight")
    page.locator("#panel button", has_text="Add").click()
    drag(page, box(page, "Named", '"a"'), box(page, "Other", '"b"'))
    assert why.text_content() == "They are linked already."
    with pytest.raises(MatchError):
        Mapping(source, target).link("a", "b").link("a", "b")
    drag(page, box(page, "Named", '"a"'), box(page, "Named", '"b"'))
    assert "Both are of Named" in page.locator("#panel").text_content()


def test_every_reason_is_the_librarys():
    source, target = two(["a"])
    words = scene_data(view(source).scene)
    alone = words["graphs"][0]["parameters"]["alone$"]
    for parameter, number in zip(source.parameters(), alone, strict=True):
        mapping = Mapping(source, target)
        if number:
            with pytest.raises(GraftError) as refused:
                mapping.link(parameter.fqn, "a.weight")
            assert words["words"][number] == refused.value.why
        else:
            mapping.link(parameter.fqn, "a.weight")


def test_keys_make_a_link_and_any_name_can_be_copied(opened):
    source, target = two(["a", "b"])
    page = opened(view(source, target))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[role=tree] .node[tabindex='0']").first.focus()
    page.keyboard.press(" ")
    page.locator("#panel button.copy").first.click()
    assert page.evaluate("navigator.clipboard.readText()") == "a"
    page.locator("#panel button", has_text="Link from here").click()
    page.locator('[role=tree][aria-label="Other"] .node').first.focus()
    page.keyboard.press("Enter")
    page.locator("#panel button", has_text="Add").click()
    assert page.locator(".link").count() == 1
    page.fill("#search", "b.weight")  # the other end may also be searched for
    page.keyboard.press("Enter")
    page.locator("#panel button", has_text="Link from here").click()
    page.keyboard.press("/")
    page.keyboard.press("Enter")
    page.locator("#panel button", has_text="Link to b").click()
    page.locator("#panel button", has_text="Add").click()
    assert page.locator(".link").count() == 2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_any_panel(opened, theme):
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is missing")
    source, target = two(["a", "b"])
    each = source.axis_class("a")
    kept = {each: [0, 2]}
    worth = {each: [0.5, 1.0, 2.0, 0.0]}
    page = opened(view(source, target, edit=kept, importance=worth, weights=True, theme=theme))
    page.evaluate((files(axe.__name__) / "axe.min.js").read_text(encoding="utf-8"))

    def findings():
        tags = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice', 'experimental']"
        run = f"axe.run({{runOnly: {{type: 'tag', values: {tags}}}}})"
        return [found["id"] for found in page.evaluate(run)["violations"]]

    assert findings() == []
    page.locator("#panel button.go", has_text="a.weight").click()  # an axis class
    assert findings() == []
    box(page, "Named", '"a"').click()
    for _ in range(8):
        page.keyboard.press("+")  # the map is there
    page.locator("#panel summary").first.click()
    assert findings() == []
    page.keyboard.press("0")
    drag(page, box(page, "Named", '"a"'), box(page, "Other", '"b"'))
    assert findings() == []
    page.locator("#panel button", has_text="Add").click()
    page.locator("#panel button", has_text="Copy YAML").click()
    assert findings() == []
