"""What it takes to slim files that are larger than memory: seconds beside those of `cp`, and the most memory.

    python -m examples.benchmarks.stream --scratch DIR -o docs/benchmarks/stream.json

Shards of a Llama in bfloat16 with random weights are written on the spot, of 0.3 and of 3.2 billion parameters, and
deleted afterwards. Each figure is a process of its own: `graftlib.slim_folder` to half of the parameters, and
``cp -r`` of the same folder to the same disk, in turn. Both read what is in the disk's cache as far as it fits; after
each, what was written is flushed to the disk and its seconds count. The peak is the kernel's own high-water mark of the
resident set, with the libraries, and with what is mapped of files; and the same above what the libraries take (Hugging
Face's and torch's alone are more than a gigabyte). The load of the machine is noted: a copy waits for the disk, and a
slimming for processors. At 0.3 billion the same edit is made in memory, and
the tensors and the edit are compared byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common import command, memory, results
from ..common.processes import apart

BUDGET = {"params": 0.5}
SHARD = 2 * 10**9  # bytes
POOL = 1 << 24  # random numbers that are used again and again
# The large one has the sizes of Llama 3.2 3B.
SIZES: dict[str, dict[str, Any]] = {
    "0.3 B": {"vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16,
              "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64},
    "3.2 B": {"vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
              "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128},
}  # fmt: skip


def made(size: str) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES[size], tie_word_embeddings=True, use_cache=False)
    return LlamaForCausalLM(config).eval()


def example() -> dict[str, Any]:
    return {"input_ids": torch.zeros(1, 16, dtype=torch.long)}


def write(size: str, folder: Path) -> None:
    """Shards with random weights, some tensors at a time."""
    from safetensors.torch import save_file

    with torch.device("meta"):
        shapes = {n: p.shape for n, p in made(size).named_parameters()}
    random, shard, files = torch.Generator().manual_seed(0), dict[str, torch.Tensor](), []
    pool = torch.empty(POOL).normal_(0, 0.02, generator=random)
    for name in [*shapes, None]:
        if name is None or sum(t.nbytes for t in shard.values()) > SHARD:
            save_file(shard, folder / f"part-{len(files)}.safetensors", {"format": "pt"})
            files.append(list(shard))
            shard = {}
        if name is not None:
            shard[name] = drawn(shapes[name], pool, random)
    names = {n: i for i, its in enumerate(files) for n in its}
    index = {
        "weight_map": {
            n: f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for n, i in names.items()
        }
    }
    for i in range(len(files)):
        (folder / f"part-{i}.safetensors").rename(
            folder / f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def drawn(shape: torch.Size, pool: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Numbers of the pool from a random place on, each row with a scale of its own; ones for norms."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    place = int(torch.randint(POOL - shape[1], (), generator=random))
    for rows in tensor.split(POOL // shape[1] // 2):
        part = pool.roll(-place)[: rows.numel()].view_as(rows)
        scale = torch.rand(len(rows), 1, generator=random) + 0.5
        rows.copy_(part * scale)
        place = int(torch.randint(POOL - shape[1], (), generator=random))
    return tensor


def streamed(size: str, folder: Path, output: Path) -> dict[str, float]:
    from graftlib import slim_folder

    with torch.device("meta"):
        made(size)
    libraries = memory.reset()
    start, cpu = time.perf_counter(), time.process_time()
    slim_folder(folder, output, lambda: made(size), (), example(), budget=BUDGET)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": memory.peak(),
        "libraries_bytes": libraries,
    }


def equal(size: str, folder: Path, output: Path) -> dict[str, Any]:
    """The same edit in memory: how many tensors, and how many of them are other ones."""
    from safetensors.torch import load_file

    from graftlib import Edit, slim, trace

    model = made(size).to(torch.bfloat16)
    state = {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}
    model.load_state_dict(state, strict=False)
    small = slim(trace(model, (), example()), budget=BUDGET)
    due = dict(small.model.named_parameters())
    mine = {n: t for path in output.glob("*.safetensors") for n, t in load_file(path).items()}
    other = [
        n
        for n in due.keys() | mine
        if n not in mine or n not in due or not torch.equal(mine[n], due[n])
    ]
    return {
        "tensors": len(due),
        "other": len(other),
        "same_edit": Edit.load(output / "edit.json") == small.edit,
        "peak_bytes": memory.peak(),
    }


def copied(folder: Path, output: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["cp", "-r", folder, output], check=True)
    for path in output.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start


def row(size: str, home: Path, repeats: int) -> dict[str, Any]:
    folder, output = home / "large", home / "out"
    folder.mkdir()
    write(size, folder)
    total = sum(path.stat().st_size for path in folder.iterdir())
    sizes = SIZES[size]
    largest = 2 * sizes["vocab_size"] * sizes["hidden_size"]
    runs, cps, same = [], [], {}
    for _ in range(repeats):
        cps.append(copied(folder, output))
        shutil.rmtree(output)
        runs.append(apart(__spec__.name, "--child", "streamed", size, folder, output))
        written = sum(path.stat().st_size for path in output.glob("*.safetensors"))
        if size == min(SIZES) and not same:
            same = apart(__spec__.name, "--child", "equal", size, folder, output)
        shutil.rmtree(output)
    peak = max(run["peak_bytes"] for run in runs)
    return {
        "n": repeats,
        "bytes": total,
        "written_bytes": written,
        "largest_tensor_bytes": largest,
        "seconds": [round(run["seconds"], 2) for run in runs],
        "cpu_seconds": [round(run["cpu_seconds"], 2) for run in runs],
        "cp_seconds": [round(cp, 2) for cp in cps],
        "by_cp": statistics.median(run["seconds"] / cp for run, cp in zip(runs, cps, strict=True)),
        "peak_bytes": peak,
        "peak_above_libraries_bytes": max(r["peak_bytes"] - r["libraries_bytes"] for r in runs),
        "load": [round(load, 1) for load in os.getloadavg()],
        "peak_limit_bytes": 3 * largest + 2**29,
        **({"in_memory": same} if same else {}),
    }


def main() -> None:
    parser = command.parser(__doc__, "stream.json")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        what, size, folder, output = given.child
        run = {"streamed": streamed, "equal": equal}[what]
        print(json.dumps(run(size, Path(folder), Path(output))))
        return
    report = results.load(given.out) if given.out.exists() else {"rows": {}}
    report.update(
        versions=results.versions(), threads=torch.get_num_threads(), cores=os.cpu_count()
    )
    for size in given.sizes:
        if size in report["rows"]:
            continue
        with tempfile.TemporaryDirectory(dir=given.scratch) as where:
            need = 16 * 10**9 if size == max(SIZES) else 2 * 10**9
            if shutil.disk_usage(where).free < need:
                raise SystemExit(
                    f"{size} takes {need / 1e9:.0f} GB of disk; give --scratch on a larger one"
                )
            report["rows"][size] = row(size, Path(where), given.repeats)
        print(size, report["rows"][size], flush=True)
        results.save(given.out, report)


if __name__ == "__main__":
    main()
