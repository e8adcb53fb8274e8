"""Names become models, whatever the name; only a named .py file runs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftlib.cli import models, names
from graftlib.cli.models import load_model
from graftlib.cli.names import find_model
from graftlib.errors import CheckpointError, GraftError, MissingExtraError, ModelNameError

FILE = """
import torch
from torch import nn
import beside
(HERE / "ran").touch()
RENAMED = nn.Identity
def bare(): return nn.Linear(3, 2)
def single(): return nn.Linear(3, 2), torch.ones(4, 3)
def pair(): return nn.Linear(3, 2), (torch.ones(4, 3),)
def triple(): return nn.Bilinear(3, 3, 2), (torch.ones(4, 3),), {"input2": torch.ones(4, 3)}
def wrong(): return "a model"
def four(): return nn.Linear(3, 2), (), {}, 4
def fails(): raise KeyError("lost")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("")
    path = tmp_path / "nets.py"
    path.write_text(f"import pathlib\nHERE = pathlib.Path({str(tmp_path)!r})\n{FILE}")
    return path


def ran(file: Path) -> bool:
    return (file.parent / "ran").exists()


def runs(loaded: models.Loaded) -> None:
    """The inputs are what the model takes."""
    loaded.model(*loaded.args, **loaded.kwargs)


# ---------------------------------------------------------------------------------------- hostile


@given(st.text(st.characters(codec=None)) | st.text("torchvision:./\\{}%\0\n", max_size=30))
def test_any_text_is_a_model_or_an_error_of_ours(name: str):
    text = ""
    try:
        find_model(name)
    except GraftError as error:
        text = str(error)
    assert "\x1b" not in text
    assert len(text) < 2000


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        "x" * 100_000,
        "torchvision:" + "y" * 100_000,
        "hf:" + "z/" * 5000,
        "hf:\0",
        "hf:~no-such-user/x",
        "\x1b[2J:x",
        "file.py:",
        "/.py:f",
        "../../etc/passwd.py:main",
        "torchvision:__import__('os')",
        "timm:hf-hub:someone/model",
        "timm:local-dir:/tmp",
        "os.py:system",
    ],
)
def test_hostile_names(name: str):
    with pytest.raises(ModelNameError) as caught:
        find_model(name)
    assert len(str(caught.value)) < 2000
    assert "\x1b" not in str(caught.value)


def test_nearest_names_are_offered_and_are_names():
    with pytest.raises(ModelNameError) as caught:
        find_model("torchvision:resnet19")
    assert "'resnet18'" in caught.value.near
    for name in caught.value.near:
        find_model("torchvision:" + name.strip("'"))


def test_a_bare_name_is_offered_with_its_library():
    with pytest.raises(ModelNameError) as caught:
        find_model("resnet18")
    assert caught.value.near == ("'torchvision:resnet18'", "'timm:resnet18'")
    assert [str(find_model(name.strip("'"))) for name in caught.value.near] == [
        "torchvision:resnet18",
        "timm:resnet18",
    ]


@pytest.mark.parametrize(("library", "extra"), [("torchvision", "vision"), ("timm", "timm")])
def test_the_names_read_from_a_library_s_source_are_those_it_registers(library: str, extra: str):
    registered = importlib.import_module(f"{library}.models").list_models()
    assert set(names._registered(library, extra)) == set(registered)


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    names._registered.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "graftlib\[timm\]"'):
        find_model("timm:resnet18")


# ---------------------------------------------------------------------------------------- libraries


def test_torchvision_on_meta_and_with_values():
    auto = load_model("torchvision:squeezenet1_1")
    assert auto.device == "meta"
    assert next(auto.model.parameters()).is_meta
    assert not auto.model.training
    real = load_model("torchvision:squeezenet1_1", values=True, shapes=[(1, 3, 32, 32)])
    assert (real.device, real.args[0].shape) == ("cpu", (1, 3, 32, 32))
    runs(auto)
    runs(real)


@pytest.mark.parametrize(
    "name", ["r3d_18", "raft_small", "lraspp_mobilenet_v3_large", "inception_v3", "vit_b_32"]
)
def test_every_family_of_torchvision_takes_its_inputs(name: str):
    runs(load_model(f"torchvision:{name}"))


def test_a_detector_gets_values_and_a_list_of_images():
    loaded = load_model("torchvision:ssdlite320_mobilenet_v3_large")
    assert loaded.device == "cpu"
    assert [image.shape for image in loaded.args[0]] == [(3, 320, 320)]


def test_the_seed_decides_the_values():
    a, b, c = (load_model("timm:resnet10t", values=True, seed=seed) for seed in (1, 1, 2))
    weight = [next(x.model.parameters()) for x in (a, b, c)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])
    assert torch.equal(a.args[0], b.args[0])


def test_timm_takes_tags_and_its_own_size():
    loaded = load_model("timm:resnet18.a1_in1k")
    assert loaded.args[0].shape == (2, 3, 224, 224)
    runs(loaded)


TINY = {
    "bert": {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
        "max_position_embeddings": 8,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": 50,
        "n_positions": 32,
        "bos_token_id": 1,
        "eos_token_id": 1,
    },
    "t5": {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": 50,
    },
    "vit": {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 16,
    },
    "llama without a class": {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    },
}


@pytest.fixture(params=TINY)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(TINY[request.param]))
    return path


