"""The authors' form of MergeNet against its description, line by line; and its dropout, which repeats to the bit."""

import copy
import math

import pytest
import torch
from torch import nn

from graftlib import GraftError
from graftlib.graft import Link, LinkedMatrix
from graftlib_adapters import MergeNet
from graftlib_adapters.mergenet.lpka import PAIRINGS, PaperLPKA

LINK = [Link(1, 0, "link")]
TARGET, SOURCE = (6, 10), (5, 8)


def built(target=TARGET, source=SOURCE, **options):
    matrices = [LinkedMatrix("w", target, None, True), LinkedMatrix("v", source, None, False)]
    options = {"init": "paper", "rank": None, "heads": 2} | options
    return MergeNet(**options).build(matrices, LINK).double()


def matrices():
    return [torch.randn(*shape, dtype=torch.float64) for shape in (TARGET, SOURCE)]


# ----------------------------------------------------------------------------------------------------- the oracle


class Described:
    """One layer as it is described, on the parameters of a `PaperLPKA`, with masks that the caller draws."""

    def __init__(self, module, masks=None):
        self.p = dict(module.named_parameters())
        self.buffers = dict(module.named_buffers())
        self.heads, self.masks = module.heads, masks

    def linear(self, name, x):
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def norm(self, name, x):
        centred = x - x.mean(1, keepdim=True)
        unit = centred / (centred.square().mean(1, keepdim=True) + 1e-12).sqrt()
        return unit * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def spectral(self, name, x):
        """The weight over its spectral norm, from one more power iteration than the saved vectors have had."""
        place = f"feed_forward.{name}.parametrizations.weight"
        weight, v = self.p[f"{place}.original"], self.buffers[f"{place}.0._v"]
        u = nn.functional.normalize(weight @ v, dim=0, eps=1e-12)
        v = nn.functional.normalize(weight.T @ u, dim=0, eps=1e-12)
        return x @ (weight / (u @ weight @ v)).T + self.p[f"feed_forward.{name}.bias"]

    def attention(self, pairing, tokens, others):
        q, k, v = (
            self.linear(f"{part}.{pairing}", x)
            for part, x in (("query", tokens), ("key", others), ("value", others))
        )
        size = q.shape[1] // self.heads
        weights = []
        for h in range(self.heads):
            at = slice(h * size, (h + 1) * size)
            weights.append(torch.softmax(q[:, at] @ k[:, at].T / math.sqrt(size), 1))
        weights = torch.stack(weights)[None]
        if self.masks is not None:
            weights = weights * self.masks(weights.shape, 0.1) / 0.9
        answers = [weights[0, h] @ v[:, h * size : (h + 1) * size] for h in range(self.heads)]
        answer = self.linear(f"output.{pairing}", torch.cat(answers, 1))
        if self.masks is not None:
            answer = answer * self.masks(answer.shape, 0.2) / 0.8
        return self.norm(f"norm.{pairing}", tokens + answer)

    def __call__(self, w, source):
        mixed = 0
        for i, pairing in enumerate(PAIRINGS):
            tokens = w if pairing[0] == "r" else w.T
            answer = self.attention(pairing, tokens, source if pairing[1] == "r" else source.T)
            mixed = mixed + self.p["omega"][i] * (answer if pairing[0] == "r" else answer.T)
        inner = self.spectral("0", mixed)
        cubic = inner + 0.044715 * inner**3
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))
        return self.norm("last_norm", mixed + self.spectral("2", inner))


