"""Of a model that cannot be traced, its modules are seen, and how far it came; it stays as it is."""

import pytest
import torch
from torch import nn

from graftlib import GraftError, trace
from graftlib.graph import outline
from graftlib.view import view


class EndsInTheMiddle(nn.Module):
    """Its second block reads what its first one does not give."""

    def __init__(self, names=("stem", "body")):
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()))
        self.add_module(names[1], nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 4)))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        with torch.no_grad():
            self.head.bias.fill_(7.0)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.head(x + torch.rand(()))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_module_that_ended_it_is_named(device):
    model, x = EndsInTheMiddle().to(device), torch.zeros(2, 4, device=device)
    with pytest.raises(GraftError):
        trace(model, x)
    seen = outline(model, x)
    assert seen.stopped == "body.1"
    calls = {layer.name: layer.calls for layer in seen.layers}
    assert calls == {"stem.0": 1, "stem.1": 1, "stem.2": 1, "body.0": 1, "body.1": 0, "head": 0}
    assert list(seen.nx.edges()) == [
        ("stem.0", "stem.1"),
        ("stem.1", "stem.2"),
        ("stem.2", "body.0"),
        ("body.0", "body.1"),
    ]
    assert seen.layers[0].out_shapes == ((2, 4),)
    assert seen.layers[4].in_shapes == ((2, 3),)
    assert "4 of 6 layers" in str(seen)


def test_the_model_and_the_random_state_stay():
    model = EndsInTheMiddle().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    outline(model, torch.ones(2, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_that_runs_did_not_stop():
    seen = outline(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(1, 2))
    assert seen.stopped is None
    assert all(layer.calls == 1 for layer in seen.layers)


def test_an_outline_shows_itself_in_a_notebook():
    seen = outline(EndsInTheMiddle(), torch.zeros(2, 4))
    assert seen._repr_html_() == view(seen)._repr_html_()


def test_inputs_that_do_not_fit_end_it_in_the_model_itself():
    assert outline(EndsInTheMiddle(), ()).stopped == ""


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_shows_what_was_reached_and_why_no_more(opened, theme):
    names = ["<img src=x onerror=alert(1)>", "</script><b>"]
    page = opened(view(outline(EndsInTheMiddle(names), torch.zeros(2, 4)), theme=theme))
    told = page.locator("#panel").text_content()
    assert "4 of 6 layers were reached" in told
    assert "RuntimeError: mat1 and mat2" in told
    page.locator("#panel button", has_text="Go to </script><b>.1").click()
    stopped = page.locator(".node.stopped")
    assert "missed" in stopped.get_attribute("class").split()
    assert "not reached, the forward pass ended here" in stopped.get_attribute("aria-label")
    assert page.locator(".node.missed").count() == 2
