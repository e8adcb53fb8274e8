"""Texts: question answering and sentiment, and the encoders that do them.

In: a `Setup`. Out: networks. Always true: the validation split is cut off the training half by article or review; at
small scale the layers below those in training are frozen, so their answer is computed once and no time goes into it.

smoke   sequences of invented words: a stand-in, and no result
small   SQuAD v1.1's dev half, split by article 40 / 8, windows of 80 tokens that hold the answer at a random place;
        the first 80 tokens of IMDb reviews; MiniLM-L6 and MiniLM-L3, their two last layers in training
paper   SQuAD v2 and IMDb through `datasets`, BERT-base and DistilBERT through `transformers`, whole
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .experiment import Network, Setup
from .squad import Reading, exact_and_f1

__all__ = ["layer", "question_network", "sentiment_network", "text_rounds", "value"]

LENGTH = {"smoke": 16, "small": 80, "paper": 384}
"""Tokens of an example."""
TRAIN = {"smoke": 256, "small": 2000, "paper": None}
HELD_OUT = {"smoke": 128, "small": 500, "paper": None}
ROUNDS = {"smoke": 6, "small": 60, "paper": 8000}
ENCODERS = {
    "small": {"L": "minilm-l6", "S": "minilm-l3"},
    "paper": {"L": "bert-base-uncased", "S": "distilbert-base-uncased"},
}
"""The large (L) and the slim (S) encoder of each scale."""
SEPARATOR = 102
"""The token [SEP] in BERT's uncased vocabulary."""
LAYERS = {"smoke": {"L": 4, "S": 2}, "small": {"L": 6, "S": 3}, "paper": {"L": 12, "S": 6}}


def question_network(
    setup: Setup, name: str = "QA", size: str = "L", trained: int = 2, per_round: int = 1
) -> Network:
    """An encoder with a span head that answers questions.

    Args:
        setup: of the command line.
        name: of the network; it begins its metrics' names.
        size: ``"L"`` or ``"S"``.
        trained: the last so many layers are in training (at paper scale all are).
        per_round: steps a round.
    """
    recipe = {
        "smoke": {"batch": 16, "lr": 1e-3},
        "small": {"batch": 16, "lr": 3e-4},
        "paper": {"batch": 32, "lr": 5e-5, "precision": "bfloat16"},
    }[setup.scale]
    task = _questions(setup, name, size, trained)
    return _network(
        setup, task, size, trained, span=True, weight_decay=1e-5, per_round=per_round, **recipe
    )


def sentiment_network(
    setup: Setup, name: str = "S", size: str = "S", trained: int = 2, per_round: int = 1
) -> Network:
    """An encoder that says whether a review is positive; the arguments are `question_network`'s."""
    recipe = {
        "smoke": {"batch": 8, "lr": 1e-3},
        "small": {"batch": 8, "lr": 3e-4},
        "paper": {"batch": 6, "lr": 5e-5, "precision": "bfloat16"},
    }[setup.scale]
    task = _reviews(setup, name, size, trained)
    return _network(
        setup, task, size, trained, span=False, weight_decay=1e-2, per_round=per_round, **recipe
    )


def text_rounds(setup: Setup) -> int:
    """Rounds of a training on texts."""
    return ROUNDS[setup.scale]


