"""The command line with the demo on it, and sizes that finish in seconds."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("onnxruntime")

from graftlib.cli.app import app

TINY = [
    "--train-size",
    "40",
    "--source-size",
    "80",
    "--epochs",
    "4",
    "--source-epochs",
    "1",
    "--no-measure",
]


@pytest.fixture(scope="session")
def graftlib():
    """Call the command line; the result has `exit_code`, `stdout`, `stderr`."""

    def call(*args):
        return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})

    return call


class Finished:
    """One tiny demo that was run through the command line."""

    def __init__(self, result, out):
        self.result = result
        self.out = out
        self.report = json.loads((out / "report.json").read_text())


@pytest.fixture(scope="session")
def finished(graftlib, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "deep" / "out"
    result = graftlib("demo", *TINY, "--seed", 3, "-o", out)
    assert result.exit_code == 0, result.output
    return Finished(result, out)


@pytest.fixture(scope="session")
def repeated(graftlib, tmp_path_factory):
    """The same demo again with one seed more, as JSON."""
    out = tmp_path_factory.mktemp("again")
    result = graftlib("demo", *TINY, "--seed", 3, "--seeds", 2, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    return Finished(result, out)


@pytest.fixture(scope="session")
def tiny():
    return list(TINY)
