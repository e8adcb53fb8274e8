"""The example is evidence: integers as they were, floats within what was seen, nothing of the user's held on to."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from graftlib.errors import TraceError
from graftlib.graph import trace
from graftlib.graph.evidence import Evidence

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]


@st.composite
def floats(draw):
    """A tensor of some shape and dtype, every slice of which may have another range."""
    shape = draw(st.lists(st.integers(1, 5), max_size=4))
    random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from(FLOATS))
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    for axis in range(x.ndim):
        size = [-1 if i == axis else 1 for i in range(x.ndim)]
        x = x + 10 * torch.randn(x.shape[axis], generator=random, dtype=x.dtype).view(size)
    return (x * (1 + 1j) if dtype.is_complex else x).to(dtype)


def parts(x):
    return torch.view_as_real(x).double() if x.is_complex() else x.double()


@given(floats(), st.integers(0, 99))
def test_what_is_drawn_lies_within_what_was_seen_along_every_axis(x, seed):
    (args, _) = Evidence.of((x,)).drawn(torch.Generator().manual_seed(seed))
    (drawn,) = args
    assert (drawn.shape, drawn.dtype) == (x.shape, x.dtype)
    seen, now = parts(x), parts(drawn)
    for axis in range(seen.ndim):
        others = [i for i in range(seen.ndim) if i != axis]
        low = seen.amin(others, keepdim=True) if others else seen
        high = seen.amax(others, keepdim=True) if others else seen
        if others:
            assert (now >= low - 1e-2 * low.abs()).all()
            assert (now <= high + 1e-2 * high.abs()).all()
    assert now.min() >= seen.min()
    assert now.max() <= seen.max()


def test_values_are_drawn_and_not_remembered():
    x = torch.randn(50, 60)
    evidence = Evidence.of((x,))
    assert evidence.args[0].device.type == "meta"
    (drawn,), _ = evidence.drawn()
    assert (drawn == x).float().mean() < 0.01
    assert torch.equal(drawn, evidence.drawn()[0][0])
    assert not torch.equal(drawn, evidence.drawn(torch.Generator().manual_seed(7))[0][0])


def test_a_column_that_is_never_negative_stays_so():
    x = torch.randn(100, 3)
    x[:, 1].abs_()
    (drawn,), _ = Evidence.of((x,)).drawn()
    assert (drawn[:, 1] >= 0).all()
    assert (drawn[:, 0] < 0).any()


KEPT = {
    "integers": torch.tensor([[3, 0, 7]]),
    "booleans": torch.tensor([True, False]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "a mask of floats": torch.tensor([[0.0, -1e9], [0.0, 0.0]]),
    "a mask of infinities": torch.tensor([0.0, float("-inf")]),
    "numbers that are missing": torch.tensor([1.0, float("nan"), 3.0]),
    "ones": torch.ones(2, 3),
    "one number": torch.tensor(0.25),
    "nothing": torch.empty(0, 3),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_says_something_by_its_place_keeps_its_values(name):
    x = KEPT[name]
    evidence = Evidence.of((), {"x": x})
    drawn = evidence.drawn()[1]["x"]
    torch.testing.assert_close(drawn, x, rtol=0, atol=0, equal_nan=True)
    drawn.fill_(9)  # a copy: neither the user's tensor nor the evidence changes
    torch.testing.assert_close(evidence.drawn()[1]["x"], x, rtol=0, atol=0, equal_nan=True)


def test_zeros_say_only_that_nothing_is_negative():
    (drawn,), _ = Evidence.of((torch.zeros(4, 5),)).drawn()
    assert (drawn >= 0).all()
    assert drawn.std() > 0.1


def test_no_tensor_of_the_user_is_held_on_to():
    x, ids = torch.randn(2, 3), torch.randint(0, 5, (2,))
    graph = trace(nn.Bilinear(3, 1, 4), (x, ids[:, None].float()))
    refs = [weakref.ref(x), weakref.ref(ids)]
    del x, ids
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    assert graph.outputs == ((2, 4),)


class Looks(nn.Module):
    """An embedding bag: its offsets rise, and begin with zero."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.EmbeddingBag(30, 8), nn.Linear(8, 3)

    def forward(self, ids, *, offsets):
        return self.out(self.table(ids, offsets))


def test_the_example_of_a_graph_runs_and_traces_again():
    model = Looks().eval()
    ids, offsets = torch.arange(10), torch.tensor([0, 3, 7])
    graph = trace(model, ids, {"offsets": offsets})
    args, kwargs = graph.example
    torch.testing.assert_close(model(*args, **kwargs), model(ids, offsets=offsets))
    args[0].zero_()
    assert torch.equal(graph.example[0][0], ids)
    again = trace(model, *graph.example)
    assert again.inputs == graph.inputs
    assert graph.check().passed
    with pytest.raises(AttributeError):
        graph.example = ((), {})


class Masked(nn.Module):
    """True means leave out; a row that is left out whole gives NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.q, self.k = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, ids, ignore):
        h = self.table(ids)
        scores = self.q(h) @ self.k(h).transpose(1, 2)
        scores = scores.masked_fill(ignore[:, None], float("-inf"))
        return self.out(scores.softmax(-1) @ h)


def masked():
    ids, ignore = torch.randint(0, 20, (3, 7)), torch.zeros(3, 7, dtype=torch.bool)
    ignore[0, 5:] = True
    return Masked().eval(), ids, ignore


def test_a_check_runs_on_the_mask_that_was_traced():
    model, ids, ignore = masked()
    result = trace(model, (ids, ignore)).check()
    assert result.passed
    assert (result.compared, result.invented) == (1.0, ())


def test_a_graph_that_was_traced_without_values_says_so():
    model, ids, ignore = masked()
    graph = trace(model, (ids.to("meta"), ignore.to("meta")))
    assert "values   none of ids, ignore" in str(graph)
    result = graph.check()  # ones leave all out
    assert result.invented == ("ids", "ignore")
    assert not result.passed
    assert "no finite number" in str(result)
    assert "'ids', 'ignore' were invented" in str(result)
    assert graph.check(example=((ids, ignore), {})).passed  # as the message advises
    assert "values" not in str(trace(model, (ids, ignore)))


class Root(nn.Module):
    """Its inputs have a domain."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(F.relu(self.a(x.sqrt() + (1 - x).log())))


def test_a_check_stays_within_the_domain_of_the_example():
    assert trace(Root().eval(), torch.rand(4, 6)).check().passed
    result = trace(Root().eval(), torch.empty(4, 6, device="meta")).check()
    assert not result.passed  # numbers drawn from nothing leave it
    assert result.compared < 1


def test_an_example_that_is_no_pair_or_does_not_run_is_refused():
    graph = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3))
    with pytest.raises(TraceError, match=r"pair \(args, kwargs\)"):
        graph.check(example=torch.randn(2, 3))
    with pytest.raises(TraceError, match="does not run on the inputs of the check"):
        graph.check(example=((torch.randn(2, 5),), {}))
    assert graph.check(example=((torch.randn(2, 3),), {})).passed
