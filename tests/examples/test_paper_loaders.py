"""What the paper's scale would load and build, on small files of the same form; and what is cut and augmented."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from examples.paper import images, pictures, texts, vqa
from examples.paper.experiment import Setup

PAPER = Setup("paper")


@pytest.fixture
def cifar100(monkeypatch):
    """torchvision's class with 40 and 20 images of noise, and no download."""

    class Small:
        def __init__(self, root, train, download):
            n, seed = (40, 0) if train else (20, 1)
            self.data = np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)
            self.targets = [i % 100 for i in range(n)]
            self.targets[-1] = 99

    monkeypatch.setattr("torchvision.datasets.CIFAR100", Small)
    images._read.cache_clear()
    yield
    images._read.cache_clear()


def test_cifar_100_becomes_networks_of_the_papers_size(cifar100):
    m, r = images.mobilenet_network(PAPER), images.resnet_network(PAPER)
    assert m.task.metrics == ("M top-1", "M top-5")
    assert (m.batch, m.optimizer, m.lr, m.weight_decay) == (128, "adamw", 1e-2, 1e-4)
    slim, large = m.make(), r.make()
    target = slim.get_submodule(images.project(images.BLOCKS["paper"]))
    assert tuple(target.weight.shape[:2]) == (160, 960)
    assert tuple(large.fc.weight.shape) == (100, 2048)
    assert all(slim.get_submodule(images.project(d)) for d in images.DEPTHS["paper"])
    found = slim.eval()(*m.task.inputs(torch.arange(2)))
    assert m.task.loss(found, m.task.labels(torch.arange(2))).isfinite()
    with torch.inference_mode():
        assert set(m.task.evaluate(slim)) == set(m.task.metrics)


def test_the_validation_split_reads_no_test_image(cifar100):
    whole = images.image_task(PAPER, "M")
    held = images.image_task(Setup("paper", split="validation"), "M")
    assert (whole.size, held.size, len(held.test_y)) == (40, 32, 8)
    torch.testing.assert_close(torch.cat([held.x, held.test_x]), whole.x)


def test_augmentation_is_a_crop_of_the_padded_image_and_every_second_is_flipped():
    x = torch.arange(6 * 2 * 5 * 5, dtype=torch.float32).view(6, 2, 5, 5) + 1
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    flipped = 0
    for found, whole in zip(images._augmented(x), padded, strict=True):
        crops = [whole[:, i : i + 5, j : j + 5] for i in range(9) for j in range(9)]
        straight = any(torch.equal(found, crop) for crop in crops)
        turned = any(torch.equal(found, crop.flip(2)) for crop in crops)
        assert straight or turned
        flipped += turned and not straight
    assert 0 < flipped < 6


class Words:
    """A tokenizer that knows no word but its length."""

    cls_token_id, sep_token_id, pad_token_id = 101, texts.SEPARATOR, 0

    def __call__(self, text, **options):
        if isinstance(text, list):
            length = options["max_length"]
            ids = torch.tensor(
                [([101] + [5] * len(t.split()) + [102] + [0] * length)[:length] for t in text]
            )
            return {"input_ids": ids, "attention_mask": (ids > 0).long()}
        spots, start = [], 0
        for word in text.split(" "):
            spots.append((start, start + len(word)))
            start += len(word) + 1
        return {"input_ids": [3 + len(w) for w in text.split(" ")], "offset_mapping": spots}


@pytest.fixture
def hugging_face(monkeypatch):
    """`datasets` with a handful of rows, and small encoders of the right depth with weights of their own."""
    from transformers import AutoModel, BertConfig, BertModel, DistilBertConfig, DistilBertModel

    def rows(half):
        answers = [{"text": ["red"], "answer_start": [7]}, {"text": [], "answer_start": []}]
        return [
            {
                "title": f"{half}{i}",
                "question": "which colour",
                "context": "it was red then",
                "answers": answers[i % 2],
            }
            for i in range(20)
        ]

    fake = ModuleType("datasets")
    known = {
        "squad_v2": {half: rows(half) for half in ("train", "validation")},
        "imdb": {
            h: [{"text": f"film {i}", "label": i % 2} for i in range(20)] for h in ("train", "test")
        },
    }
    fake.load_dataset = known.__getitem__
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr(texts, "_tokenizer", lambda name: Words())
    encoders = {
        "bert-base-uncased": lambda: BertModel(
            BertConfig(hidden_size=12, intermediate_size=12, num_attention_heads=12, vocab_size=200)
        ),
        "distilbert-base-uncased": lambda: DistilBertModel(
            DistilBertConfig(dim=12, hidden_dim=12, n_heads=12, n_layers=6, vocab_size=200)
        ),
    }
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda name: encoders[name]())


