"""A process that is killed at any point leaves whole files, and the next run removes what else it left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("what", ["export", "assemble"])
def test_a_hundred_kills(tmp_path, what):
    """Nothing mixed, nothing left, the same bits."""
    script = Path(__file__).with_name("killed_run.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), what, str(tmp_path), "100", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen.pop("kills") == 100
    assert seen.pop("runs") >= 100
    assert seen == {"mixed": 0, "left": 0, "other bits": 0}
