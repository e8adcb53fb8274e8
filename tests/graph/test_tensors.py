"""One notion of the tensors of a value: all of them, in order, and put back in their places; or a refusal by name."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree

from graftlib.errors import TraceError
from graftlib.graph import LayerGraph, trace
from graftlib.graph.axes import axis_classes
from graftlib.graph.capture import TRACERS, capture
from graftlib.graph.tensors import Flat, is_plain, output_tensors, replaced, tensor_leaves


@dataclasses.dataclass
class Answer:
    logits: object
    more: object = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    logits: object


class Slots:
    __slots__ = ("logits", "never_set")

    def __init__(self, logits):
        self.logits = logits


class Easy(dict):
    """Attributes are items, as in many code bases."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Numbered(list):
    pass


class Point(collections.namedtuple("Point", "x y")):  # a named tuple with methods is no pytree
    __slots__ = ()


WRAPS = {
    "dataclass": Answer,
    "frozen dataclass": Frozen,
    "slots": Slots,
    "easy dict": lambda y: Easy(logits=y),
    "user dict": lambda y: collections.UserDict(logits=y),
    "user list": lambda y: collections.UserList([y]),
    "namespace": lambda y: types.SimpleNamespace(logits=y),
    "list subclass": lambda y: Numbered([y]),
    "named tuple subclass": lambda y: Point(y, 3),
    "mapping proxy": lambda y: types.MappingProxyType({"logits": y}),
    "nested": lambda y: {"a": [Answer(types.SimpleNamespace(b=(y,)))]},
    "distribution": lambda y: torch.distributions.Normal(y, torch.ones(()), validate_args=False),
}
# A mapping proxy refuses to be copied.
COPIED = sorted(set(WRAPS) - {"mapping proxy"})


class Net(nn.Module):
    def __init__(self, wrap) -> None:
        super().__init__()
        self.a, self.b, self.wrap = nn.Linear(6, 8), nn.Linear(8, 4), wrap

    def forward(self, x):
        return self.wrap(self.b(self.a(x).relu()))


class Batch(nn.Module):
    """Takes one object, as models of graphs and of detection do."""

    def __init__(self, get) -> None:
        super().__init__()
        self.a, self.b, self.get = nn.Linear(6, 8), nn.Linear(8, 4), get

    def forward(self, batch):
        return self.b(self.a(self.get(batch)).relu())


trees = st.recursive(
    st.just("tensor") | st.integers() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        | st.builds(Answer, inner, inner)
        | st.builds(lambda x: types.SimpleNamespace(x=x), inner)
        | st.builds(lambda x: Easy(x=x), inner)
    ),
    max_leaves=8,
)


def grown(tree, count):
    """The tree with a numbered tensor for each of its words."""
    if tree == "tensor":
        count.append(torch.full((1,), float(len(count))))
        return count[-1]
    if isinstance(tree, list):
        return [grown(each, count) for each in tree]
    if isinstance(tree, dict):
        return type(tree)({key: grown(each, count) for key, each in tree.items()})
    if isinstance(tree, Answer):
        return Answer(grown(tree.logits, count), grown(tree.more, count))
    if isinstance(tree, types.SimpleNamespace):
        return types.SimpleNamespace(x=grown(tree.x, count))
    return tree


@given(trees)
def test_every_tensor_is_met_once_and_comes_back_to_its_place(tree):
    numbered = []
    value = grown(tree, numbered)
    leaves = tensor_leaves(value)
    assert sorted(map(id, leaves)) == sorted(map(id, numbered))
    again = replaced(value, [leaf + 100 for leaf in leaves])
    assert [float(leaf) for leaf in tensor_leaves(again)] == [float(leaf) + 100 for leaf in leaves]
    assert tensor_leaves(value) == leaves  # the value itself stays
    assert output_tensors(value) == leaves


def test_registered_pytrees_are_opened_as_torch_opens_them():
    x = torch.ones(2)
    value = {"b": [x, x], "a": collections.OrderedDict(z=(x, 3))}
    assert [id(t) for t in tensor_leaves(value)] == [
        id(t) for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)
    ]
    assert is_plain(value)
    assert not is_plain([Answer(x)])


def test_an_object_that_holds_itself_comes_to_an_end():
    value = types.SimpleNamespace(x=torch.ones(2))
    value.me = value
    assert len(tensor_leaves(value)) == 1


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("name", WRAPS)
def test_what_is_given_out_is_frozen_whatever_it_is_in(name, tracer):
    model, x = Net(WRAPS[name]).eval(), (torch.randn(2, 6),)
    graph = LayerGraph(model, capture(model, x, tracers=(tracer,)), x)
    shapes = [tuple(t.shape) for t in output_tensors(model(*x))]
    assert list(graph.outputs) == shapes
    assert (2, 4) in shapes
    assert [each.size for each in axis_classes(graph) if each.free] == [8]


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("name", COPIED)
def test_what_goes_in_is_an_input_whatever_it_is_in(name, tracer):
    model = Batch(lambda batch: tensor_leaves(batch)[0])
    args = (WRAPS[name](torch.randn(2, 6)),)
    graph = LayerGraph(model.eval(), capture(model, args, tracers=(tracer,)), args)
    assert (2, 6) in graph.inputs.values()
    assert graph.check().passed
    assert tensor_leaves(args)[0].device.type == "cpu"


