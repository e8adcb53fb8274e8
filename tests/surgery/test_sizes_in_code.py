"""Sizes that a model's code holds: what can follow follows, what is tied goes together, and only a number stays."""

from __future__ import annotations

import operator
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftlib.graph import trace
from graftlib.graph.axes import AxisClass, Member
from graftlib.graph.axes.infer import infer
from graftlib.slim import Edit
from graftlib.surgery import SurgeryError, SurgeryWarning, fit, prune, widen
from graftlib.surgery.equations import Equations
from graftlib.surgery.scratch import Reference, equations_of, passage, scratch
from graftlib.surgery.tagged import Log, Tagged, put
from graftlib.surgery.whole_model import largest_feasible, outer_classes


class Heads(nn.Module):
    """Attention whose code takes its sizes from where `sizes` says."""

    def __init__(self, width=12, heads=3, inner=4):
        super().__init__()
        self.start, self.qkv = nn.Linear(5, width), nn.Linear(width, 3 * heads * inner)
        self.out, self.end = nn.Linear(heads * inner, width), nn.Linear(width, 2)

    def heads(self, x):
        raise NotImplementedError

    def joined(self, y, x):
        return y.flatten(2)

    def forward(self, x):
        x = self.start(x)
        q, k, v = self.heads(x).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.end(x + self.out(self.joined(y, x)))


class OddlyNamed(Heads):
    """The number of heads under a name that no table knows."""

    def __init__(self):
        super().__init__()
        self.prongs, self.rest = 3, [7, 4]

    def heads(self, x):
        return self.qkv(x).view(*x.shape[:2], 3, self.prongs, self.rest[1])


class Configured(Heads):
    """It is read from a record that the whole model shares."""

    def __init__(self):
        super().__init__()
        self.settings = SimpleNamespace(size=SimpleNamespace(prongs=3))

    def heads(self, x):
        return self.qkv(x).view(*x.shape[:2], 3, self.settings.size.prongs, -1)


class Derived(Heads):
    """The width of the stream over the width of a head."""

    def __init__(self):
        super().__init__()
        self.per = 4

    def heads(self, x):
        return self.qkv(x).view(x.shape[0], x.shape[1], 3, x.shape[2] // self.per, self.per)


class TiedToStream(Heads):
    """The heads together are as wide as the stream: two of three heads of four are eight, not six."""

    def __init__(self):
        super().__init__()
        self.prongs = 3

    def heads(self, x):
        b, n, c = x.shape
        return self.qkv(x).reshape(b, n, 3, self.prongs, c // self.prongs)

    def joined(self, y, x):
        return y.reshape(x.shape)


class Written(Heads):
    """A number in the code: nothing can be set."""

    def heads(self, x):
        return self.qkv(x).view(*x.shape[:2], 3, 3, 4)


class Misleading(nn.Module):
    """An attribute of a known name that says the size of something else."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.dim = nn.Linear(5, 8), nn.Linear(8, 2), 8
        self.table = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return (
            self.b(self.a(x).relu()) + (torch.arange(self.dim, device=x.device) * self.table).sum()
        )


class WithoutKeyBias(Heads):
    """The keys' bias is a buffer of zeros that nobody saves, as in BEiT and EVA."""

    def __init__(self, key_bias=None):
        super().__init__()
        self.number = 3
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))
        zeros = torch.zeros(12)
        self.register_buffer("k_bias", zeros if key_bias is None else key_bias, persistent=False)

    def heads(self, x):
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = torch.nn.functional.linear(x, self.qkv.weight, bias)
        return qkv.view(*x.shape[:2], 3, self.number, -1)


class NormedPositions(nn.Module):
    """A grouped convolution whose weight is a norm times directions, as in wav2vec 2.0; and norms without weights."""

    def __init__(self, parametrize, bias):
        super().__init__()
        self.start, self.end = nn.Linear(5, 12), nn.Linear(12, 2)
        conv = nn.Conv1d(12, 12, 3, padding=1, groups=4, bias=bias)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older of the two is deprecated
            self.conv = parametrize(conv, dim=2)
        self.norm = nn.LayerNorm(12, elementwise_affine=False)
        self.root = nn.RMSNorm(12, elementwise_affine=False)

    def forward(self, x):
        x = self.norm(self.start(x))
        return self.end(self.root(self.conv(x.transpose(1, 2)).transpose(1, 2)))


