"""The trainers' examples run on real digits, and the GPU benchmark's logic runs dry."""

import os
import runpy
import socket
import sys
import warnings
from pathlib import Path

import pytest

from examples.common import results

ROOT = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own


def run(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    if name.endswith(".py"):
        return runpy.run_path(str(ROOT / name), run_name="__main__")
    return runpy.run_module(name, run_name="__main__")


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("trainers/hf_trainer.py", "transformers"),
        ("trainers/lightning_trainer.py", "lightning"),
        ("trainers/accelerate_loop.py", "accelerate"),
    ],
)
def test_a_trainers_example_runs(name, needs, monkeypatch):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    pytest.importorskip(needs, reason=f"{needs} is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    left = run(name, monkeypatch)
    assert not left["graft"].attached
    assert len(left["graft"].history) >= 6
    assert "<svg" in Path("out/graft.html").read_text("utf-8")


def test_a_slimmed_model_is_distilled_in_the_trainer(monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    left = run("trainers/hf_distil.py", monkeypatch)
    assert left["after"] >= left["before"]
    assert left["slim"].model.hidden.out_features < 64
    assert Path("out/slim/model.safetensors").exists()


@pytest.mark.parametrize("arguments", [[], ["--shard"]])
def test_the_example_for_many_processes_runs_in_one(arguments, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for key, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }.items():
        monkeypatch.setitem(os.environ, key, str(value))
    left = run("trainers/ranks.py", monkeypatch, *arguments)
    assert len(left["graft"].history) >= 6
    assert not left["graft"].attached


def test_the_gpu_benchmark_runs_dry_and_counts_no_wait_outside_transfers(monkeypatch, tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    out = tmp_path / "gpu.json"
    with warnings.catch_warnings():
        arguments = ["--device", "cpu", "--small", "--only", "GradScaler", "--out", str(out)]
        run("examples.benchmarks.gpu", monkeypatch, *arguments)
    report = results.load(out)
    assert report["dry_run"]
    (row,) = report["rows"]
    assert row["grafted_waits"] > 0, "waits are seen where there are some"
    assert row["grafted_steps_outside"] > 0
    assert row["grafted_waits_outside"] == row["plain_waits_outside"] == 0
    assert row["plain_peak_bytes"] is None


def test_the_gpu_benchmark_says_what_it_needs(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        run("examples.benchmarks.gpu", monkeypatch)
