"""What an assembly over many checkpoints takes in memory: as much as over two of them.

    python -m examples.benchmarks.zoo_memory --repeats 3 -o zoo_memory.json

A base and 2, then 20 safetensors files of one architecture, with random weights of seeds of their own. Each figure is a
process of its own: the peak of resident memory during `assemble` above what was resident right before, when the
libraries, the base and one alignment's code were there (the allocator gives back what is free first); and the same as a
share of one source's weights. As a control the same sources are held all at once, as a list of models. Rows that are in
the file already are not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common import command, memory, results
from ..common.processes import apart

SIZES = (2, 20)
EXAMPLE = (torch.zeros(1, 3, 32, 32),)


def net(seed: int = 0) -> nn.Module:
    """16 MB of convolutions and linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2),
        nn.ReLU(),
        nn.Conv2d(64, 256, 3, 2),
        nn.ReLU(),
        nn.Conv2d(256, 512, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512 * 9, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    ).eval()


def weights_mb() -> float:
    return sum(p.numel() * p.element_size() for p in net().parameters()) / 2**20


def write_zoo(folder: Path, count: int) -> None:
    from safetensors.torch import save_file

    for i in range(count):
        path = folder / f"{i:02d}.safetensors"
        if not path.exists():
            save_file(net(1 + i).state_dict(), path)


def measured(folder: Path, count: int, held: bool) -> float:
    """MB of the peak during an assembly above what was resident before it."""
    from graftlib_adapters.assembly import ZooEntry, assemble

    entries = [ZooEntry(net, folder / f"{i:02d}.safetensors") for i in range(count)]
    base = net()
    assemble(base, entries[:1], args=EXAMPLE, merge_factor=0.1)  # loads what is loaded once
    before = memory.reset()
    sources: list[Any] = [entry.model() for entry in entries] if held else entries
    assemble(base, sources, args=EXAMPLE, merge_factor=0.1)
    return (memory.peak() - before) / 2**20


def row(peaks: list[float]) -> dict[str, Any]:
    size = weights_mb()
    return {
        "n": len(peaks),
        "peak_mb": [round(peak, 1) for peak in peaks],
        "median_mb": round(statistics.median(peaks), 1),
        "spread_mb": round(max(peaks) - min(peaks), 1),
        "median_by_source": round(statistics.median(peaks) / size, 2),
    }


def main() -> None:
    parser = command.parser(__doc__, "zoo_memory.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        print(measured(Path(given.child[0]), int(given.child[1]), given.child[2] == "1"))
        return
    report = results.load(given.out) if given.out.exists() else {"rows": {}}
    report.update(threads=1, versions=results.versions(), source_mb=round(weights_mb(), 1))
    with tempfile.TemporaryDirectory() as where:
        write_zoo(Path(where), max(SIZES))
        for name, held in (("files", False), ("held at once", True)):
            for count in SIZES:
                key = f"{name}: {count} sources"
                if key not in report["rows"]:
                    peaks = [
                        apart(__spec__.name, "--child", where, count, int(held))
                        for _ in range(given.repeats)
                    ]
                    report["rows"][key] = row(peaks)
                    print(key, report["rows"][key], flush=True)
                    results.save(given.out, report)
    rows = report["rows"]
    for name in ("files", "held at once"):
        few, many = (rows[f"{name}: {count} sources"]["median_mb"] for count in SIZES)
        report[f"{name}: {SIZES[1]} by {SIZES[0]}"] = round(many / few, 3)
    results.save(given.out, report)


if __name__ == "__main__":
    main()
