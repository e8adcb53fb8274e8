"""MiniLM-L6 with three of its six layers, distilled on IMDb reviews without labels, beside the shipped MiniLM-L3.

    python -m examples.benchmarks.distil_text --root DIR --cache DIR --out docs/benchmarks/distil_text.json

`drop_blocks` leaves out three layers: of all twenty choices the one that moves the sentence vectors (means over the
tokens) of 128 reviews least. The rest but the embeddings is trained towards what the whole model gives for each of 64
tokens, which is computed once for all reviews of the pool: the mean squared error, and 1 - cosine of the sentence
vectors. A linear probe of the sentiment learns from a half of the pool, with labels, and is judged, as the vectors are,
on reviews of the test half. All models have their products in bfloat16. `cosine` is that of a sentence vector to the
whole model's; `pairs` the correlation of the cosines among all pairs of reviews with those of the whole model, which
does not ask that two models have their vectors in one place. A seed draws the batches. What models give stays in the
cache, from which a run that was stopped goes on; a cache is of one choice of settings.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import graftlib
from graftlib.surgery import blocks, drop_blocks

from ..common import command, results
from ..common.datasets import reviews
from ..common.intervals import interval
from .slim_peer_text import Inputs

LAYERS, BATCH, FEW = 3, 32, 128
SHIPPED = "MiniLM-L3, shipped"
Texts = tuple[Inputs, Tensor]  # tokens, labels


def drawn(root: Path, words: Any, half: str, count: int) -> Texts:
    """Reviews of a half as 64 tokens, and their labels; the same at each call."""
    lines, labels = reviews(root, half)
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))[:count]
    batch = words(
        [lines[i] for i in order.tolist()],
        padding="max_length",
        truncation=True,
        max_length=64,
        return_tensors="pt",
    )
    return {key: batch[key] for key in ("input_ids", "attention_mask")}, labels[order]


def rows(inputs: Inputs, which: Tensor) -> Inputs:
    return {key: value[which] for key, value in inputs.items()}


def pooled(hidden: Tensor, inputs: Inputs) -> Tensor:
    """(texts, width): means over the tokens of each."""
    mask = inputs["attention_mask"][..., None]
    return (hidden.float() * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def states(model: nn.Module, inputs: Inputs) -> Tensor:
    """(texts, tokens, width) float16; products in bfloat16."""
    parts = []
    for which in torch.arange(len(inputs["input_ids"])).split(BATCH):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(**rows(inputs, which)).last_hidden_state
        parts.append(hidden.half())
    return torch.cat(parts)


def distilled(
    model: nn.Module, inputs: Inputs, teacher: Tensor, steps: int, rate: float, seed: int
) -> nn.Module:
    """The model itself, trained in place but for its embeddings, without dropout."""
    model.get_submodule("embeddings").requires_grad_(False)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    random = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(teacher), generator=random)
        which, order = order[:BATCH], order[BATCH:]
        batch, due = rows(inputs, which), teacher[which].float()
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(**batch).last_hidden_state
        words = batch["attention_mask"].bool()
        cosine = F.cosine_similarity(pooled(hidden, batch), pooled(due, batch), dim=-1)
        loss = F.mse_loss(hidden.float()[words], due[words]) + (1 - cosine).mean()
        if step % 20 == 0:
            print(step, f"loss {float(loss.detach()):.4f}", flush=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def compared(held: Tensor, whole: Tensor) -> dict[str, float]:
    """How near sentence vectors (texts, width) are to those of the whole model."""
    one, other = (F.normalize(each - each.mean(0), dim=-1) for each in (held, whole))
    above = torch.triu(torch.ones(len(one), len(one), dtype=torch.bool), 1)
    pairs = torch.stack([(each @ each.T)[above] for each in (one, other)])
    return {
        "cosine": float(F.cosine_similarity(held, whole, dim=-1).mean()),
        "pairs": float(torch.corrcoef(pairs)[0, 1]),
    }


def probe(known: Tensor, labels: Tensor, held: Tensor, due: Tensor) -> Tensor:
    """Which of `held` a logistic regression on `known` names right; its strength by cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    line = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    search = GridSearchCV(line, {"logisticregression__C": (1e-3, 1e-2, 1e-1, 1.0)}, cv=4)
    guess = search.fit(known.numpy(), labels.numpy()).predict(held.numpy())
    return torch.from_numpy(guess) == due


