"""What a forward pass makes from the weights and keeps does not outlive them; what is made from else stays."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from graftlib.graph import trace
from graftlib.graph.axes import check
from graftlib.graph.caches import find_caches, kept_tensors, without_caches
from graftlib.surgery import SurgeryError, permute, prune, widen

# --- ways to keep what was made -----------------------------------------------------------------------------------


class Keeps(nn.Module):
    """Attention with a bias for each head, by relative place; `biases` is where the trap lies."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv, self.out = 4, nn.Linear(8, 48), nn.Linear(16, 8)
        self.bias = nn.Parameter(torch.randn(4, 5))
        self.register_buffer("places", torch.randint(0, 5, (6, 6)), persistent=False)
        self.start()

    def start(self):
        pass

    def make(self):
        return self.bias[:, self.places]

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.mT / 2 + self.biases(x)).softmax(-1)
        return self.out((attention @ v).transpose(1, 2).flatten(2))


class ByDevice(Keeps):
    """In a dict, under the device's name; made while training."""

    def start(self):
        self.cache = {}

    def biases(self, x):
        if self.training:
            return self.make()
        if str(x.device) not in self.cache:
            self.cache[str(x.device)] = self.make()
        return self.cache[str(x.device)]


class ByShape(Keeps):
    """In a dict, in pairs, next to an entry that is none."""

    def start(self):
        self.cache = {"limit": 7}

    def biases(self, x):
        key = tuple(x.shape)
        if key not in self.cache:
            self.cache[key] = (self.make(), x.shape[1])
        return self.cache[key][0]


class InAKey(Keeps):
    """A tensor is the key, and its value a word."""

    def start(self):
        self.cache = {}

    def biases(self, x):
        if not self.cache:
            self.cache[self.make()] = "made"
        return next(iter(self.cache))


class AttributeOrNone(Keeps):
    """An attribute that is None at first; made without gradients."""

    def start(self):
        self.table = None

    def biases(self, x):
        if self.table is None:
            with torch.no_grad():
                self.table = self.make().detach()
        return self.table


class AttributeOrMissing(Keeps):
    """An attribute that is not there at first."""

    def biases(self, x):
        if not hasattr(self, "table"):
            self.table = self.make().data
        return self.table


class CachedProperty(Keeps):
    """`functools.cached_property` writes into the module's own attributes."""

    @functools.cached_property
    def table(self):
        return self.make()

    def biases(self, x):
        return self.table


class AttributeOfShape(Keeps):
    """An empty tensor at first; made again where the shape is another."""

    def start(self):
        self.table = torch.empty(0)

    def biases(self, x):
        if self.table.numel() != self.num_heads * x.shape[1] ** 2:
            self.table = self.make()
        return self.table


class Store:
    """A plain object."""

    def __init__(self):
        self.tables, self.hits = [], 0


class InAnObject(Keeps):
    """In a list in a plain object."""

    def start(self):
        self.store = Store()

    def biases(self, x):
        if not self.store.tables:
            self.store.tables.append(self.make())
        return self.store.tables[0]


class Merged(nn.Module):
    """Two matrices multiplied once; the product is what every later call uses."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 6, bias=False), nn.Linear(6, 10, bias=False)
        self.head, self.merged = nn.Linear(10, 8), None

    def forward(self, x):
        if self.merged is None:
            self.merged = self.second.weight @ self.first.weight
        return self.head((x @ self.merged.mT).relu())


WAYS = [
    ByDevice,
    ByShape,
    InAKey,
    AttributeOrNone,
    AttributeOrMissing,
    CachedProperty,
    AttributeOfShape,
    InAnObject,
    Merged,
]


def built(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), kind(), nn.Linear(8, 3)).eval(), torch.randn(2, 6, 3)


def outline(graph):
    return [(each.size, each.free, each.members) for each in graph.axis_classes]


# --- and what is no cache -------------------------------------------------------------------------------------------


class Constants(nn.Module):
    """Plain tensors that no forward pass makes: places, a scale in a dict, a table made from another table."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(8, 12), nn.Linear(12, 8)
        self.places, self.sizes = torch.arange(6), {"scale": torch.tensor(2.0)}
        self.angles = None

    def forward(self, x):
        if self.angles is None:
            self.angles = self.places[:, None] * torch.ones(x.shape[-1])
        return self.out((self.into(x + self.angles.cos()) * self.sizes["scale"]).relu())


class Remembers(nn.Module):
    """Keeps what it computed from its input, and reads it in the next call."""

    def __init__(self):
        super().__init__()
        self.into, self.out, self.last = nn.Linear(8, 12), nn.Linear(12, 8), None

    def forward(self, x):
        h = self.into(x).relu()
        if self.last is not None:
            h = h + self.last
        self.last = h.detach()
        return self.out(h)


