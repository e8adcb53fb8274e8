"""What only a GPU can say, in one command and a few minutes: do grafts work there, what do they cost, do they help.

    export PYTHONPATH=.:adapters                                               where graftlib is not installed
    python -m examples.paper.on_gpu --make-data .gpu/images.npz --root DIR     once, where the data sets are
    python -m examples.paper.on_gpu --data .gpu/images.npz --out gpu.json --minutes 8
    python -m examples.paper.on_gpu --data .gpu/images.npz --out dry.json --device cpu --minutes 1      a dry run

checks   `device_checks.py`: every way to train with a graft, on this device
cost     `../benchmarks/gpu.py`: step ratios, memory and waits
table1   `gpu_table1.py`: the paper's setting, several seeds, by CUDA graphs; as many epochs as fit
carry    `carry.py`: which grafts carry knowledge, with all their controls, on two data sets; only where it is asked
         for: --only carry --processes 8

In: one file of images; nothing is downloaded. Out: one JSON; beside it, a file of JSON lines that grows with every
result and from which the same command goes on where it was cut off. Always true: every part runs in processes of its
own with a share of the time, so that a part that fails or hangs costs the others nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graftlib.disk import write_whole

from ..common import command, results

PARTS = ("checks", "cost", "table1", "carry")
SHARES = {
    "cuda": {"checks": 0.15, "cost": 0.3, "table1": 0.5},
    "cpu": {"checks": 0.35, "cost": 0.4, "table1": 0.5},
}
"""Of the time that is left when a part begins; the last of those asked for gets all."""
DATASETS = ("cifar10", "fashion-mnist")
FIRST_SEED, DRY_SEEDS = 20_000, 2
OF_A_RUN = (
    *("setting", "seed", "top-1", "loss", "training loss", "row norm", "seconds"),
    *("transfers", "skipped", "angle of a write", "size of a write", "mean angle of a write"),
)
"""What the report says of a run; the rest is said once a table."""

Tell = Callable[[dict[str, Any]], None]


def main() -> None:
    args = arguments()
    if args.make_data:
        make_data(args.make_data, args.root)
        return
    if args.part:
        work(args)
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "needs a CUDA device (--device cpu is a dry run: its times and accuracies mean nothing)"
        )
    deadline = time.time() + 60 * args.minutes
    parts = [part for part in PARTS if part in args.only.split(",")]
    if not parts:
        sys.exit(f"--only {args.only}: there are {', '.join(PARTS)}")
    log = args.out.with_suffix(".jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        left = deadline - time.time()
        share = 1.0 if part == parts[-1] else SHARES[args.device][part]
        if left < 5:
            note(log, {"part": part, "kind": "error", "error": "no time was left"})
            continue
        began = time.time()
        said = run_part(part, args, left * share, log)
        note(log, {"part": part, "kind": "end", "seconds": time.time() - began, "exits": said})
        write_report(args, log)
    write_report(args, log)
    print(args.out.with_suffix(".md").read_text("utf-8"))


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__, "gpu.json")
    parser.add_argument("--data", type=Path, default=Path(".gpu/images.npz"))
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--only", default=",".join(PARTS[:3]), help="some of the parts")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--make-data", type=Path, help="write the file of images, and nothing else")
    command.add_root(parser, required=False)
    table = parser.add_argument_group("table1 and carry")
    table.add_argument("--dataset", choices=DATASETS, default="cifar10")
    table.add_argument("--train", type=int, default=8000, help="training images")
    table.add_argument("--regime", choices=("adamw", "sgd"), default="adamw")
    table.add_argument("--settings", help="separated by ';', instead of all")
    table.add_argument("--seeds", type=int, default=6)
    table.add_argument("--steps", type=int, help="of a run, instead of as many as fit")
    table.add_argument("--processes", type=int, default=3)
    table.add_argument("--streams", type=int, default=3, help="runs at a time in one process")
    inner = parser.add_argument_group("used by the command itself")
    inner.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    inner.add_argument("--until", type=float, help=argparse.SUPPRESS)
    inner.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    inner.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------------------ the data


def make_data(path: Path, root: str | Path | None) -> None:
    """Write CIFAR-10's 10,000 images and Fashion-MNIST's 60,000 as bytes.

    Raises:
        SystemExit: a data set is not below `root`.
    """
    if root is None:
        sys.exit("--root DIR, or GRAFTLIB_DATA, names the folder of data sets")
    from torchvision.datasets import FashionMNIST

    try:
        with np.load(Path(root) / "cifar10" / "cifar10_10k.npz", allow_pickle=False) as file:
            x, y = np.moveaxis(file["x"], -1, 1), file["y"]
        fashion = FashionMNIST(root, train=True, download=False)
    except (OSError, RuntimeError, KeyError) as error:
        sys.exit(f"{root}: {type(error).__name__}: {error}")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        **{
            "cifar10 x": _differences(x),
            "cifar10 y": y.astype(np.uint8),
            "fashion-mnist x": _differences(fashion.data.numpy()[:, None]),
            "fashion-mnist y": fashion.targets.numpy().astype(np.uint8),
        },
    )
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def _differences(x: np.ndarray) -> np.ndarray:
    """Of bytes to their neighbours above and to the left, modulo 256: photographs compress a third better."""
    if x.shape[1] == 1:  # drawings on an even ground compress better as they are
        return np.ascontiguousarray(x)
    x = x.copy()
    x[:, 0] -= x[:, 1]
    x[:, 2] -= x[:, 1]
    for axis in (2, 3):
        x = np.diff(x, axis=axis, prepend=np.zeros_like(x.take([0], axis)))
    return x


def _summed(x: np.ndarray) -> np.ndarray:
    """What `_differences` was given."""
    if x.shape[1] == 1:
        return x
    for axis in (2, 3):
        x = x.cumsum(axis, dtype=np.uint8)
    x[:, 0] += x[:, 1]
    x[:, 2] += x[:, 1]
    return x


def images(path: Path, dataset: str, train: int, held_out: int) -> tuple[torch.Tensor, ...]:
    """Bytes (n, c, h, w) and labels, to learn from and held out: stratified, seed 0, and disjoint."""
    from ..common.datasets import stratified

    with np.load(path, allow_pickle=False) as file:
        x = torch.from_numpy(_summed(file[f"{dataset} x"]))
        y = torch.from_numpy(file[f"{dataset} y"]).long()
    order = stratified(y, 0, train)
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[order] = False
    test_x, test_y = x[rest], y[rest]
    if len(test_y) > held_out:
        few = stratified(test_y, 0, held_out)
        test_x, test_y = test_x[few], test_y[few]
    return x[order], y[order], test_x, test_y


# ----------------------------------------------------------------------------------------------------------- the parts


def run_part(part: str, args: argparse.Namespace, seconds: float, log: Path) -> list[int]:
    """Run a part in processes of its own, `seconds` at most; their exit codes."""
    seeds = min(args.seeds, DRY_SEEDS) if args.device == "cpu" else args.seeds
    workers = 1
    if part == "table1":
        workers = min(args.processes, seeds)
    elif part == "carry":  # the data sets take turns
        workers = min(args.processes, seeds * len(DATASETS)) // len(DATASETS) * len(DATASETS)
    until = time.time() + seconds
    with tempfile.TemporaryDirectory() as folder:
        so_far = Path(folder) / "done.jsonl"
        if log.exists():
            so_far.write_text(log.read_text("utf-8"), "utf-8")
        environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUNBUFFERED": "1"}
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", __spec__.name, *sys.argv[1:]),
                    *("--part", part, "--until", str(until), "--worker", str(i)),
                    *("--folder", folder, "--processes", str(workers)),
                ],
                env=environment,
                start_new_session=True,
            )
            for i in range(workers)
        ]
        read = [0] * workers
        grace = 20 if args.device == "cuda" else 40
        while any(p.poll() is None for p in processes) and time.time() < until + grace:
            time.sleep(0.3)
            read = _gather(part, Path(folder), read, log)
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        exits = [process.wait() for process in processes]
        _gather(part, Path(folder), read, log)
    return exits


def _gather(part: str, folder: Path, read: list[int], log: Path) -> list[int]:
    """Move whole lines that the workers have written since into the log."""
    now = []
    for i, before in enumerate(read):
        path = folder / f"worker{i}.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        for line in whole[before:]:
            note(log, {"part": part, **json.loads(line)})
        now.append(len(whole))
    return now


def note(log: Path, record: dict[str, Any]) -> None:
    """Add a line to the log, and print it."""
    line = json.dumps(record, default=str)
    with log.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line[:400], flush=True)


def lines_of(log: Path, part: str) -> list[dict[str, Any]]:
    """What the log says of a part."""
    if not log.exists():
        return []
    records = (json.loads(line) for line in log.read_text("utf-8").splitlines() if line)
    return [record for record in records if record["part"] == part]


def work(args: argparse.Namespace) -> None:
    """One worker of one part."""
    torch.set_num_threads(1 if args.device == "cpu" else 4)
    out = args.folder / f"worker{args.worker}.jsonl"

    def tell(record: dict[str, Any]) -> None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, default=str) + "\n")

    done = lines_of(args.folder / "done.jsonl", args.part)
    try:
        parts = {"checks": _checks, "cost": _cost, "table1": _table1, "carry": _carry}
        parts[args.part](args, done, tell)
    except Exception:
        tell({"kind": "error", "error": traceback.format_exc()[-2000:]})
        sys.exit(1)


def _checks(args: argparse.Namespace, done: list[dict[str, Any]], tell: Tell) -> None:
    from .device_checks import CHECKS

    passed = {record["name"] for record in done if record.get("passed")}
    for name, check in CHECKS.items():
        if name in passed:
            continue
        record: dict[str, Any] = {"kind": "check", "name": name}
        if time.time() > args.until:
            tell({"kind": "error", "name": name, "error": "no time was left"})
            continue
        began = time.time()
        try:
            record |= {"passed": True, "seen": check(args.device)}
        except Exception:
            record |= {"passed": False, "error": traceback.format_exc()[-1500:]}
        tell(record | {"seconds": round(time.time() - began, 2)})


def _cost(args: argparse.Namespace, done: list[dict[str, Any]], tell: Tell) -> None:
    from ..benchmarks import gpu

    words = ["--device", args.device, "--rounds", "7", "--cycles", "5"]
    settings = gpu.arguments([*words, "--small"] if args.device == "cpu" else words)
    measured = {record["variant"] for record in done if record["kind"] == "cost"}
    for variant in gpu.VARIANTS:
        if variant.name in measured:
            continue
        if time.time() > args.until:
            tell({"kind": "error", "variant": variant.name, "error": "no time was left"})
            continue
        began = time.time()
        try:
            row = gpu.measure(variant, settings)
            seconds = round(time.time() - began, 1)
            tell({"kind": "cost", **row, "seconds": seconds, "settings": vars(settings)})
        except Exception:
            error = traceback.format_exc()[-1500:]
            tell({"kind": "error", "variant": variant.name, "error": error})


def _table1(args: argparse.Namespace, done: list[dict[str, Any]], tell: Tell) -> None:
    from .gpu_table1 import SETTINGS, Plan
    from .gpu_table1 import work as run_all

    torch.backends.cudnn.benchmark = True
    small = args.device == "cpu"
    settings = tuple(args.settings.split(";")) if args.settings else SETTINGS
    _refuse_unknown(settings, SETTINGS)
    data = _data(args, args.dataset, 10_000)
    facts = {
        "dataset": args.dataset,
        "train": len(data.y),
        "held out": len(data.test_y),
        "regime": args.regime,
    }
    same = [r for r in done if all(r.get("data", {}).get(k) == v for k, v in facts.items())]
    plans = [record["steps"] for record in same if record["kind"] == "plan"]
    steps = args.steps or (plans[-1] if plans else None)
    seeds = tuple(
        range(FIRST_SEED, FIRST_SEED + (min(args.seeds, DRY_SEEDS) if small else args.seeds))
    )
    plan = Plan(args.regime, seeds, settings, 16 if small else 128, args.streams, small, steps)
    finished = {
        (r["setting"], r["seed"]) for r in same if r["kind"] == "run" and r["steps"] == steps
    }
    run_all(
        plan,
        data,
        args.until,
        args.worker,
        min(args.processes, len(seeds)),
        args.folder,
        finished,
        lambda record: tell({"data": facts} | record),
    )


def _carry(args: argparse.Namespace, done: list[dict[str, Any]], tell: Tell) -> None:
    from .carry import SETTINGS
    from .carry import work as run_all

    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(1 if args.device == "cpu" else 2)
    small = args.device == "cpu"
    settings = tuple(args.settings.split(";")) if args.settings else SETTINGS
    _refuse_unknown(settings, SETTINGS)
    dataset, turn = DATASETS[args.worker % len(DATASETS)], args.worker // len(DATASETS)
    data = _data(args, dataset, 2000)
    facts = {"dataset": dataset, "train": len(data.y), "held out": len(data.test_y)}
    same = [r for r in done if all(r.get("data", {}).get(k) == v for k, v in facts.items())]
    plans = [record["steps"] for record in same if record["kind"] == "plan"]
    steps = args.steps or (plans[-1] if plans else None)
    count = min(args.seeds, DRY_SEEDS) if small else args.seeds
    seeds = range(FIRST_SEED + turn, FIRST_SEED + count, args.processes // len(DATASETS))
    run_all(
        data,
        seeds,
        settings,
        args.until,
        args.worker,
        args.processes,
        args.folder,
        {(r["setting"], r["seed"]) for r in same if r["kind"] == "run" and r["steps"] == steps},
        lambda record: tell({"data": facts} | record),
        batch=16 if small else 128,
        streams=1 if small else args.streams,
        width=4 if small else 8,
        steps=steps,
    )


def _refuse_unknown(settings: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise SystemExit(f"--settings {unknown}: there are {'; '.join(known)}")


def _data(args: argparse.Namespace, dataset: str, held_out: int) -> Any:
    """Images on the device; few and small ones for a dry run."""
    from .captured import Data

    small = args.device == "cpu"
    parts = images(args.data, dataset, args.train, 200 if small else held_out)
    if small:
        parts = (parts[0][:400, :, ::2, ::2], parts[1][:400], parts[2][..., ::2, ::2], parts[3])
    return Data.of(*parts, args.device)


# ---------------------------------------------------------------------------------------------------------- the report


def write_report(args: argparse.Namespace, log: Path) -> None:
    """Everything in the log as one JSON, and as Markdown to read."""
    found = {part: lines_of(log, part) for part in PARTS}
    cuda = args.device == "cuda"
    report = {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "dry_run": not cuda,
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "python": platform.python_version(),
        },
        "command": [
            Path(w).name if w in (str(args.out), str(args.data)) else w for w in sys.argv[1:]
        ],
        "checks": [r for r in found["checks"] if r["kind"] == "check"],
        "cost": [r for r in found["cost"] if r["kind"] == "cost"],
        "table1": table(found["table1"]),
        "carry": [_short(one) for one in table(found["carry"], "carry")],
        "errors": [r for records in found.values() for r in records if r["kind"] == "error"],
        "ends": [r for records in found.values() for r in records if r["kind"] == "end"],
    }
    results.save(args.out, report)
    write_whole(args.out.with_suffix(".md"), "\n".join(_markdown(report)) + "\n")


def _named(part: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The rows and the differences of a table."""
    from . import carry, gpu_table1

    if part == "table1":
        return ("source", *gpu_table1.SETTINGS), gpu_table1.CONTRASTS
    return ("wide source", "equal source", *carry.SETTINGS), carry.CONTRASTS


