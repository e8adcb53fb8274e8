"""Which tensors and classes of two graphs meet: in order, without contradictions, each refusal with its reason."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftlib import trace
from graftlib.match import Mapping
from graftlib_adapters.assembly import Alignment, Permutation
from graftlib_adapters.assembly.errors import AssemblyError
from graftlib_adapters.assembly.layer_order import choose, consistent
from graftlib_adapters.assembly.pairing import problem
from graftlib_adapters.assembly.tensors import Side

from .nets import IMAGE, TOKENS, Attention, Residual, flattened, lively, mlp

X = (torch.zeros(2, 5),)


def met(task):
    return {pair.base: pair.source for pair in task.pairs}


@pytest.mark.parametrize(
    ("made", "example"),
    [
        (lambda: mlp(5, 6, 7, 4), X),
        (lambda: flattened(3, 5), IMAGE),
        (lambda: lively(Residual()), IMAGE),
        (lambda: lively(Attention()), TOKENS),
    ],
)
def test_one_architecture_meets_itself_name_by_name(made, example):
    task = problem(trace(made(), example), trace(made(), example))
    assert met(task) == {name: name for name in met(task)}
    floating = [n for n, t in made().state_dict().items() if t.is_floating_point()]
    assert sorted(met(task)) == sorted(floating)
    assert not task.refused


def test_terms_cover_every_axis():
    """Queries, keys and values are three terms of heads x head_dim."""
    graph = trace(lively(Attention()), TOKENS)
    side = Side(graph, keep_blocks=True)
    for fqn, tensor in side.all.items():
        shape = graph.model.state_dict()[fqn].shape
        for size, axis in zip(shape, tensor.axes, strict=True):
            assert [start for start, _ in axis] == [
                sum(term.size for _, term in axis[:i]) for i in range(len(axis))
            ]
            assert sum(term.size for _, term in axis) == size
    rows = side.all["qkv.weight"].axes[0]
    assert [[factor.size for factor in term.factors] for _, term in rows] == [[2, 4]] * 3


@pytest.mark.parametrize("name", ["mlp", "flattened", "attention", "heads outside"])
def test_blocks_read_each_place_once_and_where_the_tree_says(name):
    """In one architecture, at any permutation: `Axis.positions` is the plain version."""
    made, example = {
        "mlp": (lambda: mlp(5, 6, 4), X),
        "flattened": (lambda: flattened(4, 5), IMAGE),
        "attention": (lambda: lively(Attention()), TOKENS),
        "heads outside": (lambda: lively(HeadsOutside()), TOKENS),
    }[name]
    graph, other = (trace(made(), example) for _ in range(2))
    task = problem(graph, other)
    random = torch.Generator().manual_seed(1)
    reads = {i: torch.randperm(p.bases, generator=random) for i, p in enumerate(task.classes)}
    permutations = {i: Permutation(read, len(read)) for i, read in reads.items()}
    alignment = Alignment(task, permutations, 0.0, ())
    units = {pair.source: reads[i] for i, pair in enumerate(task.classes)}
    for pair in task.pairs:
        for i, axis in enumerate(pair.axes):
            tree = other.axes(pair.source)[axis.source_axis]
            assert torch.equal(alignment.reads(pair.base, i), tree.positions(units)), pair.base


class HeadsOutside(Attention):
    """Rows of heads x (query, key, value): a concatenation inside of a product."""

    def forward(self, x):
        x = self.embed(x)
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        a = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.out(a)
        return self.head((x + self.down(nn.functional.gelu(self.up(self.last(x))))).mean(1))


def test_other_depth_keeps_the_order():
    """Three blocks and two: one is passed over, the stream is one class throughout, nothing is refused."""
    base, source = lively(Residual(blocks=2)), lively(Residual(blocks=3))
    task = problem(trace(base, IMAGE), trace(source, IMAGE))
    places = [int(met(task)[f"blocks.{i}.0.weight"].split(".")[1]) for i in range(2)]
    assert places == sorted(set(places))
    assert met(task)["blocks.0.1.running_var"] == f"blocks.{places[0]}.1.running_var"
    assert met(task)["stem.weight"] == "stem.weight"
    assert not task.refused


def test_a_chain_that_is_longer_leaves_a_layer_out_rather_than_bend_a_class():
    """A base class may not meet two source classes: where the source has a layer more, one base layer stays."""
    task = problem(trace(mlp(5, 6, 6, 6, 4), X), trace(mlp(5, 6, 6, 6, 6, 4), X))
    classes = [(id(pair.base), id(pair.source)) for pair in task.classes]
    assert len({b for b, _ in classes}) == len({s for _, s in classes}) == len(classes)
    stays = [what for what, _ in task.refused]
    assert len(stays) == 1
    assert len(met(task)) == 6


def test_fixed_orders_meet_in_equal_sizes_only():
    """Another label space: the head stays. Other input channels: the first layer stays. Each says why."""
    task = problem(trace(mlp(5, 6, 7, 4), X), trace(mlp(3, 6, 7, 9), (torch.zeros(2, 3),)))
    assert "2.weight" in met(task)
    reasons = dict(task.refused)
    assert "5 places and 3" in reasons["0.weight"]
    assert "4 places and 9" in reasons["4.weight"]
    assert "0.weight" not in met(task)


def test_flattened_positions_are_not_guessed():
    """Flatten of another number of positions: the Linear behind it stays."""
    base, source = flattened(3, 5), flattened(3, 5)
    source[4] = nn.Linear(3 * 16, 5)
    task = problem(trace(base, IMAGE), trace(source.eval(), (torch.zeros(2, 2, 4, 4),)))
    assert "4.weight" not in met(task)
    assert "9 places and 16" in dict(task.refused)["4.weight"]
    assert "0.weight" in met(task)


def test_stored_transposed_meets_in_its_own_axes():
    """Hugging Face's Conv1D keeps (in, out)."""
    from transformers.pytorch_utils import Conv1D

    source = nn.Sequential(Conv1D(6, 5), nn.ReLU(), Conv1D(4, 6))
    task = problem(trace(mlp(5, 6, 4), X), trace(source, X))
    pair = next(pair for pair in task.pairs if pair.base == "0.weight")
    assert [axis.source_axis for axis in pair.axes] == [1, 0]
    assert met(task)["2.bias"] == "2.bias"


