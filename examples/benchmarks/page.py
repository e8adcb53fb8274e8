"""What the viewer's page costs: bytes, processor time to write, time to open and to expand, frames a second.

    python -m examples.benchmarks.page --repeats 5 -o docs/benchmarks/page.json

Two pages: ResNet-50 beside MobileNetV2 with a proposed mapping, opened by its last level; and 5,000 linear layers in a
row. A chromium on PATH draws them without a GPU: frames a second are those of the processor. Writing is timed in this
process after tracing; opening and an expand by the processor time of the page's main thread, an expand also from the
click to the next frame; frames are counted while the picture is dragged, and while the wheel turns, for two seconds.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet50

from graftlib import Mapping, trace, view

from ..common import command, results
from . import tables

EXPANDING = """() => new Promise(done => {
  const arrows = document.querySelectorAll('.node[aria-expanded=false] [data-toggle]'), start = performance.now();
  arrows[arrows.length - 1].dispatchEvent(new MouseEvent('click', {bubbles: true, view: window}));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start), 0));
})"""
FRAMES = """kind => new Promise(done => {
  const sheet = document.getElementById('sheet'), start = performance.now();
  const at = {bubbles: true, cancelable: true, view: window, clientY: 300};
  const mouse = (on, name, clientX) => on.dispatchEvent(new MouseEvent(name, {...at, clientX}));
  if (kind === 'pan') mouse(sheet, 'mousedown', 400);
  let frames = 0;
  const step = () => {
    const gone = performance.now() - start, turn = Math.sin(gone / 300);
    if (gone > 2000) { mouse(window, 'mouseup', 400); done(1000 * frames / gone); return; }
    frames++;
    if (kind === 'pan') mouse(window, 'mousemove', 400 + 250 * turn);
    else sheet.dispatchEvent(new WheelEvent('wheel', {...at, clientX: 500, deltaY: 20 * turn}));
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""


def pages() -> dict[str, Any]:
    """Name -> a function that makes the view, everything traced."""
    x = torch.randn(2, 3, 64, 64, device="meta")
    pair = [trace(make().to("meta"), x) for make in (resnet50, mobilenet_v2)]
    mapping = Mapping(*pair).auto()
    with torch.device("meta"):
        row = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5000)))
    long = trace(row, torch.randn(1, 8, device="meta"))
    for graph in (*pair, long):
        _ = graph.axis_classes
    return {
        "ResNet-50 | MobileNetV2": lambda: view(*pair, mapping),
        "5,000 layers": lambda: view(long),
    }


def measure(browser: Any, make: Any, repeats: int) -> dict[str, list[float]]:
    """Figure -> its values."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            start = time.process_time()
            path = make().save(Path(folder) / "x.html")
            found.setdefault("write_s", []).append(time.process_time() - start)
            found.setdefault("kB", []).append(path.stat().st_size / 1000)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            clock = page.context.new_cdp_session(page)
            clock.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready]")
            opened = spent(clock)
            found.setdefault("open_ms", []).append(opened)
            found.setdefault("expand_wall_ms", []).append(page.evaluate(EXPANDING))
            found.setdefault("expand_ms", []).append(spent(clock) - opened)
            for _ in range(6):
                page.click("#expand")
            for kind in ("pan", "wheel"):
                before, frames = spent(clock), page.evaluate(FRAMES, kind)
                found.setdefault(f"{kind}_fps", []).append(frames)
                found.setdefault(f"{kind}_ms", []).append((spent(clock) - before) / (2 * frames))
            page.close()
    return found


def spent(clock: Any) -> float:
    """Milliseconds of a processor that the page's main thread has taken."""
    metrics = {row["name"]: row["value"] for row in clock.send("Performance.getMetrics")["metrics"]}
    return 1000 * float(metrics["TaskDuration"])


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = command.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    rows: dict[str, dict[str, Any]] = {}
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=flags)
        for name, make in pages().items():
            for figure, values in measure(browser, make, asked.repeats).items():
                row = {"median": statistics.median(values), "least": min(values)}
                rows[f"{name}, {figure}"] = row | {"most": max(values)}
        machine = results.machine() | {"browser": browser.version}
        browser.close()
    found = {"repeats": asked.repeats, "rows": rows, "machine": machine}
    print(tables.page(found))
    if asked.out:
        results.save(asked.out, found)


if __name__ == "__main__":
    main()
