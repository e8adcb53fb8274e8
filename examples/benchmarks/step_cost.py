"""What a graft costs per training step: against the plain step, and against distillation with a ResNet-50 teacher.

The paper's pair at its own shapes: ResNet-50's classifier (100 x 2048) into a 1x1 convolution of MobileNetV2
(160 x 960), one link, frozen source, a transfer every fourth step, 32 x 32 images, the stride-1 CIFAR form of
both networks. And, where it is asked for, a pull: every convolution and the classifier of that MobileNetV2 towards
one of twice its width, a transfer before every step, as it is while a pull lasts.

    python -m examples.benchmarks.step_cost --out docs/benchmarks/step_cost.json
    python -m examples.benchmarks.step_cost --arms plain pulled --batch 32 --out docs/benchmarks/pull_cost.json

Time: the arms take turns, one cycle of steps each, in one process; the ratio is taken within a round, and the table
gives the median over rounds with its quartiles. Memory (Linux): the largest resident set of a process of its own for
each arm, less what the process held with both models made and nothing attached. That scatters by more than an adapter
is large, so its memory is also counted: parameters, moments, and what the graph of a transfer keeps until its update.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2, resnet50

from graftlib import Mapping, attach, trace
from graftlib_adapters import AlignedPull, MergeNet, distillation

from ..common import command, memory, results
from ..common.processes import apart
from . import tables

ARMS = ("plain", "grafted", "pulled", "distilled")
CYCLE = 4


def student(width: float = 1.0) -> nn.Module:
    """MobileNetV2 in the CIFAR form: no stride in the stem and in the second stage; 2.4 M parameters at 100 classes."""
    model = mobilenet_v2(num_classes=100, width_mult=width)
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
        self.rank = rank
        self.source = None
        if name != "plain":
            self.source = student(2.0) if name == "pulled" else teacher()
        if name in ("grafted", "pulled"):
            example = (self.x[:2],)
            self.mapping = Mapping(trace(self.source, example), trace(self.target, example))
        if name == "grafted":
            self.mapping.link("fc", "features.16.conv.2")
        if name == "pulled":
            for layer, module in self.target.named_modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    self.mapping.link(layer, layer)

    def begin(self) -> Arm:
        """Attach where there is something to attach."""
        if self.name == "grafted":
            attach(MergeNet(rank=self.rank), self.mapping, cycle=CYCLE).follow(self.optimizer)
        if self.name == "pulled":
            attach(AlignedPull(self.mapping), self.mapping, cycle=1).follow(self.optimizer)
        return self

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
    arms = {name: Arm(name, args.batch, args.rank).begin() for name in args.arms}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for round_ in range(args.rounds + 1):
        for name, arm in arms.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(CYCLE):
                arm.step()
            if round_:  # the first round warms up
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    table = {}
    for name in arms:
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


def measure_memory(name: str, args: argparse.Namespace) -> None:
    """Runs in a process of its own; prints bytes."""
    arm = Arm(name, args.batch, args.rank)
    before = memory.resident()
    arm.begin()
    for _ in range(CYCLE + 1):
        arm.step()
    print(memory.peak() - before)


def counted(rank: int | None) -> dict[str, int]:
    """Bytes that a graft of `rank` keeps: its adapter, AdamW's moments, and a transfer until the adapter is updated."""
    arm = Arm("grafted", 2, rank)
    runner = attach(MergeNet(rank=rank), arm.mapping, cycle=CYCLE)._running()
    parameters = [*runner.module.parameters(), *runner.module.buffers()]
    own = sum(p.nbytes for p in parameters)
    there = {p.untyped_storage().data_ptr() for p in parameters}
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pending = runner.run(runner.read())
    # The copies that a pending transfer owns are its inputs, its outputs, and what it wrote and will put back.
    copies = [*pending.inputs, *pending.outputs]
    copies += [value for w in pending.writes.values() for value in (w.settled, w.written)]
    held |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in copies}
    return {"adapter": own, "moments": 2 * own, "transfer": sum(held.values())}


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=["plain", "grafted", "distilled"]
    )
    parser.add_argument("--count-ranks", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        measure_memory(args.memory_of, args)
        return
    peaks = {}
    for name in args.arms:
        words = ("--batch", args.batch, "--rank", args.rank, "--threads", args.threads)
        peaks[name] = apart(__spec__.name, "--memory-of", name, *words)
    table = measure_time(args)
    for name in args.arms:
        table[name] |= {"peak_bytes": peaks[name], "memory_ratio": peaks[name] / peaks["plain"]}
    kept = {}
    for rank in args.count_ranks if "grafted" in args.arms else ():
        kept[rank] = parts = counted(rank)
        share = sum(parts.values()) / peaks["plain"]
        parts["share_of_peak"] = share
    settings = {k: v for k, v in vars(args).items() if k not in {"out", "memory_of"}}
    report = {
        "settings": settings | {"cycle": CYCLE, "seed": 0},
        "arms": table,
        "counted": {str(rank): row for rank, row in kept.items()},
        "versions": results.versions(),
    }
    print(tables.step_cost(report))
    if args.out:
        results.save(args.out, report)


if __name__ == "__main__":
    main()
