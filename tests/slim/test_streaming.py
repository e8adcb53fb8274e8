"""Files that may be larger than memory: what is streamed is what is made in memory, to the bit."""

from __future__ import annotations

import json
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import graftlib
from graftlib import Edit
from graftlib.cli.app import app
from graftlib.errors import CheckpointError
from graftlib.slim import streaming, weight_files
from graftlib.surgery import SurgeryError, SurgeryWarning, squares

from . import nets

BUDGET = {"budget": {"params": 0.6}, "multiple_of": 1}
KINDS = pytest.mark.parametrize("kind", list(nets.INPUTS), ids=lambda kind: kind.__name__)


def sharded(model, folder, count=3):
    """Write a model's tensors to shards with an index, round robin."""
    folder.mkdir()
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    names = {
        n: f"model-{1 + i % count:05d}-of-{count:05d}.safetensors"
        for i, n in enumerate(first.values())
    }
    for file in set(names.values()):
        save_file({n: state[n].detach() for n in names if names[n] == file}, folder / file)
    index = {"metadata": {"total_size": 1, "total_parameters": 1}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tensors(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_writes_what_is_made_in_memory(kind, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "_BLOCK", 40)  # several blocks of each tensor
    model, x = nets.made(kind)
    model, x = model.to(dtype), x.to(dtype)
    small = graftlib.slim(graftlib.trace(model, x), **BUDGET)
    small.save(tmp_path / "memory")
    source, out = sharded(model, tmp_path / "large"), tmp_path / "streamed"
    streamed = graftlib.slim_folder(source, out, kind, x, **BUDGET)
    assert streamed.edit == small.edit
    assert (out / "edit.json").read_bytes() == (tmp_path / "memory/edit.json").read_bytes()
    mine, due = tensors(out), tensors(tmp_path / "memory")
    assert mine.keys() == due.keys()
    for name, tensor in due.items():
        assert mine[name].dtype == tensor.dtype
        assert torch.equal(mine[name], tensor)
    again = graftlib.load(out, kind).eval()
    assert torch.equal(again(x), small.model(x))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in due.values())
    assert {p.name for p in out.iterdir()} == {
        *(p.name for p in source.iterdir()), "edit.json", "README.md",
    }  # fmt: skip


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    block=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_sums_of_squares_of_parts_are_those_of_the_whole(shape, block, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    with mock.patch.object(squares, "_BLOCK", block):
        step = squares.rows_at_once(weight[0].numel()) * (1 + seed % 3)
        parts = squares.Squares()
        parts.read(["w", "tied"], shape, weight.split(step))
        due = squares.sums_of_squares(weight)
    for name in ("w", "tied"):
        assert all(torch.equal(a, b) for a, b in zip(parts.of(name, weight), due, strict=True))


def llama(**options):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **options})).eval()


def test_a_hugging_face_folder_goes_the_whole_way_on_the_command_line(tmp_path):
    """Shards, tied weights, a config that says the sizes."""
    torch.manual_seed(0)
    model, ids = llama(tie_word_embeddings=True).to(torch.bfloat16), torch.arange(8)[None]
    model.save_pretrained(tmp_path / "large", max_shard_size="9KB")
    kept = ["--keep", "model.embed_tokens", "--keep", "*.self_attn.*"]
    out = tmp_path / "out"
    command = ["slim", f"hf:{tmp_path / 'large'}", "--budget", "params=0.8", *kept, "-o", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    inputs = {"input_ids": torch.zeros(2, 16).long(), "attention_mask": torch.ones(2, 16).long()}
    graph = graftlib.trace(model, kwargs={**inputs, "use_cache": False})
    small = graftlib.slim(graph, budget={"params": 0.8}, keep=kept[1::2])
    assert len([*out.glob("*.safetensors")]) > 3
    assert Edit.load(out / "edit.json") == small.edit
    read = type(model).from_pretrained(out, dtype="auto").eval()
    again = graftlib.load(out, lambda: llama(tie_word_embeddings=True))
    for each in (read, again):
        assert each.dtype == torch.bfloat16
        assert each.lm_head.weight is each.model.embed_tokens.weight
        assert torch.equal(each(ids).logits, small.model(ids).logits)
    assert read.config.intermediate_size == small.model.config.intermediate_size < 64


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    model, x = nets.made(nets.GroupedHeads)
    folder, out = sharded(model, tmp_path / "large"), tmp_path / "out"

    def slim(factory=nets.GroupedHeads, source=folder, target=out, budget=0.6):
        graftlib.slim_folder(source, target, factory, x, budget={"params": budget}, multiple_of=1)

    with pytest.raises(SurgeryError, match="in its place"):
        slim(target=folder)
    with pytest.raises(CheckpointError, match="tensors differ") as error:
        slim(lambda: nets.GroupedHeads(width=24))
    assert "embed.weight" in error.value.faults
    with pytest.raises(CheckpointError, match="is missing"):
        slim(nets.Packed)
    with pytest.raises(SurgeryError, match="below the smallest"):
        slim(budget=0.001)
    with pytest.raises(CheckpointError, match="cannot be read"):
        slim(source=tmp_path / "nowhere")
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace("model-00001-of", "../model-00001-of"))
    with pytest.raises(CheckpointError, match="is no index"):
        slim()
    index.write_text(text.replace('"embed.weight"', '"elsewhere"'))
    with pytest.raises(CheckpointError, match="names 1 tensors"):
        slim()
    index.write_text(text)
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="as safetensors"):
        slim()
    assert not out.exists()


