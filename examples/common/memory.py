"""What a run costs: processor time, wall clock and the growth of memory.

In: a device. Out: numbers. Always true: on the CPU the peak is that of the resident set above the set at the start, by
the kernel's own high-water mark, which is reset first (Linux; elsewhere None); on CUDA it is that of the allocator.
"""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path

import torch

__all__ = ["Meter"]


class Meter:
    """Starts when it is made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.base = self._reset()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float | None]:
        """``cpu_seconds``, ``wall_seconds`` and ``peak_mib`` since the start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        peak = self._peak()
        return {
            "cpu_seconds": time.process_time() - self.cpu,
            "wall_seconds": time.perf_counter() - self.wall,
            "peak_mib": None if peak is None else (peak - self.base) / 2**20,
        }

    def _reset(self) -> int:
        gc.collect(1)  # the young: a full collection costs more than a smoke run
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        try:
            # What earlier runs freed goes back to the system, or this one's growth would hide in it.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        except (OSError, AttributeError):
            return 0
        return _status("VmRSS")

    def _peak(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return _status("VmHWM") if self.base else None


def _status(key: str) -> int:
    """A line of the kernel's account of this process, in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)
