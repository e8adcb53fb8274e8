import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime", reason='pip install "graftlib[onnx]"')
pytest.importorskip("onnxscript", reason='pip install "graftlib[onnx]"')


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("models.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def models():
    """The small models of this folder."""
    return sys.modules.setdefault("export_test_models", _load("export_test_models"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
