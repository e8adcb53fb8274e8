"""A graft's transfers and an assembly's merges stand beside the layers that they were of."""

import pytest
import torch
from torch import nn

import graftlib
from graftlib import Mapping, trace
from graftlib.view import view
from graftlib_adapters import assemble
from graftlib_adapters.sharing import ParameterSharing


class Net(nn.Module):
    """Two linear layers under any names."""

    def __init__(self, names=("a", "b")):
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Linear(4, 6))
        self.add_module(names[1], nn.Linear(6, 3))

    def forward(self, x):
        one, two = (self.get_submodule(name) for name in self.names)
        return two(torch.relu(one(x)))


class Other(Net):
    """Another class of the same layers."""


def grafted(names=("a", "b")):
    source, target = (trace(kind(names), torch.zeros(2, 4)) for kind in (Net, Other))
    mapping = Mapping(source, target).link("*a*", "*a*")
    graft = graftlib.attach(ParameterSharing(), mapping, cycle=1)
    optimizer = torch.optim.SGD(target.model.parameters(), 0.1)
    for _ in range(4):
        with graft.step():
            loss = target.model(torch.randn(5, 4)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return graft


def test_every_transfer_is_on_the_curve_of_what_it_wrote():
    graft = grafted()
    before = len(graft.history)
    (story,) = view(graft).scene.stories
    sizes = [change.size for each in graft.history for change in each.changes.values()]
    assert [value for _, value in story.curve] == pytest.approx(sizes)
    assert story.place[0] == 1
    assert story.title == "a.weight"
    graft.detach()
    assert len(view(graft).scene.stories[0].curve) == before > 2


def test_every_merge_is_an_origin_of_its_layers():
    torch.manual_seed(0)
    assembly = assemble(Net(), [Net(), Net()], args=(torch.zeros(2, 4),), merge_factor=0.25)
    scene = view(assembly).scene
    paths = {scene.trees[0].nodes[each.place[1]].path: each.lines for each in scene.stories}
    assert set(paths) == {"a", "b"}
    assert [line.partition(";")[0].rpartition(" at ")[2] for line in paths["a"]] == ["0.25"] * 2
    assert "units as in a.weight[0]" in paths["a"][0]


def test_results_show_themselves_in_a_notebook():
    graft = grafted()
    assert graft._repr_html_() == view(graft)._repr_html_()
    assembly = assemble(Net(), [Net()], args=(torch.zeros(2, 4),), merge_factor=0.5)
    assert assembly._repr_html_() == view(assembly)._repr_html_()
    traced = trace(Net(), torch.zeros(2, 4))
    slim = graftlib.slim(traced, budget={"params": 0.6}, multiple_of=1)
    shown = view(traced, edit=slim.edit, importance=slim.importances)
    assert slim._repr_html_() == shown._repr_html_()
    assert shown.scene.units


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_draws_the_curve_and_the_origins(opened, theme):
    names = ["<img src=x onerror=alert(1)>", "</script><b>"]
    page = opened(view(grafted(names), theme=theme))
    assert "Transfers" in page.locator("#panel").text_content()
    page.locator("#panel .curve").first.scroll_into_view_if_needed()
    page.locator("#panel button.go", has_text="onerror").first.click()
    told = page.locator("#panel").text_content()
    assert "4 transfers, before steps 0 to 3" in told
    assert page.locator("#panel .curve path").get_attribute("d").count("L") == 3
    x = (torch.zeros(2, 4),)
    page = opened(view(assemble(Net(names), [Net(names)], args=x, merge_factor=0.5), theme=theme))
    assert "at 0.5" in page.locator("#panel").text_content()
    assert "Origins" in page.locator("#panel h3").first.text_content()
    assert page.locator("#panel img").count() == 0
