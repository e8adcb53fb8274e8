"""Kill a grafted training at a random step; the resumed run ends with the bits of the uninterrupted one."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

STEPS = 25


def run(folder, die, write):
    folder.mkdir(exist_ok=True)
    script = Path(__file__).with_name("killed_run.py")
    command = [sys.executable, str(script), str(folder), str(STEPS), str(die), write]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def end(folder):
    return torch.load(folder / "end.pt", weights_only=True)


def check(tmp_path, kills, write):
    assert run(tmp_path / "whole", -1, write).returncode == 0
    expected = end(tmp_path / "whole")
    for die in kills:
        folder = tmp_path / f"killed-{die}"
        killed = run(folder, die, write)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (folder / "end.pt").exists()
        finished = run(folder, -1, write)
        assert finished.returncode == 0, finished.stderr
        found = end(folder)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected), (
            f"killed before step {die}"
        )


@pytest.mark.parametrize("write", ["replace", "probe"])
def test_a_run_killed_at_a_random_step_ends_bit_identical(tmp_path, write):
    check(tmp_path, [random.randrange(1, STEPS)], write)


@pytest.mark.slow
@pytest.mark.parametrize("write", ["replace", "probe"])
def test_wherever_it_is_killed(tmp_path, write):
    check(tmp_path, random.sample(range(1, STEPS), 10), write)
