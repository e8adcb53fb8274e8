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


class Picture(nn.Module):
    """Two convolutions and a product."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.more = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.more(self.stem(x).relu()).relu().mean((2, 3)))


def test_ranges_from_data_take_convolutions_too(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(4)]
    options = {"quantize": "int8-static", "measure": False}
    report = export_onnx(Picture(), tmp_path / "net.onnx", (data[0],), data=data, **options)
    assert report.size_bytes < 0.4 * report.quantized.float_bytes
    assert 0.99 < report.quantized.torch.cosine < 1
    assert report.quantized.torch.batch_sizes == (8,)
    assert report.quantized.torch.rows == 8  # the one that is held out
    assert report.quantized.how in str(report)
    narrow = [each / 100 for each in data[:3]] + data[3:]
    worse = export_onnx(Picture(), tmp_path / "net.onnx", (data[0],), data=narrow, **options)
    assert worse.quantized.torch.cosine < report.quantized.torch.cosine


def test_keywords_come_in_the_order_of_the_file(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(40, 30), nn.Linear(10, 30)

        def forward(self, long, short):
            return self.a(long) + self.b(short)

    example = {"long": torch.randn(2, 40), "short": torch.randn(2, 10)}
    data = [{"short": torch.randn(2, 10), "long": torch.randn(2, 40)} for _ in range(2)]
    options = {"quantize": "int8-static", "measure": False, "data": data}
    report = export_onnx(Two(), tmp_path / "two.onnx", (), example, **options)
    assert report.quantized.torch.cosine > 0.95


def test_data_that_do_not_fit_are_refused(tmp_path):
    path, x = tmp_path / "net.onnx", (torch.randn(2, 3, 8, 8),)
    options = {"quantize": "int8-static", "measure": False}
    with pytest.raises(ExportError, match="there are none"):
        export_onnx(Picture(), path, x, **options)
    with pytest.raises(ExportError, match="holds no inputs"):
        export_onnx(Picture(), path, x, data=[], **options)
    with pytest.raises(ExportError, match="has 1 inputs"):
        export_onnx(Picture(), path, x, data=[(x[0], x[0])], **options)
    with pytest.raises(ExportError, match="cannot be quantized by these data"):
        export_onnx(Picture(), path, x, data=[x[0][:, :2]], **options)
    assert not path.exists()


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


def test_a_slim_model_is_shipped_in_int8_and_measured_beside_the_original(tmp_path):
    graph = graftlib.trace(Words().eval(), INPUT)
    slim = graftlib.slim(graph, budget={"params": 0.5})
    report = slim.export_onnx(tmp_path / "slim.onnx", quantize="int8")
    assert report.quantized.torch.cosine > 0.95
    files = [report.source, report.quantized.float_target, report.target]
    sizes = [file.size_bytes for file in files]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] == report.size_bytes < sizes[0] / 4
    table = str(report).splitlines()
    rows = [line for line in table if "kB" in line and " ms " in line]
    assert len(rows) == 3
    assert f"{sizes[2] / sizes[0]:.3f}" in rows[2]