def layer(setup: Setup, size: str, depth: float) -> int:
    """The layer, counted from 1, at a share of the depth of an encoder: 0.5 is the middle one, 1.0 the last."""
    return -int(-LAYERS[setup.scale][size] * depth // 1)


def value(setup: Setup, size: str, depth: float) -> str:
    """The name of the value matrix at a share of the depth."""
    number = layer(setup, size, depth)
    if setup.scale != "paper":
        return f"layers.{number}.attention.self.value"
    if size == "L":
        return f"encoder.encoder.layer.{number - 1}.attention.self.value"
    return f"encoder.transformer.layer.{number - 1}.attention.v_lin"


# --------------------------------------------------------------------------------------------------------- the models


class Upper(nn.Module):
    """The last layers of an encoder under a head.

    Args:
        layers: layer number, counted from 1 -> BERT layer.
        width: of the hidden states.
        span: two logits a token (where an answer starts and ends), else two logits a text.
    """

    def __init__(self, layers: dict[int, nn.Module], width: int, *, span: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(number): each for number, each in layers.items()})
        self.head = nn.Linear(width, 2)
        self.span = span

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(n, length, width) and (n, length), 1 for a token -> (n, 2, length) for spans, else (n, 2)."""
        bias = torch.zeros_like(mask, dtype=hidden.dtype)
        bias = bias.masked_fill(mask == 0, torch.finfo(hidden.dtype).min)[:, None, None]
        for each in self.layers.values():
            hidden = each(hidden, bias)
        return _answer(self.head, hidden, mask, span=self.span)


class Whole(nn.Module):
    """A pretrained encoder of Hugging Face under the same head: the paper's."""

    def __init__(self, encoder: nn.Module, *, span: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, 2)
        self.span = span
        self.kinds = getattr(encoder.config, "type_vocab_size", 1) > 1  # DistilBERT has none

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(n, length) token numbers and mask -> as `Upper`."""
        extra = {}
        if self.kinds:
            ends = (ids == SEPARATOR).long()
            extra["token_type_ids"] = (ends.cumsum(1) - ends).clamp(max=1) * mask
        hidden = self.encoder(input_ids=ids, attention_mask=mask, **extra).last_hidden_state
        return _answer(self.head, hidden, mask, span=self.span)


def _answer(head: nn.Linear, hidden: Tensor, mask: Tensor, *, span: bool) -> Tensor:
    if span:
        logits = head(hidden).transpose(1, 2)
        return logits.masked_fill(mask[:, None] == 0, -1e4)
    weights = mask.to(hidden.dtype)[..., None]
    return head((hidden * weights).sum(1) / weights.sum(1))


def _network(
    setup: Setup, task: Texts, size: str, trained: int, *, span: bool, **recipe: Any
) -> Network:
    models = str(setup.models or "")
    make = partial(encoder, scale=setup.scale, models=models, size=size, trained=trained, span=span)
    return Network(make, task, optimizer="adamw", warmup=0.1, **recipe)


def encoder(*, scale: str, models: str, size: str, trained: int, span: bool) -> nn.Module:
    """The model of a network; the head's weights are drawn, and at smoke scale the layers' too."""
    from transformers import AutoModel, BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    if scale == "smoke":
        config = BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64)
        config._attn_implementation = "sdpa"
        last = LAYERS[scale][size]
        numbers = range(last - trained + 1, last + 1)
        return Upper({number: BertLayer(config) for number in numbers}, 32, span=span)
    name = _folder(models, scale, size)
    if scale == "paper":
        return Whole(AutoModel.from_pretrained(name), span=span)
    layers = _pretrained(name).encoder.layer
    numbers = range(len(layers) - trained + 1, len(layers) + 1)
    # A copy through the state: the cached model stays as it came.
    copies = {number: BertLayer(_pretrained(name).config) for number in numbers}
    for number, copy in copies.items():
        copy.load_state_dict(layers[number - 1].state_dict())
    return Upper(copies, _pretrained(name).config.hidden_size, span=span)


@cache
def _pretrained(name: str) -> Any:
    from transformers import AutoModel, logging

    logging.disable_progress_bar()
    return AutoModel.from_pretrained(name, dtype=torch.float32).eval().requires_grad_(False)


def _folder(models: str, scale: str, size: str) -> str:
    name = ENCODERS[scale][size]
    if scale == "paper":
        return name
    if not models or not (Path(models) / name / "config.json").is_file():
        raise SystemExit(
            f"{name} is not in {models or 'any folder'}: name the folder that holds it with --models DIR "
            "or GRAFTLIB_MODELS (all-MiniLM-L6-v2 as minilm-l6, paraphrase-MiniLM-L3-v2 as minilm-l3)"
        )
    return str(Path(models) / name)


# ---------------------------------------------------------------------------------------------------------- the tasks


@dataclass(frozen=True)
class Texts:
    """Tokens in, two logits (a text's or each token's) out.

    Attributes:
        facts: see `experiment.Task`.
        prefix: of the metrics' names.
        train: (n, length, width) float16 hidden states or (n, length) token numbers, and the mask (n, length).
        truth: (n,) labels, or (n, 2) positions of an answer's first and last token.
        held_out: as `train`.
        held_truth: labels of it, where it is sentiment.
        reading: what the held-out questions' answers are, where it is question answering.
    """

    facts: dict[str, Any]
    prefix: str
    train: tuple[Tensor, Tensor]
    truth: Tensor
    held_out: tuple[Tensor, Tensor]
    held_truth: Tensor | None = None
    reading: Reading | None = None
    augments: bool = False

    @property
    def size(self) -> int:
        """Training texts."""
        return len(self.truth)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Exact match and F1 of answers, or accuracy."""
        names = ("accuracy",) if self.reading is None else ("EM", "F1")
        return tuple(f"{self.prefix} {name}" for name in names)

    def to(self, device: torch.device) -> Texts:
        """See `experiment.Task`."""
        return replace(
            self,
            train=_moved(self.train, device),
            truth=self.truth.to(device),
            held_out=_moved(self.held_out, device),
            held_truth=None if self.held_truth is None else self.held_truth.to(device),
        )

    def example(self) -> tuple[Tensor, ...]:
        """See `experiment.Task`."""
        return _wide(tuple(tensor[:2] for tensor in self.held_out))

    def inputs(self, index: Tensor) -> tuple[Tensor, ...]:
        """See `experiment.Task`."""
        return _wide(tuple(tensor[index] for tensor in self.train))

    def labels(self, index: Tensor) -> Tensor:
        """See `experiment.Task`."""
        return self.truth[index]

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the label, or the mean of those of the first and the last token."""
        if labels.ndim == 1:
            return cross_entropy(outputs, labels)
        return cross_entropy(outputs.flatten(0, 1), labels.flatten())

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Percent of the held-out texts."""
        parts = zip(*(tensor.split(100) for tensor in self.held_out), strict=True)
        logits = torch.cat([model(*_wide(part)).float() for part in parts])
        if self.reading is None:
            assert self.held_truth is not None
            right = (logits.argmax(1) == self.held_truth).double().mean()
            return {self.metrics[0]: 100 * float(right)}
        return dict(zip(self.metrics, exact_and_f1(logits.cpu(), self.reading), strict=True))


