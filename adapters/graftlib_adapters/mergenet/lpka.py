"""LPKA, the low-rank parametric knowledge adapter (eq. 6): one link, one layer, up to four attentions.

In: the target's code (r, m) and the source's (s, M). Out: the change of the target's code, (r, m).
A pairing names how each side is unfolded into tokens: "rc" reads the target by rows (r tokens of width m) and the
source by columns (M tokens of width s). Queries come from the target, keys and values from the source.
Always true: the order of the source's tokens does not matter, and each of the target's tokens is changed on its own.
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
        target: (r, m), shape of the target's code.
        source: (s, M), shape of the source's code.
        pairings: some of `PAIRINGS`, in the order that `omega` counts them.
        heads: attention heads of each pairing.
        learned: whether omega is learned. It starts, and else stays, at 1 / number of pairings.
        deterministic: use the plain ("math") attention, whose sums have one order on every device.
    """

    omega: Tensor

    def __init__(
        self,
        target: tuple[int, int],
        source: tuple[int, int],
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
        self.query_width = {"r": target[1], "c": target[0]}  # side -> token width
        self.key_width = {"r": source[1], "c": source[0]}
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

    An attention's output is RMS-normalised before it is weighted: near-uniform attention
    gives the mean of many tokens, which is faint beside the feed-forward's reading of the target.

    Pairings that read one side alike share one matrix product: a projection per side holds the queries (or keys
    and values) of each of its pairings side by side. Writing, sum_i omega_i W_i h_i is one product as well, of
    (W_1, W_2) with (omega_1 h_1, omega_2 h_2).

    Args:
        width: total width of one pairing's heads, rounded up to whole heads.
    """

    def __init__(
        self,
        target: tuple[int, int],
        source: tuple[int, int],
        pairings: Sequence[str],
        heads: int,
        *,
        width: int,
        learned: bool,
        deterministic: bool,
    ) -> None:
        super().__init__(
            target, source, pairings, heads, learned=learned, deterministic=deterministic
        )
        inner = -(-width // heads) * heads
        queries = {side: n for side in "rc" if (n := sum(p[0] == side for p in self.pairings))}
        keys = {side: n for side in "rc" if (n := sum(p[1] == side for p in self.pairings))}
        self.query_norm = nn.ModuleDict({side: _norm(self.query_width[side]) for side in queries})
        self.key_norm = nn.ModuleDict({side: _norm(self.key_width[side]) for side in keys})
        self.query = nn.ModuleDict(
            {
                side: nn.Linear(self.query_width[side], n * inner, bias=False)
                for side, n in queries.items()
            }
        )
        self.key_value = nn.ModuleDict(
            {
                side: nn.Linear(self.key_width[side], 2 * n * inner, bias=False)
                for side, n in keys.items()
            }
        )
        self.output = nn.ModuleDict(
            {
                side: _zero_initialised(n * inner, self.query_width[side], bias=False)
                for side, n in queries.items()
            }
        )
        columns = target[1]
        self.feed_forward = nn.Sequential(
            _norm(columns), nn.Linear(columns, inner), nn.GELU(), _zero_initialised(inner, columns)
        )

    def forward(self, target: Tensor, source: Tensor, noise: Generator | None = None) -> Tensor:
        """The change of `target`; both codes are in units of their own root mean square. Nothing is dropped."""
        queries = {p: q for side in self.query for p, q in self._queries(side, target)}
        keys_values = {
            p: kv for side in self.key_value for p, kv in self._keys_values(side, source)
        }
        outputs = {
            p: self.omega[i] * _rms_normalised(self.attend(queries[p], *keys_values[p]))
            for i, p in enumerate(self.pairings)
        }
        change = torch.zeros_like(target)
        for side, write in self.output.items():
            mixed = torch.cat([outputs[p] for p in self.pairings if p[0] == side], dim=1)
            change = change + _unfold(write(mixed), side)
        correction: Tensor = self.feed_forward(target + change)
        return change + correction

    def _queries(self, side: str, target: Tensor) -> list[tuple[str, Tensor]]:
        pairings = [p for p in self.pairings if p[0] == side]
        tokens = self.query_norm[side](_unfold(target, side))
        return list(
            zip(pairings, self.query[side](tokens).chunk(len(pairings), dim=1), strict=True)
        )

    def _keys_values(self, side: str, source: Tensor) -> list[tuple[str, tuple[Tensor, Tensor]]]:
        pairings = [p for p in self.pairings if p[1] == side]
        tokens = self.key_norm[side](_unfold(source, side))
        projected = self.key_value[side](tokens).chunk(2 * len(pairings), dim=1)
        return [(p, (projected[2 * i], projected[2 * i + 1])) for i, p in enumerate(pairings)]


class PaperLPKA(LPKA):
    """The authors' form: projections of its own for each attention, and a LayerNorm after every step.

    Its result has rows of mean 0 and variance 1 whatever the target's scale was. The weights of the feed-forward
    have spectral norm 1, by one power iteration per call in training mode.

    Args:
        dropout: probabilities, of the attention weights and of each attention's output.
    """

    def __init__(
        self,
        target: tuple[int, int],
        source: tuple[int, int],
        pairings: Sequence[str],
        heads: int,
        *,
        learned: bool,
        deterministic: bool,
        dropout: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__(
            target, source, pairings, heads, learned=learned, deterministic=deterministic
        )
        self.dropout = dropout
        self.query, self.key, self.value = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.output, self.norm = nn.ModuleDict(), nn.ModuleDict()
        for p in self.pairings:
            queries, keys = self.query_width[p[0]], self.key_width[p[1]]
            inner = max(max((queries + keys) // 2, 128) // heads, 1) * heads
            self.query[p] = nn.Linear(queries, inner)
            self.key[p] = nn.Linear(keys, inner)
            self.value[p] = nn.Linear(keys, inner)
            self.output[p] = nn.Linear(inner, queries)
            self.norm[p] = nn.LayerNorm(queries, eps=PAPER_EPS)
        columns = target[1]
        self.feed_forward = nn.Sequential(
            spectral_norm(nn.Linear(columns, 2 * columns)),
            nn.GELU(approximate="tanh"),
            spectral_norm(nn.Linear(2 * columns, columns)),
        )
        self.last_norm = nn.LayerNorm(columns, eps=PAPER_EPS)

    def forward(self, target: Tensor, source: Tensor, noise: Generator | None = None) -> Tensor:
        """The change of `target`: the new code minus the old.

        Args:
            target: (r, m).
            source: (s, M).
            noise: what dropout draws from, on the codes' device; None for no dropout.
        """
        mixed = torch.zeros_like(target)
        for i, p in enumerate(self.pairings):
            mixed = mixed + self.omega[i] * self._attended(p, target, source, noise)
        new: Tensor = self.last_norm(mixed + self.feed_forward(mixed))
        return new - target

    def _attended(self, p: str, target: Tensor, source: Tensor, noise: Generator | None) -> Tensor:
        tokens, others = _unfold(target, p[0]), _unfold(source, p[1])
        of_weights, of_output = self.dropout
        heads = self.attend(
            self.query[p](tokens), self.key[p](others), self.value[p](others), of_weights, noise
        )
        output = _dropped(self.output[p](heads), of_output, noise)
        return _unfold(self.norm[p](tokens + output), p[0])


def _unfold(code: Tensor, side: str) -> Tensor:
    """phi: rows as tokens, or columns as tokens; its own inverse."""
    return code.mT if side == "c" else code


def _dropped(x: Tensor, probability: float, noise: Generator | None) -> Tensor:
    """Dropout that draws from `noise` and from no global random state."""
    if noise is None or not probability:
        return x
    mask = torch.empty_like(x).bernoulli_(1 - probability, generator=noise)
    return x * mask / (1 - probability)


def _norm(width: int) -> nn.RMSNorm:
    # The code has unit root mean square, so EPS leaves noise noise: a row of a rank-deficient code, 1e-7 high, is not
    # blown up to the height of the others.
    return nn.RMSNorm(width, eps=EPS)


def _rms_normalised(tokens: Tensor) -> Tensor:
    """Each token (tokens, width) at unit root mean square; a zero token stays zero."""
    return rms_norm(tokens, tokens.shape[1:], eps=EPS)


def _zero_initialised(width: int, out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer that starts as the zero map."""
    layer = nn.Linear(width, out, bias=bias)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
