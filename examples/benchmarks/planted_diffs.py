"""Planted edits: how often does `graftlib diff` name what was done to a network?

    python -m examples.benchmarks.planted_diffs --pairs 100 -o docs/benchmarks/planted_diffs.json

A small network learns a random teacher; a second comes from it by one of five edits, in turn: its units in another
random order; half of every class's units pruned, at random; trained on another teacher at a tenth of the rate; averaged
with an independently trained network, whose units were aligned with its own; or a network that was trained by itself,
in no relation. Both are traced and compared. Named: the edit is the very word for what was done, and none else. Each
pair is one seed; the three kinds of networks take turns.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from graftlib import surgery, trace
from graftlib.view import diff
from graftlib_adapters.assembly import align, problem

from ..common import command, results
from .planted import INPUTS, OUTPUTS, Residual, plain

STEPS, BATCH, RATE = 60, 64, 3e-3


class Convolutional(nn.Module):
    """Three convolutions with batch norm, a skip and a head, on inputs that are read as pictures of 4 by 4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.inner, self.inner_norm = nn.Conv2d(24, 40, 3, padding=1), nn.BatchNorm2d(40)
        self.outer, self.outer_norm = nn.Conv2d(40, 24, 1), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x.reshape(-1, 1, 4, 4))))
        y = torch.relu(self.inner_norm(self.inner(x)))
        x = torch.relu(x + self.outer_norm(self.outer(y)))
        return self.head(x.mean((2, 3)))


NETS: list[Callable[[], nn.Module]] = [plain, Residual, Convolutional]


def trained(net: nn.Module, task: int, seed: int, rate: float = RATE) -> nn.Module:
    """The network, in place, after a few steps on the teacher of that number; the batches are drawn by the seed."""
    teacher = torch.randn(INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(task))
    batches = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.train().parameters(), rate)
    for _ in range(STEPS):
        x = torch.randn(BATCH, INPUTS, generator=batches)
        loss = nn.functional.cross_entropy(net(x), (x @ teacher).argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def permuted(net: nn.Module, example: Any, make: Any, seed: int) -> nn.Module:
    return surgery.permute(trace(net, example), seed=seed)


def pruned(net: nn.Module, example: Any, make: Any, seed: int) -> nn.Module:
    graph, random = trace(net, example), torch.Generator().manual_seed(seed)
    keep = {
        each: torch.randperm(each.size, generator=random)[: each.size // 2].sort().values
        for each in graph.axis_classes
        if each.free
    }
    return surgery.prune(graph, keep)


def fine_tuned(net: nn.Module, example: Any, make: Any, seed: int) -> nn.Module:
    return trained(copy.deepcopy(net), 1000 + seed, 1000 + seed, RATE / 10)


def merged(net: nn.Module, example: Any, make: Any, seed: int) -> nn.Module:
    other = trained(make(), 1000 + seed, 1000 + seed)
    task = problem(trace(net, example), trace(other, example))
    carried = align(task, net.state_dict(), other.state_dict(), seed=seed).transported(
        other.state_dict()
    )
    mean = copy.deepcopy(net)
    with torch.no_grad():
        for name, value in mean.named_parameters():
            value.add_(carried[name]).div_(2)
    return mean


def unrelated(net: nn.Module, example: Any, make: Any, seed: int) -> nn.Module:
    return trained(make(), 1000 + seed, 1000 + seed)


EDITS = {
    "permuted": permuted,
    "pruned": pruned,
    "fine-tuned": fine_tuned,
    "merged": merged,
    "unrelated": unrelated,
}


def main() -> None:
    """Measure, print the counts, write JSON."""
    parser = command.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    told = {edit: Counter[str]() for edit in EDITS}
    seconds = 0.0
    for seed in range(asked.pairs):
        edit, make = list(EDITS)[seed % len(EDITS)], NETS[seed // len(EDITS) % len(NETS)]
        torch.manual_seed(seed)
        example = (torch.randn(2, INPUTS),)
        net = trained(make(), seed, seed)
        other = EDITS[edit](net, example, make, seed)
        graphs = trace(net, example), trace(other, example)
        start = time.process_time()
        said = diff(*graphs).edit
        seconds += time.process_time() - start
        told[edit][said] += 1
        print(seed, NETS.index(make), edit, "->", said, flush=True)
    rows = {
        edit: {"pairs": count.total(), "named": count[edit], "said": dict(count)}
        for edit, count in told.items()
    }
    found = {"pairs": asked.pairs, "rows": rows, "cpu_s_per_diff": seconds / asked.pairs}
    print(json.dumps(found, indent=1))
    if asked.out:
        results.save(asked.out, found | {"versions": results.versions()})


if __name__ == "__main__":
    main()