UNSEEN = {
    "generator": lambda y: (each for each in [y]),
    "list_iterator": lambda y: iter([y]),
    "set": lambda y: {y},
    "function": lambda y: lambda: y,
    "dict with a tensor in a key": lambda y: {"scores": {y: "best"}},
    "lock": lambda y: (y, threading.Lock()),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_opened_is_refused_by_its_type(name):
    with pytest.raises(TraceError, match=name):
        trace(Net(UNSEEN[name]), torch.randn(2, 6))


def test_a_bound_method_gives_out_its_tensor():
    """``y.add`` holds y as a method of Python's holds its object; keys without tensors are none of these."""
    graph = trace(Net(lambda y: y.add), torch.randn(2, 6))
    assert graph.axis_class("b", "out").frozen_by == "the output"
    graph = trace(Net(lambda y: {("a", 1): y, frozenset("b"): 2}), torch.randn(2, 6))
    assert graph.axis_class("b", "out").frozen_by == "the output"
    assert graph.axis_class("a", "out").free


def test_an_array_is_refused_by_its_type():
    with pytest.raises(TraceError, match="ndarray"):
        trace(
            Net(lambda y: np.zeros(2) if y.device.type == "meta" else y.numpy()), torch.ones(2, 6)
        )


class Opaque:
    """Only who knows it can open it: it holds an iterator, and refuses to be copied."""

    def __init__(self, tensor) -> None:
        self.later = iter([tensor])
        self.held = tensor

    def __deepcopy__(self, memo):
        raise TypeError("no copies")


def test_the_fix_of_a_refusal_holds():
    """Registered as the message says, the same type is walked."""
    model, args = Batch(lambda batch: batch.held), (Opaque(torch.randn(2, 6)),)
    with pytest.raises(TraceError, match="cannot be copied"):
        trace(model, args)
    with pytest.raises(TraceError, match=r"register_pytree_node\(Opaque, flatten, unflatten\)"):
        trace(Net(Opaque), torch.randn(2, 6))
    pytree.register_pytree_node(
        Opaque, lambda value: ([value.held], None), lambda tensors, _: Opaque(*tensors)
    )
    try:
        assert trace(model, args).check().passed
        assert trace(Net(Opaque), torch.randn(2, 6)).outputs == ((2, 4),)
    finally:
        pytree._deregister_pytree_node(Opaque)


class Cached(nn.Module):
    """Hands out what it will be handed again, beside its answer."""

    def __init__(self, cache) -> None:
        super().__init__()
        self.a, self.b, self.cache = nn.Linear(6, 8), nn.Linear(8, 4), cache

    def forward(self, x):
        h = self.a(x)
        return self.b(h), self.cache(h)


def test_a_cache_of_a_language_model_is_no_output():
    cache_utils = pytest.importorskip("transformers.cache_utils")

    def filled(h):
        cache = cache_utils.DynamicCache()
        cache.update(h[:, None, None], h[:, None, None], 0)
        return cache

    graph = trace(Cached(filled), torch.randn(2, 6))
    assert graph.outputs == ((2, 4),)
    assert [each.size for each in axis_classes(graph) if each.free] == [8]
    seen = trace(Cached(lambda h: types.SimpleNamespace(keys=h)), torch.randn(2, 6))
    assert seen.outputs == ((2, 4), (2, 8))
    assert not [each for each in axis_classes(seen) if each.free]


def test_a_flat_model_answers_as_the_model_does():
    x, y = torch.randn(2, 6), torch.randn(2, 6)
    model = Batch(lambda batch: batch.x - batch.more["y"])
    model.wrapped = Net(Answer)
    batch = types.SimpleNamespace(x=x, more={"y": y})
    flat = Flat(model, (batch,), {})
    (given_out,) = flat(*tensor_leaves(batch))
    assert torch.equal(given_out, model(batch))
    (other,) = flat(y, x)
    assert torch.equal(other, model(types.SimpleNamespace(x=y, more={"y": x})))
    assert [name for name, _ in flat.named_buffers()] == []


@pytest.mark.parametrize(
    "wrap",
    [lambda y: functools.partial(torch.add, y), lambda y: torch.futures.Future()],
    ids=["partial", "future"],
)
def test_what_holds_tensors_where_no_attribute_shows_them_is_refused(wrap):
    with pytest.raises(TraceError, match="cannot be seen"):
        output_tensors((torch.zeros(1), wrap(torch.zeros(2))))


def test_plain_objects_hold_nothing_more():
    values = [
        Answer(torch.zeros(1)),
        Slots(torch.zeros(1)),
        types.SimpleNamespace(a=torch.zeros(1)),
    ]
    assert len(output_tensors(values)) == 3