class Apart(Attention):
    """The same with query, key and value in layers of their own."""

    def __init__(self, dim: int = 8, heads: int = 2, hidden: int = 12) -> None:
        super().__init__(dim, heads, hidden)
        del self.qkv
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x):
        x = self.embed(x)
        b, n, d = x.shape
        h = self.norm(x)
        q, k, v = (
            f(h).reshape(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        a = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(a.transpose(1, 2).reshape(b, n, d))
        return self.head((x + self.down(nn.functional.gelu(self.up(self.last(x))))).mean(1))


@pytest.mark.parametrize(("one", "other"), [(Attention, Apart), (Apart, Attention)])
def test_packed_and_separate_projections_meet_part_by_part(one, other):
    task = problem(trace(lively(one()), TOKENS), trace(lively(other()), TOKENS))
    paired = {(pair.base, pair.source) for pair in task.pairs}
    for name in "qkv":
        for leaf in ("weight", "bias"):
            pair = ("qkv." + leaf, f"{name}.{leaf}")
            assert (pair if one is Attention else pair[::-1]) in paired
    assert not task.refused


def test_declared_pairs_take_the_place_of_the_choice():
    base, source = trace(mlp(5, 6, 6, 4), X), trace(mlp(5, 6, 6, 6, 4), X)
    mapping = Mapping(source, base).link("4", "2").link("6", "4")
    task = problem(base, source, mapping=mapping)
    assert met(task) == {
        "2.weight": "4.weight",
        "4.weight": "6.weight",
        "2.bias": "4.bias",
        "4.bias": "6.bias",
    }
    assert len(task.classes) == 2


def test_declared_pairs_that_contradict_are_refused_with_the_reason():
    base, source = trace(mlp(5, 6, 6, 4), X), trace(mlp(5, 6, 6, 6, 4), X)
    mapping = Mapping(source, base).link("0", "0").link("4", "2").link("6", "4")
    task = problem(base, source, mapping=mapping)
    # As much speaks for either: the earlier classes stay together.
    assert [what for what, _ in task.refused] == ["2.weight <- 4.weight"]
    assert "these classes are paired with others" in task.refused[0][1]


def test_a_mapping_of_other_graphs_is_refused():
    base, source = trace(mlp(5, 6, 4), X), trace(mlp(5, 6, 4), X)
    with pytest.raises(AssemblyError, match="of other graphs"):
        problem(base, source, mapping=Mapping(base, source))


def test_a_problem_prints_what_meets_and_what_stays():
    task = problem(trace(mlp(5, 6, 4), X), trace(mlp(5, 7, 9), X))
    text = str(task)
    assert "0.weight (6, 5) <- 0.weight (7, 5)" in text
    assert "class 0: 6 units of 0.weight <- 7 of 0.weight" in text
    assert "stays 2.weight" in text


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_the_choice_is_the_best_of_all_rising_ones(rows, columns, seed):
    """Without contradictions it is the longest-path optimum, found here by brute force."""
    random = torch.Generator().manual_seed(seed)
    table = torch.randint(-5, 10, (rows, columns), generator=random).tolist()
    worths = {(i, j): table[i][j] for i in range(rows) for j in range(columns) if table[i][j] > 0}

    def best(i, j):
        if i == rows or j == columns:
            return 0
        here = table[i][j] + best(i + 1, j + 1) if table[i][j] > 0 else 0
        return max(here, best(i + 1, j), best(i, j + 1))

    taken = choose(rows, columns, worths, dict.fromkeys(worths, ()))
    assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(taken))
    assert sum(worths[key] for key in taken) == best(0, 0)


@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 10_000))
def test_no_choice_contradicts_itself(rows, columns, seed):
    """Chains: pair (i, j) makes classes i and j, and i + 1 and j + 1, meet."""
    random = torch.Generator().manual_seed(seed)
    table = torch.randint(1, 10, (rows, columns), generator=random).tolist()
    worths = {(i, j): table[i][j] for i in range(rows) for j in range(columns)}
    meets = {(i, j): ((i, j), (i + 1, j + 1)) for i, j in worths}
    taken = choose(rows, columns, worths, meets)
    pairs = consistent([meets[key] for key in taken])
    assert all(pairs.get(b) == s for key in taken for b, s in meets[key])
    assert taken