class Gated(nn.Module):
    """Takes its two halves with `narrow`, by a number of its own."""

    def __init__(self):
        super().__init__()
        self.inside, self.up, self.down = 6, nn.Linear(5, 12), nn.Linear(6, 2)

    def forward(self, x):
        both = self.up(x)
        gate, value = (both.narrow(-1, start, self.inside) for start in (0, self.inside))
        return self.down(gate.relu() * value)


class Unflattened(nn.Module):
    """torch's own module says the heads."""

    def __init__(self):
        super().__init__()
        self.start, self.heads = nn.Linear(5, 12), nn.Unflatten(-1, (3, 4))
        self.scale, self.end = nn.Parameter(torch.randn(3, 1)), nn.Linear(12, 2)

    def forward(self, x):
        return self.end((self.heads(self.start(x)) * self.scale).softmax(-1).flatten(2))


def pruned(model, x):
    torch.manual_seed(0)
    model.eval()
    graph = trace(model, x)
    slim = prune(graph, 0.5)
    assert slim(x).shape == model(x).shape
    return slim, graph


@pytest.fixture
def x():
    return torch.randn(2, 6, 5)


def test_an_attribute_of_any_name_follows(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slim, _ = pruned(OddlyNamed(), x)
    assert (slim.prongs, slim.rest, slim.qkv.out_features) == (2, [7, 4], 24)
    assert slim.start.out_features == 6


def test_where_and_how_long_a_narrow_is_follows(x):
    slim = prune(trace(Gated(), x), 0.5)
    assert slim.inside == 3
    assert slim(x).shape == (2, 6, 2)


def test_an_attribute_of_a_shared_record_follows_and_the_users_stays(x):
    model = Configured()
    slim, _ = pruned(model, x)
    assert (slim.settings.size.prongs, slim.qkv.out_features) == (2, 24)
    assert model.settings.size.prongs == 3


def test_a_buffer_that_is_the_same_everywhere_follows(x):
    model = WithoutKeyBias()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slim, graph = pruned(model, x)
        again = Edit.of(model, graph, *units_of(graph, 0.5)).apply(model)
    assert (slim.k_bias.shape, slim.qkv.out_features, slim.number) == ((8,), 24, 2)
    assert again.k_bias.shape == (8,)
    assert again(x).shape == model(x).shape
    assert model.k_bias.shape == (12,)
    heads = graph.axis_class("q_bias", "out")
    wide = widen(graph, {heads: 6})
    assert (wide.k_bias.shape, wide.qkv.out_features) == ((24,), 72)
    torch.testing.assert_close(wide(x), model(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "parametrize", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm]
)
def test_groups_of_a_normed_convolution_and_norms_without_weights_follow(parametrize, bias, x):
    with warnings.catch_warnings():
        warnings.simplefilter("error", SurgeryWarning)
        slim, _ = pruned(NormedPositions(parametrize, bias), x)
    conv = slim.conv
    assert (conv.groups, conv.in_channels, conv.out_channels) == (2, 6, 6)
    assert (slim.norm.normalized_shape, slim.root.normalized_shape) == ((6,), (6,))


def test_a_module_of_torch_without_weights_follows(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slim, _ = pruned(Unflattened(), x)
    assert (tuple(slim.heads.unflattened_size), slim.start.out_features) == ((2, 4), 8)


def test_groups_that_are_a_product_of_classes_follow():
    """Three groups of a convolution are twelve of the norm behind it: two of them are eight."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(5, 24, 1),
        nn.GroupNorm(12, 24),
        nn.Conv2d(24, 24, 1, groups=3),
        nn.Conv2d(24, 2, 1),
    ).eval()
    image = torch.randn(2, 5, 4, 4)
    slim = prune(trace(model, image), 0.5)
    assert (slim[1].num_groups, slim[1].num_channels, slim[2].groups) == (8, 16, 2)
    assert slim(image).shape == model(image).shape


def test_a_buffer_of_many_values_holds_its_size(x):
    model = WithoutKeyBias(torch.randn(12))
    with pytest.warns(SurgeryWarning, match="were left as they are"):
        slim, _ = pruned(model, x)
    assert torch.equal(slim.k_bias, model.k_bias)


def test_a_document_cannot_make_a_buffer_of_any_size(x):
    model = WithoutKeyBias().eval()
    graph = trace(model, x)
    edit = Edit.of(model, graph, *units_of(graph, 0.5))
    assert Edit.from_json(edit.to_json()) == edit
    huge = edit.to_json().replace('"size":8}', '"size":10000000000}')
    with pytest.raises(SurgeryError, match="k_bias"):
        Edit.from_json(huge).apply(model)


def units_of(graph, share):
    """Class -> the first units of it, for a share of the whole; and the attributes that follow."""
    sizes = {c: max(round(share * c.size), 1) for c in outer_classes(graph)}
    plan = largest_feasible(graph.model, graph, sizes)
    return {c: range(n) for c, n in plan.sizes.items()}, plan.attributes


def test_a_size_that_is_computed_ties_what_it_is_computed_from(x):
    with pytest.warns(SurgeryWarning, match="ties them.*8 instead of 6"):
        slim, _ = pruned(Derived(), x)
    assert (slim.start.out_features, slim.out.in_features, slim.per) == (8, 8, 4)


def test_heads_are_together_as_wide_as_the_stream(x):
    with pytest.warns(SurgeryWarning, match="1 of .* other sizes"):
        slim, _ = pruned(TiedToStream(), x)
    assert slim.start.out_features == slim.out.in_features == 8
    assert slim.prongs == 2


def test_a_number_in_the_code_keeps_its_class_alone(x):
    with pytest.warns(SurgeryWarning, match=r"1 of 2 classes were left .* 3 units of qkv"):
        slim, _ = pruned(Written(), x)
    assert (slim.qkv.out_features, slim.start.out_features) == (36, 6)


def test_what_a_known_name_says_of_something_else_stays():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slim, _ = pruned(Misleading(), torch.randn(3, 5))
    assert (slim.dim, slim.a.out_features) == (8, 4)


@pytest.mark.parametrize("kind", [OddlyNamed, TiedToStream, Written])
def test_it_takes_few_passes_and_a_second_edit_does_not_search(kind, x, monkeypatch):
    passes = []
    for name in ("passage", "equations_of"):
        call = getattr(fit, name)
        monkeypatch.setattr(
            fit, name, lambda *a, call=call, name=name, **k: (passes.append(name), call(*a, **k))[1]
        )
    model = kind().eval()
    graph = trace(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = prune(graph, 0.5)
        assert passes.count("equations_of") == 1
        assert len(passes) <= (4 if kind is Written else 3)
        passes.clear()
        second = prune(graph, 0.5)
    assert passes == ["passage"]
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_no_value_is_copied_for_sizes_that_do_not_fit(x, monkeypatch):
    """And the refusal keeps nothing alive: no frame, no other error."""
    model = Written().eval()
    graph = trace(model, x)
    heads = next(c for c in graph.axis_classes if c.free and c.size == 3)
    copies = []
    call = fit.editable
    monkeypatch.setattr(fit, "editable", lambda *a, **k: (copies.append(1), call(*a, **k))[1])
    with pytest.raises(SurgeryError, match="view in the model itself") as refusal:
        prune(graph, {heads: 2})
    assert not copies
    assert refusal.value.__cause__ is None
    assert refusal.value.__context__ is None
    prune(graph, {heads: 3})
    assert copies


def test_equations_name_the_attributes_and_the_ties(x):
    model = TiedToStream().eval()
    graph = trace(model, x)
    _, equations = equations_of(model, graph)
    words = [equations.words(one) for one in equations.equations]
    assert any("prongs" in word and "//" in word for word in words)
    free = {c.size: c for c in graph.axis_classes if c.free}
    _, broken = equations.attributes_for({free[3]: 2, free[12]: 6})
    assert broken
    attributes, broken = equations.attributes_for({free[3]: 2, free[12]: 8})
    assert (attributes["", ("prongs",)], broken) == (2, [])


small = st.integers(1, 60)


@given(small, small, st.sampled_from(["*", "+", "-", "//"]), st.booleans())
def test_tagged_numbers_compute_as_numbers(a, b, word, swapped):
    log = Log()
    left, right = (a, Tagged(b, ("at", "b"), log)) if swapped else (Tagged(a, ("at", "a"), log), b)
    compute = {
        "*": operator.mul, "+": operator.add, "-": operator.sub, "//": operator.floordiv
    }[word]  # fmt: skip
    tagged = compute(left, right)
    assert tagged == compute(a, b)
    assert tagged.term == (word, *((a, ("at", "b")) if swapped else (("at", "a"), b)))
    log.open = False
    assert type(compute(left, right)) is int


def classes(*sizes):
    return [AxisClass(n, (Member(f"w{i}", 0, 0, (n,), 0),)) for i, n in enumerate(sizes)]


@given(st.integers(1, 6), st.integers(2, 8), st.data())
def test_feasible_sizes_fulfil_every_equation(heads, inner, data):
    """heads x inner = stream, with the number of heads in an attribute."""
    stream, head = classes(heads * inner, heads)
    place = ("m", ("heads",))
    size, count = ("class", 0), ("class", 1)
    equations = Equations(
        [stream, head],
        [(("at", place), count), (("//", size, ("at", place)), inner), (("*", count, inner), size)],
        {place: heads},
    )
    requested = {
        stream: data.draw(st.integers(1, stream.size)), head: data.draw(st.integers(1, heads))
    }  # fmt: skip
    sizes = equations.feasible(requested)
    attributes, broken = equations.attributes_for(sizes)
    assert not broken
    assert sizes[stream] == sizes[head] * inner
    assert attributes[place] == sizes[head]
    if requested[stream] == requested[head] * inner:
        assert sizes == requested


def test_an_equation_that_does_not_hold_now_is_none():
    (only,) = classes(4)
    assert not Equations([only], [(("class", 0), 5)], {}).equations


def test_attributes_are_put_where_they_were():
    model = OddlyNamed()
    put(model, {("", ("prongs",)): 2, ("", ("rest", 1)): 5})
    assert (model.prongs, model.rest) == (2, [7, 5])


class Prongs(nn.Module):
    """Three heads of four, each with a gain."""

    def __init__(self):
        super().__init__()
        self.start, self.mixed, self.end = nn.Linear(5, 8), nn.Linear(8, 12), nn.Linear(12, 2)
        self.gain = nn.Parameter(torch.ones(3, 1))

    def forward(self, x):
        return self.end(self.scaled(self.mixed(self.start(x))))

    def scaled(self, y):
        return (y.unflatten(-1, (-1, 4)) * self.gain).flatten(-2)


class Whole(Prongs):
    """The same function by an op without a rule: values may go another way through the code than an export."""

    def scaled(self, y):
        return torch.ldexp(*torch.frexp(y))


def test_a_weight_of_a_size_that_a_pass_does_not_expect_is_blamed_for_it():
    """And not the stream that the op reads beside it, which is free."""
    x, whole = (torch.randn(3, 5),), Whole().eval()
    graph, other = trace(Prongs().eval(), x), trace(whole, x)
    stream, heads = graph.axis_class("start"), graph.axis_class("gain", 0)
    reference = Reference(other.ops, infer(whole, other.ops), graph.axis_classes)
    for sizes, blamed in (({stream: 4, heads: 2}, {heads}), ({stream: 4}, set())):
        twin = scratch(whole, graph, sizes, {}, kind="meta")
        misfits = passage(twin, graph, reference, sizes, meta=True).misfits
        assert {each for misfit in misfits[:1] for each in misfit.classes} == blamed
