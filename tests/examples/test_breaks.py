"""The control of the permutation check runs as its page says, a model in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_smallest_model_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "breaks.json"
    command = [sys.executable, "-m", "examples.benchmarks.breaks", "--models", "mlp"]
    subprocess.run(
        [*command, "--out", str(out)],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert json.loads(out.read_text("utf-8"))["total"]["passed"]
