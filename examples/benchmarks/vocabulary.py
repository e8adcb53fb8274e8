"""What a vocabulary pruned to IMDb saves in MiniLM-L6, and what it costs on reviews that were not looked at.

    python -m examples.benchmarks.vocabulary --root DIR --models DIR --cache DIR --out docs/benchmarks/vocabulary.json

Rows: the tokens of the first reviews of the train half (it has 25,000), and the most frequent tokens of that half, as
many as leave 60 % of the bytes. Bytes are those of the parameters. `same` is the share of 500 reviews of the
test half (every fiftieth) that both tokenizers split alike, cosines are those of the mean-pooled sentence embeddings of
the first 100 of them, old to new, cut at 128 tokens; `change` is the largest difference of an embedding on 64 reviews
whose tokens are all kept, in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graftlib.surgery import PrunedVocabulary, prune_vocabulary

from ..common import command, results
from ..common.datasets import reviews

COUNTS = (200, 500, 2000, 10000, 25000)
LEFT = 0.6


@torch.no_grad()
def embedded(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """(n, features) the mean over tokens of what the model gives."""
    rows = []
    for text in texts:
        one = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        rows.append(model(**one).last_hidden_state.mean(1))
    return torch.cat(rows)


def measured(
    pruned: PrunedVocabulary,
    model: nn.Module,
    tokenizer: Any,
    given: list[str],
    held: list[str],
    before: Tensor,
) -> dict[str, Any]:
    report = pruned.report
    index = pruned.index.tolist()
    same = [
        [index[i] for i in new] == old
        for old, new in zip(
            tokenizer(held)["input_ids"], pruned.tokenizer(held)["input_ids"], strict=True
        )
    ]
    after = embedded(pruned.model, pruned.tokenizer, held[: len(before)])
    cosines = torch.cosine_similarity(before, after)
    change = None
    if given:
        both = ((model, tokenizer), (pruned.model, pruned.tokenizer))
        old, new = (embedded(m, t, given[:64]) for m, t in both)
        change = float((old - new).abs().max())
    return {
        "tokens": report.tokens[1],
        "bytes": report.bytes[1],
        "saved": 1 - report.bytes[1] / report.bytes[0],
        "same": sum(same) / len(same),
        "cosine": float(cosines.mean()),
        "least": float(cosines.min()),
        "change": change,
    }


def frequent(model: nn.Module, tokenizer: Any, texts: list[str], wanted: int) -> PrunedVocabulary:
    """The vocabulary of the most frequent tokens; special tokens and characters come on top and count."""
    counts = Counter[int]()
    for start in range(0, len(texts), 500):
        for ids in tokenizer(texts[start : start + 500])["input_ids"]:
            counts.update(ids)
    few = wanted
    for _ in range(3):
        pruned = prune_vocabulary(model, tokenizer, tokens=[i for i, _ in counts.most_common(few)])
        few -= len(pruned.index) - wanted
    return pruned


def main() -> None:
    """Measure, print, write JSON."""
    from transformers import AutoModel, AutoTokenizer

    parser = command.parser(__doc__, "vocabulary.json")
    command.add_root(parser)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="a folder: a file for each row")
    asked = parser.parse_args()
    home = asked.models / "minilm-l6"
    tokenizer = AutoTokenizer.from_pretrained(home)
    model = AutoModel.from_pretrained(home, dtype=torch.float32).eval()
    train, held = reviews(asked.root, "train")[0], reviews(asked.root, "test")[0][::50]
    before = embedded(model, tokenizer, held[:100])
    rows: dict[str, Any] = {}

    def add(name: str, given: list[str], work: Callable[[], PrunedVocabulary]) -> None:
        path = asked.cache / f"{name.replace(' ', '-')}.json"
        rows[name] = results.cached(
            path, lambda: measured(work(), model, tokenizer, given, held, before)
        )
        print(name, rows[name], flush=True)

    for count in COUNTS:
        given = train[:count]
        add(f"{count:,} reviews", given, lambda: prune_vocabulary(model, tokenizer, texts=given))  # noqa: B023
    table = model.get_input_embeddings().weight
    total = sum(p.numel() for p in model.parameters())
    wanted = table.shape[0] - round((1 - LEFT) * total / table.shape[1])
    add("the most frequent tokens", [], lambda: frequent(model, tokenizer, train, wanted))
    start = {"tokens": table.shape[0], "bytes": 4 * total}
    results.save(
        asked.out,
        {"model": "MiniLM-L6", "before": start, "rows": rows, "versions": results.versions()},
    )


if __name__ == "__main__":
    main()