def _wide(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hidden states are kept in half precision, and computed with in single."""
    return tuple(t.float() if t.is_floating_point() else t for t in tensors)


def _moved(tensors: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    return tensors[0].to(device), tensors[1].to(device)


def _questions(setup: Setup, prefix: str, size: str, trained: int) -> Texts:
    from . import squad

    length = LENGTH[setup.scale]
    if setup.scale == "smoke":
        return _invented(setup, prefix, span=True)
    if setup.scale == "small":
        records = squad.read(_root(setup) / "squad" / "squad_v1.1_dev.json.gz")
        train, held_out = squad.split(records, setup.split)
        about = "SQuAD v1.1 dev half, split by article 40 / 8, seed 0; windows that hold the answer, at a random place"
    else:
        train, held_out = squad.standard(setup.split)
        about = f"SQuAD v2 through `datasets`, cut at {length} tokens without a stride"
    if setup.split == "validation":
        about += "; validation articles out of the training half"
    tokenizer = _tokenizer(_folder(str(setup.models or ""), setup.scale, size))
    few, many = (
        squad.sample(train, TRAIN[setup.scale]),
        squad.sample(held_out, HELD_OUT[setup.scale]),
    )
    window = setup.scale == "small"
    learn = squad.encode(few, tokenizer, length, window=window, answerable=True)
    exam = squad.encode(many, tokenizer, length, window=window, answerable=False)
    facts = _facts(setup, about, len(learn.ids), len(exam.ids), length, size, trained)
    states = _states(setup, size, trained)
    return Texts(
        facts,
        prefix,
        states(learn.ids, learn.mask, learn.kinds),
        learn.spans,
        states(exam.ids, exam.mask, exam.kinds),
        reading=exam.reading,
    )


def _reviews(setup: Setup, prefix: str, size: str, trained: int) -> Texts:
    if setup.scale == "smoke":
        return _invented(setup, prefix, span=False)
    length = LENGTH[setup.scale] if setup.scale == "small" else 512
    if setup.scale == "small":
        halves = [_imdb(_root(setup) / "imdb" / f"{half}.jsonl.gz") for half in ("train", "test")]
        about = f"IMDb, the original halves, the first {length} tokens of a review"
    else:
        from datasets import load_dataset

        halves = [
            [(r["text"], r["label"]) for r in load_dataset("imdb")[h]] for h in ("train", "test")
        ]
        about = "IMDb through `datasets`"
    train, held_out = (_shuffled(half) for half in halves)
    if setup.split == "validation":
        cut = len(train) * 4 // 5
        train, held_out = train[:cut], train[cut:]
        about += "; a fifth of the training half held out as validation"
    train = train[: TRAIN[setup.scale]]
    held_out = held_out[: None if setup.scale == "paper" else 1000]
    tokenizer = _tokenizer(_folder(str(setup.models or ""), setup.scale, size))
    states = _states(setup, size, trained)

    def tokens(part: Sequence[tuple[str, int]]) -> tuple[Tensor, Tensor]:
        found = tokenizer(
            [text for text, _ in part],
            truncation=True,
            max_length=length,
            padding="max_length",
            return_tensors="pt",
        )
        return states(found["input_ids"], found["attention_mask"], None)

    facts = _facts(setup, about, len(train), len(held_out), length, size, trained)
    truths = [torch.tensor([label for _, label in part]) for part in (train, held_out)]
    return Texts(facts, prefix, tokens(train), truths[0], tokens(held_out), held_truth=truths[1])


def _invented(setup: Setup, prefix: str, *, span: bool) -> Texts:
    """Sequences of 20 invented words as fixed random vectors: a stand-in for hidden states.

    A question's first token names a word that occurs once; the answer is the token behind it. A review is positive
    where more of its words are of the first ten.
    """
    length, width = LENGTH["smoke"], 32
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(20, width, generator=generator)
    places = torch.randn(length, width, generator=generator)
    n, held = TRAIN["smoke"], HELD_OUT["smoke"]
    assert n is not None
    assert held is not None
    total = n + held
    ids = torch.rand(total, 20, generator=generator).argsort(1)[:, :length]
    if span:
        key = torch.randint(1, length - 1, (total,), generator=generator)
        ids[:, 0] = ids[torch.arange(total), key]
        truth = (key + 1)[:, None].expand(-1, 2).contiguous()
    else:
        truth = ((ids < 10).sum(1) * 2 > length).long()
    hidden = (words[ids] + 0.5 * places).half()
    mask = torch.ones(total, length, dtype=torch.int64)
    texts = [" ".join(f"w{number:02d}" for number in row) for row in ids.tolist()]
    spots = torch.arange(length)[:, None] * 4 + torch.tensor([0, 3])
    facts = _facts(setup, "a stand-in of invented words: no result", n, held, length, "S", 2)
    reading = None
    if span:
        answers = [
            [text[4 * int(k) : 4 * int(k) + 3]] for text, k in zip(texts, truth[:, 0], strict=True)
        ]
        reading = Reading(texts[n:], spots.expand(held, -1, -1), answers[n:], silence=False)
    return Texts(
        {**facts, "stand-in": True},
        prefix,
        (hidden[:n], mask[:n]),
        truth[:n],
        (hidden[n:], mask[n:]),
        held_truth=None if span else truth[n:],
        reading=reading,
    )


def _states(
    setup: Setup, size: str, trained: int
) -> Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """What a model in training is given: the tokens themselves, or what the frozen lower layers make of them."""
    if setup.scale == "paper":
        return lambda ids, mask, kinds: (ids, mask)
    encoder = _pretrained(_folder(str(setup.models or ""), setup.scale, size))
    below = len(encoder.encoder.layer) - trained

    @torch.inference_mode()
    def states(ids: Tensor, mask: Tensor, kinds: Tensor | None) -> tuple[Tensor, Tensor]:
        found = []
        for rows in torch.arange(len(ids)).split(100):
            kind = None if kinds is None else kinds[rows]
            hidden = encoder.embeddings(input_ids=ids[rows], token_type_ids=kind)
            bias = torch.zeros(len(rows), 1, 1, ids.shape[1])
            bias = bias.masked_fill(mask[rows][:, None, None] == 0, torch.finfo(torch.float32).min)
            for each in encoder.encoder.layer[:below]:
                hidden = each(hidden, bias)
            found.append(hidden.half())
        return torch.cat(found).clone(), mask

    return states


def _facts(
    setup: Setup, about: str, train: int, held_out: int, length: int, size: str, trained: int
) -> dict[str, Any]:
    return {
        "about": about,
        "split": setup.split,
        "train": train,
        "held out": held_out,
        "tokens": length,
        "encoder": ENCODERS.get(setup.scale, {}).get(size, "from scratch"),
        "layers in training": "all" if setup.scale == "paper" else trained,
    }


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def _imdb(path: Path) -> list[tuple[str, int]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [(row["text"], row["label"]) for row in map(json.loads, lines)]


def _shuffled(records: Sequence[Any]) -> list[Any]:
    # The files are sorted by label.
    return random.Random(0).sample(list(records), len(records))


def _root(setup: Setup) -> Path:
    if setup.root is None:
        raise SystemExit("texts are read from a folder: name it with --root DIR or GRAFTLIB_DATA")
    return setup.root
