"""The proof of an edit can fail: a wrong edit is seen, and what could not show one proves nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from examples.benchmarks.single_breaks import forgetful_importances, wrong_widenings
from graftlib.graph import trace
from graftlib.surgery import SurgeryError, importance, widen
from graftlib.surgery import fill as fills


class Mixed(nn.Module):
    """A convolution with a batch norm, a gated linear layer, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.up, self.gate, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.norm(self.stem(x)).relu().mean((2, 3))
        return self.head(h + self.down(F.silu(self.gate(h)) * self.up(h)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.num_heads = nn.Embedding(20, 8), 2
        # A bias of keys would be a member that no output depends on.
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=i != 1) for i in range(3))
        self.out = nn.Linear(8, 3)

    def forward(self, ids, ignore):
        h = self.table(ids)
        q, k, v = (
            each(h).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for each in (self.q, self.k, self.v)
        )
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(
            ignore[:, None, None], float("-inf")
        )
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def mixed():
    return Mixed(), (torch.randn(4, 3, 8, 8),)


def attention(rows=7):
    ignore = torch.zeros(3, rows, dtype=torch.bool)
    ignore[0, 5:] = True
    return Attention(), (torch.randint(0, 20, (3, rows)), ignore)


def traced(built):
    torch.manual_seed(0)
    model, args = built()
    model = model.double().eval()
    return model, trace(model, tuple(x.double() if x.is_floating_point() else x for x in args))


@pytest.mark.parametrize("built", [mixed, attention])
def test_every_wrong_widening_is_seen(built):
    _, graph = traced(built)
    breaks = list(wrong_widenings(graph))
    assert len(breaks) > 6
    assert {each.what.partition(": ")[2] for each in breaks} == {
        "new units are read",
        "old units are changed",
    }
    assert [each.what for each in breaks if not each.seen and not each.blind] == []


@pytest.mark.parametrize("built", [mixed, attention])
def test_every_importance_that_forgets_what_is_off_is_seen(built):
    """And the library's own, which forgets nothing, keeps the function: the generator says so when it does not."""
    _, graph = traced(built)
    breaks = list(forgetful_importances(graph))
    assert {each.what.rpartition("what ")[2] for each in breaks} == {
        "makes a unit",
        "reads a unit",
    }
    assert [each.what for each in breaks if not each.seen] == []


def test_an_importance_that_counts_no_readers_is_found_out(monkeypatch):
    """The control of that control: put in the place of the library's own."""
    _, graph = traced(mixed)
    monkeypatch.setitem(
        importance.IMPORTANCES,
        "magnitude",
        lambda graph, model: (
            lambda each: importance.norm_of(
                model, [m for m in each.members if not importance.reads(graph, m)]
            )
        ),
    )
    with pytest.raises(AssertionError, match="that are off were kept"):
        list(forgetful_importances(graph))


@pytest.mark.parametrize("built", [mixed, attention])
def test_a_fill_that_forgets_to_silence_the_readers_is_refused(built, monkeypatch):
    """The same by way of `widen` itself: nothing that it would give back is wrong."""
    _, graph = traced(built)
    number = next(i for i, each in enumerate(graph.axis_classes) if len(each.members) > 2)
    widen(graph, {number: 2 * graph.axis_classes[number].size})
    monkeypatch.setitem(fills.FILLS, "like", lambda model, fill: None)
    with pytest.raises(SurgeryError, match="without a change of the function"):
        widen(graph, {number: 2 * graph.axis_classes[number].size})


def refusal(model, args, number=0, times=2):
    model = model.eval()
    graph = trace(model, args)
    with pytest.raises(SurgeryError) as caught:
        widen(graph, {number: times * graph.axis_classes[number].size})
    return str(caught.value)


def test_outputs_without_a_finite_number_prove_nothing():
    model, (ids, ignore) = attention()
    text = refusal(model, (ids, torch.ones_like(ignore)))
    assert "output 0 holds no finite number" in text
    assert "nothing proves" in text


def test_one_output_without_a_finite_number_proves_nothing():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.y, self.z = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            h = self.a(x).relu()
            return self.y(h), -(self.z(h).exp() / 0)

    assert "output 1 holds no finite number" in refusal(Two(), torch.randn(4, 3))


class Unreached(nn.Module):
    """Its hidden layer takes no part where the input is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.y, self.z = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(3, 2)

    def forward(self, x):
        hidden = self.y(self.a(x).relu())
        return self.z(x) + hidden * (x.amin(1, keepdim=True) > 0)


def test_outputs_that_do_not_depend_on_the_class_prove_nothing():
    assert "do not depend on the units of a.weight[0]" in refusal(Unreached(), -torch.rand(4, 3))
    model, x = Unreached().eval(), torch.rand(4, 3) + 0.1
    wide = widen(trace(model, x), {0: 12})
    torch.testing.assert_close(wide(x), model(x))


def test_scores_over_one_row_say_nothing_of_queries_and_keys():
    """A softmax over one number is one, whatever its queries are scaled by."""
    model = Attention().eval()
    args = (torch.randint(0, 20, (3, 1)), torch.zeros(3, 1, dtype=torch.bool))
    graph = trace(model, args)
    scores = [
        i
        for i, each in enumerate(graph.axis_classes)
        if each.free and any(m.fqn == "q.weight" and m.axis == 0 for m in each.members)
    ]
    for number in scores:
        try:
            wide = widen(graph, {number: 2 * graph.axis_classes[number].size})
        except SurgeryError:
            continue
        longer = (torch.randint(0, 20, (3, 7)), torch.zeros(3, 7, dtype=torch.bool))
        torch.testing.assert_close(wide(*longer), model(*longer))


def test_a_classifier_of_zeros_hides_nothing():
    """As networks begin: numbers are drawn in the places of the zeros, in both models."""
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    nn.init.zeros_(model[2].weight)
    x = torch.randn(4, 3).double()
    graph = trace(model, x)
    wide = widen(graph, {0: 12})
    assert not wide[2].weight.any()
    with torch.no_grad():
        for one in (model, wide):
            one[2].weight[:, :6] = torch.arange(12.0).view(2, 6)
    torch.testing.assert_close(wide(x), model(x))


def test_a_wrong_edit_behind_a_classifier_of_zeros_is_seen(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    nn.init.zeros_(model[2].weight)
    graph = trace(model, torch.randn(4, 3))
    with pytest.raises(SurgeryError, match="without a change of the function"):
        widen(graph, {0: 9})  # a norm keeps the function at multiples only


def test_an_edit_is_proven_on_the_masks_that_were_traced():
    model, args = attention()
    model = model.eval()
    graph = trace(model, args)
    for number, each in enumerate(graph.axis_classes):
        for width in (each.size + 3, 2 * each.size):
            try:
                wide = widen(graph, {number: width})
            except SurgeryError:
                continue
            torch.testing.assert_close(wide(*args), model(*args))


def test_a_model_that_does_not_run_on_its_evidence_is_refused():
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.z = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x, strict):
            if strict.device.type != "meta" and x.dtype is torch.float64:
                raise RuntimeError("not in double precision")
            return self.z(self.a(x).relu())

    text = refusal(Sorted(), (torch.randn(4, 3), torch.tensor(True)))
    assert "does not run on inputs drawn by the evidence" in text
    assert "not in double precision" in text
