"""Time one ONNX file and watch its memory: a script run in a process of its own.

In: ``stopwatch.py MODEL INPUTS.npz SECONDS``. Out: one JSON object on stdout.
It imports numpy and onnxruntime and nothing else, so that what it measures is the model and not Python's libraries.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
WARM_UP, FEWEST, MOST = 3, 5, 200


def main(model: str, inputs: str, seconds: float) -> dict[str, Any]:
    """The measurement.

    Args:
        model: path of the ONNX file.
        inputs: path of an ``.npz`` whose arrays ``arr_0``, ``arr_1``... are the inputs in order.
        seconds: about how long to go on timing, wall clock.
    """
    import numpy as np
    import onnxruntime

    with np.load(inputs, allow_pickle=False) as arrays:
        values = [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    before = _forget_peak()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {entry.name: value for entry, value in zip(session.get_inputs(), values, strict=True)}
    for _ in range(WARM_UP):
        session.run(None, feed)
    times = _timed(lambda: session.run(None, feed), seconds)
    peak = _status("VmHWM")
    growth = max(0, peak - before) if peak is not None and before is not None else None
    milliseconds = np.asarray(times) * 1e3
    return {
        "median_ms": float(np.median(milliseconds)),
        "p90_ms": float(np.quantile(milliseconds, 0.9)),
        "runs": len(times),
        "memory_bytes": growth,
    }


def _timed(run: Any, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MOST and (len(times) < FEWEST or time.perf_counter() < end):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _forget_peak() -> int | None:
    """Lower the recorded peak to what is resident now, and return that; bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status("VmHWM")  # growth is then counted from the old peak
    return _status("VmRSS")


def _status(key: str) -> int | None:
    if not STATUS.exists():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
