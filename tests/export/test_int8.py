"""int8 files: smaller, near to what they were made from, and how near is said."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from torch import nn

import graftlib
from graftlib.errors import ExportError
from graftlib.export import export_onnx
from graftlib.export.proof import compare

INPUT = (torch.randint(0, 300, (2, 6), generator=torch.Generator().manual_seed(0)),)


class Words(nn.Module):
    """A table and two products."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(300, 64)
        self.up, self.head = nn.Linear(64, 256), nn.Linear(256, 5)

    def forward(self, ids):
        return self.head(self.up(self.table(ids)).relu().mean(1))


def test_an_int8_file_is_small_and_near(tmp_path):
    path = tmp_path / "words.onnx"
    options = {"measure": False, "metadata": {"made": "here"}}
    export_onnx(Words(), tmp_path / "floats.onnx", INPUT, **options)
    report = export_onnx(Words(), path, INPUT, quantize="int8", **options)
    assert report.quantized is not None
    assert report.size_bytes == path.stat().st_size < 0.35 * report.quantized.float_bytes
    assert report.quantized.float_bytes == (tmp_path / "floats.onnx").stat().st_size
    for each in (report.quantized.torch, report.quantized.floats):
        assert 0.99 < each.cosine < 1
        assert each.max_rel > report.comparison.max_rel
    assert report.comparison.cosine > 1 - 1e-6
    assert "int8" in str(report)
    assert {"key": "made", "value": "here"} in [
        {"key": each.key, "value": each.value} for each in onnx.load(path).metadata_props
    ]
    assert json.loads(path.with_suffix(".card.json").read_text())["quantized"]["float_bytes"]


def test_what_is_said_is_seen_to_differ(tmp_path):
    """Against a model with other weights the cosine falls."""
    path = tmp_path / "words.onnx"
    export_onnx(Words(), path, INPUT, quantize="int8", measure=False)
    said = [
        compare(model.eval(), path, INPUT, {}, batch_sizes=[2], seed=0).cosine
        for model in (Words(), Words(seed=1))
    ]
    assert said[0] > 0.99 > said[1]


def test_what_cannot_be_quantized_is_refused(tmp_path):
    path = tmp_path / "net.onnx"
    net, image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (torch.randn(2, 3, 8, 8),)
    with pytest.raises(ExportError, match="nothing to quantize"):
        export_onnx(net, path, image, quantize="int8", measure=False)
    with pytest.raises(ExportError, match="quantize"):
        export_onnx(net, path, image, quantize="int4", measure=False)
    assert not path.exists()
    assert export_onnx(net, path, image, measure=False).quantized is None


def test_a_slim_model_is_shipped_in_int8(tmp_path):
    graph = graftlib.trace(Words().eval(), INPUT)
    slim = graftlib.slim(graph, budget={"params": 0.5})
    report = slim.export_onnx(tmp_path / "slim.onnx", quantize="int8", measure=False)
    assert report.quantized is not None
    assert report.quantized.torch.cosine > 0.99
