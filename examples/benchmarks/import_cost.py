"""What ``import graftlib`` costs next to ``import torch``, in fresh processes.

    python -m examples.benchmarks.import_cost --repeats 15 -o import_cost.json

Both statements are run in turn, each in an interpreter of its own, so that a machine that slows down slows both. What
counts is the median of the ratios within a round; their spread says how far to trust it, and processor time is shown
beside wall clock for machines that are busy with other things. The third row touches every public name, since
a room that loads late would hide its cost from the second.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from ..common import command, results
from . import tables

AIM = 1.15
ROWS = {
    "torch": "import torch",
    "graftlib": "import torch, graftlib",
    "graftlib, every name": "import graftlib; [getattr(graftlib, name) for name in dir(graftlib)]",
    "graftlib --help": (
        "import sys; sys.argv = ['graftlib', '--help']; sys.stdout = open('/dev/null', 'w')\n"
        "from graftlib.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass"
    ),
}


def seconds(statement: str) -> tuple[float, float]:
    """Wall-clock and processor seconds of one fresh interpreter that runs `statement`."""
    # Installed packages come compiled; a checkout must be allowed to keep its bytecode too, or it pays every time.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], env=env, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Row -> (wall, processor) seconds of `repeats` runs, interleaved; a first round fills the disk cache."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    for round_ in range(repeats + 1):
        for name, statement in ROWS.items():
            taken = seconds(statement)
            if round_:
                times[name].append(taken)
    return times


def compared(taken: list[float], base: list[float]) -> dict[str, Any]:
    """Median and quartiles in seconds, and the median of the ratios to the ``import torch`` of the same round."""
    low, middle, high = statistics.quantiles(taken, n=4)
    ratios = statistics.quantiles([a / b for a, b in zip(taken, base, strict=True)], n=4)
    return {
        "median_s": round(middle, 4),
        "quartiles_s": [round(low, 4), round(high, 4)],
        "ratio": round(ratios[1], 4),
        "ratio_quartiles": [round(ratios[0], 4), round(ratios[2], 4)],
    }


def summary(times: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Every row by wall clock and by processor time, and whether the aim holds by wall clock."""
    clocks = {"wall": 0, "processor": 1}
    rows = {
        name: {
            clock: compared([t[i] for t in taken], [t[i] for t in times["torch"]])
            for clock, i in clocks.items()
        }
        for name, taken in times.items()
    }
    imports = [name for name in ROWS if name.startswith("graftlib") and "--help" not in name]
    return {
        "repeats": len(times["torch"]),
        "aim": AIM,
        "holds": all(rows[name]["wall"]["ratio"] <= AIM for name in imports),
        "rows": rows,
        "machine": results.machine("torch"),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = command.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    asked = parser.parse_args()
    if asked.repeats < 2:
        parser.error("--repeats must be at least 2: one run has no spread")
    found = summary(measure(asked.repeats))
    print(tables.import_cost(found))
    print(f"aim {AIM}: {'holds' if found['holds'] else 'MISSED'}")
    if asked.out:
        results.save(asked.out, found)


if __name__ == "__main__":
    main()
