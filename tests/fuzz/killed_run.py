"""Export or assemble again and again in processes that are killed, and print what was seen, as JSON.

Run: ``python killed_run.py export|assemble FOLDER KILLS SEED``. Half of the kills come at a call that changes the disk,
the other half at a random time. Each process is a fork of one that has imported everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

X = torch.linspace(-1, 1, 12).view(2, 6)
CALLS = ("replace", "rename", "link", "unlink", "mkdir", "fsync", "rmdir")


def small(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def export(folder: Path, width: int) -> None:
    from graftlib.export import export_onnx, ship

    ship.ONE_FILE = 0  # bytes: the weights go beside the model
    export_onnx(small(width), folder / "m.onnx", (X,), measure=False, batch_sizes=(1,))


def assemble(folder: Path) -> None:
    from graftlib_adapters.assembly import assemble as merge

    sources = [small(width) for width in (9, 10, 11, 12)]
    merge(
        small(8),
        sources,
        args=(X,),
        evaluate=lambda model: -float((model(X) - 1).square().mean()),
        log=folder,
        resume=True,
    ).save(folder)


def killed(work: Callable[[], None], *, at: int | None = None, after: float = 0.0) -> bool:
    """Do `work` in a child that is killed at its `at`-th call that changes the disk, or `after` seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if at is not None:
                _die_at(at)
            work()
            status = 0
        finally:
            os._exit(status)
    if at is None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed by itself")
    return os.WIFSIGNALED(status)


def _die_at(at: int) -> None:
    count = [0]

    def dying(honest: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return honest(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))


def digest(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()
    }


def mixed_export(folder: Path, clean: list[dict[str, str]]) -> bool:
    """Whether the model is none of the clean ones, misses its data, or stands beside another's card."""
    seen = digest(folder)
    model = seen.get("m.onnx")
    if model is None:
        return "m.card.json" in seen
    own = next((files for files in clean if files["m.onnx"] == model), None)
    if own is None or any(
        seen.get(name) != sha for name, sha in own.items() if name.endswith(".data")
    ):
        return True
    return (
        "m.card.json" in seen
        and json.loads((folder / "m.card.json").read_text())["sha256"] != model
    )


def mixed_assembly(folder: Path, clean: list[dict[str, str]]) -> bool:
    """Whether a file that describes the weights is there without those very weights, or a file is half written."""
    seen, (own,) = digest(folder), clean
    described = [name for name in ("config.json", "report.json", "README.md") if name in seen]
    whole = all(seen[name] == own[name] for name in seen if name in own and name != "plan.json")
    if "plan.json" in seen:
        json.loads((folder / "plan.json").read_text())
    return not whole or (bool(described) and "model.safetensors" not in seen)


def main(what: str, root: Path, kills: int, seed: int) -> dict[str, Any]:
    random, folder = Random(seed), root / "here"
    folder.mkdir()
    if what == "export":
        (root / "warm").mkdir()
        export(root / "warm", 80)  # the exporter's own first use, once for all the children
        clean = []
        for width in (80, 90):
            (root / str(width)).mkdir()
            _done(lambda w=width: export(root / str(w), w))
            clean.append(digest(root / str(width)))
    else:
        (root / "clean").mkdir()
        _done(lambda: assemble(root / "clean"))
        clean = [digest(root / "clean")]
    seconds = _seconds(
        (lambda: export(root / "80", 80)) if what == "export" else lambda: assemble(root / "clean")
    )
    result = {"kills": 0, "runs": 0, "mixed": 0, "left": 0, "other bits": 0}
    while result["kills"] < kills:
        result["runs"] += 1
        width = random.choice((80, 90))
        work = (
            (lambda w=width: export(folder, w)) if what == "export" else (lambda: assemble(folder))
        )
        targeted = random.random() < 0.5
        died = killed(
            work,
            at=random.randint(1, 40) if targeted else None,
            after=random.uniform(0, 1.2 * seconds),
        )
        result["kills"] += died
        mixed = mixed_export if what == "export" else mixed_assembly
        result["mixed"] += mixed(folder, clean)
        if not died or result["kills"] % 5 == 0 or result["kills"] == kills:
            _done(work)
            seen = digest(folder)
            result["left"] += len(list(folder.iterdir())) - len(clean[0])
            result["other bits"] += seen not in clean and not _same_but_paths(seen, clean)
            if what == "assemble":
                for file in folder.iterdir():
                    file.unlink()
    return result


def _same_but_paths(seen: dict[str, str], clean: list[dict[str, str]]) -> bool:
    """A card names the path that it was written to."""
    models = [{k: v for k, v in files.items() if k != "m.card.json"} for files in clean]
    return "m.card.json" in seen and {k: v for k, v in seen.items() if k != "m.card.json"} in models


def _done(work: Callable[[], None]) -> None:
    if killed(work, at=10**9):
        raise SystemExit("a run that nobody killed died")


def _seconds(work: Callable[[], None]) -> float:
    begin = time.monotonic()
    _done(work)
    return time.monotonic() - begin


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in (
        "onnx",
        "onnxruntime",
        "onnxscript",
        "graftlib.export",
        "graftlib_adapters.assembly",
    ):
        import_module(name)  # once, for all the children
    _, what, root, kills, seed = sys.argv
    print(json.dumps(main(what, Path(root), int(kills), int(seed))))
