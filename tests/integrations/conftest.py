import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def loops():
    """One training, as a plain loop and for every trainer."""
    if "integration_loops" not in sys.modules:
        path = Path(__file__).with_name("loops.py")
        spec = importlib.util.spec_from_file_location("integration_loops", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["integration_loops"] = module
        spec.loader.exec_module(module)
    return sys.modules["integration_loops"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Trainers leave files where they stand."""
    monkeypatch.chdir(tmp_path)