def test_an_interrupted_run_leaves_what_was_there(tmp_path, monkeypatch):
    model, x = nets.made(nets.Packed)
    folder, out = sharded(model, tmp_path / "large"), tmp_path / "out"
    graftlib.slim_folder(folder, out, nets.Packed, x, **BUDGET)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write, calls = streaming.write_file, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(streaming, "write_file", stopped)
    with pytest.raises(KeyboardInterrupt):
        graftlib.slim_folder(folder, out, nets.Packed, x, budget={"params": 0.8}, multiple_of=1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_one_file_replaces_shards_and_what_the_model_has_not_is_left_out(tmp_path):
    model, x = nets.made(nets.Packed)
    out = tmp_path / "out"
    graftlib.slim_folder(sharded(model, tmp_path / "large"), out, nets.Packed, x, **BUDGET)
    (tmp_path / "one").mkdir()
    state = {**model.state_dict(), "old.position_ids": torch.arange(3)}
    save_file(state, tmp_path / "one/model.safetensors")
    with pytest.warns(SurgeryWarning, match="left out: old.position_ids"):
        graftlib.slim_folder(tmp_path / "one", out, nets.Packed, x, **BUDGET)
    assert not (out / "model.safetensors.index.json").exists()
    small = graftlib.slim(graftlib.trace(model, x), **BUDGET)
    assert torch.equal(graftlib.load(out, nets.Packed).eval()(x), small.model(x))


def test_a_tensor_in_two_files_is_the_one_that_the_index_names(tmp_path):
    model, x = nets.made(nets.Packed)
    small = graftlib.slim(graftlib.trace(model, x), **BUDGET)
    small.save(tmp_path / "out")
    home, good = tmp_path / "out", tensors(tmp_path / "out")
    with safe_open(home / "model.safetensors", framework="pt") as file:
        header = file.metadata()
    (home / "model.safetensors").unlink()
    zero = {name: torch.zeros_like(tensor) for name, tensor in good.items()}
    names = list(good)
    save_file(good | {names[0]: zero[names[0]]}, home / "a.safetensors", header)
    save_file(zero | {names[0]: good[names[0]]}, home / "b.safetensors", header)
    for first in ("b.safetensors", "a.safetensors"):  # whichever is opened first
        mapped = {names[0]: "b.safetensors"} | dict.fromkeys(names[1:], "a.safetensors")
        mapped = dict(sorted(mapped.items(), key=lambda item: item[1] != first))
        (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))
        again = graftlib.load(home, nets.Packed).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in good.items())
    del mapped[names[1]]
    (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))
    with pytest.raises(CheckpointError, match="does not say which of 1 tensors"):
        graftlib.load(home, nets.Packed)


class Masked(torch.nn.Module):
    """Buffers of all kinds in the files: a mask over units, counts without axes, none at all, indices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m, self.b = (torch.nn.Linear(n, k) for n, k in ((6, 16), (16, 24), (24, 3)))
        self.register_buffer("mask", torch.ones(24, dtype=torch.bool))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("none", torch.zeros(0, 4))
        self.register_buffer("codes", torch.arange(4, dtype=torch.int8))
        self.register_buffer("gain", torch.ones(16))

    def forward(self, x):
        h = self.m((self.a(x) * self.gain).relu())
        return self.b(torch.where(self.mask, h, torch.zeros_like(h)).relu())


@pytest.mark.parametrize("count", [1, 9])
def test_masks_in_the_files_go_with_their_units(tmp_path, count):
    """What a mask says of units is read before the classes are: without its values they would be frozen."""
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(2, 6)
    due = graftlib.slim(graftlib.trace(model, x), **BUDGET)
    source = sharded(model, tmp_path / "large", count)
    small = graftlib.slim_folder(source, tmp_path / "out", Masked, x, **BUDGET)
    assert small.edit == due.edit
    assert len(due.model.mask) < 24
    again = graftlib.load(tmp_path / "out", Masked).eval()
    assert torch.equal(again(x), due.model(x))
    assert all(torch.equal(again.state_dict()[n], t) for n, t in due.model.state_dict().items())


class Tied(torch.nn.Module):
    """One table under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mid = torch.nn.Embedding(9, 16), torch.nn.Linear(16, 16)
        self.out = torch.nn.Linear(16, 9, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids):
        return self.out(self.table(ids) + self.mid(self.table(ids)).relu())


def test_a_tied_tensor_has_one_value(tmp_path):
    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.randint(0, 9, (2, 4))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder, out = tmp_path / "large", tmp_path / "out"
    folder.mkdir()

    def slim():
        save_file(state, folder / "model.safetensors")
        return graftlib.slim_folder(folder, out, Tied, ids, **BUDGET)

    assert torch.equal(slim().edit.apply(model)(ids), graftlib.load(out, Tied).eval()(ids))
    with safe_open(out / "model.safetensors", framework="pt") as file:
        header, weights = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    weights["out.weight"] = weights["table.weight"] + 1
    save_file(weights, out / "model.safetensors", header)
    with pytest.raises(CheckpointError, match="the weights do not fit") as error:
        graftlib.load(out, Tied)
    assert "same tensor" in error.value.faults["table.weight"]
    state["out.weight"][0, 0] += 1
    with pytest.raises(CheckpointError, match="two values for one tensor"):
        slim()


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64])
def test_values_of_another_kind_are_refused_before_anything_is_written(tmp_path, kind):
    model, x = nets.made(nets.Packed)
    state = model.state_dict()
    state["out.weight"] = state["out.weight"].to(kind)
    (tmp_path / "large").mkdir()
    save_file(state, tmp_path / "large/model.safetensors")
    with pytest.raises(CheckpointError, match="1 tensors differ") as error:
        graftlib.slim_folder(tmp_path / "large", tmp_path / "out", nets.Packed, x, **BUDGET)
    assert [*error.value.faults] == ["out.weight"]
    assert not (tmp_path / "out").exists()