def moved(module):
    """Biases, gains and omega away from where they start, so that each of them counts."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


@pytest.mark.parametrize("dropout", [False, True])
def test_two_layers_are_the_description_to_rounding(dropout):
    module = moved(built(dropout=(0.1, 0.2) if dropout else (0.0, 0.0)))
    described = copy.deepcopy(module)
    masks = None
    if dropout:
        noise = torch.Generator().manual_seed(int(module.draw))

        def masks(shape, p):
            return torch.empty(shape, dtype=torch.float64).bernoulli_(1 - p, generator=noise)

    w, source = matrices()
    expected = w
    for layer in described.layers:
        expected = Described(layer[0], masks)(expected, source)
    torch.testing.assert_close(module([w, source])[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "part", ["query.rr.bias", "key.rc.weight", "value.cr.bias", "feed_forward.2.bias"]
)
def test_the_oracle_sees_a_changed_parameter(part):
    module = built(layers=1, dropout=(0.0, 0.0))
    described = copy.deepcopy(module)
    with torch.no_grad():
        dict(module.layers[0][0].named_parameters())[part].view(-1)[0].add_(0.5)
    w, source = matrices()
    expected = Described(described.layers[0][0])(w, source)
    assert (module([w, source])[0] - expected).abs().max() > 1e-3


def test_the_feed_forward_is_twice_as_wide_and_has_spectral_norm_one():
    module = built(layers=1)
    w = matrices()
    for _ in range(50):
        module(w)
    first, _, second = module.eval().layers[0][0].feed_forward
    assert first.weight.shape == (20, 10)
    assert second.weight.shape == (10, 20)
    for layer in (first, second):
        top = torch.linalg.matrix_norm(layer.weight, 2)
        torch.testing.assert_close(top, torch.ones_like(top), rtol=1e-3, atol=0)


# -------------------------------------------------------------------------------------------------------- its dropout


def test_every_transfer_drops_anew_and_evaluation_drops_nothing():
    module, w = built(), matrices()
    assert not torch.equal(module(w)[0], module(w)[0])
    module.eval()
    assert torch.equal(module(w)[0], module(w)[0])


def test_without_dropout_there_is_nothing_to_draw():
    module = built(dropout=(0.0, 0.0))
    assert module.draw is None
    assert "draw" not in module.state_dict()


@pytest.mark.parametrize("dropout", [(0.5, 0.0), (0.0, 0.5)])
def test_each_of_the_two_drops(dropout):
    module, w = built(dropout=dropout), matrices()
    assert not torch.equal(module(w)[0], copy.deepcopy(module).eval()(w)[0])


def test_a_share_of_the_weights_is_dropped_and_the_rest_scaled_up():
    """The mean over draws is what no dropout gives..."""
    module = PaperLPKA(
        TARGET, SOURCE, ("rr",), 2, learned=True, deterministic=False, dropout=(0.3, 0.0)
    ).double()
    query, key, value = (torch.randn(n, 128, dtype=torch.float64) for n in (6, 5, 5))
    noise = torch.Generator().manual_seed(0)
    draws = torch.stack([module.attend(query, key, value, 0.3, noise) for _ in range(4000)])
    plain = module.attend(query, key, value)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - plain).abs() < 5 * error).all()


def test_each_draw_differs_from_the_mean():
    """...though no single draw is."""
    module = PaperLPKA(TARGET, SOURCE, ("rr",), 2, learned=True, deterministic=False)
    query, key, value = (torch.randn(n, 128) for n in (6, 5, 5))
    noise = torch.Generator().manual_seed(0)
    dropped = module.attend(query, key, value, 0.3, noise)
    assert (dropped - module.attend(query, key, value)).abs().max() > 0.05


def test_a_resumed_adapter_draws_what_it_would_have_drawn(device):
    module = built().to(device)
    w = [x.to(device) for x in matrices()]
    for _ in range(3):
        module(w)
    other = built().to(device)
    assert not torch.equal(other.draw, module.draw)
    other.load_state_dict(module.state_dict())
    for _ in range(3):
        assert torch.equal(module(w)[0], other(w)[0])


def test_no_random_state_of_any_device_is_touched(device):
    module = built().to(device)
    w = [x.to(device) for x in matrices()]
    before = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state() if device == "cuda" else None
    module(w)[0].sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert on_device is None or torch.equal(torch.cuda.get_rng_state(), on_device)


def test_adapters_of_two_seeds_drop_differently():
    torch.manual_seed(1)
    one = built().draw
    torch.manual_seed(2)
    assert not torch.equal(built().draw, one)


@pytest.mark.parametrize("dropout", [0.1, (0.1,), (0.1, 1.0), (-0.1, 0.2), ("a", "b"), (True, 0.1)])
def test_a_dropout_that_is_no_pair_of_probabilities_is_refused(dropout):
    with pytest.raises(GraftError, match="pair of probabilities"):
        MergeNet(init="paper", dropout=dropout)
