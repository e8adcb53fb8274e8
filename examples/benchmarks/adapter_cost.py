"""What one transfer and its update cost: graftlib's MergeNet against the arithmetic of the paper's authors.

    python -m examples.benchmarks.adapter_cost                  # table, and docs/benchmarks/adapter_cost.json

One repetition is what a transfer costs a training loop beyond its own step: the adapter's forward pass, one
vector-Jacobian product with a random change of the weights, and one AdamW step. Both sides run at the authors' own
shapes: a (160, 960) convolution of MobileNetV2 receives from the (100, 2048) classifier of ResNet-50, 8 heads,
2 layers. All contenders run in turn within every repetition, so that a busy machine slows all of them, and the ratio
is taken repetition by repetition.

The authors' side is `Authors` below: whole matrices, own projections for each of four attentions, head width
max((d_q + d_k) / 2, 128) / 8, attention maps held in memory with dropout on them, LayerNorm after each, the plain
mean of the four, a GELU feed-forward with LayerNorm. The width of that feed-forward is not published; 2184 gives the
38.6 million parameters of their adapter.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from graftlib.graft import Link, LinkedMatrix
from graftlib_adapters import MergeNet

from ..common import command, results
from ..common.intervals import spread
from . import tables

TARGET, SOURCE, HEADS, LAYERS = (160, 960), (100, 2048), 8, 2
FEED_FORWARD, DROPOUT = 2184, 0.1


class AuthorsAttention(nn.Module):
    """softmax(q k^T) with dropout on the map, written out as matrix products; then residual and LayerNorm."""

    def __init__(self, asks: int, gives: int, dropout: float) -> None:
        super().__init__()
        self.size = int(max((asks + gives) / 2, 128) / HEADS)
        inner = self.size * HEADS
        self.query = nn.Linear(asks, inner, bias=False)
        self.key = nn.Linear(gives, inner, bias=False)
        self.value = nn.Linear(gives, inner, bias=False)
        self.output = nn.Linear(inner, asks)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(asks)

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        """(tokens, asks) and (others, gives) -> (tokens, asks)."""
        query, key, value = (
            project(x).unflatten(1, (HEADS, self.size)).transpose(0, 1)
            for project, x in ((self.query, tokens), (self.key, others), (self.value, others))
        )
        weights = self.dropout(torch.softmax(query @ key.mT * self.size**-0.5, dim=-1))
        heads = (weights @ value).transpose(0, 1).flatten(1)
        return self.norm(tokens + self.output(heads))


class AuthorsLayer(nn.Module):
    """Four attentions, their mean, a feed-forward."""

    def __init__(self, target: tuple[int, int], source: tuple[int, int], dropout: float) -> None:
        super().__init__()
        (n, m), (N, M) = target, source
        self.rr, self.rc = AuthorsAttention(m, M, dropout), AuthorsAttention(m, N, dropout)
        self.cr, self.cc = AuthorsAttention(n, M, dropout), AuthorsAttention(n, N, dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(m, FEED_FORWARD), nn.GELU(), nn.Linear(FEED_FORWARD, m)
        )
        self.norm = nn.LayerNorm(m)

    def forward(self, w: Tensor, source: Tensor) -> Tensor:
        """(n, m) and (N, M) -> (n, m)."""
        rows = self.rr(w, source) + self.rc(w, source.mT)
        columns = self.cr(w.mT, source) + self.cc(w.mT, source.mT)
        mean = (rows + columns.mT) / 4
        return self.norm(mean + self.feed_forward(mean))


class Authors(nn.Module):
    """The authors' adapter, one way."""

    def __init__(self, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AuthorsLayer(TARGET, SOURCE, dropout) for _ in range(LAYERS))

    def forward(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """[(n, m), (N, M)] -> [(n, m)]."""
        w, source = matrices
        for layer in self.layers:
            w = layer(w, source)
        return [w]


def ours(rank: int | None) -> nn.Module:
    """The adapter of graftlib with its defaults, at the authors' shapes, heads and layers."""
    matrices = [
        LinkedMatrix("target:w", TARGET, rank, True),
        LinkedMatrix("source:w", SOURCE, rank, False),
    ]
    adapter = MergeNet(layers=LAYERS, heads=HEADS, rank=rank)
    return adapter.build(matrices, [Link(1, 0, "w")])


CONTENDERS: dict[str, Callable[[], nn.Module]] = {
    "authors": Authors,
    "authors, no dropout": lambda: Authors(0.0),
    "graftlib, rank 32": lambda: ours(32),
    "graftlib, whole matrix": lambda: ours(None),
}


class Contender:
    """One adapter with its optimizer, and the milliseconds of its repetitions."""

    def __init__(self, make: Callable[[], nn.Module], *, fused: bool) -> None:
        self.module = make()
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=1e-3, weight_decay=1e-2, fused=fused
        )
        self.times: dict[str, list[float]] = {"forward": [], "vjp": [], "adamw": [], "all": []}

    def once(self, matrices: Sequence[Tensor], change: Tensor) -> None:
        """One transfer and its update, timed."""
        begin = time.perf_counter()
        (new,) = self.module(matrices)
        forward = time.perf_counter()
        new.backward(change)
        vjp = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        end = time.perf_counter()
        marks = (forward - begin, vjp - forward, end - vjp, end - begin)
        for name, seconds in zip(self.times, marks, strict=True):
            self.times[name].append(seconds * 1e3)

    def saved_bytes(self, matrices: Sequence[Tensor]) -> int:
        """Bytes that the graph holds from the forward pass to the vjp, each storage counted once.

        Parameters and the matrices themselves are not counted: they are there anyway.
        """
        own = [*self.module.parameters(), *matrices]
        there = {tensor.untyped_storage().data_ptr() for tensor in own}
        held: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in there:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            new = self.module(matrices)
        total = sum(held.values())
        del new
        return total


