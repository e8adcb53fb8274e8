"""Does the permutation check see what is wrong, and is every axis class as narrow as it can be?

    python -m examples.benchmarks.breaks --out docs/benchmarks/breaks.json
    python -m examples.benchmarks.breaks --models "mlp" "resnet18" --seed 1 --widen --importance

Controls over twelve models with random weights (nothing is downloaded), one of them twice: with fresh running
statistics and, as "settled", with those of its inputs. Every single break and no sample:

- *left out*: every free class of two and more members is permuted with one member forgotten, for each member in turn.
  The check must see it, but for members marked `blind`, on which the function provably does not depend.
- *undone*: every tie of two free axes is left out in turn. Where other ties do not make it good again (the tie
  *bridges*), the finer classes are permuted, and the check must see it: else the class was wider than it needs to be.

- *widened*, with ``--widen``: every class that `widen` takes is widened to twice its width, and one member after the
  other is then broken: a reader reads the new units, or the old units of another member are changed. The proof of
  `widen` must see it.

- *ranked*, with ``--importance``: of every class half of the units are switched off, by what makes them and by what
  reads them, and as many are pruned by an importance that does not see it: the function must change, as it must not
  where the library's own importance chooses.

Double precision, eval mode, one thread. One process a model; a model that is in the file already is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..common import command, results
from ..common.models import Built, Logits, text, vision
from ..common.processes import apart
from . import tables
from .single_breaks import (
    forgetful_importances,
    left_out_members,
    undone_ties,
    wrong_widenings,
)


def _image(side: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(2, 3, side, side),)


def _mlp() -> Built:
    sizes = [12, 24, 20, 16]
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 5)), (torch.randn(8, 12),)


def _densenet() -> Built:
    from torchvision.models import DenseNet

    settings = {"growth_rate": 8, "block_config": (3, 3, 3), "num_init_features": 16}
    return DenseNet(**settings, num_classes=10), _image(64)  # type: ignore[arg-type]


def _settled() -> Built:
    """EfficientNet-B0 with the statistics of data: with fresh ones its deepest layers hardly move an output."""
    model, args = vision("efficientnet_b0", 64, 2, num_classes=10)()
    model.eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            norm.train()
    with torch.no_grad():
        model(torch.randn(16, 3, 64, 64))
    return model.eval(), args


def _vit() -> Built:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=3,
        num_heads=4,
        hidden_dim=48,
        mlp_dim=96,
        num_classes=10,
    )
    # torchvision starts the head with zeros: nothing would be seen through it.
    nn.init.normal_(model.heads.head.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    return model, _image(32)


def _swin() -> Built:
    from torchvision.models import SwinTransformer

    model = SwinTransformer(
        patch_size=[4, 4],
        embed_dim=24,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        num_classes=10,
    )
    return model, _image(64)


def _words(vocabulary: int = 50, rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(2, vocabulary, (rows, length))


def _t5() -> Built:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=50,
        d_model=48,
        d_kv=12,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        use_cache=False,
    )
    words = torch.randint(2, 50, (2, 9)), torch.randint(2, 50, (2, 7))
    return Logits(T5ForConditionalGeneration(config)), words


WORDS = (2, 50, 2, 9)
SIZES = {"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 96}
GPT2 = {"vocab_size": 50, "n_positions": 32, "n_embd": 48, "n_layer": 3, "n_head": 4}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 1}
LLAMA = {"num_attention_heads": 6, "num_key_value_heads": 2}
MODELS: dict[str, Callable[[], Built]] = {
    "mlp": _mlp,
    **{
        name: vision(name, 64, 2, num_classes=10)
        for name in ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "efficientnet_b0")
    },
    "efficientnet_b0, settled": _settled,
    "densenet": _densenet,
    "vit": _vit,
    "swin": _swin,
    "bert": text(
        "BertForSequenceClassification", WORDS, **SIZES, num_attention_heads=4, num_labels=5
    ),
    "gpt2": text("GPT2LMHeadModel", WORDS, **GPT2, use_cache=False),
    "llama": text("LlamaForCausalLM", WORDS, **SIZES, **LLAMA, use_cache=False),
    "t5": _t5,
}

SEEN_BAR, BLIND_BAR = 0.99, 0.06
EDITED = ("widened", "ranked")


def measure(name: str, seed: int, widen: bool = False, importance: bool = False) -> dict[str, Any]:
    """All single breaks of one model; those of a widened and of a pruned one as well where asked."""
    from graftlib import trace
    from graftlib.graph.axes.infer import infer

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, args = MODELS[name]()
    graph = trace(model.eval(), args)
    start = time.process_time()
    result = graph.check(seed=seed)
    members = list(left_out_members(graph, seed=seed, example=(args, {})))
    undone = list(undone_ties(graph, seed=seed, example=(args, {})))
    ties = len(infer(graph.model, graph.fx, real=graph.real).ties)
    edited: dict[str, Any] = {}
    if widen:
        edited["widened"] = _counted(list(wrong_widenings(_in_doubles(model, args))))
    if importance:
        edited["ranked"] = _counted(list(forgetful_importances(_in_doubles(model, args))))
    return {
        "model": name,
        "passed": result.passed,
        "classes": result.classes,
        "freedom": round(result.freedom, 4),
        "left_out": _counted(members),
        "ties": ties,
        "undone": _counted(undone),
        **edited,
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def _in_doubles(model: nn.Module, args: tuple[Any, ...]) -> Any:
    from graftlib import trace

    doubles = tuple(each.double() if each.is_floating_point() else each for each in args)
    return trace(model.double(), doubles)


def _counted(breaks: Sequence[Any]) -> dict[str, Any]:
    """How many breaks, how many of them are blind, how many of the others are seen; the first three that are not."""
    open_eyed = [each for each in breaks if not each.blind]
    return {
        "breaks": len(breaks),
        "blind": len(breaks) - len(open_eyed),
        "blind_but_seen": [each.what for each in breaks if each.blind and each.seen][:3],
        "seen": sum(each.seen for each in open_eyed),
        "unseen": [f"{each.what}: {each.error:.1e}" for each in open_eyed if not each.seen][:3],
        "smallest_seen": min((each.error for each in open_eyed if each.seen), default=None),
    }


def total(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Both controls over all models, and whether the bars hold."""
    found: dict[str, Any] = {"models": len(rows), "passed": all(row["passed"] for row in rows)}
    kinds = ["left_out", "undone"]
    kinds += [kind for kind in EDITED if rows and all(kind in row for row in rows)]
    for kind in kinds:
        breaks = sum(row[kind]["breaks"] for row in rows)
        blind = sum(row[kind]["blind"] for row in rows)
        seen = sum(row[kind]["seen"] for row in rows)
        found[kind] = {
            "breaks": breaks,
            "blind_share": round(blind / max(breaks, 1), 4),
            "seen_share": round(seen / max(breaks - blind, 1), 4),
        }
    left, undone = found["left_out"], found["undone"]
    found["holds"] = {
        f"left out: at least {SEEN_BAR:.0%} seen": left["seen_share"] >= SEEN_BAR,
        f"left out: at most {BLIND_BAR:.0%} blind": left["blind_share"] <= BLIND_BAR,
        "undone: all seen": undone["seen_share"] == 1.0,
    }
    for kind in EDITED:
        if kind in found:
            found["holds"][f"{kind}: all seen"] = found[kind]["seen_share"] == 1.0
    return found


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = command.parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--widen", action="store_true", help="the control of widen's proof, too")
    parser.add_argument(
        "--importance", action="store_true", help="the control of the importance, too"
    )
    parser.add_argument("--one", choices=list(MODELS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked.seed, asked.widen, asked.importance)))
        return
    edited = [kind for kind, on in zip(EDITED, (asked.widen, asked.importance), strict=True) if on]
    rows: dict[str, dict[str, Any]] = {}
    if asked.out and asked.out.exists():
        before = results.load(asked.out)
        if before["seed"] == asked.seed:
            known = [row for row in before["rows"] if all(kind in row for kind in edited)]
            rows = {row["model"]: row for row in known}
    for name in asked.models:
        if name not in rows:
            words = ["--widen"] * asked.widen + ["--importance"] * asked.importance
            rows[name] = apart(__spec__.name, "--one", name, "--seed", asked.seed, *words)
            print(json.dumps(rows[name]), flush=True)
        kept = [rows[each] for each in MODELS if each in rows]
        machine = results.machine("torch", "torchvision", "transformers")
        found = {"seed": asked.seed, "total": total(kept), "rows": kept, "machine": machine}
        if asked.out:
            results.save(asked.out, found)
    asked_for = [rows[name] for name in asked.models]
    whole = total(asked_for)
    print(tables.breaks({"seed": asked.seed, "total": whole, "rows": asked_for}))
    print(json.dumps(whole, indent=2))


if __name__ == "__main__":
    main()
