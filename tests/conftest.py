"""What every test shares: one thread, a seeded torch under hypothesis, the folder of real data, a browser."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import settings


class _Torch:
    """Lets hypothesis seed and restore torch's generator as it does Python's own."""

    def seed(self, value: int) -> None:
        torch.manual_seed(value)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


# hypothesis holds it weakly, so it lives here.
TORCH_RANDOM = _Torch()
hypothesis.register_random(TORCH_RANDOM)

# A first call into torch can take seconds: no deadline. CI draws the same examples on every run.
settings.register_profile("dev", deadline=None, max_examples=40)
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

torch.set_num_threads(1)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """A test that takes `device` runs on every device there is."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, in whatever order and process it runs."""
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; a test that takes it carries the mark `data`."""
    named = os.environ.get("GRAFTLIB_DATA")
    if not named:
        pytest.skip("real data: GRAFTLIB_DATA names no folder")
    root = Path(named).expanduser()
    if not root.is_dir():
        pytest.skip(f"real data: GRAFTLIB_DATA={named} is not a folder")
    return root


@pytest.fixture
def data_file(data_root: Path) -> Callable[[str], Path]:
    """A path below `data_root`; skips with its name where it is absent."""

    def find(relative: str) -> Path:
        path = data_root / relative
        if not path.exists():
            pytest.skip(f"real data: {path} is absent")
        return path

    return find


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running browser without a network; skips with the reason where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no chromium on PATH")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()
