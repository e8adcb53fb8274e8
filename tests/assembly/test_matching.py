"""Alignments of whole graphs: planted renamings come back, embeddings are found, the objective never falls."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graftlib import surgery, trace
from graftlib_adapters.assembly import gain_cache, matching, sparse_assignment
from graftlib_adapters.assembly.alignment import Alignment
from graftlib_adapters.assembly.errors import AssemblyError
from graftlib_adapters.assembly.matching import METHODS, align
from graftlib_adapters.assembly.objective import Objective
from graftlib_adapters.assembly.pairing import problem
from graftlib_adapters.assembly.permutation import Permutation

from .nets import IMAGE, TOKENS, Attention, Residual, flattened, lively, mlp

X = (torch.zeros(2, 5),)
CASES = {
    "mlp": (lambda: mlp(5, 6, 7, 4), X),
    "flattened": (lambda: flattened(4, 5), IMAGE),
    "residual": (lambda: lively(Residual()), IMAGE),
    "square": (lambda: lively(Residual(square=True)), IMAGE),
    "attention": (lambda: lively(Attention()), TOKENS),
}


def drawn(example):
    return tuple(torch.randn_like(x) for x in example)


def of_state(model, state):
    made = copy.deepcopy(model)
    made.load_state_dict(state, strict=False)
    return made


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["coordinate", "frank-wolfe"])
def test_a_planted_renaming_comes_back(name, method):
    """Every parameter and running statistic of the renamed copy returns to its place, to the bit."""
    make, example = CASES[name]
    base = make()
    graph = trace(base, example)
    source = surgery.permute(graph, seed=3)
    found = align(
        problem(graph, trace(source, example)),
        base.state_dict(),
        source.state_dict(),
        method=method,
    )
    blind = {m.fqn for each in graph.axis_classes for m in each.members if m.blind}
    for fqn, tensor in found.transported(source.state_dict()).items():
        if fqn not in blind:
            assert torch.equal(tensor, base.state_dict()[fqn]), fqn


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_an_aligned_source_keeps_its_function(name, method):
    """Whatever is found, and the controls too: in one architecture it only renames units."""
    make, example = CASES[name]
    base, source = make(), make()
    found = align(
        problem(trace(base, example), trace(source, example)),
        base.state_dict(),
        source.state_dict(),
        method=method,
        seed=1,
    )
    moved = of_state(source, found.transported(source.state_dict()))
    x = drawn(example)
    torch.testing.assert_close(
        moved.double()(*(t.double() for t in x)), source.double()(*(t.double() for t in x))
    )
    if method == "random":
        assert any(
            each != Permutation.identity(each.bases, each.sources)
            for each in found.permutations.values()
        )


def tiny(name):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    if name == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**sizes, num_key_value_heads=2)
        )
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_transformer_that_is_aligned_keeps_its_function(name):
    """Heads outside, head_dim within, grouped queries by key-value group, rotary positions in place."""
    tokens = (torch.randint(0, 20, (2, 5)),)
    base, source = lively(tiny(name)), lively(tiny(name))
    task = problem(trace(base, tokens), trace(source, tokens))
    assert not task.refused
    found = align(task, base.state_dict(), source.state_dict())
    moved = of_state(source, found.transported(source.state_dict()))
    moved_any = any(
        each != Permutation.identity(each.bases, each.sources)
        for each in found.permutations.values()
    )
    assert moved_any
    with torch.no_grad():
        torch.testing.assert_close(moved.double()(*tokens).logits, source.double()(*tokens).logits)


@given(
    st.sampled_from(["mlp", "residual", "square"]),
    st.sampled_from(["l2", "inner"]),
    st.integers(0, 99),
)
@settings(max_examples=12)
def test_the_objective_never_falls_and_is_what_it_says(name, score, seed):
    torch.manual_seed(seed)
    make, example = CASES[name]
    base, source = make(), make()
    if name == "mlp":
        base = mlp(5, 8, 3, 4)
    task = problem(trace(base, example), trace(source, example))
    random = Permutation.random(task.classes[0].bases, task.classes[0].sources, torch.Generator())
    found = align(
        task, base.state_dict(), source.state_dict(), objective=score, seed=seed, start={0: random}
    )
    assert all(b >= a for a, b in zip(found.history, found.history[1:], strict=False))
    assert found.history[-1] == found.objective
    assert found.objective == pytest.approx(
        slow_objective(found, base, source, score), rel=1e-4, abs=1e-4
    )


def slow_objective(found: Alignment, base, source, score):
    moved = found.transported(source.state_dict())
    total = 0.0
    for fqn, parameter in base.named_parameters():
        if fqn in moved:
            total += float((parameter.detach() * moved[fqn]).sum()) * (1 if score == "inner" else 2)
            total -= 0 if score == "inner" else float(moved[fqn].square().sum())
    return total


@given(st.sampled_from(["flattened", "residual", "square", "attention"]), st.integers(0, 99))
@settings(max_examples=10)
def test_gains_are_the_derivative_of_the_objective(name, seed):
    """At relaxed permutations, against finite differences; both scores, source wider than base."""
    random = torch.Generator().manual_seed(seed)
    make, example = CASES[name]
    base = make().double()
    wide = {"flattened": lambda: flattened(6, 7), "attention": lambda: lively(Attention(hidden=15))}
    source = wide.get(name, lambda: lively(Residual(inner=9, square=name == "square")))().double()
    x = tuple(t.double() for t in example)
    task = problem(trace(base, x), trace(source, x))
    for score in ("l2", "inner"):
        goal = Objective(task, base.state_dict(), source.state_dict(), score)
        moves = {
            i: torch.rand(m, p, generator=random, dtype=torch.float64) / max(m, p)
            for i, (m, p) in enumerate(goal.sizes)
        }
        pair = int(torch.randint(len(goal.sizes), (), generator=random))
        m, p = goal.sizes[pair]
        if score == "l2" and m >= p:
            continue  # gains leave out a norm that is the same for all assignments
        i, j = (
            int(torch.randint(m, (), generator=random)),
            int(torch.randint(p, (), generator=random)),
        )
        step = torch.zeros(m, p, dtype=torch.float64)
        step[i, j] = 1e-4
        rise = goal.value({**moves, pair: moves[pair] + step}) - goal.value(
            {**moves, pair: moves[pair] - step}
        )
        assert rise / 2e-4 == pytest.approx(float(goal.gain(pair, moves)[i, j]), rel=1e-6, abs=1e-8)


def test_matrices_of_zeros_and_ones_count_as_reads():
    base, source = flattened(4, 5), flattened(6, 3)
    task = problem(trace(base, IMAGE), trace(source, IMAGE))
    found = align(task, base.state_dict(), source.state_dict())
    goal = Objective(task, base.state_dict(), source.state_dict(), "l2")
    reads = {i: each.reads for i, each in found.permutations.items()}
    dense = {i: each.matrix().float() for i, each in found.permutations.items()}
    assert goal.value(reads) == pytest.approx(goal.value(dense), rel=1e-5)


def test_equal_seeds_give_equal_alignments():
    base, source = mlp(5, 16, 16, 4), mlp(5, 20, 12, 4)
    task = problem(trace(base, X), trace(source, X))
    states = base.state_dict(), source.state_dict()
    one, same = (align(task, *states, seed=4, restarts=3) for _ in range(2))
    assert one.permutations == same.permutations


def test_the_first_way_is_the_same_however_many_follow(monkeypatch):
    """So restarts never hurt."""
    base, source = (mlp(5, *[16] * 6, 4) for _ in range(2))
    task = problem(trace(base, X), trace(source, X))
    states = base.state_dict(), source.state_dict()
    descend, ways = matching.descend, []
    monkeypatch.setattr(
        matching, "descend", lambda *given: ways.append(descend(*given)) or ways[-1]
    )
    for seed in range(10):
        ways.clear()
        alone = align(task, *states, seed=seed)
        more = align(task, *states, seed=seed, restarts=2)
        assert len(ways) == 1 + 3
        assert ways[0] == ways[1]
        assert more.objective == max(history[-1] for _, history in ways) >= alone.objective


def test_l2_drops_better_units_than_the_inner_product():
    """A narrow base: a long source unit has the larger product and the larger distance."""
    base, source = mlp(2, 1, 1), mlp(2, 2, 1)
    with torch.no_grad():
        for tensor in (*base.parameters(), *source.parameters()):
            tensor.zero_()
        base[0].weight[:] = torch.tensor([[1.0, 0.0]])
        source[0].weight[:] = torch.tensor([[9.0, 9.0], [1.0, 0.0]])
    widened = mlp(2, 2, 1)
    task = problem(trace(widened, (torch.zeros(1, 2),)), trace(mlp(2, 3, 1), (torch.zeros(1, 2),)))
    wide = {
        "0.weight": torch.cat([base[0].weight, torch.tensor([[0.0, 5.0]])]),
        "0.bias": torch.zeros(2),
        "2.weight": torch.zeros(1, 2),
        "2.bias": torch.zeros(1),
    }
    given_ = {
        "0.weight": torch.cat([source[0].weight, torch.tensor([[0.0, 5.0]])]),
        "0.bias": torch.zeros(3),
        "2.weight": torch.zeros(1, 3),
        "2.bias": torch.zeros(1),
    }
    assert align(task, wide, given_, objective="l2").permutations[0].reads.tolist() == [1, 2]
    assert 0 in align(task, wide, given_, objective="inner").permutations[0].reads.tolist()


def test_costs_decide_a_class_in_place_of_the_weights():
    base, source = mlp(5, 6, 7, 4), mlp(5, 6, 7, 4)
    task = problem(trace(base, X), trace(source, X))
    order = torch.randperm(6)
    similar = torch.nn.functional.one_hot(order, 6).float()
    found = align(task, base.state_dict(), source.state_dict(), costs={0: similar})
    assert torch.equal(found.permutations[0].reads, order)


def test_states_and_starts_that_do_not_fit_are_refused():
    base, source = mlp(5, 6, 4), mlp(5, 7, 4)
    task = problem(trace(base, X), trace(source, X))
    with pytest.raises(AssemblyError, match="not those of the traced models") as caught:
        align(task, source.state_dict(), source.state_dict())
    assert "base '0.weight' is (7, 5) instead of (6, 5)" in str(caught.value)
    with pytest.raises(AssemblyError, match=r"start\[0\] is \(6, 6\) and class pair 0 is \(6, 7\)"):
        align(task, base.state_dict(), source.state_dict(), start={0: Permutation.identity(6, 6)})
    with pytest.raises(AssemblyError, match="no way to align"):
        align(task, base.state_dict(), source.state_dict(), method="guess")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_dtype_and_device(dtype, device):
    base = mlp(5, 6, 7, 4)
    graph = trace(base, X)
    source = surgery.permute(graph, seed=3)
    states = [
        {k: v.to(device, dtype) for k, v in model.state_dict().items()} for model in (base, source)
    ]
    found = align(problem(graph, trace(source, X)), *states)
    moved = found.transported(states[1])
    assert all(torch.equal(moved[fqn], states[0][fqn]) for fqn in moved)
    assert all(
        tensor.dtype == dtype and tensor.device == states[0][fqn].device
        for fqn, tensor in moved.items()
    )


def test_nothing_that_was_given_changes():
    base, source = flattened(4, 5), flattened(6, 3)
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (base, source)]
    task = problem(trace(base, IMAGE), trace(source, IMAGE))
    align(task, base.state_dict(), source.state_dict(), method="frank-wolfe")
    for model, state in zip((base, source), states, strict=True):
        assert all(torch.equal(tensor, state[fqn]) for fqn, tensor in model.state_dict().items())


def test_an_alignment_prints_how_many_units_meet():
    base, source = mlp(5, 6, 4), mlp(5, 7, 4)
    found = align(problem(trace(base, X), trace(source, X)), base.state_dict(), source.state_dict())
    assert "0.weight: 6 of 6 units read one of 7" in str(found)


def test_layers_without_any_fixed_order_are_aligned_all_the_same():
    """Declared inner layers only: the identity of unknown neighbours is not assumed."""
    from graftlib.match import Mapping

    base = mlp(5, 6, 7, 8, 4)
    graph = trace(base, X)
    source = surgery.permute(graph, seed=2)
    theirs = trace(source, X)
    task = problem(graph, theirs, mapping=Mapping(theirs, graph).link("2", "2").link("4", "4"))
    found = align(task, base.state_dict(), source.state_dict(), restarts=10)
    moved = found.transported(source.state_dict())
    torch.testing.assert_close(moved["2.weight"], base.state_dict()["2.weight"])
    assert isinstance(base, nn.Module)


# --------------------------------------------------------------------------- what follows changes


@pytest.fixture
def followed(monkeypatch):
    """As if every class were large: its gains are kept and follow the changes, in small parts."""
    monkeypatch.setattr(gain_cache, "MANY", 0)
    monkeypatch.setattr(gain_cache, "SHARE", 1e9)
    monkeypatch.setattr(gain_cache, "_COLUMNS", 2)
    monkeypatch.setattr(sparse_assignment, "LARGE", 4)


def uneven(name):
    """A source of other widths than the base of that name, on one of the sides wider."""
    return {
        "mlp": lambda: mlp(5, 9, 4, 4),
        "flattened": lambda: flattened(6, 3),
        "residual": lambda: lively(Residual(stream=5, inner=11)),
        "square": lambda: lively(Residual(inner=9, square=True)),
        "attention": lambda: lively(Attention(hidden=15)),
    }[name]()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("score", ["l2", "inner"])
def test_costs_that_follow_changes_are_those_computed_anew(followed, name, score):
    """Any walk through the permutations, one class or several at a time, some units or all."""
    make, example = CASES[name]
    base, source = make(), uneven(name)
    task = problem(trace(base, example), trace(source, example))
    goal = Objective(task, base.state_dict(), source.state_dict(), score)
    kept = gain_cache.GainCache(goal)
    assert kept.caches
    random = torch.Generator().manual_seed(3)
    moves = {i: Permutation.random(m, p, random).reads for i, (m, p) in enumerate(goal.sizes)}
    for step in range(8):
        for pair in range(len(goal.sizes)):
            exact = goal.gain(pair, moves).neg_()
            torch.testing.assert_close(kept.cost(pair, moves).double(), exact, rtol=1e-4, atol=1e-4)
        for pair in range(0, len(goal.sizes), 1 + step % 2):
            old = moves[pair].clone()
            old[:2] = old[:2].flip(0)
            drawn = Permutation.random(*goal.sizes[pair], random).reads
            moves = {**moves, pair: drawn if step % 3 == 0 else old}


def test_a_change_that_is_not_followed_is_seen(followed, monkeypatch):
    make, example = CASES["mlp"]
    base, source = make(), uneven("mlp")
    task = problem(trace(base, example), trace(source, example))
    goal = Objective(task, base.state_dict(), source.state_dict(), "l2")
    kept = gain_cache.GainCache(goal)
    moves = {i: Permutation.identity(m, p).reads for i, (m, p) in enumerate(goal.sizes)}
    before = kept.cost(0, moves).clone()
    monkeypatch.setattr(gain_cache, "_same", lambda *_: True)
    moves = {**moves, 1: moves[1].flip(0)}
    assert torch.equal(kept.cost(0, moves), before)
    assert not torch.allclose(goal.gain(0, moves).neg_().float(), before, atol=1e-2)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("restarts", [0, 2])
def test_following_changes_finds_the_same_alignment(name, restarts, request):
    make, example = CASES[name]
    base, source = make(), uneven(name)
    task = problem(trace(base, example), trace(source, example))
    states = base.state_dict(), source.state_dict()
    anew = align(task, *states, restarts=restarts)
    request.getfixturevalue("followed")
    found = align(task, *states, restarts=restarts)
    assert found.permutations == anew.permutations
    assert found.objective == found.history[-1] == pytest.approx(anew.objective)
    assert found.history == pytest.approx(anew.history, rel=1e-4, abs=1e-4)
    assert all(b >= a for a, b in zip(found.history, found.history[1:], strict=False))


def test_what_is_kept_stays_within_its_share_of_the_weights(monkeypatch):
    base, source = mlp(5, 40, 30, 4), mlp(5, 40, 30, 4)
    task = problem(trace(base, X), trace(source, X))
    goal = Objective(task, base.state_dict(), source.state_dict(), "l2")
    monkeypatch.setattr(gain_cache, "MANY", 0)
    for share, pairs in ((0.0, set()), (0.3, {1}), (10.0, {0, 1})):
        monkeypatch.setattr(gain_cache, "SHARE", share)
        kept = gain_cache._worth_caching(goal)
        assert kept == pairs
        size = sum(4 * goal.sizes[pair][0] * goal.sizes[pair][1] for pair in kept)
        assert size <= share * goal.stored_bytes


def test_half_precision_is_converted_by_parts():
    """No tensor of the states is copied as a whole: what is held is what was given."""
    base, source = (
        {k: v.bfloat16() for k, v in mlp(5, 6, 7, 4).state_dict().items()} for _ in range(2)
    )
    task = problem(trace(mlp(5, 6, 7, 4), X), trace(mlp(5, 6, 7, 4), X))
    goal = Objective(task, base, source, "l2")
    assert goal._base["0.weight"].data_ptr() == base["0.weight"].data_ptr()
    wide = [{k: v.float() for k, v in state.items()} for state in (base, source)]
    assert align(task, base, source).permutations == align(task, *wide).permutations