def table(records: list[dict[str, Any]], part: str = "table1") -> list[dict[str, Any]]:
    """Per data set, regime and number of steps: means, and paired differences with their 95 % intervals."""
    from ..common.intervals import interval

    settings, contrasts = _named(part)
    groups: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for record in records:
        if record["kind"] == "run":
            key = json.dumps([record["data"], record["steps"], record["epochs"]])
            groups.setdefault(key, {})[record["setting"], record["seed"]] = record
    tables = []
    for key, runs in groups.items():
        data, steps, epochs = json.loads(key)
        rows, differences = {}, {}
        for name in settings:
            own = [run for (setting, _), run in runs.items() if setting == name]
            if own:
                tops = [run["top-1"] for run in own]
                rows[name] = {
                    "n": len(own),
                    "top-1": float(np.mean(tops)),
                    "sd": float(np.std(tops, ddof=1)) if len(own) > 1 else math.nan,
                    "loss": float(np.mean([run["loss"] for run in own])),
                    "training loss": float(np.mean([run["training loss"] for run in own])),
                    "row norm": float(np.mean([run.get("row norm", math.nan) for run in own])),
                }
        for contrast in contrasts:
            one, other = contrast.split(" - ")
            pairs = [
                (runs[one, s], runs[other, s])
                for setting, s in runs
                if setting == one and (other, s) in runs
            ]
            if pairs:
                differences[contrast] = {"n": len(pairs)} | {
                    metric: interval([a[metric] - b[metric] for a, b in pairs])
                    for metric in ("top-1", "loss")
                }
        plan = [r for r in records if r["kind"] in ("plan", "built") and r["data"] == data]
        tables.append(
            {
                "data": data,
                "steps": steps,
                "epochs": epochs,
                "plans": plan,
                "rows": rows,
                "differences": differences,
                "runs": [{k: v for k, v in run.items() if k in OF_A_RUN} for run in runs.values()],
            }
        )
    return tables