class Bare(Attention):
    """No head: the output fixes the order of the stream."""

    def forward(self, x):
        x = self.embed(x)
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        a = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(a.transpose(1, 2).reshape(b, n, d))
        return x + self.down(nn.functional.gelu(self.up(self.last(x))))


def test_norms_over_a_fixed_order_meet_as_the_weights_of_that_order_do():
    base, source = lively(Bare(hidden=12)), lively(Bare(hidden=9))
    task = problem(trace(base, TOKENS), trace(source, TOKENS))
    for name in ("norm.weight", "norm.bias", "last.weight", "last.bias"):
        assert met(task)[name] == name
    assert {what for what, _ in task.refused} == set()
    # Of another size, and with no weight that says that the two orders are one, they stay.
    wide = problem(trace(base, TOKENS), trace(lively(Bare(dim=10)), TOKENS))
    assert not {name for name in met(wide) if "norm" in name or "last" in name}


class TwoAnswers(nn.Module):
    """Two outputs of one size, each in an order of its own; a norm on one of them."""

    def __init__(self, normed: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(5, 6)
        self.norm = nn.LayerNorm(6)
        self.normed = normed

    def forward(self, x):
        answers = [self.first(x), self.second(x)]
        answers[self.normed] = self.norm(answers[self.normed])
        return tuple(answers)


@pytest.mark.parametrize("there", [0, 1])
def test_norms_over_fixed_orders_of_other_weights_do_not_meet(there):
    task = problem(trace(TwoAnswers(0), X), trace(TwoAnswers(there), X))
    assert met(task)["first.weight"] == "first.weight"
    assert met(task)["second.weight"] == "second.weight"
    assert ("norm.weight" in met(task)) is (there == 0)
