"""What a run costs: processor time, wall clock and the growth of memory.

Always true: on the CPU the peak is the kernel's own high-water mark of the resident set, counted from `reset` on
(Linux; elsewhere `peak` is 0); what is free is given back first, or its use again would be seen by nobody. psutil has
no such mark, hence /proc. On CUDA it is that of the allocator.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from pathlib import Path

import psutil
import torch

__all__ = ["Meter", "peak", "reset", "resident"]


def reset(generation: int = 2) -> int:
    """From here on the peak counts; bytes resident now. `generation` is that of the garbage collection."""
    gc.collect(generation)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return resident()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """The most bytes that were resident since `reset`, or since the process began."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


class Meter:
    """Starts when it is made."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        # The young alone: a full collection costs more than a smoke run.
        self.base = torch.cuda.memory_allocated() if self.cuda else reset(1)
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float | None]:
        """``cpu_seconds``, ``wall_seconds`` and ``peak_mib`` since the start; the last is None where it is unknown."""
        if self.cuda:
            torch.cuda.synchronize()
        most = torch.cuda.max_memory_allocated() if self.cuda else peak()
        return {
            "cpu_seconds": time.process_time() - self.cpu,
            "wall_seconds": time.perf_counter() - self.wall,
            "peak_mib": (most - self.base) / 2**20 if most else None,
        }
