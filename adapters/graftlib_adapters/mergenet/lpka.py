"""LPKA, the low-rank parametric knowledge adapter (eq. 6): one link, one layer, up to four attentions.

In: the receiver's code (r, m) and the giver's (s, M). Out: the change of the receiver's code, (r, m).
A pairing names how each side is unfolded into tokens: "rc" reads the receiver by rows (r tokens of width m) and the
giver by columns (M tokens of width s). Queries come from the receiver, keys and values from the giver.
Always true: the order of the giver's tokens does not matter, and the receiver's tokens answer each for itself.
Two forms: `IdentityLPKA` starts as no change at all; `PaperLPKA` normalises its output, as the paper's authors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["PAIRINGS", "IdentityLPKA", "PaperLPKA"]

PAIRINGS = ("rr", "rc", "cr", "cc")
EPS = 1e-5  # of the norms of the identity form, whose codes have unit root mean square
PAPER_EPS = 1e-12  # of the paper form's LayerNorms


class LPKA(nn.Module):
    """What both forms share: the pairings, their weights omega, and the attention itself.

    Args:
        receiver: (r, m), shape of the receiver's code.
        giver: (s, M), shape of the giver's code.
        pairings: some of `PAIRINGS`, in the order that `omega` counts them.
        heads: attention heads of each pairing.
        learned: whether omega is learned. It starts, and else stays, at 1 / number of pairings.
        deterministic: use the plain ("math") attention, whose sums have one order on every device.
    """

    omega: Tensor

    def __init__(
        self,
        receiver: tuple[int, int],
        giver: tuple[int, int],
        pairings: Sequence[str],
        heads: int,
        *,
        learned: bool,
        deterministic: bool,
    ) -> None:
        super().__init__()
        self.pairings = tuple(pairings)
        self.heads = heads
        self.deterministic = deterministic
        self.asks = {"r": receiver[1], "c": receiver[0]}  # unfolding -> token width
        self.gives = {"r": giver[1], "c": giver[0]}
        omega = torch.full((len(pairings),), 1 / len(pairings))
        if learned:
            self.omega = nn.Parameter(omega)
        else:
            self.register_buffer("omega", omega, persistent=False)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dropout: float = 0.0,
        noise: Generator | None = None,
    ) -> Tensor:
        """Multi-head softmax attention: (tokens, width) and twice (others, width) -> (tokens, width).

        Args:
            query: of all heads side by side.
            key: the same.
            value: the same.
            dropout: probability that an attention weight is dropped.
            noise: what decides which; None for no dropout.
        """
        query, key, value = (self._split(x) for x in (query, key, value))
        if dropout and noise is not None:
            # The fused kernels drop by the device's global random state, which is the host's.
            weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
            mixed = _dropped(weights, dropout, noise) @ value
            return mixed[0].transpose(0, 1).flatten(1)
        kernel: AbstractContextManager[object] = (
            sdpa_kernel(SDPBackend.MATH) if self.deterministic else nullcontext()
        )
        with kernel:
            heads = scaled_dot_product_attention(query, key, value)
        return heads[0].transpose(0, 1).flatten(1)

    def _split(self, tokens: Tensor) -> Tensor:
        """(tokens, heads * size) -> (1, heads, tokens, size); the 1 keeps the fused kernels."""
        return tokens.view(len(tokens), self.heads, -1).transpose(0, 1)[None]


class IdentityLPKA(LPKA):
    """Pre-norm, and zero-initialised where it writes: a fresh one changes nothing.

    What an attention hands on is brought to a root mean square of one before it is weighted: near-uniform attention
    gives the mean of many tokens, which is faint beside the feed-forward's reading of the receiver.

    Pairings that read one side alike share one matrix product: a projection per unfolding holds the queries (or keys
    and values) of each of its pairings side by side. Writing, sum_i omega_i W_i h_i is one product as well, of
    (W_1, W_2) with (omega_1 h_1, omega_2 h_2).

    Args:
        width: total width of one pairing's heads, rounded up to whole heads.
    """

    def __init__(
        self,
        receiver: tuple[int, int],
        giver: tuple[int, int],
        pairings: Sequence[str],
        heads: int,
        *,
        width: int,
        learned: bool,
        deterministic: bool,
    ) -> None:
        super().__init__(
            receiver, giver, pairings, heads, learned=learned, deterministic=deterministic
        )
        inner = -(-width // heads) * heads
        asked = {way: n for way in "rc" if (n := sum(p[0] == way for p in self.pairings))}
        given = {way: n for way in "rc" if (n := sum(p[1] == way for p in self.pairings))}
        self.ask_norm = nn.ModuleDict({way: _norm(self.asks[way]) for way in asked})
        self.give_norm = nn.ModuleDict({way: _norm(self.gives[way]) for way in given})
        self.query = nn.ModuleDict(
            {way: nn.Linear(self.asks[way], n * inner, bias=False) for way, n in asked.items()}
        )
        self.key_value = nn.ModuleDict(
            {way: nn.Linear(self.gives[way], 2 * n * inner, bias=False) for way, n in given.items()}
        )
        self.output = nn.ModuleDict(
            {way: _silent(n * inner, self.asks[way], bias=False) for way, n in asked.items()}
        )
        columns = receiver[1]
        self.feed_forward = nn.Sequential(
            _norm(columns), nn.Linear(columns, inner), nn.GELU(), _silent(inner, columns)
        )

    def forward(self, receiver: Tensor, giver: Tensor, noise: Generator | None = None) -> Tensor:
        """The change of `receiver`; both codes are in units of their own root mean square. Nothing is dropped."""
        questions = {p: q for way in self.query for p, q in self._questions(way, receiver)}
        knowledge = {p: kv for way in self.key_value for p, kv in self._knowledge(way, giver)}
        heard = {
            p: self.omega[i] * _loud(self.attend(questions[p], *knowledge[p]))
            for i, p in enumerate(self.pairings)
        }
        change = torch.zeros_like(receiver)
        for way, write in self.output.items():
            answers = torch.cat([heard[p] for p in self.pairings if p[0] == way], dim=1)
            change = change + _unfold(write(answers), way)
        correction: Tensor = self.feed_forward(receiver + change)
        return change + correction

    def _questions(self, way: str, receiver: Tensor) -> list[tuple[str, Tensor]]:
        asking = [p for p in self.pairings if p[0] == way]
        tokens = self.ask_norm[way](_unfold(receiver, way))
        return list(zip(asking, self.query[way](tokens).chunk(len(asking), dim=1), strict=True))

    def _knowledge(self, way: str, giver: Tensor) -> list[tuple[str, tuple[Tensor, Tensor]]]:
        giving = [p for p in self.pairings if p[1] == way]
        tokens = self.give_norm[way](_unfold(giver, way))
        known = self.key_value[way](tokens).chunk(2 * len(giving), dim=1)
        return [(p, (known[2 * i], known[2 * i + 1])) for i, p in enumerate(giving)]


class PaperLPKA(LPKA):
    """The authors' form: projections of its own for each attention, and a LayerNorm after every step.

    Its result has rows of mean 0 and variance 1 whatever the receiver's scale was. The weights of the feed-forward
    have spectral norm 1, by one power iteration per call in training mode.

    Args:
        dropout: probabilities, of the attention weights and of each attention's output.
    """

    def __init__(
        self,
        receiver: tuple[int, int],
        giver: tuple[int, int],
        pairings: Sequence[str],
        heads: int,
        *,
        learned: bool,
        deterministic: bool,
        dropout: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__(
            receiver, giver, pairings, heads, learned=learned, deterministic=deterministic
        )
        self.dropout = dropout
        self.query, self.key, self.value = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.output, self.norm = nn.ModuleDict(), nn.ModuleDict()
        for p in self.pairings:
            asks, gives = self.asks[p[0]], self.gives[p[1]]
            inner = max(max((asks + gives) // 2, 128) // heads, 1) * heads
            self.query[p] = nn.Linear(asks, inner)
            self.key[p] = nn.Linear(gives, inner)
            self.value[p] = nn.Linear(gives, inner)
            self.output[p] = nn.Linear(inner, asks)
            self.norm[p] = nn.LayerNorm(asks, eps=PAPER_EPS)
        columns = receiver[1]
        self.feed_forward = nn.Sequential(
            spectral_norm(nn.Linear(columns, 2 * columns)),
            nn.GELU(approximate="tanh"),
            spectral_norm(nn.Linear(2 * columns, columns)),
        )
        self.last_norm = nn.LayerNorm(columns, eps=PAPER_EPS)

    def forward(self, receiver: Tensor, giver: Tensor, noise: Generator | None = None) -> Tensor:
        """The change of `receiver`: the new code minus the old.

        Args:
            receiver: (r, m).
            giver: (s, M).
            noise: what dropout draws from, on the codes' device; None for no dropout.
        """
        mixed = torch.zeros_like(receiver)
        for i, p in enumerate(self.pairings):
            mixed = mixed + self.omega[i] * self._answer(p, receiver, giver, noise)
        new: Tensor = self.last_norm(mixed + self.feed_forward(mixed))
        return new - receiver

    def _answer(self, p: str, receiver: Tensor, giver: Tensor, noise: Generator | None) -> Tensor:
        tokens, others = _unfold(receiver, p[0]), _unfold(giver, p[1])
        of_weights, of_output = self.dropout
        heads = self.attend(
            self.query[p](tokens), self.key[p](others), self.value[p](others), of_weights, noise
        )
        answer = _dropped(self.output[p](heads), of_output, noise)
        return _unfold(self.norm[p](tokens + answer), p[0])


def _unfold(code: Tensor, way: str) -> Tensor:
    """phi: rows as tokens, or columns as tokens; its own inverse."""
    return code.mT if way == "c" else code


def _dropped(x: Tensor, probability: float, noise: Generator | None) -> Tensor:
    """Dropout that draws from `noise` and from no global random state."""
    if noise is None or not probability:
        return x
    kept = torch.empty_like(x).bernoulli_(1 - probability, generator=noise)
    return x * kept / (1 - probability)


def _norm(width: int) -> nn.RMSNorm:
    # The code has unit root mean square, so EPS leaves noise noise: a row of a rank-deficient code, 1e-7 high, is not
    # blown up to the height of the others.
    return nn.RMSNorm(width, eps=EPS)


def _loud(heard: Tensor) -> Tensor:
    """Each token (tokens, width) at unit root mean square; silence stays silence."""
    return rms_norm(heard, heard.shape[1:], eps=EPS)


def _silent(width: int, out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer that starts as the zero map."""
    layer = nn.Linear(width, out, bias=bias)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
