"""Questions about pictures, and pictures with their captions: the task of a model with two encoders.

In: a `Setup`. Out: a network. Always true: test pictures are the set's own; a caption that equals the right one is a
hit. One model learns both tasks at once, by the sum of their losses: cross-entropy of the answer after fusion, and
the contrast of pictures with captions before it.

smoke   scikit-learn's digits with templated questions ('is it a three') and captions ('an odd three')
small   easy-vqa: 64x64 pictures of one coloured shape, 13 answers; captions such as 'a red circle'
paper   a tenth of VQA v2's training half and MSCOCO's captions, from their own files; the paper's X-VLM is pretrained
        and is not rebuilt here: the same two-encoder model, larger, from scratch
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .experiment import Network, Setup
from .pictures import Half, read, words_of
from .two_encoders import WORDS, TwoEncoders

__all__ = ["Pictures", "recall", "two_encoder_network", "vqa_rounds"]

ROUNDS = {"smoke": 8, "small": 200, "paper": 50_000}
FORM = {  # width, layers, heads, side of a patch
    "smoke": {"width": 32, "layers": 2, "heads": 4, "patch": 2},
    "small": {"width": 64, "layers": 2, "heads": 4, "patch": 8},
    "paper": {"width": 384, "layers": 6, "heads": 12, "patch": 16},
}
RECIPE = {
    "smoke": {"batch": 32, "lr": 1e-3},
    "small": {"batch": 64, "lr": 1e-3},
    "paper": {"batch": 16, "lr": 5e-4, "precision": "bfloat16"},
}
ANSWERS = 3129
"""The most frequent answers are classes, as is usual for VQA v2; easy-vqa has 13."""


def two_encoder_network(setup: Setup) -> Network:
    """The one model, called V."""
    task = _pictures(setup)
    make = partial(
        TwoEncoders,
        vocabulary=task.facts["words"],
        answers=task.facts["answers"],
        shape=tuple(task.facts["shape"]),
        **FORM[setup.scale],
    )
    return Network(
        make, task, optimizer="adamw", weight_decay=1e-2, warmup=0.1, **RECIPE[setup.scale]
    )


def vqa_rounds(setup: Setup) -> int:
    """Steps of a training."""
    return ROUNDS[setup.scale]


def _pictures(setup: Setup) -> Pictures:
    about, train, test = read(setup)
    often = Counter(answer for _, answer, _ in train.questions).most_common(ANSWERS)
    answers = sorted(answer for answer, _ in often)
    texts = [*train.captions, *(question for question, _, _ in train.questions)]
    words = {
        word: i + 1 for i, word in enumerate(sorted({w for text in texts for w in words_of(text)}))
    }
    kinds = {text: i for i, text in enumerate(sorted({*train.captions, *test.captions}))}
    some = train.pictures[:2000].float()
    # A channel in which nothing happens stays as it is.
    sd = some.std((0, 2, 3), keepdim=True).clamp_min(1.0)
    scale = {"mean": some.mean((0, 2, 3), keepdim=True), "sd": sd}
    halves = [_tensors(half, answers, words, kinds) | scale for half in (train, test)]
    facts = {
        "about": about,
        "split": setup.split,
        "train": len(halves[0]["answers"]),
        "held out": len(halves[1]["answers"]),
        "pictures": [len(train.pictures), len(test.pictures)],
        "captions that differ": len(kinds),
        "words": len(words) + 1,
        "answers": len(answers),
        "shape": list(train.pictures.shape[1:]),
    }
    return Pictures(facts, *halves)


def _tensors(
    half: Half, answers: Sequence[str], words: dict[str, int], kinds: dict[str, int]
) -> dict[str, Tensor]:
    # An answer that is not among the frequent ones is wrong whatever is said; as VQA has it, such questions are
    # left out of training, and here out of the test too.
    number = {answer: i for i, answer in enumerate(answers)}
    known = [question for question in half.questions if question[1] in number]

    def ids(texts: Sequence[str]) -> Tensor:
        rows = [[words[word] for word in words_of(text) if word in words][:WORDS] for text in texts]
        return torch.tensor([row + [0] * (WORDS - len(row)) for row in rows])

    return {
        "pictures": half.pictures,
        "captions": ids(half.captions),
        "kinds": torch.tensor([kinds[text] for text in half.captions]),
        "of": torch.tensor([picture for _, _, picture in known]),
        "questions": ids([text for text, _, _ in known]),
        "answers": torch.tensor([number[answer] for _, answer, _ in known]),
    }


@dataclass(frozen=True)
class Pictures:
    """Questions about pictures, and the pictures' captions.

    Attributes:
        facts: see `experiment.Task`.
        train, held_out: each with ``pictures`` (p, channels, h, w) uint8, the training half's ``mean`` and ``sd`` (1,
            channels, 1, 1), ``captions`` (p, words) int64, ``kinds`` (p,) the number of each caption's text, ``of``
            (n,) the picture of each question, ``questions`` (n, words) int64 and ``answers`` (n,) int64.
    """

    facts: dict[str, Any]
    train: dict[str, Tensor]
    held_out: dict[str, Tensor]
    augments: bool = False
    metrics: tuple[str, ...] = ("VQA accuracy", "TR@1", "TR@10", "IR@1", "IR@10")

    @property
    def size(self) -> int:
        """Training questions."""
        return len(self.train["answers"])

    def to(self, device: torch.device) -> Pictures:
        """See `experiment.Task`."""
        halves = {
            half: {name: tensor.to(device) for name, tensor in getattr(self, half).items()}
            for half in ("train", "held_out")
        }
        return replace(self, **halves)

    def example(self) -> tuple[Tensor, ...]:
        """See `experiment.Task`."""
        half = self.held_out
        return _normal(half, slice(2)), half["questions"][:2], half["captions"][:2]

    def inputs(self, index: Tensor) -> tuple[Tensor, ...]:
        """See `experiment.Task`."""
        of = self.train["of"][index]
        return (
            _normal(self.train, of),
            self.train["questions"][index],
            self.train["captions"][of],
        )

    def labels(self, index: Tensor) -> Tensor:
        """(n, 2): the answer, and the kind of the picture's caption."""
        kinds = self.train["kinds"][self.train["of"][index]]
        return torch.stack([self.train["answers"][index], kinds], dim=1)

    def loss(self, outputs: tuple[Tensor, Tensor, Tensor], labels: Tensor) -> Tensor:
        """Of the answers, and of the contrast both ways, where equal captions share the truth evenly."""
        logits, pictures, captions = outputs
        alike = (labels[:, 1:] == labels[None, :, 1]).to(pictures.dtype)
        truth = alike / alike.sum(1, keepdim=True)
        near = pictures @ captions.T / 0.07
        contrast = cross_entropy(near, truth) + cross_entropy(near.T, truth)
        return cross_entropy(logits, labels[:, 0]) + contrast / 2

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Percent: right answers; pictures with the right caption among the first 1 and 10, and the other way."""
        assert isinstance(model, TwoEncoders)
        half = self.held_out
        rows = torch.arange(len(half["answers"]), device=half["answers"].device).split(500)
        right = torch.cat([self._answered(model, index) for index in rows])
        places = torch.arange(len(half["pictures"]), device=right.device).split(500)
        pictures = torch.cat([model.embed_picture(model.see(_normal(half, p))) for p in places])
        # Captions that say the same are one: else its copies would fill all ten places.
        texts, kinds = _distinct(half["captions"], half["kinds"])
        captions = torch.cat([model.embed_text(part) for part in texts.split(500)])
        near = pictures @ captions.T
        return {
            "VQA accuracy": 100 * float(right.double().mean()),
            **{f"TR@{k}": recall(near, half["kinds"], kinds, k) for k in (1, 10)},
            **{f"IR@{k}": recall(near.T, kinds, half["kinds"], k) for k in (1, 10)},
        }

    def _answered(self, model: TwoEncoders, index: Tensor) -> Tensor:
        half = self.held_out
        of = half["of"][index]
        logits = model(_normal(half, of), half["questions"][index], half["captions"][of])[0]
        return logits.argmax(1) == half["answers"][index]


def _normal(half: dict[str, Tensor], index: Tensor | slice) -> Tensor:
    return (half["pictures"][index].float() - half["mean"]) / half["sd"]


def _distinct(captions: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """The first caption of every kind, and the kinds."""
    seen, first = {}, []
    for i, kind in enumerate(kinds.tolist()):
        if seen.setdefault(kind, i) == i:
            first.append(i)
    return captions[first], kinds[first]


def recall(near: Tensor, ours: Tensor, theirs: Tensor, k: int) -> float:
    """Percent of rows of `near` (n, m) with an equal kind among the k nearest of the m.

    >>> near = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8]])
    >>> [recall(near, torch.tensor([7, 4]), torch.tensor([7, 4, 7]), k) for k in (1, 2)]
    [50.0, 100.0]
    """
    first = near.topk(min(k, near.shape[1]), dim=1).indices
    return 100 * float((theirs[first] == ours[:, None]).any(1).double().mean())
