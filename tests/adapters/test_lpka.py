"""One link, one layer: four attentions, their symmetries, and the two forms."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from graftlib_adapters.mergenet.lpka import PAIRINGS, IdentityLPKA, PaperLPKA

sizes = st.integers(1, 9)
some_pairings = st.sampled_from(
    [c for n in (1, 2, 3, 4) for c in itertools.combinations(PAIRINGS, n)]
)


def identity(target, source, pairings=PAIRINGS, *, heads=2, width=8, learned=True, plain=False):
    return IdentityLPKA(
        target, source, pairings, heads, width=width, learned=learned, deterministic=plain
    ).double()


def paper(target, source, pairings=PAIRINGS, *, heads=2, learned=True, plain=False):
    """In evaluation mode: no power iteration between two calls."""
    return (
        PaperLPKA(target, source, pairings, heads, learned=learned, deterministic=plain)
        .double()
        .eval()
    )


def awake(module):
    """The zero-initialised projections moved off zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.5)
    return module


def codes(target, source):
    return torch.randn(target, dtype=torch.float64), torch.randn(source, dtype=torch.float64)


@given(sizes, sizes, sizes, sizes, some_pairings)
def test_a_fresh_identity_form_is_silent_and_an_awake_one_is_not(r, m, s, M, pairings):
    module = identity((r, m), (s, M), pairings)
    a, b = codes((r, m), (s, M))
    assert torch.equal(module(a, b), torch.zeros(r, m, dtype=a.dtype))
    assert awake(module)(a, b).abs().max() > 1e-6


@given(sizes, sizes, sizes, sizes, some_pairings)
def test_the_change_is_written_out_as_a_sum_of_attentions(r, m, s, M, pairings):
    """The batched projections equal one plain attention per pairing, weighted by its omega."""
    module = awake(identity((r, m), (s, M), pairings))
    with torch.no_grad():
        module.omega.normal_()
    a, b = codes((r, m), (s, M))
    total = torch.zeros_like(a)
    asked, given_ = {"r": 0, "c": 0}, {"r": 0, "c": 0}
    for omega, (t, g) in zip(module.omega, pairings, strict=True):
        tokens = module.query_norm[t](a if t == "r" else a.T)
        others = module.key_norm[g](b if g == "r" else b.T)
        at, of = 8 * asked[t], 16 * given_[g]
        q = tokens @ module.query[t].weight[at : at + 8].T
        k = others @ module.key_value[g].weight[of : of + 8].T
        v = others @ module.key_value[g].weight[of + 8 : of + 16].T
        heads = [
            torch.softmax(q[:, h] @ k[:, h].T / 2, dim=1) @ v[:, h]
            for h in (slice(0, 4), slice(4, 8))
        ]
        attended = torch.cat(heads, 1)
        attended = attended / (attended.square().mean(1, keepdim=True) + 1e-5).sqrt()
        answer = omega * attended @ module.output[t].weight[:, at : at + 8].T
        total = total + (answer if t == "r" else answer.T)
        asked[t] += 1
        given_[g] += 1
    torch.testing.assert_close(module(a, b), total + module.feed_forward(a + total))


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("size", [(8, 12), (64, 640)])
def test_a_large_source_counts_as_much_as_a_small_one(pairing, size):
    """The mean of many tokens is faint; what is written of it is not."""
    module = identity((48, 64), size, (pairing,), width=64)
    with torch.no_grad():
        module.output[pairing[0]].weight.normal_(std=1 / 8)
    a, b = codes((48, 64), size)
    assert 0.5 < module(a, b).square().mean().sqrt() < 2
    other = torch.randn_like(b)
    assert (module(a, b) - module(a, other)).norm() > 0.5 * module(a, b).norm()


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_source_of_zeros_changes_nothing(pairing):
    module = awake(identity((4, 6), (5, 7), (pairing,)))
    a = codes((4, 6), (5, 7))[0]
    assert torch.equal(module(a, torch.zeros(5, 7).double()), module.feed_forward(a))


@pytest.mark.parametrize("form", [identity, paper])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_order_of_the_sources_tokens_is_immaterial(form, pairing):
    """ "*r" reads rows as a set, "*c" reads columns as a set..."""
    module = awake(form((4, 6), (5, 7), (pairing,)))
    a, b = codes((4, 6), (5, 7))
    shuffled = b[torch.randperm(5)] if pairing[1] == "r" else b[:, torch.randperm(7)]
    torch.testing.assert_close(module(a, shuffled), module(a, b))


@pytest.mark.parametrize("form", [identity, paper])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_order_inside_a_token_is_not(form, pairing):
    """...and the other axis is the tokens' content."""
    module = awake(form((4, 6), (5, 7), (pairing,)))
    a, b = codes((4, 6), (5, 7))
    rolled = b.roll(1, dims=1 if pairing[1] == "r" else 0)
    assert (module(a, rolled) - module(a, b)).abs().max() > 1e-5


@pytest.mark.parametrize("form", [identity, paper])
@pytest.mark.parametrize("pairing", ["rr", "rc"])
def test_target_rows_answer_each_for_itself(form, pairing):
    """A permutation of the target's row tokens permutes the change..."""
    module = awake(form((4, 6), (5, 7), (pairing,)))
    a, b = codes((4, 6), (5, 7))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(module(a[order], b), module(a, b)[order])