def without(
    model: nn.Module, inputs: Inputs, gone: Sequence[str] = ()
) -> tuple[nn.Module, list[str]]:
    """(the model without `gone`, their names); else without those whose loss moves its sentence vectors least."""
    graph = graftlib.trace(model, (), rows(inputs, torch.arange(1)))
    if gone:
        return drop_blocks(graph, gone), [*gone]
    known = [each.fqn for each in blocks(graph)]
    few = rows(inputs, torch.arange(FEW))
    whole = pooled(states(model, few), few)

    def cosine(gone: Sequence[str]) -> float:
        return compared(pooled(states(drop_blocks(graph, gone), few), few), whole)["cosine"]

    best = max(itertools.combinations(known, len(known) - LAYERS), key=cosine)
    return drop_blocks(graph, best), [*best]


def main() -> None:
    from transformers import AutoModel, AutoTokenizer

    parser = command.parser(__doc__, "docs/benchmarks/distil_text.json")
    command.add_root(parser)
    parser.add_argument("--models", type=Path, help="folder of the models; DIR/../models")
    parser.add_argument("--cache", type=Path, required=True, help="folder for what models give")
    parser.add_argument("--pool", type=int, default=6000, help="reviews to learn from")
    parser.add_argument("--test", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=4e-4, help="the highest learning rate")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    models = args.models or args.root.parent / "models"
    torch.set_num_threads(1)

    def read(name: str) -> nn.Module:
        kind: Any = AutoModel
        model: nn.Module = kind.from_pretrained(
            models / name, dtype=torch.float32, add_pooling_layer=False
        )
        return model.eval()

    words, large = AutoTokenizer.from_pretrained(models / "minilm-l6"), read("minilm-l6")
    pool, labels = drawn(args.root, words, "train", args.pool)
    test, due = drawn(args.root, words, "test", args.test)
    labelled = rows(pool, torch.arange(args.pool // 2))

    def kept(name: str, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `work` gives; from a file where it was done before."""
        path = args.cache / f"{name.replace(' ', '-')}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(work(), path)
        return load_file(path)

    def vectors(model: nn.Module) -> dict[str, Tensor]:
        """Sentence vectors of the reviews with labels, and of those held out."""
        both = {"known": labelled, "held": test}
        return {key: pooled(states(model, each), each) for key, each in both.items()}

    teacher = kept("teacher", lambda: {"states": states(large, pool)})["states"]
    gone = results.cached(args.cache / "gone.json", lambda: without(large, pool)[1])
    print("without", *gone, flush=True)

    def small(seed: int | None = None) -> nn.Module:
        model, _ = without(large, pool, gone)
        if seed is None:
            return model
        return distilled(model, pool, teacher, args.steps, args.rate, seed)

    makers: dict[str, Callable[[], nn.Module]] = {
        "MiniLM-L6": lambda: large,
        SHIPPED: lambda: read("minilm-l3"),
        "three layers": small,
    }
    for seed in range(args.seeds):
        makers[f"three layers, distilled, seed {seed}"] = functools.partial(small, seed)
    report: dict[str, Any] = {key: getattr(args, key) for key in ("pool", "test", "steps", "rate")}
    report |= {"gone": gone, "versions": results.versions(), "rows": {}}
    hits: dict[str, Tensor] = {}
    for name, make in makers.items():
        found = kept(name, lambda: vectors(make()))  # noqa: B023
        known, held = found["known"], found["held"]
        hits[name] = 100 * probe(known, labels[: len(known)], held, due).double()
        row: dict[str, Any] = compared(held, kept("MiniLM-L6", dict)["held"]) | {
            "probe": float(hits[name].mean())
        }
        if SHIPPED in hits and name != SHIPPED:
            row["minus shipped"] = interval((hits[name] - hits[SHIPPED]).tolist())
        report["rows"][name] = row
        print(name, json.dumps(row), flush=True)
        results.save(args.out, report)


if __name__ == "__main__":
    main()