def measure(
    repetitions: int, seeds: int, *, warmup: int = 2, fused: bool = False
) -> dict[str, Contender]:
    """All contenders, in turn within each repetition, on the same matrices and changes; seeds are pooled."""
    pooled: dict[str, Contender] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        matrices = [torch.randn(shape) * shape[1] ** -0.5 for shape in (TARGET, SOURCE)]
        contenders = {name: Contender(make, fused=fused) for name, make in CONTENDERS.items()}
        for repetition in range(-warmup, repetitions):
            change = torch.randn(TARGET) * 1e-3
            for contender in contenders.values():
                contender.once(matrices, change)
                if repetition < 0:
                    contender.times = {part: [] for part in contender.times}
        for name, contender in contenders.items():
            before = pooled.get(name)
            if before is not None:
                for part, seen in before.times.items():
                    contender.times[part] = seen + contender.times[part]
            pooled[name] = contender
    return pooled


def row(contender: Contender, base: Contender, matrices: Sequence[Tensor]) -> dict[str, object]:
    """The figures of one contender, against `base` repetition by repetition."""
    ratios = [b / c for b, c in zip(base.times["all"], contender.times["all"], strict=True)]
    return {
        "parameters": sum(p.numel() for p in contender.module.parameters()),
        "saved_mib": contender.saved_bytes(matrices) / 2**20,
        "ms": {name: spread(values) for name, values in contender.times.items()},
        "times_faster_than_authors": spread(ratios),
    }


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = command.parser(__doc__, "docs/benchmarks/adapter_cost.json")
    parser.add_argument("--repetitions", type=int, default=10, help="for each seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fused", action="store_true", help="AdamW(fused=True), for both sides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contenders = measure(options.repetitions, options.seeds, fused=options.fused)
    matrices = [torch.randn(shape) for shape in (TARGET, SOURCE)]
    rows = {name: row(c, contenders["authors"], matrices) for name, c in contenders.items()}
    record = {
        "shapes": {"target": TARGET, "source": SOURCE, "heads": HEADS, "layers": LAYERS},
        "authors": {"dropout": DROPOUT, "feed_forward": FEED_FORWARD},
        "repetitions": options.repetitions * options.seeds,
        "seeds": options.seeds,
        "threads": options.threads,
        "optimizer": f"AdamW(fused={options.fused})",
        "torch": torch.__version__,
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "rows": rows,
    }
    print(tables.adapter_cost(record))
    results.save(options.out, record)


if __name__ == "__main__":
    main()
