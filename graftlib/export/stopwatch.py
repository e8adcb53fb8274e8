"""Time one ONNX file and watch its memory: a script run in a process of its own.

In: ``stopwatch.py MODEL INPUTS.npz SECONDS``. Out: one JSON object on stdout.
It imports numpy, onnxruntime and psutil and nothing else, so that what it measures is the model and not Python's
libraries.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

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
    import psutil

    with np.load(inputs, allow_pickle=False) as arrays:
        values = [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    process = psutil.Process()
    before = process.memory_info().rss
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {entry.name: value for entry, value in zip(session.get_inputs(), values, strict=True)}
    # The runtime keeps what a run needed for the next one, so the memory between runs is that of a run.
    memory = [process.memory_info().rss]
    for _ in range(WARM_UP):
        session.run(None, feed)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MOST and (len(times) < FEWEST or time.perf_counter() < end):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
        memory.append(process.memory_info().rss)
    milliseconds = np.asarray(times) * 1e3
    return {
        "median_ms": float(np.median(milliseconds)),
        "p90_ms": float(np.quantile(milliseconds, 0.9)),
        "runs": len(times),
        "memory_bytes": max(0, max(memory) - before),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
