"""SQuAD: read it, split it by article, cut it into tokens, and score answers as its authors do.

In: the JSON file, or `datasets`' SQuAD v2. Out: tokens, spans, and exact match and F1 in percent. Always true: no
article is in two splits; an answer is scored as text, against every answer that people gave.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Encoded",
    "Question",
    "Reading",
    "encode",
    "exact_and_f1",
    "read",
    "sample",
    "split",
    "standard",
]

LONGEST = 15
"""Tokens of a predicted answer, at most."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        article: that it belongs to.
        text, context: the question and where its answer is.
        answers: (text, first character in the context), as people gave them; none where there is no answer.
    """

    article: str
    text: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Reading:
    """What scoring needs of held-out questions.

    Attributes:
        contexts: one text a question.
        spots: (n, length, 2), first character and the one behind the last of each token; -1 for what is no context.
        answers: the answers that count, one list a question.
        silence: whether a question may have no answer.
    """

    contexts: Sequence[str]
    spots: Tensor
    answers: Sequence[Sequence[str]]
    silence: bool


@dataclass(frozen=True)
class Encoded:
    """Tokens: ``[CLS] question [SEP] context [SEP]``.

    Attributes:
        ids, mask, kinds: (n, length) int64: token numbers, 1 for a token, 1 for the context.
        spans: (n, 2) positions of an answer's first and last token; (0, 0) for no answer.
        reading: for scoring.
    """

    ids: Tensor
    mask: Tensor
    kinds: Tensor
    spans: Tensor
    reading: Reading


def read(path: Path) -> list[Question]:
    """The questions of a file of SQuAD, gzipped JSON."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    return [
        Question(
            article["title"],
            question["question"],
            paragraph["context"],
            tuple((a["text"], a["answer_start"]) for a in question["answers"]),
        )
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def split(records: Sequence[Question], which: str) -> tuple[list[Question], list[Question]]:
    """To learn from and held out: of 48 articles, drawn by seed 0, 8 are the test and 8 more the validation."""
    titles = sorted({record.article for record in records})
    random.Random(0).shuffle(titles)
    sixth = len(titles) // 6
    test, validation = titles[:sixth], titles[sixth : 2 * sixth]
    away = {*test, *(validation if which == "validation" else ())}
    exam = set(validation if which == "validation" else test)
    return [r for r in records if r.article not in away], [r for r in records if r.article in exam]