def test_bert_and_distilbert_answer_and_classify(hugging_face):
    asker, sentiment = texts.question_network(PAPER), texts.sentiment_network(PAPER)
    assert (asker.batch, asker.lr, asker.weight_decay) == (32, 5e-5, 1e-5)
    assert (sentiment.batch, sentiment.lr, sentiment.weight_decay) == (6, 5e-5, 1e-2)
    assert asker.task.reading.silence
    for network, size in ((asker, "L"), (sentiment, "S")):
        model = network.make()
        for depth in (0.5, 1.0):
            assert model.get_submodule(texts.value(PAPER, size, depth)).weight.shape == (12, 12)
        index = torch.arange(3)
        said = model(*network.task.inputs(index))
        assert network.task.loss(said, network.task.labels(index)).isfinite()
        with torch.inference_mode():
            assert set(network.task.evaluate(model.eval())) == set(network.task.metrics)


def test_bert_is_told_which_tokens_are_the_question(hugging_face):
    network = texts.question_network(PAPER)
    model = network.make()
    inputs = {}
    model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.update(kwargs), with_kwargs=True
    )
    model(*network.task.inputs(torch.arange(1)))
    # [CLS] which colour [SEP] it was red then [SEP] and padding
    assert inputs["token_type_ids"][0, :11].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_vqa_and_coco_are_read_from_their_own_files(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(pictures, "PICTURES", {"train2014": 3, "val2014": 2})
    for half in ("train2014", "val2014"):
        write_coco(tmp_path, half, Image)
    network = vqa.two_encoder_network(Setup("paper", root=tmp_path))
    task = network.task
    assert task.facts["pictures"] == [3, 2]
    assert tuple(task.train["pictures"].shape) == (3, 3, 224, 224)
    _, train, _ = pictures.read(Setup("paper", root=tmp_path))
    for picture, caption in zip(train.pictures, train.captions, strict=True):
        assert caption == f"a picture {round(float(picture[0].float().mean()) / 50) * 50}"
    for text, answer, place in train.questions:
        assert (text, answer) == (f"what number is it, {train.captions[place][10:]}?", "it is red")
    model = network.make()
    index = torch.arange(2)
    assert task.loss(model(*task.inputs(index)), task.labels(index)).isfinite()


def write_coco(root, half, image):
    numbers = [50, 100, 150, 200]
    (root / "coco" / half).mkdir(parents=True)
    for folder in ("coco/annotations", "vqa2"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for n in numbers:
        image.new("RGB", (30, 20), (n, 0, 0)).save(
            root / "coco" / half / f"COCO_{half}_{n:012d}.jpg", quality=100
        )
    captions = [{"image_id": n, "caption": f"a picture {n}"} for n in numbers]
    captions += [{"image_id": n, "caption": "another"} for n in numbers]
    asked = [
        {"question_id": n, "image_id": n, "question": f"what number is it, {n}?"} for n in numbers
    ]
    answered = [{"question_id": n, "multiple_choice_answer": "it is red"} for n in numbers]
    files = {
        f"coco/annotations/captions_{half}.json": {"annotations": captions},
        f"vqa2/v2_OpenEnded_mscoco_{half}_questions.json": {"questions": asked},
        f"vqa2/v2_mscoco_{half}_annotations.json": {"annotations": answered},
    }
    for name, found in files.items():
        (root / name).write_text(json.dumps(found))


def test_absent_folders_are_named_with_the_way_out(tmp_path):
    with pytest.raises(SystemExit, match="--root DIR"):
        vqa.two_encoder_network(Setup("small", root=tmp_path))
    with pytest.raises(SystemExit, match="--root DIR"):
        texts.question_network(Setup("small"))
    with pytest.raises(SystemExit, match="GRAFTLIB_MODELS"):
        texts._folder(str(tmp_path), "small", "L")


@pytest.mark.data
def test_easy_vqas_captions_are_one_of_24(data_file):
    archive = data_file("easy-vqa/easy_vqa.zip")
    _, train, test = pictures.read(Setup("small", root=archive.parents[1]))
    assert len(set(train.captions)) == len(set(test.captions)) == 24
    shown = [q for q in train.questions if q[1] == "yes" and q[0].startswith("is there a ")]
    # What a question affirms is in the caption of its picture.
    for text, _, picture in shown[:200]:
        named = set(pictures.words_of(text)) & {*pictures.SHAPES, *pictures.COLOURS}
        assert named <= set(pictures.words_of(train.captions[picture]))
