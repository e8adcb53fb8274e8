"""What became of a model is named, after the units are put in one order; the models stay as they are."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graftlib.graph import trace
from graftlib.view import diff, view


class Net(nn.Module):
    """Two convolutions with norms, a skip and a head."""

    def __init__(self, width=12, inner=16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.a, self.norm, self.b = (
            nn.Conv2d(width, inner, 3, padding=1),
            nn.BatchNorm2d(inner),
            nn.Conv2d(inner, width, 1),
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.b(torch.relu(self.norm(self.a(x))))
        return self.head(x.mean((2, 3)))


def graph(model):
    return trace(model, torch.zeros(1, 3, 4, 4))


def of(seed, **sizes):
    torch.manual_seed(seed)
    model = Net(**sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def part(model, units):
    """The model with these inner units, in this order."""
    small = Net(inner=len(units))
    state = model.state_dict()
    with torch.no_grad():
        for name, value in small.state_dict().items():
            if name.startswith(("a.", "norm.")) and value.ndim:
                value.copy_(state[name][units])
            else:
                value.copy_(state[name][:, units] if name == "b.weight" else state[name])
    return small


def moved(model, by):
    torch.manual_seed(7)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return other


def mixed(model, other):
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            ours.copy_((ours + theirs) / 2)
    return model


@settings(max_examples=10)
@given(st.permutations(range(16)), st.integers(6, 16))
def test_a_part_in_any_order_is_found_unit_by_unit(order, count):
    whole = of(0)
    small = part(whole, list(order[:count]))
    found = diff(graph(whole), graph(small))
    kept = list(order[:count])
    expected = "pruned" if count < 16 else "permuted" if kept != sorted(kept) else "identical"
    assert found.edit == expected
    assert all(each.change < 1e-6 for each in found.changes)
    assert {each.structure for each in found.changes} == (
        {"same", "narrower"} if count < 16 else {"same"}
    )


@pytest.mark.parametrize(
    ("other", "edit"),
    [
        (lambda net: copy.deepcopy(net), "identical"),
        (lambda net: moved(net, 0.02), "fine-tuned"),
        (lambda net: moved(part(net, list(range(15, -1, -1))), 0.02), "permuted and fine-tuned"),
        (lambda net: moved(part(net, [1, 3, 5, 7, 9, 11]), 0.02), "pruned and fine-tuned"),
        (lambda net: mixed(of(0), of(5)), "merged"),
        (lambda net: of(5), "unrelated"),
        (lambda net: of(5, inner=8), "unrelated"),
        (lambda net: of(0).to("meta"), "same structure"),
        (lambda net: of(0, inner=8).to("meta"), "other structure"),
    ],
)
def test_the_edit_has_its_name(other, edit):
    net = of(0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    changed = other(net)
    meta = any(parameter.is_meta for parameter in changed.parameters())
    example = torch.zeros(1, 3, 4, 4, device="meta" if meta else "cpu")
    assert diff(graph(net), trace(changed, example)).edit == edit
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_layers_that_went_and_came_are_listed():
    net = of(0)
    longer = nn.Sequential()
    longer.stem, longer.extra = net.stem, nn.Conv2d(12, 12, 1)
    shorter = nn.Sequential()
    shorter.stem = net.stem
    found = diff(graph(longer), graph(shorter))
    assert found.edit == "layers dropped"
    assert [each.fqn for each in found.changes if each.structure == "missing"] == [
        "extra.weight",
        "extra.bias",
    ]
    assert diff(graph(shorter), graph(longer)).edit == "layers added"
    assert "missing   extra.weight  12×12×1×1 -> nothing" in str(found)


def test_the_page_shows_what_differs():
    net = of(0)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.a.weight.add_(0.2)
    shown = view(graph(net), graph(other), diff=True)
    assert shown.scene.notes[0] == "Net by Net: fine-tuned"
    (overlay,) = shown.scene.overlays
    values = {shown.scene.trees[g].nodes[i].path: value for (g, i), value in overlay.values}
    assert values["a"] > 0.1
    assert values["b"] == 0
