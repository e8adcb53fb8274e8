"""Transfers of MergeNet as a whole: layers, directions, several sources, ranks, facts."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib.graft import Link, LinkedMatrix
from graftlib_adapters import MergeNet
from graftlib_adapters.mergenet.encoding import Encoding
from graftlib_adapters.mergenet.transfer import _bounded

SMALL = {"heads": 2, "width": 8, "trust": None, "norm": "free"}


def built(adapter, shapes, links, dtype=torch.float64):
    receives = {link.target for link in links}
    matrices = [
        LinkedMatrix(
            f"matrix{i}", shape, adapter.rank(torch.randn(shape), min(shape)), i in receives
        )
        for i, shape in enumerate(shapes)
    ]
    return awake(adapter.build(matrices, links)).to(dtype)


def awake(module):
    """The zero-initialised projections moved off zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return module


def matrices(*shapes, dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def halving(rows, columns):
    """Singular values 1, 1/2, 1/4, ...: every singular vector is well defined."""
    n = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, n, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, n, dtype=torch.float64)).Q
    return left @ torch.diag(2.0 ** -torch.arange(n, dtype=torch.float64)) @ right.mT


BOTH = [Link(1, 0, "there"), Link(0, 1, "back")]


def test_both_directions_act_at_once():
    """Layer 1 of a link reads its source as it was, in whichever order the links are listed."""
    shapes = [(4, 6), (5, 7)]
    module = built(MergeNet(layers=1, rank=None, **SMALL), shapes, BOTH)
    alone = built(MergeNet(layers=1, rank=None, **SMALL), shapes, BOTH[:1])
    alone.layers[0][0].load_state_dict(module.layers[0][0].state_dict())
    w = matrices(*shapes)
    torch.testing.assert_close(module(w)[0], alone(w)[0])


def test_both_directions_read_each_other_from_the_second_layer_on():
    shapes = [(4, 6), (5, 7)]
    module = built(MergeNet(layers=2, rank=None, **SMALL), shapes, BOTH)
    alone = built(MergeNet(layers=2, rank=None, **SMALL), shapes, BOTH[:1])
    for i in range(2):
        alone.layers[i][0].load_state_dict(module.layers[i][0].state_dict())
    w = matrices(*shapes)
    assert (module(w)[0] - alone(w)[0]).abs().max() > 1e-4


def test_layers_are_applied_in_turn():
    """L layers on the codes are the composition of L transfers in the unit of the first."""
    shapes = [(4, 6), (5, 7)]
    module = built(MergeNet(layers=2, rank=None, **SMALL), shapes, BOTH[:1])
    w, v = matrices(*shapes)
    unit, other = w.square().mean().sqrt(), v.square().mean().sqrt()
    state = w / unit
    for layer in module.layers:
        state = state + layer[0](state, v / other)
    torch.testing.assert_close(module([w, v])[0], state * unit)


@pytest.mark.parametrize("init", ["identity", "paper"])
def test_several_sources_are_averaged(init):
    shapes = [(4, 6), (5, 7), (3, 8)]
    links = [Link(1, 0, "one"), Link(2, 0, "two")]
    adapter = MergeNet(layers=1, rank=None, init=init, **SMALL)
    module, w = built(adapter, shapes, links).eval(), matrices(*shapes)
    single = []
    for k in range(2):
        alone = built(adapter, shapes, links[k : k + 1]).eval()
        alone.layers[0][0].load_state_dict(module.layers[0][k].state_dict())
        single.append(alone(w)[0])
    torch.testing.assert_close(module(w)[0], (single[0] + single[1]) / 2)
    assert (single[0] - single[1]).abs().max() > 1e-4


def test_a_matrix_may_be_its_own_source():
    module = built(MergeNet(rank=3, **SMALL), [(6, 8)], [Link(0, 0, "self")])
    (w,) = matrices((6, 8))
    assert (module([w])[0] - w).abs().max() > 1e-4


def test_the_rest_stays():
    """The change lies in the span of the basis; with residual=False all of the new matrix does."""
    shapes, w = [(8, 12), (9, 10)], matrices((8, 12), (9, 10))
    for residual, side in itertools.product((True, False), ("longer", "rows")):
        adapter = MergeNet(rank=3, init="paper", residual=residual, compress=side, **SMALL)
        module = built(adapter, shapes, BOTH[:1])
        new = module(w)[0]
        encoding = module.encodings[0]
        inside = new if not residual else new - w[0]
        code = encoding.encode(inside, encoding.basis)
        torch.testing.assert_close(encoding.spread(code, encoding.basis), inside)
        assert torch.linalg.matrix_rank(new) == (8 if residual else 3)