@pytest.mark.parametrize("form", [identity, paper])
@pytest.mark.parametrize("pairing", ["cr", "cc"])
def test_by_columns_the_rows_are_content(form, pairing):
    """...and with column tokens it does not: their entries have places."""
    module = awake(form((4, 6), (5, 7), (pairing,)))
    a, b = codes((4, 6), (5, 7))
    order = torch.tensor([2, 0, 3, 1])
    assert (module(a[order], b) - module(a, b)[order]).abs().max() > 1e-5


def test_each_pairing_changes_the_answer():
    a, b = codes((4, 6), (5, 7))
    module = awake(identity((4, 6), (5, 7)))
    whole = module(a, b)
    for i in range(4):
        with torch.no_grad():
            kept = module.omega[i].item()
            module.omega[i] = 0
            assert (module(a, b) - whole).abs().max() > 1e-5
            module.omega[i] = kept


@pytest.mark.parametrize("form", [identity, paper])
def test_the_mean_has_no_omega_to_learn(form):
    learned, mean = form((4, 6), (5, 7)), form((4, 6), (5, 7), learned=False)
    assert "omega" in dict(learned.named_parameters())
    assert "omega" not in dict(mean.named_parameters())
    assert "omega" not in mean.state_dict()
    assert torch.equal(mean.omega, torch.full((4,), 0.25, dtype=torch.float64))
    mean.load_state_dict({k: v for k, v in learned.state_dict().items() if k != "omega"})
    a, b = codes((4, 6), (5, 7))
    assert torch.equal(mean(a, b), learned(a, b))


@given(st.integers(1, 6), st.integers(8, 16), sizes, sizes, st.floats(1e-2, 1e2))
def test_the_papers_form_wipes_the_scale(r, m, s, M, scale):
    """Rows of the new code have mean 0 and variance 1, whatever the target's scale was."""
    a, b = codes((r, m), (s, M))
    module = paper((r, m), (s, M))
    new = scale * a + module(scale * a, b)
    torch.testing.assert_close(new.mean(1), torch.zeros_like(new[:, 0]), atol=1e-6, rtol=0)
    variance = new.var(1, unbiased=False)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=0.02, rtol=0)


def test_the_papers_widths():
    """max((d_q + d_k) / 2, 128) / heads, floored: 188, 66, 138 and 16 a head at the authors' shapes."""
    module = PaperLPKA((160, 960), (100, 2048), PAIRINGS, 8, learned=True, deterministic=False)
    widths = [module.query[p].out_features for p in PAIRINGS]
    assert widths == [8 * 188, 8 * 66, 8 * 138, 8 * 16]


@pytest.mark.parametrize(("heads", "width", "inner"), [(2, 8, 8), (12, 128, 132), (3, 1, 3)])
def test_the_width_is_rounded_up_to_whole_heads(heads, width, inner):
    module = identity((4, 6), (5, 7), ("rr",), heads=heads, width=width)
    assert module.query["r"].out_features == inner
    assert module(*codes((4, 6), (5, 7))).shape == (4, 6)


@pytest.mark.parametrize("form", [identity, paper])
def test_plain_attention_agrees_with_the_fused_kernels(form):
    fused, plain = awake(form((4, 6), (5, 7))), form((4, 6), (5, 7), plain=True)
    plain.load_state_dict(fused.state_dict())
    a, b = codes((4, 6), (5, 7))
    torch.testing.assert_close(plain(a, b), fused(a, b))


class Ops(TorchDispatchMode):
    """Names of the ops that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(str(op))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", [identity, paper])
@pytest.mark.parametrize("plain", [True, False])
def test_deterministic_attention_runs_no_fused_kernel(form, plain):
    module = form((4, 6), (5, 7), plain=plain)
    with Ops() as seen:
        module(*codes((4, 6), (5, 7)))
    assert any("scaled_dot_product_flash" in name for name in seen.names) is not plain


def test_the_papers_form_is_its_equations():
    """LN(x + O attn(x, y)) for each pairing, their weighted sum z, then LN(z + feed-forward(z))."""
    module = paper((4, 6), (5, 7))
    with torch.no_grad():
        module.omega.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    a, b = codes((4, 6), (5, 7))
    total = torch.zeros_like(a)
    for omega, (t, g) in zip(module.omega, PAIRINGS, strict=True):
        p, x, y = t + g, a if t == "r" else a.T, b if g == "r" else b.T
        q, k, v = module.query[p](x), module.key[p](y), module.value[p](y)
        heads = [
            torch.softmax(q[:, h] @ k[:, h].T / 8, dim=1) @ v[:, h]
            for h in (slice(0, 64), slice(64, 128))
        ]
        answer = module.norm[p](x + module.output[p](torch.cat(heads, 1)))
        total = total + omega * (answer if t == "r" else answer.T)
    new = module.last_norm(total + module.feed_forward(total))
    torch.testing.assert_close(a + module(a, b), new)


@pytest.mark.parametrize("form", [identity, paper])
def test_gradients_are_those_of_the_function(form):
    module = awake(form((2, 3), (3, 2), plain=True))
    names = [name for name, _ in module.named_parameters() if "feed_forward" not in name]
    values = [dict(module.named_parameters())[name].detach().requires_grad_() for name in names]
    a, b = (x.requires_grad_() for x in codes((2, 3), (3, 2)))

    def function(a, b, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (a, b))

    assert torch.autograd.gradcheck(function, (a, b, *values), fast_mode=True)
