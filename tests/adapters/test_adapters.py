"""The contract of an adapter, stated once and run over a table of methods."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlib.graft import Link, LinkedMatrix
from graftlib_adapters import MergeNet, MLPAdapter, ParameterSharing

CONSTANT = {
    "heads": 2,
    "width": 8,
    "trust": 0.005,
}  # the matrices below stand still, as no host does
ADAPTERS = {
    "mergenet": MergeNet(rank=3, **CONSTANT),
    "mergenet whole": MergeNet(rank=None, **CONSTANT),
    "mergenet energy": MergeNet(rank=0.8, **CONSTANT),
    "mergenet mean": MergeNet(rank=3, omega="mean", pairings=("rr", "cc"), **CONSTANT),
    "mergenet by rows": MergeNet(rank=3, compress="rows", **CONSTANT),
    "mergenet deterministic": MergeNet(rank=3, deterministic=True, **CONSTANT),
    "mergenet free norms": MergeNet(rank=3, norm="free", **CONSTANT),
    "mergenet learned factors": MergeNet(rank=3, re_encode="learned", **CONSTANT),
    "mergenet paper": MergeNet(heads=2, rank=3, init="paper"),
    "mergenet literal": MergeNet(heads=2, rank=3, init="paper", residual=False),
    "mlp": MLPAdapter(width=8),
    "mlp paper": MLPAdapter(width=8, init="paper"),
    "sharing": ParameterSharing(),
}
IDENTITY = [name for name, adapter in ADAPTERS.items() if vars(adapter).get("init") == "identity"]

sizes = st.integers(1, 10)


def built(adapter, values, links):
    """The adapter's module for these matrices, as `attach` builds it."""
    receives = {link.target for link in links}
    matrices = [
        LinkedMatrix(f"matrix{i}", tuple(w.shape), adapter.rank(w, min(w.shape)), i in receives)
        for i, w in enumerate(values)
    ]
    return adapter.build(matrices, links).to(values[0].dtype)


def one_way():
    return [torch.randn(6, 9), torch.randn(5, 12)], [Link(1, 0, "l")]


def both_ways():
    """A bidirectional link, and a third matrix that gives to the first as well."""
    matrices = [torch.randn(6, 9), torch.randn(5, 12), torch.randn(7, 4)]
    return matrices, [Link(1, 0, "there"), Link(0, 1, "back"), Link(2, 0, "third")]


def learns(module):
    return any(True for _ in module.parameters())


def learn(module, matrices, rate=1e-2):
    """One AdamW step on a random change of the weights; gradients are left in place."""
    new = module(matrices)
    sum((w * torch.randn_like(w)).sum() for w in new).backward()
    torch.optim.AdamW(module.parameters(), lr=rate).step()


@st.composite
def graphs(draw):
    """Some matrices of any sizes and links between them: both ways, many to one, self links of one matrix."""
    shapes = draw(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=4))
    ends = st.integers(0, len(shapes) - 1)
    pairs = draw(st.lists(st.tuples(ends, ends), min_size=1, max_size=5, unique=True))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    matrices = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return matrices, [Link(g, r, f"{g}->{r}") for g, r in pairs]


@pytest.mark.parametrize("name", ADAPTERS)
@settings(max_examples=12)
@given(graph=graphs())
def test_one_new_matrix_per_target_in_the_order_of_the_matrices(name, graph):
    matrices, links = graph
    before = [w.clone() for w in matrices]
    new = built(ADAPTERS[name], matrices, links)(matrices)
    targets = sorted({link.target for link in links})
    assert [w.shape for w in new] == [matrices[i].shape for i in targets]
    assert [w.dtype for w in new] == [matrices[i].dtype for i in targets]
    assert all(torch.isfinite(w).all() for w in new)
    assert all(torch.equal(w, was) for w, was in zip(matrices, before, strict=True))


@pytest.mark.parametrize("name", IDENTITY)
@settings(max_examples=12)
@given(graph=graphs())
def test_an_identity_start_changes_no_bit(name, graph):
    matrices, links = graph
    matrices[0].view(-1)[0] = -0.0
    new = built(ADAPTERS[name], matrices, links)(matrices)
    for i, w in zip(sorted({link.target for link in links}), new, strict=True):
        assert torch.equal(w, matrices[i])
        assert torch.equal(torch.signbit(w), torch.signbit(matrices[i]))


@pytest.mark.parametrize("name", IDENTITY)
@pytest.mark.parametrize("graph", [one_way, both_ways])
def test_after_one_update_every_target_changes(name, graph):
    matrices, links = graph()
    module = built(ADAPTERS[name], matrices, links)
    learn(module, matrices)
    for i, w in zip(sorted({link.target for link in links}), module(matrices), strict=True):
        assert (w - matrices[i]).abs().max() > 1e-4


@pytest.mark.parametrize("name", [each for each in ADAPTERS if each != "sharing"])
@pytest.mark.parametrize("graph", [one_way, both_ways])
def test_after_the_first_update_gradients_reach_every_parameter(name, graph):
    matrices, links = graph()
    module = built(ADAPTERS[name], matrices, links)
    learn(module, matrices)
    module.zero_grad()
    learn(module, matrices)
    silent = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("name", [name for name in IDENTITY if "mergenet" in name])