@pytest.mark.parametrize(
    ("side", "shape"), [("longer", (9, 10)), ("longer", (10, 9)), ("rows", (9, 10))]
)
def test_the_source_may_be_renumbered_on_the_side_that_is_replaced(side, shape):
    """There its units are no tokens but the basis; on the other side they are."""
    module = built(MergeNet(rank=4, compress=side, **SMALL), [(8, 12), shape], BOTH[:1]).eval()
    w, v = halving(8, 12), halving(*shape)
    replaced = 1 if module.encodings[1].by_columns else 0
    order = torch.randperm(shape[replaced])
    said = module([w, v])[0]
    again = module([w, v.index_select(replaced, order)])[0]
    torch.testing.assert_close(again, said, atol=1e-4, rtol=0)
    assert (module([w, v.roll(1, 1 - replaced)])[0] - said).abs().max() > 1e-4


def test_a_whole_source_may_be_renumbered_where_its_units_are_the_tokens():
    module = built(
        MergeNet(rank=None, pairings=("rc", "cc"), **SMALL), [(8, 12), (9, 10)], BOTH[:1]
    )
    w, v = halving(8, 12), halving(9, 10)
    said = module([w, v])[0]
    torch.testing.assert_close(module([w, v[:, torch.randperm(10)]])[0], said)
    assert (module([w, v.roll(1, 0)])[0] - said).abs().max() > 1e-4


@pytest.mark.parametrize("side", ["longer", "rows"])
def test_a_re_encoded_target_may_be_renumbered(side):
    """Renumbering its units on the side that is replaced renumbers the new matrix: the code never sees them..."""
    w, v, order = halving(8, 12), halving(9, 10), torch.tensor([3, 1, 7, 0, 2, 6, 4, 5])
    module = built(MergeNet(rank=4, compress=side, **SMALL), [(8, 12), (9, 10)], BOTH[:1]).eval()
    replaced = 1 if module.encodings[0].by_columns else 0
    if replaced:
        order = torch.cat([order, torch.tensor([11, 9, 10, 8])])
    torch.testing.assert_close(
        module([w.index_select(replaced, order), v])[0],
        module([w, v])[0].index_select(replaced, order),
        atol=1e-4,
        rtol=0,
    )


def test_rows_of_a_whole_target_may_not():
    """...while without re-encoding they are the content of the column tokens."""
    w, v, order = halving(8, 12), halving(9, 10), torch.tensor([3, 1, 7, 0, 2, 6, 4, 5])
    module = built(MergeNet(rank=None, **SMALL), [(8, 12), (9, 10)], BOTH[:1]).eval()
    assert (module([w[order], v])[0] - module([w, v])[0][order]).abs().max() > 1e-4


@given(st.integers(2, 12), st.integers(2, 12), st.floats(0.1, 10.0), st.integers(1, 12))
def test_any_scale_of_the_target(rows, columns, scale, rank):
    module = built(MergeNet(rank=rank, **SMALL), [(rows, columns), (5, 7)], BOTH[:1]).eval()
    w, v = halving(rows, columns), halving(5, 7)
    new = module([w, v])[0]
    torch.testing.assert_close(module([scale * w, v])[0], scale * new, atol=1e-4 * scale, rtol=0)
    torch.testing.assert_close(module([w, scale * v])[0], new, atol=1e-4, rtol=0)


def test_the_papers_form_gives_unit_rows():
    module = MergeNet(rank=None, init="paper", heads=2).build(
        [LinkedMatrix("w", (6, 20), None, True), LinkedMatrix("v", (5, 7), None, False)], BOTH[:1]
    )
    w = 0.02 * torch.randn(6, 20)
    new = module([w, torch.randn(5, 7)])[0]
    torch.testing.assert_close(new.var(1, unbiased=False), torch.ones(6), atol=1e-3, rtol=0)
    assert new.norm() > 20 * w.norm()


@pytest.mark.parametrize("rank", [2, None])
def test_gradients_are_those_of_the_function_while_the_basis_stands(rank):
    """With respect to all parameters; basis and units are data."""
    adapter = MergeNet(rank=rank, layers=2, heads=1, width=2, deterministic=True, trust=0.005)
    module = built(adapter, [(3, 4), (4, 3)], BOTH).eval()
    w = matrices((3, 4), (4, 3))
    names, values = zip(*module.named_parameters(), strict=True)
    values = [value.detach().requires_grad_() for value in values]

    def function(*values):
        return tuple(
            torch.func.functional_call(module, dict(zip(names, values, strict=True)), (w,))
        )

    assert torch.autograd.gradcheck(function, values, fast_mode=True)


