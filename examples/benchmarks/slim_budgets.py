"""Twelve models at three budgets of MACs: what `slim` keeps of them, what it costs, and whether time is foretold.

    python -m examples.benchmarks.slim_budgets --out docs/benchmarks/slim_budgets.json

No argument is the model's own: ``slim(graph, budget={"macs": share})`` on random weights, one process a model, one
thread. For each budget: the MACs of the small model as `torch.utils.flop_counter` counts them, by the MACs that are
asked for (1.0 is the budget met to the last); processor seconds of `slim`, which times two passes, too; the latency
that `latency_of` foretells by the measured one. A model that is in the file already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from ..common import command, results
from ..common.models import Built, macs, text, vision
from ..common.processes import ProcessError, apart
from .trace_cost import PACKAGES

SHARES = (0.7, 0.5, 0.3)
WORDS = (0, 1000, 1, 128)


def _ssdlite() -> Built:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    return model, ([torch.rand(3, 320, 320)],)


_SMALL = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
}
_HEADS = {"num_attention_heads": 12, "num_key_value_heads": 4}
MODELS: dict[str, Callable[[], Built]] = {
    "ResNet-50": vision("resnet50"),
    "MobileNetV3-L": vision("mobilenet_v3_large"),
    "EfficientNet-B0": vision("efficientnet_b0"),
    "ConvNeXt-T": vision("convnext_tiny"),
    "ViT-S": vision("timm:vit_small_patch16_224"),
    "Swin-T": vision("swin_t"),
    "ConvFormer-S18": vision("timm:convformer_s18"),
    "BERT-base": text("BertModel", WORDS),
    "MiniLM": text(
        "BertModel", WORDS, hidden_size=384, num_hidden_layers=6, intermediate_size=1536
    ),
    "Llama": text("LlamaForCausalLM", WORDS, **_SMALL, **_HEADS),
    "Qwen3": text("Qwen3ForCausalLM", WORDS, **_SMALL, **_HEADS, head_dim=64),
    "SSDLite": _ssdlite,
}


def measure(name: str, *, table: bool) -> dict[str, Any]:
    from graftlib import slim, trace
    from graftlib.slim import latency_of

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, args = MODELS[name]()
    model.eval()
    start = time.process_time()
    graph = trace(model, args)
    traced = time.process_time() - start
    start = time.process_time()
    latency = latency_of(graph) if table else None
    row: dict[str, Any] = {"trace_s": traced, "macs": macs(model, *args)}
    if latency is not None:
        row |= {"table_s": time.process_time() - start, "rest_ms": latency.constant}
    row["budgets"] = []
    for share in SHARES:
        found: dict[str, Any] = {"share": share}
        start = time.process_time()
        try:
            small = slim(graph, budget={"macs": share})
        except Exception as error:
            found["answer"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            found["least"] = getattr(error, "least", {}).get("macs", 0) / row["macs"]
        else:
            found["cpu_s"] = time.process_time() - start
            found["of_budget"] = macs(small.model, *args) / (share * row["macs"])
            after = small.report.widths.sizes
            found["before_ms"], found["ms"] = small.report.measured_ms
            if latency is not None:
                sizes = [after.get(each, each.size) for each in graph.axis_classes]
                found["foretold_ms"] = latency.total(sizes)
        row["budgets"].append(found)
    return row


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--no-table", action="store_true", help="foretell no latency")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.one:
        print(json.dumps(measure(asked.one, table=not asked.no_table)))
        return
    report: dict[str, Any] = {"machine": results.machine(*PACKAGES), "rows": {}}
    if asked.out and asked.out.exists():
        report = results.load(asked.out)
    for name in asked.models:
        if name in report["rows"]:
            continue
        try:
            row = apart(__spec__.name, "--one", name, *["--no-table"] * asked.no_table)
        except ProcessError as error:
            row = {"answer": f"failed: {error}"}
        report["rows"][name] = row
        print(name, json.dumps(report["rows"][name]), flush=True)
        if asked.out:
            results.save(asked.out, report)


if __name__ == "__main__":
    main()