@pytest.mark.parametrize("values", [False, True])
def test_a_folder_gives_a_model_that_runs(folder: Path, values: bool):
    loaded = load_model(f"hf:{folder}", values=values)
    named = json.loads((folder / "config.json").read_text()).get("architectures", ["LlamaModel"])
    assert type(loaded.model).__name__ == named[0]
    assert loaded.device == ("cpu" if values else "meta")
    assert next(loaded.model.parameters()).is_meta is not values
    if values:  # some masks are made by reading values
        runs(loaded)


def test_a_folder_with_weights_gives_them_and_a_truncated_one_says_so(tmp_path: Path):
    from transformers import BertConfig, BertModel

    config = BertConfig(**{k: v for k, v in TINY["bert"].items() if k != "model_type"})
    model = BertModel(config)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.fill_(7.0)
    model.save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}", values=True)
    assert (loaded.model.embeddings.word_embeddings.weight == 7.0).all()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="does not give a BertModel"):
        load_model(f"hf:{tmp_path}", values=True)


def test_tokens_may_have_another_shape(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(TINY["bert"]))
    loaded = load_model(f"hf:{tmp_path}", values=True, shapes=[(3, 5)])
    assert loaded.kwargs["input_ids"].shape == (3, 5)
    assert loaded.kwargs["attention_mask"].shape == (3, 5)
    runs(loaded)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "{}",
        '{"model_type": "no such thing"}',
        '{"model_type": "bert", "hidden_size": "x"}',
    ],
)
def test_a_broken_config_is_an_error_of_ours(tmp_path: Path, config: str):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(GraftError, match=r"config.json|does not give"):
        load_model(f"hf:{tmp_path}")


def test_a_config_names_classes_of_transformers_only(tmp_path: Path):
    """An architecture that is no model is not looked up any further, and code beside it is not run."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = {
        **TINY["bert"],
        "architectures": ["AutoTokenizer"],
        "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(load_model(f"hf:{tmp_path}").model).__name__ == "BertModel"
    assert not (tmp_path / "ran").exists()


def test_a_folder_nearby_is_offered(folder: Path):
    with pytest.raises(ModelNameError, match=r"nearest\s+'tiny'"):
        find_model(f"hf:{folder.parent / 'tinny'}")


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("factory", "inputs"), [("single", 1), ("pair", 1), ("triple", 2)])
def test_a_factory_may_bring_its_inputs(file: Path, factory: str, inputs: int):
    loaded = load_model(f"{file}:{factory}")
    assert len(loaded.args) + len(loaded.kwargs) == inputs
    assert loaded.device == "cpu"
    runs(loaded)


def test_a_bare_model_needs_an_input(file: Path):
    with pytest.raises(ModelNameError, match="give --input"):
        load_model(f"{file}:bare")
    runs(load_model(f"{file}:bare", shapes=[(4, 3)]))


def test_a_file_on_meta_has_no_values(file: Path):
    loaded = load_model(f"{file}:triple", device="meta")
    assert next(loaded.model.parameters()).is_meta
    assert loaded.args[0].is_meta
    assert loaded.kwargs["input2"].is_meta


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("wrong", "returns str"),
        ("four", "returns tuple"),
        ("fails", "KeyError: 'lost'"),
        ("HERE", "is not callable"),
        ("RENAMED", "give --input"),
    ],
)
def test_a_factory_that_gives_no_model(file: Path, factory: str, why: str):
    with pytest.raises(ModelNameError, match=why):
        load_model(f"{file}:{factory}")


def test_looking_a_name_up_runs_nothing(file: Path):
    find_model(f"{file}:pair")
    with pytest.raises(ModelNameError, match=r"nearest\s+'pair'"):
        find_model(f"{file}:pairs")
    with pytest.raises(ModelNameError, match=r"nearest\s+'nets.py'"):
        find_model(f"{file.with_name('net.py')}:pair")
    assert not ran(file)
    load_model(f"{file}:pair")
    assert ran(file)


@pytest.mark.parametrize(
    "text",
    [
        "if True:\n    def f(): ...",
        "f = g = None",
        "from os import getcwd as f",
        "from os.path import *",
        "for f in (): ...",
    ],
)
def test_a_factory_may_be_bound_in_any_way(tmp_path: Path, text: str):
    (tmp_path / "bound.py").write_text(text)
    assert find_model(f"{tmp_path}/bound.py:f").rest == "f"


@pytest.mark.parametrize("text", ["def g():\n    f = 1", "class C:\n    def f(): ...", "print(f)"])
def test_what_is_not_bound_at_the_top_is_no_factory(tmp_path: Path, text: str):
    (tmp_path / "bound.py").write_text(text)
    with pytest.raises(ModelNameError, match="has no model 'f'"):
        find_model(f"{tmp_path}/bound.py:f")


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.py")
    with pytest.raises(ModelNameError, match="no regular file"):
        find_model(f"{tmp_path}/pipe.py:f")


@pytest.mark.parametrize(
    "text", ["def f(:", "raise SystemExit(3)\ndef f(): pass", "1/0\ndef f(): pass"]
)
def test_a_file_that_stops_is_named(tmp_path: Path, text: str):
    path = tmp_path / "stops.py"
    path.write_text(text)
    with pytest.raises(ModelNameError, match=r"stops.py"):
        load_model(f"{path}:f")


def test_no_cuda_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GraftError, match="--device cpu"):
        load_model("torchvision:squeezenet1_1", device="cuda")


def test_linear_is_in_eval_mode(file: Path):
    assert isinstance(load_model(f"{file}:pair").model, nn.Linear)
    assert not load_model(f"{file}:pair").model.training
