"""Write docs/measurements.md from the JSON that the other benchmarks left in docs/benchmarks: no figure by hand.

python examples/benchmarks/tables.py
"""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"

HEAD = """# Measurements

Every table is made from a JSON file in `docs/benchmarks/` by `python examples/benchmarks/tables.py`, and every JSON
file by the command above its table. Times are those of one machine (2 cores, no GPU) that was busy with other work:
compare ratios, not seconds. CUDA, DDP and FSDP2 are not measured.
"""


def read(name: str) -> dict | None:
    path = DOCS / "benchmarks" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def step_cost(found: dict) -> str:
    settings = found["settings"]
    rows = []
    for name, row in found["arms"].items():
        low, high = row["cpu_quartiles"]
        memory = f"{row['memory_ratio']:.3f}x ({row['peak_bytes'] / 2**20:.0f} MiB)"
        ratio = f"{row['cpu_ratio']:.3f}x"
        rows.append([name, ratio, f"{low:.3f} to {high:.3f}", f"{row['wall_ratio']:.3f}x", memory])
    flags = f"--batch {settings['batch']} --rounds {settings['rounds']}"
    return f"""## What a step costs

MobileNetV2 at 32 x 32 (its stride-1 form, 100 classes, batch {settings["batch"]}), one link from a frozen ResNet-50's
classifier, a transfer every fourth step, rank {settings["rank"]}; beside it distillation with that ResNet-50 as the
teacher. Ratios to the plain step, amortised over a cycle, within a round; median and quartiles of
{settings["rounds"]} rounds, {settings["threads"]} thread. Memory is the growth of a process's largest resident set.

    python examples/benchmarks/step_cost.py {flags} --out docs/benchmarks/step_cost.json

{table(["step", "CPU time", "quartiles", "wall", "peak memory"], rows)}
"""


def adapter_cost(found: dict) -> str:
    rows = []
    for name, row in found["rows"].items():
        faster = row["times_faster_than_authors"]
        spread = f"{faster['median']:.1f}x ({faster['q1']:.1f} to {faster['q3']:.1f})"
        time = f"{row['ms']['all']['median']:.0f} ms"
        held = f"{row['saved_mib']:.0f} MiB"
        rows.append([name, f"{row['parameters'] / 1e6:.2f} M", held, time, spread])
    return f"""## What a transfer costs

One transfer with its update at the shapes of the paper's pair (160 x 960 from 100 x 2048, 8 heads, 2 layers), against
the authors' arithmetic written out: own projections for each pairing, materialised attention with dropout, a
feed-forward sized so that the parameters come to their 38.6 M. Median and quartiles of {found["repetitions"]}
interleaved repetitions over {found["seeds"]} seeds, {found["threads"]} thread. A part of the gain is their dropout, so
the second row leaves it out.

    python examples/benchmarks/adapter_cost.py --out docs/benchmarks/adapter_cost.json

{table(["adapter", "parameters", "graph held", "transfer + update", "faster than the authors'"], rows)}
"""


def import_cost(found: dict) -> str:
    rows = []
    for name, clocks in found["rows"].items():
        row = clocks["processor"]
        low, high = row["ratio_quartiles"]
        wall = f"{clocks['wall']['ratio']:.3f}x"
        rows.append([f"`{name}`", f"{row['ratio']:.3f}x", f"{low:.2f} to {high:.2f}", wall])
    return f"""## What importing costs

Against `import torch`, {found["repeats"]} interleaved repetitions in fresh interpreters.

    python examples/benchmarks/import_cost.py -o docs/benchmarks/import_cost.json

{table(["statement", "CPU time", "quartiles", "wall"], rows)}
"""


def accuracy(title: str, name: str, found: dict) -> str:
    settings = found["settings"]
    rows = []
    for arm, row in found["arms"].items():
        cells = [arm, f"{row['mean']:.2f} ± {row['sd']:.2f}"]
        for reference in ("minus plain", "minus random source"):
            gap = row.get(reference)
            cells.append(f"{gap[0]:+.2f} [{gap[1]:+.2f}, {gap[2]:+.2f}]" if gap else "")
        rows.append([*cells, f"{row['cpu_seconds']:.1f}"])
    n = next(iter(found["arms"].values()))["n"]
    flags = [f"--data {settings['data']}", f"--train-size {settings['train_size']}"]
    if settings["data"] != "digits":
        flags.insert(1, "--root DIR")
    for flag in ("epochs", "source_epochs"):
        flags.append(f"--{flag.replace('_', '-')} {settings[flag]}")
    if settings["data"] != "digits":
        flags.append("--arms " + " ".join(f'"{arm}"' for arm in settings["arms"]))
    return f"""### {title}

Source {found["source_accuracy"]:.2f} %. Accuracy of the last epoch in per cent, mean ± standard deviation of
n = {n} seeds; paired differences in points with their 95 % interval.

    python examples/benchmarks/accuracy.py {" ".join(flags)} --out docs/benchmarks/{name}.json

{table(["arm", "accuracy", "minus plain", "minus random source", "CPU s"], rows)}
"""


ACCURACY_HEAD = """## Does it help?

A slim MobileNetV2 is trained on few images; a far stronger ResNet, trained on many, is the frozen source. Two of the
target's residual branches are linked, a transfer every fourth step, stopping at 80 % of training; seed by seed all arms
share initial weights and batches. The controls carry no knowledge: a source whose linked weights are noise of the same
moments, or have their rows shuffled, or were never trained; noise of the size of the graft's own transfers at the same
steps.

**A gain of a graft counts only where it beats `plain` and `random source`.** READING
"""

READING = (
    "In none of these settings does it. Transfers that replace weights point the same way for long "
    "and add up, while noise of the same size averages out: without a bound on their size they cost "
    "accuracy, at 2 % of a layer's norm they still cost half a point on 10,000 images, and at the "
    "default of half a percent no harm is seen beyond what the seeds scatter. That default was "
    "tightened after the 2 % result on these very test images, in the safe direction only."
)


def main() -> None:
    parts = [HEAD]
    for name, section in (
        ("step_cost", step_cost),
        ("adapter_cost", adapter_cost),
        ("import_cost", import_cost),
    ):
        if found := read(name):
            parts.append(section(found))
    parts.append(ACCURACY_HEAD.replace("READING", READING))
    for title, name in (
        ("Digits, 200 training images", "accuracy_digits_200"),
        ("Fashion-MNIST, 2,000 training images", "accuracy_fashion_2000"),
        ("Fashion-MNIST, 10,000 training images", "accuracy_fashion_10000"),
    ):
        if found := read(name):
            parts.append(accuracy(title, name, found))
    (DOCS / "measurements.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
