"""What a graft costs per training step on a GPU: time, memory, and how often the host waits for the device.

A frozen ResNet-50 into MobileNetV2 (one 1x1 convolution, a transfer every fourth step), 224 x 224 images, channels
last, fused AdamW, autocast; eager, compiled, and compiled with CUDA graphs; bfloat16, and float16 with GradScaler.

    python -m examples.benchmarks.gpu --out gpu.json
    python -m examples.benchmarks.gpu --device cpu --small      a dry run of the same logic; its times mean nothing

Time: plain and grafted take turns, some cycles of steps each, in one process; the ratio is taken within a round; the
table gives the median over rounds with its quartiles. Memory: the most that was allocated on the device during a
cycle, less what was allocated before it, one arm at a time. Waits: steps are run under torch.cuda.set_sync_debug_mode,
and each warning is counted; on the CPU, where nothing waits, the reads of a value by the host are counted instead.
A step is "outside" if it neither ends in a transfer nor teaches the adapter: there a graft must add none.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import mobilenet_v2, resnet18, resnet50

from graftlib import Mapping, attach, trace
from graftlib_adapters import MergeNet

from ..common import command, results

CYCLE = 4
LINK = ("fc", "features.16.conv.2")


@dataclass(frozen=True)
class Variant:
    """How a step is run. `compiled` is a mode of torch.compile, None for eager."""

    name: str
    dtype: torch.dtype
    compiled: str | None = None

    @property
    def scaled(self) -> bool:
        return self.dtype == torch.float16


VARIANTS = (
    Variant("bf16, eager", torch.bfloat16),
    Variant("fp16 with GradScaler, eager", torch.float16),
    Variant("bf16, compiled", torch.bfloat16, "default"),
    Variant("bf16, compiled with CUDA graphs", torch.bfloat16, "reduce-overhead"),
)


class Arm:
    """One way to train, ready to take steps."""

    def __init__(self, variant: Variant, args: argparse.Namespace, *, grafted: bool) -> None:
        torch.manual_seed(0)
        self.variant, self.device = variant, torch.device(args.device)
        self.x = torch.randn(args.batch, 3, args.size, args.size, device=self.device)
        self.x = self.x.to(memory_format=torch.channels_last)
        self.y = torch.randint(0, 100, (args.batch,), device=self.device)
        target = mobilenet_v2(num_classes=100, width_mult=args.width).to(self.device)
        target = target.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(target.parameters(), lr=1e-3, fused=True)
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=2.0**8, enabled=variant.scaled
        )
        self.model: nn.Module = target
        if variant.compiled:
            cuda = self.device.type == "cuda"
            how = {"mode": variant.compiled} if cuda else {"backend": "eager"}
            self.model = torch.compile(target, **how)
        self.graft = None
        if grafted:
            source = (resnet18 if args.small else resnet50)(num_classes=100)
            source = source.to(self.device).eval()
            source.requires_grad_(requires_grad=False)
            mapping = Mapping(trace(source, (self.x[:2],)), trace(target, (self.x[:2],)))
            mapping.link(*LINK)
            self.graft = attach(MergeNet(), mapping, cycle=CYCLE).follow(self.optimizer)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.variant.dtype):
            loss = F.cross_entropy(self.model(self.x), self.y)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def close(self) -> None:
        if self.graft is not None:
            self.graft.detach()


class HostReads(TorchDispatchMode):
    """Counts the operations that bring a value from the device to the host."""

    NAMES = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in self.NAMES
        return func(*args, **(kwargs or {}))


def waits(arm: Arm) -> list[tuple[int, bool]]:
    """How often the host waits in each step of three cycles, and whether the step is outside.

    A step that GradScaler skips shifts the cycle, so whether it consumed a transfer or ended in one is asked of the
    graft itself.
    """
    for _ in range(CYCLE):
        arm.step()
    found = []
    for _ in range(3 * CYCLE):
        before = arm.graft is not None and arm.graft.pending
        if arm.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                arm.step()
            torch.cuda.set_sync_debug_mode("default")
            count = sum("synchroniz" in str(warning.message) for warning in warned)
        else:
            with HostReads() as reads:
                arm.step()
            count = reads.count
        after = arm.graft is not None and arm.graft.pending
        found.append((count, not (before or after)))
    return found


def peak(arm: Arm) -> int | None:
    """Bytes allocated at most during a cycle, beyond those before it; None on the CPU."""
    for _ in range(CYCLE):
        arm.step()
    if arm.device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(CYCLE):
        arm.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def seconds(arm: Arm, steps: int) -> float:
    """Wall time of whole cycles, the device's work included."""
    if arm.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        arm.step()
    if arm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(variant: Variant, args: argparse.Namespace) -> dict[str, object]:
    """One row of the table."""
    row: dict[str, object] = {"variant": variant.name}
    torch._dynamo.reset()
    arms = {name: Arm(variant, args, grafted=name == "grafted") for name in ("plain", "grafted")}
    for name, arm in arms.items():
        row[f"{name}_peak_bytes"] = peak(arm)
        counts = waits(arm)
        row[f"{name}_waits"] = sum(count for count, _ in counts)
        row[f"{name}_steps_outside"] = sum(out for _, out in counts)
        row[f"{name}_waits_outside"] = sum(count for count, out in counts if out)
    for arm in arms.values():
        seconds(arm, 2 * CYCLE)
    rounds = [
        {name: seconds(arm, args.cycles * CYCLE) for name, arm in arms.items()}
        for _ in range(args.rounds)
    ]
    ratios = [each["grafted"] / each["plain"] for each in rounds]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    plain = statistics.median(each["plain"] for each in rounds) / (args.cycles * CYCLE)
    for arm in arms.values():
        arm.close()
    return row | {"plain_seconds_per_step": plain, "ratio": middle, "quartiles": [low, high]}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's, or those of `words`."""
    parser = command.parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--width", type=float, default=1.0, help="of MobileNetV2")
    parser.add_argument("--cycles", type=int, default=10, help="of four steps, a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="tiny images and models, one round")
    parser.add_argument("--only", default="", help="variants whose name holds this")
    args = parser.parse_args(words)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("needs a CUDA device (--device cpu --small is a dry run: its times mean nothing)")
    if args.small:
        args.batch, args.size, args.width, args.cycles, args.rounds = 2, 32, 0.25, 1, 1
    return args


def main() -> None:
    args = arguments()
    rows = [measure(variant, args) for variant in VARIANTS if args.only in variant.name]
    print("| variant | step | quartiles | peak memory | waits outside, plain | grafted |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["quartiles"]
        mine, plain = row["grafted_peak_bytes"], row["plain_peak_bytes"]
        memory = f"{mine / plain:.3f}x ({mine / 2**20:.0f} MiB)" if plain else "not measured"
        print(
            f"| {row['variant']} | {row['ratio']:.3f}x | {low:.3f} to {high:.3f} | {memory} "
            f"| {row['plain_waits_outside']} in {row['plain_steps_outside']} steps "
            f"| {row['grafted_waits_outside']} in {row['grafted_steps_outside']} |"
        )
    if args.out:
        device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
        report = {
            "settings": {k: v for k, v in vars(args).items() if k != "out"}
            | {"cycle": CYCLE, "seed": 0, "link": LINK},
            "device": device,
            "dry_run": args.device != "cuda",
            "rows": rows,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        }
        results.save(args.out, report)


if __name__ == "__main__":
    main()