def test_at_the_first_update_they_reach_the_output_projections(name):
    matrices, links = one_way()
    module = built(ADAPTERS[name], matrices, links)
    learn(module, matrices)
    outputs = {n: p for n, p in module.named_parameters() if ".output." in n}
    assert outputs
    assert all(p.grad.any() for p in outputs.values())


@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_reach_the_inputs(name):
    matrices, links = one_way()
    module = built(ADAPTERS[name], matrices, links)
    if learns(module):
        learn(module, matrices, rate=0.1)
    matrices = [w.requires_grad_() for w in matrices]
    module(matrices)[0].square().sum().backward()
    assert matrices[1].grad.any()
    assert matrices[0].grad.any() != (name == "mlp paper")  # which forgets the target


@pytest.mark.parametrize("name", IDENTITY)
@pytest.mark.parametrize("exponent", [-40, -3, 5, 40])
def test_the_change_is_in_the_targets_own_scale(name, exponent):
    """f(c W, d V) = c f(W, V): exactly so for powers of two."""
    (w, v), links = one_way()
    module = built(ADAPTERS[name], [w, v], links)
    learn(module, [w, v])
    module.eval()
    scaled = module([w * 2.0**exponent, v * 2.0**-exponent])[0]
    assert torch.equal(scaled, module([w, v])[0] * 2.0**exponent)


@pytest.mark.parametrize("name", ["mergenet paper", "mlp paper"])
def test_the_papers_forms_are_not(name):
    (w, v), links = one_way()
    module = built(ADAPTERS[name], [w, v], links).eval()
    assert not torch.allclose(module([4 * w, v])[0], 4 * module([w, v])[0], rtol=1e-2)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_zero_target_is_no_trouble(name):
    matrices, links = both_ways()
    matrices = [torch.zeros_like(w) for w in matrices]
    module = built(ADAPTERS[name], matrices, links)
    for _ in range(3):
        new = module(matrices)
        assert all(torch.isfinite(w).all() for w in new)
        if learns(module):
            learn(module, matrices)
            assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_transfer_draws_no_random_numbers_and_repeats_to_the_bit(name):
    matrices, links = both_ways()
    module = built(ADAPTERS[name], matrices, links)
    twin = copy.deepcopy(module)
    state = torch.get_rng_state()
    first = module(matrices)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, twin(matrices), strict=True))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_resumed_adapter_goes_on_with_the_same_bits(name):
    matrices, links = both_ways()
    module = built(ADAPTERS[name], matrices, links)
    if learns(module):
        learn(module, matrices)
    other = built(ADAPTERS[name], matrices, links)
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    for _ in range(3):
        matrices = [w + 0.01 * torch.randn_like(w) for w in matrices]
        again = zip(module(matrices), other(matrices), strict=True)
        assert all(torch.equal(a, b) for a, b in again)


def test_a_lost_basis_would_be_seen():
    """The bits above do depend on the state: without the bases the resumed run differs."""
    matrices, links = one_way()
    module = built(ADAPTERS["mergenet"], matrices, links)
    learn(module, matrices)
    state = module.state_dict()
    other = built(ADAPTERS["mergenet"], matrices, links)
    other.load_state_dict({k: v * (not k.endswith("basis")) for k, v in state.items()})
    matrices = [w + 0.1 * torch.randn_like(w) for w in matrices]
    assert not torch.equal(module(matrices)[0], other(matrices)[0])


@pytest.mark.parametrize("name", ADAPTERS)
def test_evaluation_changes_no_buffer(name):
    matrices, links = both_ways()
    module = built(ADAPTERS[name], matrices, links)
    for mode in (module.eval, module.train):
        mode()
        before = copy.deepcopy(module.state_dict())
        module(matrices)
        same = all(torch.equal(before[k], v) for k, v in module.state_dict().items())
        assert same or module.training
    bases = [v for k, v in module.state_dict().items() if k.endswith("basis")]
    assert not bases or (not same and all(basis.any() for basis in bases))


@pytest.mark.parametrize("name", [each for each in ADAPTERS if each != "sharing"])
def test_what_is_built_follows_the_seed(name):
    matrices, links = one_way()
    torch.manual_seed(3)
    one = built(ADAPTERS[name], matrices, links).state_dict()
    torch.manual_seed(3)
    two = built(ADAPTERS[name], matrices, links).state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("name", ADAPTERS)
def test_single_precision_parameters_take_double_matrices(name):
    matrices, links = one_way()
    module = built(ADAPTERS[name], matrices, links).float()
    wide = [w.double() for w in matrices]
    new = module(wide)[0]
    assert new.dtype == torch.float64
    if name in IDENTITY:
        assert torch.equal(new, wide[0])


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_runs_on_the_device(name, device):
    matrices, links = both_ways()
    matrices = [w.to(device) for w in matrices]
    module = built(ADAPTERS[name], matrices, links).to(device)
    assert all(w.device.type == device for w in module(matrices))


def test_who_learns():
    matrices, links = one_way()
    fixed = [name for name, each in ADAPTERS.items() if not learns(built(each, matrices, links))]
    assert fixed == ["sharing"]
