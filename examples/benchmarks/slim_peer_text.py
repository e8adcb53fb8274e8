"""`graftlib.slim` beside Torch-Pruning on a sentence encoder: how near MiniLM-L6 stays to itself, without training.

    pip install torch-pruning==1.6.1
    python -m examples.benchmarks.slim_peer_text --root DIR --out docs/benchmarks/slim_peer_text.json

Half and a quarter of the MACs of 64 tokens; the width of the output stays, so heads and the neurons of the MLPs go.
Both tools read the same `--texts` IMDb reviews, drawn anew for each seed, and no labels: where gradients are asked
for, each number of the output gets a random sign. Given is the cosine of sentence vectors (means over the tokens) to
those of the whole model, on reviews nobody saw. Torch-Pruning is told the heads of each layer and that what writes the
stream stays; the attributes of each layer are set anew; the ratio is searched that comes nearest to the budget.
Finished rows stay in the file: a killed benchmark goes on.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graftlib

from ..common import command, results
from ..common.datasets import reviews
from ..common.models import macs
from .slim_peer import Ours, Peer, nearest

SHARES = (0.5, 0.25)
SETTINGS: dict[str, Ours | Peer] = {
    **{
        f"peer {importance}, {scope}": Peer(importance, scope)
        for importance in ("group-L2", "Taylor")
        for scope in ("local", "global", "isomorphic")
    },
    "magnitude, not fitted": Ours(refit=None),
    "magnitude": Ours(),
    "wanda, not fitted": Ours("wanda", refit=None),
    "wanda": Ours("wanda"),
    "wanda, isomorphic": Ours("wanda", "isomorphic"),
    "fluctuation": Ours("fluctuation"),
    "Taylor": Ours("taylor"),
    "Taylor, isomorphic": Ours("taylor", "isomorphic"),
}
Inputs = dict[str, Tensor]


def texts(root: Path, models: Path, count: int, seed: int) -> tuple[list[Inputs], Inputs]:
    """(batches to read, held-out ones): reviews of 64 tokens."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(models / "minilm-l6")

    def read(half: str, every: int) -> Inputs:
        lines = reviews(root, half)[0][::every]
        if half == "train":
            order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(seed))
            lines = [lines[i] for i in order[:count].tolist()]
        batch = words(
            lines, padding="max_length", truncation=True, max_length=64, return_tensors="pt"
        )
        return {key: batch[key] for key in ("input_ids", "attention_mask")}

    pool = read("train", 20)
    batches = [
        {key: value[start : start + 32] for key, value in pool.items()}
        for start in range(0, count, 32)
    ]
    return batches, read("test", 200)


@torch.no_grad()
def vectors(model: nn.Module, inputs: Inputs) -> Tensor:
    """(texts, width): means over the tokens of each."""
    mask = inputs["attention_mask"][..., None]
    hidden = model(**inputs).last_hidden_state
    return (hidden * mask).sum(1) / mask.sum(1)


def losses(model: nn.Module, batches: list[Inputs]) -> Iterator[Tensor]:
    """Of each batch: its output, each number with a random sign."""
    random = torch.Generator().manual_seed(0)
    for batch in batches:
        hidden = model(**batch).last_hidden_state
        yield (hidden * torch.randint(0, 2, hidden.shape, generator=random).mul(2).sub(1)).sum()


def peer(setting: Peer, model: nn.Module, batches: list[Inputs], ratio: float) -> nn.Module:
    """What Torch-Pruning makes of a copy."""
    import torch_pruning

    model = copy.deepcopy(model)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    if setting.importance == "Taylor":
        importance = torch_pruning.importance.GroupTaylorImportance()
        for loss in losses(model, batches):
            loss.backward()
    layers: Any = model.encoder.layer
    stream = [part for each in layers for part in (each.attention.output, each.output)]
    heads = {
        part: each.attention.self.num_attention_heads
        for each in layers
        for part in (each.attention.self.query, each.attention.self.key, each.attention.self.value)
    }
    pruner = torch_pruning.pruner.BasePruner(
        model,
        {key: value[:1] for key, value in batches[0].items()},
        importance=importance,
        global_pruning=setting.scope != "local",
        isomorphic=setting.scope == "isomorphic",
        pruning_ratio=ratio,
        head_pruning_ratio=ratio,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        in_channel_groups={},
        out_channel_groups={},
        ignored_layers=[model.embeddings, *stream],
        output_transform=lambda out: out.last_hidden_state.sum(),
    )
    pruner.step()
    for each in layers:
        part = each.attention.self
        part.num_attention_heads = pruner.num_heads[part.query]
        part.all_head_size = part.query.out_features
    model.zero_grad()
    return model


def run(
    setting: Ours | Peer, share: float, model: nn.Module, batches: list[Inputs], held_out: Inputs
) -> dict[str, Any]:
    """One row."""
    example = {key: value[:1] for key, value in batches[0].items()}
    whole, began = macs(model, **example), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(setting, Peer):
            small, _ = nearest(
                lambda ratio: peer(setting, model, batches, ratio),
                lambda each: macs(each, **example) / whole,
                share,
                1 - share,
            )
        else:
            small = graftlib.slim(
                graftlib.trace(model, (), example),
                budget={"macs": share},
                data=batches,
                importance=setting.importance,
                ranking=setting.ranking,
                refit=setting.refit,
                multiple_of=1,
            ).model
    spent = time.process_time() - began
    cosine = F.cosine_similarity(vectors(model, held_out), vectors(small, held_out), dim=-1)
    return {
        "macs": macs(small, **example) / whole,
        "cosine": float(cosine.mean()),
        "seconds": spent,
    }


def reads_texts(setting: Ours | Peer) -> bool:
    """Whether what comes out depends on the texts."""
    if isinstance(setting, Peer):
        return setting.importance == "Taylor"
    return setting.importance != "magnitude" or setting.refit is not None


def main() -> None:
    from transformers import AutoModel

    parser = command.parser(__doc__, "docs/benchmarks/slim_peer_text.json")
    command.add_root(parser)
    parser.add_argument("--models", type=Path, help="folder of the models; DIR/../models")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = parser.parse_args()
    models = args.models or args.root.parent / "models"
    torch.set_num_threads(1)
    report: dict[str, Any] = {"texts": args.texts, "torch": torch.__version__, "runs": []}
    if args.out.exists():
        report = results.load(args.out)
    done = {(r["setting"], r["share"], r["seed"]) for r in report["runs"]}
    model = AutoModel.from_pretrained(
        models / "minilm-l6",
        dtype=torch.float32,
        add_pooling_layer=False,
    ).eval()
    for seed in range(args.seeds):
        batches, held_out = texts(args.root, models, args.texts, seed)
        for share, name in itertools.product(SHARES, args.settings):
            if (name, share, seed) in done:
                continue
            row = {"setting": name, "share": share, "seed": seed}
            same = {
                key: value
                for each in report["runs"]
                if each["setting"] == name and each["share"] == share
                for key, value in each.items()
            }
            known = bool(same) and not reads_texts(SETTINGS[name])
            row = (
                same | row if known else row | run(SETTINGS[name], share, model, batches, held_out)
            )
            report["runs"].append(row)
            print(json.dumps(row), flush=True)
            results.save(args.out, report)


if __name__ == "__main__":
    main()