def test_the_basis_is_data():
    module = built(MergeNet(rank=2, **SMALL), [(6, 8), (5, 7)], BOTH[:1])
    w = [x.requires_grad_() for x in matrices((6, 8), (5, 7))]
    module(w)
    assert all(not encoding.basis.requires_grad for encoding in module.encodings)


def test_deterministic_runs_agree_to_the_bit():
    def run():
        torch.manual_seed(5)
        module = built(MergeNet(rank=3, deterministic=True, **SMALL), [(6, 8), (5, 7)], BOTH)
        optimizer, w = torch.optim.AdamW(module.parameters()), matrices((6, 8), (5, 7))
        for _ in range(5):
            new = module(w)
            sum((x * torch.randn_like(x)).sum() for x in new).backward()
            optimizer.step()
            optimizer.zero_grad()
            w = [x.detach() for x in new]
        return w

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_ranks_are_resolved_once():
    w = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0]))  # energies 4, 1, 1, 1 of 7
    assert MergeNet(rank=2).rank(w, 4) == 2
    assert MergeNet(rank=99).rank(w, 4) == 4
    assert MergeNet(rank=None).rank(w, 4) is None
    assert MergeNet(rank=0.5).rank(w, 4) == 1
    assert MergeNet(rank=0.7).rank(w, 4) == 2
    assert MergeNet(rank=0.99).rank(w, 4) == 4
    assert MergeNet(rank=0.99, max_rank=3).rank(w, 4) == 3


@pytest.mark.parametrize(("side", "replaced"), [("longer", (8, 7)), ("rows", (6, 5))])
def test_the_rank_and_the_side_that_it_replaces_are_in_the_state(side, replaced):
    adapter = MergeNet(rank=3, compress=side, **SMALL)
    state = built(adapter, [(6, 8), (5, 7)], BOTH[:1]).state_dict()
    assert [state[f"encodings.{i}.basis"].shape for i in (0, 1)] == [(n, 3) for n in replaced]


def test_facts_are_the_omegas_layer_by_layer():
    adapter = MergeNet(layers=3, pairings=("cc", "rr"), rank=2, **SMALL)
    module = built(adapter, [(6, 8), (5, 7)], BOTH)
    facts = lambda: {link: omega.tolist() for link, omega in module.facts().items()}  # noqa: E731
    assert facts() == {"there": [0.5] * 6, "back": [0.5] * 6}
    with torch.no_grad():
        module.layers[1][0].omega[1] = 0.25
    assert facts()["there"] == [0.5, 0.5, 0.5, 0.25, 0.5, 0.5]
    assert facts()["back"] == [0.5] * 6


@pytest.mark.parametrize(("side", "times"), [("longer", 100), ("rows", 10)])
def test_a_fraction_of_the_authors_parameters(side, times):
    """Beside the authors' 38.6 million, at their own shapes."""
    adapter = MergeNet(compress=side)
    matrices = [LinkedMatrix("w", (160, 960), 32, True), LinkedMatrix("v", (100, 2048), 32, False)]
    module = adapter.build(matrices, BOTH[:1])
    assert sum(p.numel() for p in module.parameters()) * times <= 38_600_000


def test_one_encoding_per_matrix_whatever_the_links():
    links = [*BOTH, Link(0, 0, "self")]
    module = built(MergeNet(rank=2, **SMALL), [(6, 8), (5, 7)], links)
    assert sum(isinstance(m, Encoding) for m in module.modules()) == 2


@given(st.floats(1e-3, 0.5), st.floats(1e-2, 1e4), st.integers(1, 7), st.integers(1, 9))
def test_a_transfer_changes_a_matrix_by_less_than_trust(trust, scale, rows, columns):
    """However large the adapter's answer is..."""
    shapes = [(rows, columns), (5, 7)]
    module = built(MergeNet(rank=3, **{**SMALL, "trust": trust}), shapes, BOTH[:1])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    w, v = matrices(*shapes)
    assert (module([w, v])[0] - w).norm() < trust * w.norm() * (1 + 1e-9)


def test_without_trust_it_may_change_by_more():
    """...and without a bound it would: the law above can fail."""
    shapes = [(6, 8), (5, 7)]
    module = built(MergeNet(rank=3, **SMALL), shapes, BOTH[:1])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(100)
    w, v = matrices(*shapes)
    assert (module([w, v])[0] - w).norm() > 0.5 * w.norm()


def test_a_small_change_passes_the_bound_as_it_is():
    """Pinned: a change of a tenth of the trust loses half a percent of its size, 1 / sqrt(1.01)."""
    change = torch.full((2, 3), 0.002, dtype=torch.float64)
    torch.testing.assert_close(_bounded(change, 0.02), change / 1.01**0.5)
