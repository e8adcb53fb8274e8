"""Planted permutations: how often is a hidden renaming of units found again?

    python -m examples.benchmarks.planted --nets 100 -o planted.json

A random net is traced, all of its free axis classes are permuted at random (`surgery.permute`), noise is added to the
copy's weights (a share of each tensor's standard deviation), and the two are aligned. Recovered: every class of units
reads exactly what was planted, so that the noiseless copy comes back to the bit. Rows: the start that grows from the
fixed orders (the default), the identity start (the published coordinate descent), Frank-Wolfe from the identity, and
the peer `rebasin` where it can be imported. Each net is one seed; all rows see the same nets.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from graftlib import surgery, trace
from graftlib_adapters.assembly import Permutation, align, problem

from ..common import command, results

NARROW, WIDE, INPUTS, OUTPUTS = 30, 50, 16, 10


class Residual(nn.Module):
    """A stream of 30 units with three blocks of 50 on it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(INPUTS, NARROW), nn.Linear(NARROW, OUTPUTS)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(NARROW, WIDE), nn.ReLU(), nn.Linear(WIDE, NARROW))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def plain() -> nn.Module:
    """Five layers of widths 30 and 50."""
    widths = [INPUTS, NARROW, WIDE, NARROW, WIDE, OUTPUTS]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


NETS: dict[str, Callable[[], nn.Module]] = {"plain": plain, "residual": Residual}


def grown(task: Any, base: nn.Module, source: nn.Module, seed: int) -> Any:
    return align(task, base.state_dict(), source.state_dict(), seed=seed)


def identity(task: Any, base: nn.Module, source: nn.Module, seed: int) -> Any:
    start = {i: Permutation.identity(p.bases, p.sources) for i, p in enumerate(task.classes)}
    return align(task, base.state_dict(), source.state_dict(), seed=seed, start=start)


def frank_wolfe(task: Any, base: nn.Module, source: nn.Module, seed: int) -> Any:
    start = {i: Permutation.identity(p.bases, p.sources) for i, p in enumerate(task.classes)}
    states = base.state_dict(), source.state_dict()
    return align(task, *states, seed=seed, start=start, method="frank-wolfe")


ROWS = {"grown start": grown, "identity start": identity, "Frank-Wolfe": frank_wolfe}


def peer(base: nn.Module, source: nn.Module) -> nn.Module:
    """The source as `rebasin` permutes it."""
    from rebasin import PermutationCoordinateDescent

    example = torch.randn(2, INPUTS)
    PermutationCoordinateDescent(base, source, input_data_b=example).rebasin()
    return source


def measure(kind: str, nets: int, noise: float, with_peer: bool) -> dict[str, Any]:
    found: dict[str, list[float]] = {name: [0, 0.0] for name in ROWS}
    if with_peer:
        found["rebasin"] = [0, 0.0]
    for seed in range(nets):
        torch.manual_seed(seed)
        base = NETS[kind]().eval()
        example = (torch.randn(2, INPUTS),)
        graph = trace(base, example)
        clean = surgery.permute(graph, seed=seed)
        source = surgery.permute(graph, seed=seed)
        with torch.no_grad():
            for weight in source.parameters():
                weight += noise * weight.std() * torch.randn_like(weight)
        task = problem(graph, trace(source, example))
        for name, row in ROWS.items():
            start = time.process_time()
            aligned = row(task, base, source, seed)
            found[name][1] += time.process_time() - start
            back = aligned.transported(clean.state_dict())
            found[name][0] += all(
                torch.equal(back[fqn], weight) for fqn, weight in base.named_parameters()
            )
        if with_peer and noise == 0:
            start = time.process_time()
            back = dict(peer(base, copy.deepcopy(clean)).named_parameters())
            found["rebasin"][1] += time.process_time() - start
            found["rebasin"][0] += all(
                torch.equal(back[fqn], weight) for fqn, weight in base.named_parameters()
            )
    return {
        name: {"recovered": int(count), "cpu_s_per_net": round(seconds / nets, 4)}
        for name, (count, seconds) in found.items()
        if name != "rebasin" or noise == 0
    }


def main() -> None:
    parser = command.parser(__doc__, "planted.json")
    parser.add_argument("--nets", type=int, default=100)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    with_peer = importlib.util.find_spec("rebasin") is not None
    rows = {
        kind: {str(noise): measure(kind, given.nets, noise, with_peer) for noise in given.noise}
        for kind in NETS
    }
    report = {
        "nets": given.nets,
        "widths": [NARROW, WIDE],
        "noise": "share of each tensor's standard deviation",
        "rows": rows,
        "peer": f"rebasin {version('rebasin')}" if with_peer else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    results.save(given.out, report)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