def _short(one: dict[str, Any]) -> dict[str, Any]:
    """A table without its single runs and plans, of which the accuracies stand in the rows."""
    took = [plan["took"] for plan in one.pop("plans") if plan["kind"] == "plan"]
    if took:
        one["seconds a step"] = took[-1]
    for run in sorted(one.pop("runs"), key=lambda run: run["seed"]):
        one["rows"][run["setting"]].setdefault("top-1 of each seed", []).append(run["top-1"])
    return one


def _markdown(report: dict[str, Any]) -> list[str]:
    lines = [f"{report['device']}, torch {report['versions']['torch']}"]
    if report["dry_run"]:
        lines.append("\nA dry run: no figure here means anything.")
    checks = report["checks"]
    lines += ["", f"{sum(c['passed'] for c in checks)} of {len(checks)} checks passed"]
    lines += [f"- FAILED {c['name']}: {c['error'][-300:]}" for c in checks if not c["passed"]]
    for row in report["cost"]:
        low, high = row["quartiles"]
        lines.append(
            f"- {row['variant']}: step {row['ratio']:.3f}x ({low:.3f} to {high:.3f}) of "
            f"{1000 * row['plain_seconds_per_step']:.1f} ms, waits outside {row['grafted_waits_outside']} "
            f"(plain {row['plain_waits_outside']}), peak {row['grafted_peak_bytes']} "
            f"(plain {row['plain_peak_bytes']}) bytes"
        )
    for each in (*report["table1"], *report["carry"]):
        lines += ["", f"{each['data']}, {each['steps']} steps, {each['epochs']} epochs", ""]
        lines += [
            "| setting | n | top-1 | sd | held-out loss | row norm |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in each["rows"].items():
            lines.append(
                f"| {name} | {row['n']} | {row['top-1']:.2f} | {row['sd']:.2f} | {row['loss']:.3f} "
                f"| {row['row norm']:.2f} |"
            )
        lines += [
            "",
            "| difference | n | top-1 | 95 % | loss | 95 % |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in each["differences"].items():
            cells = [
                f"{mean:{form}} | " + ("" if low is None else f"{low:{form}} to {high:{form}}")
                for (mean, low, high), form in ((row["top-1"], "+.2f"), (row["loss"], "+.3f"))
            ]
            lines.append(f"| {name} | {row['n']} | {cells[0]} | {cells[1]} |")
    lines += [f"- ERROR {e['part']}: {str(e['error'])[-400:]}" for e in report["errors"]]
    return lines


if __name__ == "__main__":
    main()
