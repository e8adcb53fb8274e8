import importlib.util
import shutil
import sys
from pathlib import Path

import pytest


def _load():
    spec = importlib.util.spec_from_file_location(
        "view_standin", Path(__file__).with_name("standin.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["view_standin"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def standin():
    """Layer graphs by hand."""
    return sys.modules.get("view_standin") or _load()


@pytest.fixture(scope="session")
def chromium():
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
