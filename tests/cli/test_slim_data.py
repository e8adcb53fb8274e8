"""`--data`: files become what the model is called with, as its library prepares it, or are refused by name."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from graftlib.cli.models import Loaded
from graftlib.cli.names import ModelName
from graftlib.cli.slim_data import batches_of
from graftlib.errors import GraftError

FILE = ModelName("file", "net", Path("nets.py"))


class Two(nn.Module):
    def forward(self, x, mask=None):
        return x


def loaded(model=None):
    return Loaded("net", model or Two(), ())


def pictures(folder: Path, count: int = 3) -> list[Path]:
    """Two classes as `torchvision.datasets.ImageFolder` has them, and a file that is none of it."""
    Image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 255, (300, 280, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    (folder / "notes.md").write_text("no image")
    return sorted(folder.rglob("*.png"))


def test_images_are_prepared_as_torchvision_does(tmp_path):
    models = pytest.importorskip("torchvision.models")
    Image = pytest.importorskip("PIL.Image")
    files = pictures(tmp_path)
    name = ModelName("torchvision", "resnet18")
    (((images,), kwargs),) = batches_of(tmp_path, name, loaded(), 100)
    assert (images.shape, kwargs) == ((6, 3, 224, 224), {})
    due = models.ResNet18_Weights.DEFAULT.transforms()(Image.open(files[4]))
    assert torch.equal(images[4], due)


def test_images_are_prepared_as_timm_does(tmp_path):
    timm = pytest.importorskip("timm")
    pictures(tmp_path, 1)
    model = timm.create_model("test_vit", pretrained=False)
    (((images,), _),) = batches_of(tmp_path, ModelName("timm", "test_vit"), loaded(model), 9)
    assert images.shape == (2, *timm.data.resolve_model_data_config(model)["input_size"])


def test_a_part_of_the_images_lies_evenly_over_the_classes(tmp_path):
    pytest.importorskip("torchvision")
    pictures(tmp_path, 10)
    name = ModelName("torchvision", "resnet18")
    ((every,), _), ((rest,), _) = batches_of(tmp_path, name, loaded(), 100)
    (((some,), _),) = batches_of(tmp_path, name, loaded(), 4)
    assert torch.equal(some, torch.cat([every, rest])[[0, 5, 10, 15]])


def test_images_of_a_file_s_model_are_refused(tmp_path):
    pytest.importorskip("PIL")
    pictures(tmp_path, 1)
    with pytest.raises(GraftError, match="how images become its inputs"):
        batches_of(tmp_path, FILE, loaded(), 9)


def test_arrays_go_in_by_name_or_in_order_in_batches(tmp_path):
    x, mask = torch.arange(40.0).reshape(20, 2), torch.arange(20)
    np.savez(tmp_path / "a.npz", mask=mask.numpy(), x=x.numpy(), labels=np.zeros(20))
    save_file({"x": x, "mask": mask}, tmp_path / "b.safetensors")
    torch.save({"x": x, "mask": mask}, tmp_path / "c.pt")
    for file in ("a.npz", "b.safetensors", "c.pt"):
        first, second = batches_of(tmp_path / file, FILE, loaded(), 99)
        assert first[0] == second[0] == ()
        assert torch.equal(torch.cat([first[1]["x"], second[1]["x"]]), x)
        assert torch.equal(second[1]["mask"], mask[16:])
    np.savez(tmp_path / "d.npz", x.numpy(), mask.numpy())
    torch.save([x, mask], tmp_path / "e.pt")
    for file in ("d.npz", "e.pt"):
        ((args, kwargs),) = batches_of(tmp_path / file, FILE, loaded(), 4)
        assert kwargs == {}
        assert torch.equal(args[0], x[::5])
        assert torch.equal(args[1], mask[::5])
    torch.save(x, tmp_path / "f.pt")
    (((one,), _),) = batches_of(tmp_path / "f.pt", FILE, loaded(), 2)
    assert torch.equal(one, x[[0, 10]])


def test_nothing_is_unpickled(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Two()))
    np.savez(tmp_path / "y.npz", x=np.array([{}], dtype=object))
    for file in ("x.pt", "y.npz"):
        with pytest.raises(GraftError, match="cannot be read"):
            batches_of(tmp_path / file, FILE, loaded(), 9)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": (4,), "b": (4,)}, "which of its arrays is which input"),
        ({"x": (4,), "mask": (3,)}, "different numbers of samples"),
        ({"x": (0, 3)}, "different numbers of samples, or none"),
        ({"x": ()}, "different numbers of samples"),
    ],
)
def test_arrays_that_fit_no_input_are_refused(tmp_path, arrays, words):
    save_file({n: torch.zeros(s) for n, s in arrays.items()}, tmp_path / "a.safetensors")
    with pytest.raises(GraftError, match=words):
        batches_of(tmp_path, FILE, loaded(), 9)


def test_texts_are_split_by_the_folder_s_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({"[PAD]": 0, "?": 1, "one": 2, "two": 3}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]")
    made.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("one two\n\ntwo\nthree one two\n", "utf-8")
    name = ModelName("hf", str(tmp_path / "model"), tmp_path / "model")
    ((args, kwargs),) = batches_of(tmp_path / "texts.txt", name, loaded(), 9)
    assert args == ()
    assert kwargs["input_ids"].tolist() == [[2, 3, 0], [3, 0, 0], [1, 2, 3]]
    assert kwargs["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    with pytest.raises(GraftError, match="has no tokenizer"):
        batches_of(tmp_path / "texts.txt", FILE, loaded(), 9)


def test_a_folder_of_no_kind_or_of_several_is_refused(tmp_path):
    with pytest.raises(GraftError, match="does not exist"):
        batches_of(tmp_path / "none", FILE, loaded(), 9)
    with pytest.raises(GraftError, match="no files that can be read"):
        batches_of(tmp_path, FILE, loaded(), 9)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(GraftError, match="no files that can be read"):
        batches_of(tmp_path, FILE, loaded(), 9)
    with pytest.raises(GraftError, match="neither a folder nor a regular file"):
        batches_of(tmp_path / "pipe.pt", FILE, loaded(), 9)
    torch.save(torch.zeros(2), tmp_path / "x.pt")
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(GraftError, match="several kinds"):
        batches_of(tmp_path, FILE, loaded(), 9)
