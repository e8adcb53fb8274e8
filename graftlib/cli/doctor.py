"""``graftlib doctor``: what is installed, what is missing, and whether the whole path works here."""

from __future__ import annotations

import importlib
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import typer

from . import options
from .console import say, say_json, working

__all__ = ["doctor", "extras"]

MODULES = {"scikit-learn": "sklearn"}
"""Distributions whose module has another name."""
FOR_DEVELOPERS = ("dev", "docs")


def doctor(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Report what is installed here and whether it works.

    Versions, extras, devices, threads; then a small model goes through trace and export. The
    exit code is 1 where the core itself does not work here; a missing extra leaves it at 0.

    Example: graftlib doctor --json
    """
    with working("looking around"):
        found: dict[str, Any] = {**_machine(), "extras": extras()}
    with working("smoke test"):
        found["smoke"] = {"trace": _timed(_trace)}
        if found["extras"].get("onnx", {}).get("ready"):
            found["smoke"]["export"] = _timed(_export)
    found["healthy"] = all(step["passed"] for step in found["smoke"].values())
    if as_json:
        say_json(found)
    else:
        _print(found)
    if not found["healthy"]:
        raise typer.Exit(1)


def extras() -> dict[str, dict[str, Any]]:
    """Extra -> its libraries with version and state, whether all of them are ready, and the line that installs it."""
    wanted: dict[str, list[str]] = {}
    for line in requires("graftlib") or ():
        parts = re.fullmatch(r"""([\w.-]+)[^\[;]*;.*\bextra\s*==\s*['"]([\w-]+)['"].*""", line)
        if parts and parts[2] not in FOR_DEVELOPERS:
            wanted.setdefault(parts[2], []).append(parts[1])
    found = {}
    for extra, names in wanted.items():
        states = {name: _state(name) for name in names}
        found[extra] = {
            "libraries": states,
            "ready": all(state["state"] == "ready" for state in states.values()),
            "install": f'pip install "graftlib[{extra}]"',
        }
    return found


def _state(distribution: str) -> dict[str, str | None]:
    try:
        number = version(distribution)
    except PackageNotFoundError:
        return {"state": "missing", "version": None}
    try:
        importlib.import_module(MODULES.get(distribution, distribution))
    except Exception as error:  # a library built for another torch fails in ways of its own
        return {"state": f"broken: {type(error).__name__}: {error}", "version": number}
    return {"state": "ready", "version": number}


def _machine() -> dict[str, Any]:
    """Versions, devices and threads."""
    import torch

    devices: list[dict[str, Any]] = [
        {"device": "cpu", "name": platform.machine(), "memory_bytes": None}
    ]
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        facts = {"device": f"cuda:{i}", "name": card.name, "memory_bytes": card.total_memory}
        devices.append(facts)
    return {
        "versions": {
            "graftlib": version("graftlib"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "executable": sys.executable,
        },
        "devices": devices,
        "threads": {
            "intra_op": torch.get_num_threads(),
            "inter_op": torch.get_num_interop_threads(),
        },
    }


def _timed(step: Callable[[], str]) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        answer, passed = step(), True
    except Exception as error:  # whatever is wrong is the finding
        answer, passed = f"{type(error).__name__}: {error}", False
    return {"passed": passed, "answer": answer, "seconds": round(time.perf_counter() - start, 2)}


def _tiny() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from torch import nn

    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)
    )
    return net.eval(), (torch.rand(2, 3, 8, 8),)


def _trace() -> str:
    from ..graph import trace

    model, args = _tiny()
    graph = trace(model, args)
    return f"{len(graph.layers)} layers, seen by {graph.tracer}"


def _export() -> str:
    from ..export import export_onnx

    model, args = _tiny()
    with tempfile.TemporaryDirectory() as folder:
        report = export_onnx(model, Path(folder) / "tiny.onnx", args)
    return f"{report.nodes} nodes, largest relative difference {report.max_rel_difference:.1e}"


def _print(found: dict[str, Any]) -> None:
    for name, number in found["versions"].items():
        say(f"{name:<12}{number}")
    for device in found["devices"]:
        memory = device["memory_bytes"]
        size = f", {memory / 2**30:.0f} GiB" if memory else ""
        say(f"{device['device']:<12}{device['name']}{size}")
    threads = found["threads"]
    say(f"{'threads':<12}{threads['intra_op']} within an op, {threads['inter_op']} between ops")
    for extra, facts in found["extras"].items():
        rows = [f"{n} {s['version'] or ''} {s['state']}" for n, s in facts["libraries"].items()]
        say(f"[{extra}]".ljust(12) + ", ".join(" ".join(row.split()) for row in rows))
        if not facts["ready"]:
            say(f"{'':<12}fix: {facts['install']}")
    for step, result in found["smoke"].items():
        mark = "works" if result["passed"] else "FAILS"
        say(f"{step:<12}{mark} in {result['seconds']} s: {result['answer']}")
