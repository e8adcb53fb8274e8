"""Pictures, a caption each, and questions about them: scikit-learn's digits, easy-vqa, VQA v2 with MSCOCO.

In: a `Setup`. Out: a sentence about the data, and its two halves. Always true: nothing is downloaded.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .experiment import Setup

__all__ = ["Half", "captions_of", "cut_off", "read", "words_of"]


@dataclass(frozen=True)
class Half:
    """As it was read.

    Attributes:
        pictures: (p, channels, h, w) uint8.
        captions: one a picture.
        questions: (text, answer, number of the picture).
    """

    pictures: Tensor
    captions: Sequence[str]
    questions: Sequence[tuple[str, str, int]]


def read(setup: Setup) -> tuple[str, Half, Half]:
    """What the data is, what to learn from, what is held out."""
    reader = {"smoke": _digits, "small": _easy_vqa, "paper": _vqa2}[setup.scale]
    about, train, test = reader(setup)
    if setup.split == "validation":
        train, test = cut_off(train)
        about += "; the last fifth of the training pictures held out as validation"
    return about, train, test


def words_of(text: str) -> list[str]:
    """Lower case, without question marks."""
    return text.lower().replace("?", "").split()


def cut_off(half: Half) -> tuple[Half, Half]:
    """The first four fifths of the pictures with their questions, and the last fifth."""
    cut = len(half.pictures) * 4 // 5
    low = [q for q in half.questions if q[2] < cut]
    high = [(text, answer, of - cut) for text, answer, of in half.questions if of >= cut]
    return (
        Half(half.pictures[:cut], half.captions[:cut], low),
        Half(half.pictures[cut:], half.captions[cut:], high),
    )


def _digits(setup: Setup) -> tuple[str, Half, Half]:
    from sklearn.datasets import load_digits

    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    found, generator = load_digits(), random.Random(0)
    order = generator.sample(range(len(found.target)), 400)
    halves = []
    for rows in (order[:300], order[300:]):
        labels = [int(found.target[i]) for i in rows]
        questions = []
        for picture, label in enumerate(labels):
            asked = generator.choice([label, generator.randrange(10)])
            questions += [
                ("which digit is it?", names[label], picture),
                (f"is it a {names[asked]}?", "yes" if asked == label else "no", picture),
                ("is it an odd digit?", "yes" if label % 2 else "no", picture),
            ]
        captions = [f"an {'odd' if label % 2 else 'even'} {names[label]}" for label in labels]
        pictures = torch.tensor(found.images[rows]).to(torch.uint8)[:, None]
        halves.append(Half(pictures, captions, questions))
    return "scikit-learn's digits with templated questions", halves[0], halves[1]


def _easy_vqa(setup: Setup) -> tuple[str, Half, Half]:
    """A zip archive of easy-vqa's form: ``easy_vqa/data/{train,test}/questions.json`` and ``images/N.png``."""
    if setup.root is None or not (setup.root / "easy-vqa" / "easy_vqa.zip").is_file():
        raise SystemExit(
            f"easy-vqa/easy_vqa.zip is not in {setup.root or 'any folder'}: name the folder with --root DIR or "
            "GRAFTLIB_DATA; the archive is the wheel of `pip download easy-vqa==1.0 --no-deps`, renamed"
        )
    with zipfile.ZipFile(setup.root / "easy-vqa" / "easy_vqa.zip") as archive:
        halves = [_easy(archive, half) for half in ("train", "test")]
    about = "easy-vqa 1.0, its own halves; of the 64x64 pictures those whose questions tell shape and colour"
    return about, halves[0], halves[1]


def _easy(archive: zipfile.ZipFile, half: str) -> Half:
    import numpy as np
    from PIL import Image

    folder = f"easy_vqa/data/{half}"
    asked = json.loads(archive.read(f"{folder}/questions.json"))
    captions = captions_of([(text, answer, number) for text, answer, number in asked])
    numbers = sorted(captions)  # a few pictures' questions do not tell what they show
    place = {number: i for i, number in enumerate(numbers)}
    pictures = []
    for number in numbers:
        with Image.open(io.BytesIO(archive.read(f"{folder}/images/{number}.png"))) as image:
            pictures.append(np.asarray(image.convert("RGB")))
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    questions = [(text, answer, place[n]) for text, answer, n in asked if n in captions]
    return Half(x, [captions[number] for number in numbers], questions)


SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


def captions_of(questions: Sequence[tuple[str, str, int]]) -> dict[int, str]:
    """Picture -> 'a red circle', for the pictures whose questions and answers tell both.

    >>> captions_of([("what color is the circle?", "red", 0), ("is there not a teal shape?", "no", 1)])
    {0: 'a red circle'}
    """
    told: dict[int, set[str]] = {}
    for text, answer, picture in questions:
        named = {*SHAPES, *COLOURS}.intersection(words_of(text))
        if answer not in ("yes", "no"):
            said = named | {answer}
        else:
            denied = not {"no", "not"}.isdisjoint(words_of(text))
            said = named if (answer == "yes") != denied else set()
        told.setdefault(picture, set()).update(said)
    found = {}
    for picture, words in told.items():
        shape, colour = words.intersection(SHAPES), words.intersection(COLOURS)
        if shape and colour:
            found[picture] = f"a {' '.join(sorted(colour))} {' '.join(sorted(shape))}"
    return found


PICTURES = {"train2014": 8278, "val2014": 5000}
"""Of MSCOCO 2014: a tenth of its training half, as in the paper, and as many to be measured on as is usual."""


def _vqa2(setup: Setup) -> tuple[str, Half, Half]:
    """VQA v2 and MSCOCO 2014 as they are downloaded: a tenth of the training pictures, 5,000 of the validation's.

    Below ``--root``: ``vqa2/`` with the four JSON files of questions and annotations, ``coco/annotations/`` with the
    captions, and ``coco/{train,val}2014/``.
    """
    if setup.root is None:
        raise SystemExit("VQA v2 and MSCOCO are read from a folder: name it with --root DIR")
    halves = [_coco(setup.root, half, n) for half, n in PICTURES.items()]
    about = "VQA v2 with its most frequent answer as the truth, and MSCOCO's first caption; 8,278 / 5,000 pictures"
    return about, halves[0], halves[1]


def _coco(root: Path, half: str, pictures: int) -> Half:
    import numpy as np
    from PIL import Image

    def load(path: Path, key: str) -> list[Any]:
        return list(json.loads(path.read_text())[key])

    captions: dict[int, str] = {}
    for row in load(root / "coco" / "annotations" / f"captions_{half}.json", "annotations"):
        captions.setdefault(row["image_id"], row["caption"])
    chosen = random.Random(0).sample(sorted(captions), pictures)
    place = {number: i for i, number in enumerate(chosen)}
    asked = load(root / "vqa2" / f"v2_OpenEnded_mscoco_{half}_questions.json", "questions")
    answered = load(root / "vqa2" / f"v2_mscoco_{half}_annotations.json", "annotations")
    answers = {row["question_id"]: row["multiple_choice_answer"] for row in answered}
    questions = [
        (row["question"], answers[row["question_id"]], place[row["image_id"]])
        for row in asked
        if row["image_id"] in place
    ]
    x = np.empty((pictures, 224, 224, 3), np.uint8)
    for i, number in enumerate(chosen):
        with Image.open(root / "coco" / half / f"COCO_{half}_{number:012d}.jpg") as image:
            x[i] = np.asarray(image.convert("RGB").resize((224, 224)))
    tensor = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    return Half(tensor, [captions[number] for number in chosen], questions)