class Frozen(nn.Module):
    """A flag says that the table is made: it cannot be made again."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 6, bias=False), nn.Linear(6, 8, bias=False)
        self.ready, self.merged = False, None

    def forward(self, x):
        if not self.ready:
            self.merged, self.ready = self.second.weight @ self.first.weight, True
        return x @ self.merged.mT


# --- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WAYS)
def test_a_trace_and_a_check_say_the_same_before_and_after_a_run(kind):
    model, x = built(kind)
    before = trace(model, (x,))
    model(x)
    after = trace(model, (x,))
    assert outline(after) == outline(before)
    assert check(after).passed
    assert check(before).passed  # its model has run since


EDITS = {
    "permute": lambda model, graph, **how: permute(graph, seed=1, **how),
    "prune": lambda model, graph, **how: prune(graph, 0.5, **how),
    "widen": lambda model, graph, **how: widen(graph, {first(graph): 16}, **how),
    "fit": lambda model, graph, **how: prune(
        graph, 0.5, data=[torch.ones(2, 6, 3), torch.zeros(2, 6, 3)], **how
    ),
}


def first(graph):
    """The class that the first layer makes."""
    return next(
        each
        for each in graph.axis_classes
        if each.free and any(m.fqn == "0.weight" and m.axis == 0 for m in each.members)
    )


@pytest.mark.filterwarnings("ignore:layers with fewer than", "ignore:.*fits were taken back")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", WAYS)
def test_an_edit_of_a_model_that_ran_is_that_of_one_that_never_ran(kind, edit, inplace):
    ran, x = built(kind)
    never, _ = built(kind)
    graph, other = trace(ran, (x,)), trace(never, (x,))
    wanted = ran(x)
    if kind is Merged and edit == "widen":  # no layer reads these units, a product of matrices does
        for model, seen in ((ran, graph), (never, other)):
            with pytest.raises(SurgeryError, match="without a change of the function"):
                EDITS[edit](model, seen, inplace=inplace)
        return
    one, two = EDITS[edit](ran, graph, inplace=inplace), EDITS[edit](never, other)
    torch.testing.assert_close(one(x), two(x))
    if edit in ("permute", "widen"):
        torch.testing.assert_close(one(x), wanted)
    if not inplace:
        torch.testing.assert_close(ran(x), wanted)


@pytest.mark.parametrize("kind", WAYS)
def test_a_cache_that_is_copied_along_would_be_seen(kind):
    """The control: with what was kept put back, the permuted model answers something else."""
    model, x = built(kind)
    wanted = model(x)
    moved = permute(trace(model, (x,)), seed=1)
    for fqn, name in kept_tensors(model):
        setattr(moved.get_submodule(fqn), name, getattr(model.get_submodule(fqn), name))
    assert not torch.allclose(moved(x), wanted, atol=1e-4)


def test_a_model_that_never_ran_costs_nothing_and_is_taken_itself():
    model, x = built(ByDevice)
    assert kept_tensors(model) == []
    assert without_caches(model, (x,)) is model


def test_constants_stay():
    model, x = built(Constants)
    graph = trace(model, (x,))
    model(x)
    assert len(kept_tensors(model)) == 3
    assert not find_caches(model, (x,)).places
    slim = prune(graph, 0.5)
    assert torch.equal(slim[1].places, torch.arange(6))
    assert slim[1].places is not model[1].places
    assert float(slim[1].sizes["scale"]) == 2
    torch.testing.assert_close(permute(graph, seed=1)(x), model(x))


def test_what_an_input_left_is_a_constant_of_what_is_traced_and_freezes():
    model, x = built(Remembers)
    free = sum(each.free for each in trace(model, (x,)).axis_classes)
    model(x)
    graph = trace(model, (x,))
    assert sum(each.free for each in graph.axis_classes) == free - 1
    wanted = model[2](model[1].out((h := model[1].into(model[0](x)).relu()) + h))
    torch.testing.assert_close(permute(graph, seed=1)(x), wanted)


def test_what_cannot_be_made_again_is_refused_by_name():
    model, x = built(Frozen)
    graph = trace(model, (x,))
    wanted = model(x)
    for edit in (
        lambda inplace: permute(graph, seed=1, inplace=inplace),
        lambda inplace: prune(graph, {first(graph): 4}, inplace=inplace),
        lambda inplace: widen(graph, {first(graph): 12}, inplace=inplace),
    ):
        for inplace in (False, True):
            with pytest.raises(
                SurgeryError, match=r"'1\.merged' holds a tensor that was not there"
            ) as error:
                edit(inplace)
            assert "trace the model again" in str(error.value)
    torch.testing.assert_close(model(x), wanted)
    # What the message advises works: the product is a constant then, and what it meets is frozen.
    torch.testing.assert_close(permute(trace(model, (x,)), seed=1)(x), wanted)
    model[1].merged, model[1].ready = None, False
    torch.testing.assert_close(permute(graph, seed=1)(x), wanted)


def test_a_mark_that_nothing_reads_is_no_reason_to_refuse():
    model, x = built(Constants)
    graph = trace(model, (x,))
    model[1].note = torch.tensor(3.0)
    assert float(permute(graph, seed=1)[1].note) == 3