def standard(which: str) -> tuple[list[Question], list[Question]]:
    """SQuAD v2 through `datasets`; the validation split is a tenth of the training half's articles."""
    from datasets import load_dataset

    found = load_dataset("squad_v2")
    halves = [
        [
            Question(
                row["title"],
                row["question"],
                row["context"],
                tuple(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)),
            )
            for row in found[half]
        ]
        for half in ("train", "validation")
    ]
    if which == "test":
        return halves[0], halves[1]
    titles = sorted({record.article for record in halves[0]})
    random.Random(0).shuffle(titles)
    away = set(titles[: len(titles) // 10])
    return [r for r in halves[0] if r.article not in away], [
        r for r in halves[0] if r.article in away
    ]


def sample(records: Sequence[Question], n: int | None) -> list[Question]:
    """`n` of them, drawn by seed 0; all where `n` is None."""
    return list(records) if n is None else random.Random(0).sample(list(records), n)


def encode(
    questions: Sequence[Question], tokenizer: Any, length: int, *, window: bool, answerable: bool
) -> Encoded:
    """Questions as tokens.

    Args:
        questions: to encode.
        tokenizer: a fast one of `transformers`.
        length: tokens of an example; what is behind is cut off.
        window: cut out a window of the context that holds the first answer, at a place drawn by seed 0.
        answerable: leave out questions whose answer was cut off.
    """
    generator, rows = random.Random(0), []
    for question in questions:
        row = _tokens(question, tokenizer, length, generator if window else None)
        if row["span"] is not None or not answerable:
            rows.append((question, row))
    stacked = {
        name: torch.tensor([row[name] for _, row in rows])
        for name in ("ids", "mask", "kinds", "spots")
    }
    reading = Reading(
        [question.context for question, _ in rows],
        stacked.pop("spots"),
        [[text for text, _ in question.answers] or [""] for question, _ in rows],
        silence=not all(question.answers for question in questions),
    )
    spans = torch.tensor([row["span"] or (0, 0) for _, row in rows])
    return Encoded(**stacked, spans=spans, reading=reading)


def exact_and_f1(logits: Tensor, reading: Reading) -> tuple[float, float]:
    """Exact match and F1, percent, of the best span by logits (n, 2, length): first token's, last token's."""
    exact, overlap = [], []
    for i, (first, last) in enumerate(_best(logits, reading)):
        said = ""
        if first >= 0:
            start, end = int(reading.spots[i, first, 0]), int(reading.spots[i, last, 1])
            said = reading.contexts[i][start:end]
        exact.append(max(float(_plain(said) == _plain(answer)) for answer in reading.answers[i]))
        overlap.append(max(_f1(said, answer) for answer in reading.answers[i]))
    return 100 * sum(exact) / len(exact), 100 * sum(overlap) / len(overlap)


def _tokens(
    question: Question, tokenizer: Any, length: int, generator: random.Random | None
) -> dict[str, Any]:
    asked = tokenizer(
        question.text, add_special_tokens=False, truncation=True, max_length=length // 2
    )["input_ids"]
    found = tokenizer(
        question.context, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ids, spots = found["input_ids"], found["offset_mapping"]
    room = length - len(asked) - 3
    answer = _covering(question, spots)
    begin = 0
    if generator is not None and answer is not None:
        low = max(0, min(answer[1] + 1 - room, answer[0]))
        high = min(answer[0], max(0, len(ids) - room))
        begin = generator.randint(min(low, high), high)
    ids, spots = ids[begin : begin + room], spots[begin : begin + room]
    head = len(asked) + 2
    span = None
    if answer is not None and begin <= answer[0] and answer[1] < begin + len(ids):
        span = (head + answer[0] - begin, head + answer[1] - begin)
    elif not question.answers:
        span = (0, 0)
    cls, sep, none = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    all_ids = [cls, *asked, sep, *ids, sep]
    empty = length - len(all_ids)
    return {
        "ids": all_ids + [none] * empty,
        "mask": [1] * len(all_ids) + [0] * empty,
        "kinds": [0] * head + [1] * (len(ids) + 1) + [0] * empty,
        "spots": [[-1, -1]] * head + [list(spot) for spot in spots] + [[-1, -1]] * (empty + 1),
        "span": span,
    }


def _covering(question: Question, spots: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The first and the last token that the first answer touches."""
    if not question.answers:
        return None
    text, start = question.answers[0]
    touched = [i for i, (a, b) in enumerate(spots) if a < start + len(text) and b > start]
    return (touched[0], touched[-1]) if touched else None


def _best(logits: Tensor, reading: Reading) -> list[tuple[int, int]]:
    """The span of largest total logit inside the context, (-1, -1) where no answer, the first token, has more."""
    inside = reading.spots[..., 0] >= 0
    start, end = logits.masked_fill(~inside[:, None], -1e4).unbind(1)
    total = start[:, :, None] + end[:, None, :]
    length = total.shape[1]
    legal = torch.ones(length, length, dtype=torch.bool).triu() & ~torch.ones(
        length, length, dtype=torch.bool
    ).triu(LONGEST)
    score, place = total.masked_fill(~legal, -1e9).flatten(1).max(1)
    none = logits[:, :, 0].sum(1)
    silent = (none > score) & reading.silence
    return [
        (-1, -1) if quiet else (spot // length, spot % length)
        for spot, quiet in zip(place.tolist(), silent.tolist(), strict=True)
    ]


def _plain(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: as SQuAD's own script has it."""
    kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _f1(said: str, answer: str) -> float:
    ours, theirs = _plain(said).split(), _plain(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)
