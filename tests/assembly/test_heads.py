"""Heads and the order inside of them share an axis: neither can be told without the other, and both come back."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlib import surgery, trace
from graftlib_adapters.assembly.matching import align
from graftlib_adapters.assembly.objective import Objective
from graftlib_adapters.assembly.pairing import problem
from graftlib_adapters.assembly.permutation import Permutation, reading
from graftlib_adapters.assembly.start import bound, undetermined_neighbours

from .nets import TOKENS, Attention, lively

IDS = (torch.arange(5)[None],)


def gpt2():
    """Query, key and value in one weight, stored transposed."""
    import transformers

    sizes = {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 8}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=20, bos_token_id=1, eos_token_id=2, use_cache=False, **sizes
        )
    )


def bert():
    """Each in its own."""
    import transformers

    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=20, num_hidden_layers=2, **sizes)
    )


def gains(base, source, objective):
    """What it gains that base unit i reads source unit j: rows of (m, n) against rows of (p, n)."""
    inner = base @ source.T
    return inner if objective == "inner" else 2 * inner - source.square().sum(1)


@pytest.mark.parametrize("make", [gpt2, bert])
def test_heads_and_the_order_inside_of_them_come_back(make):
    """Biases, which are drawn here, speak for wrong heads as long as the order inside of them is unknown."""
    for seed in range(3):
        torch.manual_seed(seed)
        base = lively(make())
        graph = trace(base, IDS)
        source = surgery.permute(graph, seed=seed)
        found = align(problem(graph, trace(source, IDS)), base.state_dict(), source.state_dict())
        moved = found.transported(source.state_dict())
        assert all(torch.equal(tensor, base.state_dict()[fqn]) for fqn, tensor in moved.items())


@given(st.sampled_from(["l2", "inner"]), st.integers(2, 4), st.integers(0, 99))
@settings(max_examples=10)
def test_the_bound_of_a_class_is_the_best_of_all_orders_inside(score, width, seed):
    """Two heads in the base and three in the source: every pair of heads against all orders of its inside."""
    torch.manual_seed(seed)
    base = lively(Attention(dim=2 * width, heads=2)).double()
    source = lively(Attention(dim=3 * width, heads=3)).double()
    x = (TOKENS[0].double(),)
    task = problem(trace(base, x), trace(source, x))
    goal = Objective(task, base.state_dict(), source.state_dict(), score)
    stream = goal.sizes.index((2 * width, 3 * width))
    moves = {stream: Permutation.random(2 * width, 3 * width, torch.Generator()).reads}
    heads = goal.sizes.index((2, 3))
    assert (
        len(undetermined_neighbours(goal, heads, {stream})) == 2
    )  # of queries and keys, and of values
    total = torch.zeros(2, 3, dtype=torch.float64)
    for inner in undetermined_neighbours(goal, heads, {stream}):
        cells = [cell for cell in goal.cells if {heads, inner} <= set(cell.classes)]
        best = torch.full((2, 3), -math.inf, dtype=torch.float64)
        for order in itertools.permutations(range(width)):
            worth = torch.zeros(2, 3, dtype=torch.float64)
            for cell in cells:
                ours = cell.base_view(base.state_dict()[cell.pair.base])
                theirs = cell.source_view(source.state_dict()[cell.pair.source])
                for dim, each in enumerate(cell.classes):
                    if each in (stream, inner):
                        reads = moves[stream] if each == stream else torch.tensor(order)
                        theirs = reading(theirs, {dim: reads})
                axis = cell.classes.index(heads)
                ours, theirs = (t.movedim(axis, 0).flatten(1) for t in (ours, theirs))
                worth += gains(ours, theirs, score)
            best = torch.maximum(best, worth)
        total += best
    torch.testing.assert_close(bound(goal, heads, moves, known={stream}), total)
