"""What a graft costs per training step: against the plain step, and against distillation with a ResNet-50 teacher.

The paper's pair at its own shapes: ResNet-50's classifier (100 x 2048) into a 1x1 convolution of MobileNetV2
(160 x 960), one link, frozen source, a transfer every fourth step, 32 x 32 images, the stride-1 CIFAR form of
both networks.

    python examples/benchmarks/step_cost.py --out docs/benchmarks/step_cost.json

Time: the arms take turns, one cycle of steps each, in one process; the ratio is taken within a round, and the table
gives the median over rounds with its quartiles. Memory (Linux): the largest resident set of a process of its own for
each arm, less what the process held before its first step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2, resnet50

from graftlib import Mapping, attach, trace
from graftlib_adapters import MergeNet, distillation

ARMS = ("plain", "grafted", "distilled")
CYCLE = 4


def student() -> nn.Module:
    """MobileNetV2 in the CIFAR form: no stride in the stem and in the second stage; 2.4 M parameters at 100 classes."""
    model = mobilenet_v2(num_classes=100)
    model.features[0][0].stride = (1, 1)
    model.features[2].conv[1][0].stride = (1, 1)
    return model


def teacher() -> nn.Module:
    model = resnet50(num_classes=100)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model.eval().requires_grad_(requires_grad=False)


class Arm:
    """One way to train, ready to take steps."""

    def __init__(self, name: str, batch: int, rank: int | None) -> None:
        torch.manual_seed(0)
        self.name, self.target = name, student()
        self.x, self.y = torch.randn(batch, 3, 32, 32), torch.randint(0, 100, (batch,))
        self.optimizer = torch.optim.SGD(
            self.target.parameters(), 0.05, momentum=0.9, weight_decay=5e-4
        )
        self.source = None if name == "plain" else teacher()
        if name == "grafted":
            example = (self.x[:2],)
            mapping = Mapping(trace(self.source, example), trace(self.target, example))
            mapping.link("fc", "features.16.conv.2")
            attach(MergeNet(rank=rank), mapping, cycle=CYCLE).follow(self.optimizer)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.target(self.x)
        loss = F.cross_entropy(logits, self.y)
        if self.name == "distilled":
            with torch.no_grad():
                answer = self.source(self.x)
            loss = loss + distillation.kd(logits, answer)
        loss.backward()
        self.optimizer.step()


def measure_time(args: argparse.Namespace) -> dict[str, dict]:
    arms = {name: Arm(name, args.batch, args.rank) for name in ARMS}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    for round_ in range(args.rounds + 1):
        for name, arm in arms.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(CYCLE):
                arm.step()
            if round_:  # the first round warms up
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    table = {}
    for name in ARMS:
        row = {"cpu_seconds_per_step": statistics.median(cpu for cpu, _ in seconds[name]) / CYCLE}
        for i, kind in enumerate(("cpu", "wall")):
            ratios = [
                mine[i] / plain[i]
                for mine, plain in zip(seconds[name], seconds["plain"], strict=True)
            ]
            quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
            row[f"{kind}_ratio"], row[f"{kind}_quartiles"] = (
                quartiles[1],
                [quartiles[0], quartiles[2]],
            )
        table[name] = row
    return table


def resident(field: str) -> int:
    """Bytes: ``VmRSS`` now, ``VmHWM`` at most since the process began (ru_maxrss starts at the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def measure_memory(name: str, args: argparse.Namespace) -> None:
    """Runs in a process of its own; prints bytes."""
    arm = Arm(name, args.batch, args.rank)
    before = resident("VmRSS")
    for _ in range(CYCLE + 1):
        arm.step()
    print(resident("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        measure_memory(args.memory_of, args)
        return
    peaks = {}
    for name in ARMS:
        command = [sys.executable, __file__, "--memory-of", name, "--batch", str(args.batch)]
        command += ["--rank", str(args.rank), "--threads", str(args.threads)]
        peaks[name] = int(subprocess.check_output(command, text=True))
    table = measure_time(args)
    for name in ARMS:
        table[name] |= {"peak_bytes": peaks[name], "memory_ratio": peaks[name] / peaks["plain"]}
    print("| arm | CPU time | quartiles | wall | peak memory |", "|---|---|---|---|---|", sep="\n")
    for name, row in table.items():
        low, high = row["cpu_quartiles"]
        print(
            f"| {name} | {row['cpu_ratio']:.3f}x | {low:.3f} to {high:.3f} | {row['wall_ratio']:.3f}x "
            f"| {row['memory_ratio']:.3f}x ({row['peak_bytes'] / 2**20:.0f} MiB) |"
        )
    if args.out:
        settings = {k: v for k, v in vars(args).items() if k not in {"out", "memory_of"}}
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        report = {
            "settings": settings | {"cycle": CYCLE, "seed": 0},
            "arms": table,
            "versions": versions,
        }
        Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
