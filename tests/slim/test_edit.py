"""An edit is data: it applies again, to whatever has the shapes, and is refused by what has not."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import graftlib
from graftlib import Edit, surgery
from graftlib.errors import CheckpointError
from graftlib.slim.edit import digest
from graftlib.surgery import SurgeryError, SurgeryWarning
from graftlib.surgery.order import order_of

from . import nets
from .test_slim import KINDS, slim

BUDGET = {"budget": {"params": 0.6}, "multiple_of": 1}


@functools.cache
def standard(kind):
    """A model, its input, and its slim form: made once; nobody writes to them."""
    return slim(kind, **BUDGET)


def same(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@KINDS
def test_it_makes_the_same_model_again(kind):
    model, x, small = standard(kind)
    again = Edit.from_json(small.edit.to_json())
    assert again == small.edit
    assert again.sha256 == small.edit.sha256
    assert same(again.apply(model), small.model)
    assert torch.equal(again.apply(model)(x), small.model(x))


@KINDS
def test_it_applies_to_another_checkpoint_and_to_its_state_dict(kind):
    model, x, small = standard(kind)
    torch.manual_seed(1)
    other = kind().eval()
    edited = small.edit.apply(other)
    state = small.edit.apply({f"module.{k}": v for k, v in other.state_dict().items()})
    assert {k.removeprefix("module."): v.shape for k, v in state.items()} == {
        k: v.shape for k, v in small.model.state_dict().items()
    }
    filled = copy.deepcopy(small.model)
    filled.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    assert torch.equal(edited(x), filled(x))
    assert not same(edited, small.edit.apply(model))


@pytest.mark.parametrize(
    "names", ["{}.lora_{}.weight", "base_model.model.{}.lora_{}.default.weight"]
)
@settings(max_examples=5)
@given(seed=st.integers(0, 100))
def test_an_adapter_then_a_prune_is_a_prune_then_the_adapter(names, seed):
    model, x, small = standard(nets.GroupedHeads)
    torch.manual_seed(seed)
    layers, lora = ("q", "o", "up", "down"), {}
    for layer in layers:
        out, inside = model.get_submodule(layer).weight.shape
        lora[names.format(layer, "A")] = torch.randn(2, inside).double()
        lora[names.format(layer, "B")] = torch.randn(out, 2).double()

    def merged(net, adapter):
        net = net.double()
        with torch.no_grad():
            for layer in layers:
                a, b = (adapter[names.format(layer, part)] for part in "AB")
                net.get_submodule(layer).weight += b @ a
        return net

    edit = small.edit
    first = edit.apply(merged(nets.made(nets.GroupedHeads)[0], lora))
    then = merged(edit.apply(nets.made(nets.GroupedHeads)[0]), edit.apply(lora))
    for key, value in first.state_dict().items():
        torch.testing.assert_close(then.state_dict()[key], value, rtol=1e-12, atol=1e-12)
    assert (then(x.double()) - small.model(x)).abs().max() > 1e-3
    wrong = {key: tensor[:, :-1] if ".lora_A" in key else tensor for key, tensor in lora.items()}
    with pytest.raises(SurgeryError, match="not the GroupedHeads"):
        edit.apply(wrong)


def test_a_table_in_an_adapter_is_edited_and_magnitudes_over_pruned_inputs_are_refused():
    _, _, small = standard(nets.GroupedHeads)
    weights = nets.made(nets.GroupedHeads)[0].state_dict()
    name = "base_model.model.{}.base_layer.weight".format
    lora = {
        "base_model.model.down.lora_A.weight": torch.randn(2, 24),
        name("down"): weights["down.weight"],
    }
    edited = small.edit.apply(lora)
    assert edited[name("down")].shape == small.model.down.weight.shape
    magnitude = "base_model.model.{}.lora_magnitude_vector".format
    made = small.edit.apply({magnitude("embed"): torch.randn(16)})  # its inputs are the data
    assert made[magnitude("embed")].shape == small.model.embed.bias.shape
    with pytest.raises(SurgeryError, match="merge the adapter first"):
        small.edit.apply({magnitude("down"): torch.randn(16)})


def test_training_goes_on_where_the_optimizer_stood():
    """A step of the pruned model with the pruned state is the step of the kept units."""
    model, x, small = standard(nets.GroupedHeads)
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    state = small.edit.apply_optimizer(optimizer.state_dict(), model)
    pruned = small.edit.apply(model)
    mine = torch.optim.AdamW(pruned.named_parameters(), lr=0.01)
    mine.load_state_dict(state)
    gradients = small.edit.apply({n: p.grad for n, p in model.named_parameters()})
    for name, parameter in pruned.named_parameters():
        parameter.grad = gradients[name]
    mine.step()
    optimizer.step()
    assert same(pruned, small.edit.apply(model))
    one = torch.optim.SGD([model.head.weight])
    with pytest.raises(SurgeryError, match="optimizer has 1 parameters"):
        small.edit.apply_optimizer(one.state_dict(), model)


@pytest.mark.parametrize("buffers", [False, True])
def test_an_average_goes_on_where_it_stood(buffers):
    """An average of pruned models is the pruned average; the number of its updates stays."""
    model, _, small = standard(nets.Residual)

    def averaged(net, steps, mean=None):
        if mean is None:
            mean = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=buffers)
        for seed in steps:
            torch.manual_seed(seed)
            other = small.edit.apply(kind()) if net is not model else kind()
            mean.update_parameters(other)
        return mean

    kind = nets.Residual
    due = small.edit.apply(averaged(model, range(4)))
    begun = averaged(model, range(2))
    mine = averaged(small.model, range(2, 4), small.edit.apply(begun))
    assert same(mine, due)
    assert mine.n_averaged == 4
    assert not same(mine, small.edit.apply(begun))
    state = small.edit.apply(averaged(model, range(4)).state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in due.state_dict().items())
    assert small.edit.apply(begun, inplace=True) is begun
    with pytest.raises(SurgeryError, match="differ"):
        small.edit.apply(begun)


def test_what_does_not_fit_is_refused_before_anything_is_written():
    model, _, small = standard(nets.GroupedHeads)
    before = digest(model.state_dict())
    with pytest.raises(SurgeryError, match="differ") as error:
        small.edit.apply(small.model, inplace=True)
    assert "down.weight" in error.value.faults
    with pytest.raises(SurgeryError, match="differ"):
        small.edit.apply(nets.GroupedHeads(width=24))
    state = model.state_dict()
    state.pop("down.weight")
    with pytest.raises(SurgeryError, match="is missing"):
        small.edit.apply(state)
    assert digest(model.state_dict()) == before == small.edit.source


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e["classes"][0].update(keep=[3, 1]), "ascending"),
        (lambda e: e["classes"][0].update(keep=[10**6]), "ascending"),
        (lambda e: e["classes"][0]["members"][0].update(axis=7), "holds no such units"),
        (lambda e: e["classes"][0]["members"][0].update(fqn="nowhere"), "holds no such units"),
        (lambda e: e["classes"].append({"size": 10**13, "keep": [0], "members": []}), "no members"),
        (lambda e: e.update(version=2), "version"),
        (lambda e: e.update(more=1), "unknown"),
        (lambda e: e["attributes"].append({"module": "", "way": [], "value": 1}), "no steps"),
    ],
)
def test_an_untrusted_document_is_read_with_care(change, words):
    _, _, small = standard(nets.Packed)
    content = json.loads(small.edit.to_json())
    change(content)
    with pytest.raises(SurgeryError, match=words):
        Edit.from_json(json.dumps(content))


def test_sizes_in_a_document_are_those_of_the_model():
    """Nothing is allocated for what a document says alone: 10^13 units under a name that no tensor has."""
    model, _, small = standard(nets.Packed)
    content = json.loads(small.edit.to_json())
    ghost = {"fqn": "ghost", "axis": 0, "start": 0, "factors": [10**13], "position": 0}
    content["classes"].append({"size": 10**13, "keep": [0], "members": [ghost]})
    content["tensors"]["ghost"] = {"shape": [10**13], "axes": ["out"]}
    content["aliases"]["head.bias"] = "ghost"
    with pytest.raises(SurgeryError, match="not \\(10000000000000,\\)"):
        Edit.from_json(json.dumps(content)).apply(model)
    content = json.loads(small.edit.to_json())
    content["constants"].append({"fqn": "head.weight", "axis": 2**53, "size": 1})
    with pytest.raises(SurgeryError, match="has no 1 units"):
        Edit.from_json(json.dumps(content)).apply(model)


@pytest.mark.parametrize("way", [["__class__"], ["forward"], ["_modules"], ["training"], ["nope"]])
def test_only_numbers_that_are_there_are_set(way):
    model, _, small = standard(nets.Packed)
    content = json.loads(small.edit.to_json())
    content["attributes"].append({"module": "", "way": way, "value": 3})
    with pytest.raises(SurgeryError, match="settings differ"):
        Edit.from_json(json.dumps(content)).apply(model)


# Files ----------------------------------------------------------------------------------------------------------


@KINDS
def test_files_give_the_model_back_to_the_bit(kind, tmp_path):
    _, x, small = slim(kind, **BUDGET, data=[nets.INPUTS[kind]])
    small.save(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "edit.json",
        "model.safetensors",
    ]
    again = graftlib.load(tmp_path / "out", kind).eval()
    assert same(again, small.model)
    assert torch.equal(again(x), small.model(x))


def test_dtypes_and_ties_come_back(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mid = torch.nn.Embedding(7, 16), torch.nn.Linear(16, 16)
            self.out = torch.nn.Linear(16, 7, bias=False)
            self.out.weight = self.table.weight

        def forward(self, ids):
            return self.out(F.relu(self.mid(self.table(ids))) + self.table(ids))

    model, x = Tied().to(torch.bfloat16).eval(), torch.randint(0, 7, (2, 5))
    small = graftlib.slim(graftlib.trace(model, x), budget={"params": 0.6}, multiple_of=1)
    small.save(tmp_path)
    again = graftlib.load(tmp_path, Tied).eval()
    assert again.out.weight is again.table.weight
    assert again.out.weight.dtype == torch.bfloat16
    assert torch.equal(again(x), small.model(x))


def test_files_that_do_not_belong_together_or_do_not_fit_are_refused(tmp_path):
    _, _, small = standard(nets.Packed)
    _, _, other = slim(nets.Packed, budget={"params": 0.8}, multiple_of=1)
    small.save(tmp_path / "a")
    other.save(tmp_path / "b")
    with pytest.raises(SurgeryError, match="differ"):
        graftlib.load(tmp_path / "a", nets.GroupedHeads)
    (tmp_path / "b/edit.json").replace(tmp_path / "a/edit.json")
    with pytest.raises(CheckpointError, match="is not the edit"):
        graftlib.load(tmp_path / "a", nets.Packed)
    with pytest.raises(SurgeryError, match="cannot be read"):
        graftlib.load(tmp_path / "b", nets.Packed)
    small.edit.save(tmp_path / "b/edit.json")
    (tmp_path / "b/model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="as safetensors"):
        graftlib.load(tmp_path / "b", nets.Packed)


def test_a_hugging_face_model_is_read_back_both_ways(tmp_path):
    transformers = pytest.importorskip("transformers")

    def make():
        config = transformers.BertConfig(
            vocab_size=11, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=9,
        )  # fmt: skip
        return transformers.BertModel(config).eval()

    torch.manual_seed(0)
    model, ids = make(), torch.randint(0, 11, (2, 7))
    graph = graftlib.trace(model, kwargs={"input_ids": ids})
    keep = ["embeddings.*", "*.attention.self.*"]
    even = graftlib.slim(graph, budget={"params": 0.8}, ranking="uniform", keep=keep)
    even.save(tmp_path)
    read = transformers.BertModel.from_pretrained(tmp_path).eval()
    again = graftlib.load(tmp_path, make)
    due = even.model(input_ids=ids).last_hidden_state
    for each in (read, again):
        assert torch.equal(each(input_ids=ids).last_hidden_state, due)
        assert each.config.intermediate_size == even.model.config.intermediate_size < 64

    worth = lambda graph, model, each: torch.rand(each.size).double()  # noqa: E731
    with pytest.warns(SurgeryWarning, match="config of 'BertModel' cannot say"):
        uneven = graftlib.slim(graph, budget={"params": 0.6}, importance=worth, multiple_of=1)
    uneven.save(tmp_path)
    assert not (tmp_path / "config.json").exists()  # that of before would say other sizes
    again, due = graftlib.load(tmp_path, make), uneven.model(input_ids=ids).last_hidden_state
    assert torch.equal(again(input_ids=ids).last_hidden_state, due)


def test_a_card_says_what_was_done_and_leaves_the_card_of_others(tmp_path):
    _, _, small = standard(nets.Packed)
    _, _, other = slim(nets.Packed, budget={"params": 0.8}, multiple_of=1)
    card = tmp_path / "README.md"
    for each in (small, other):
        each.save(tmp_path)
        text = card.read_text()
        assert each.edit.sha256 in text
        assert each.edit.source in text
        assert str(each.report) in text
    card.write_text("mine")
    small.save(tmp_path)
    assert card.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [("head_dim", 3, True), ("head_dim", "3", False), ("_x", 3, False), ("to_dict", 3, False)],
)
def test_a_config_gets_numbers_that_it_had_not_and_nothing_else(name, value, fits):
    """Phi has no head_dim until its heads are pruned."""

    class Config:
        def to_dict(self):
            return vars(self)

    model, _, small = standard(nets.Packed)
    model = copy.deepcopy(model)
    model.config = Config()
    edit = dataclasses.replace(small.edit, config={("", (name,)): value})
    edit = Edit.from_json(edit.to_json())
    if fits:
        assert getattr(edit.apply(model).config, name) == value
    else:
        with pytest.raises(SurgeryError, match="settings differ"):
            edit.apply(model)


class Checked:
    """A config whose class refuses what is no whole number, as strict dataclasses do."""

    def __init__(self) -> None:
        self.width, self.kind, self.left, self.stage = 8, "gelu", None, "stage3"
        self._stages, self._kind = [3], "eager"
        self.layers, self.scaling = ["full", "sliding", "full"], {"type": "linear", "factor": 2.0}
        self.inner = Checked.__new__(Checked)

    def __setattr__(self, name, value):
        if name == "width" and type(value) is not int:
            raise TypeError(f"{name} is no whole number")
        object.__setattr__(self, name, value)

    def to_dict(self):
        return vars(self)


@pytest.mark.parametrize(
    ("way", "value", "fits"),
    [
        (["width"], 4, True),
        (["width"], 4.5, False),
        (["width"], "4", False),
        (["width"], None, False),
        (["width", 0], 4, False),
        (["left"], 4, True),
        (["left"], "a name", False),
        (["kind"], "relu", False),
        (["stage"], "stage2", True),
        (["stage"], "stages2", False),
        (["stage"], 2, False),
        (["layers"], ["full", "full"], True),
        (["layers"], ["other"], False),
        (["layers", 9], "full", False),
        (["scaling"], {"type": "linear", "factor": 4.0}, True),
        (["scaling"], {"type": "other"}, False),
        (["scaling", "factor"], 4.0, True),
        (["scaling", "nothing"], 4.0, False),
        (["_stages"], [1], True),  # a backbone of transformers has its stages in `_out_indices`
        (["_stages"], 1, False),
        (["_kind"], [1], False),
        (["_others"], [1], False),
        (["inner", "__class__"], 3, False),
        (["inner", "__dict__"], {}, False),
    ],
)
def test_a_config_says_other_numbers_and_what_was_there(way, value, fits):
    """No text, no field and no kind that it had not; what its class refuses is refused before the model changes."""
    model, _, small = standard(nets.Packed)
    model = copy.deepcopy(model)
    model.config = Checked()
    content = json.loads(small.edit.to_json())
    content["config"] = [{"module": "", "way": way, "value": value}]
    edit, before = Edit.from_json(json.dumps(content)), digest(model.state_dict())
    if fits:
        assert edit.apply(model).config is not model.config
        return
    with pytest.raises(SurgeryError, match="settings differ"):
        edit.apply(model, inplace=True)
    assert digest(model.state_dict()) == before
    assert model.config.width == 8


def test_values_of_another_kind_are_refused(tmp_path):
    """Other precisions are those of the file; whole numbers in the place of floats are none of the model's."""
    _, _, small = standard(nets.Packed)
    small.save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        header, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    for kind in (torch.float64, torch.bfloat16):
        save_file(
            {n: t.to(kind) for n, t in tensors.items()}, tmp_path / "model.safetensors", header
        )
        assert graftlib.load(tmp_path, nets.Packed).head.weight.dtype == kind
    for kind in (torch.int32, torch.bool, torch.complex64):
        wrong = tensors | {"head.bias": tensors["head.bias"].to(kind)}
        save_file(wrong, tmp_path / "model.safetensors", header)
        with pytest.raises(CheckpointError, match="weights do not fit") as error:
            graftlib.load(tmp_path, nets.Packed)
        assert [*error.value.faults] == ["head.bias"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_card_that_is_no_file_is_left_and_nothing_is_written(tmp_path, make):
    _, _, small = standard(nets.Packed)
    make(tmp_path / "README.md")
    with pytest.raises(SurgeryError, match=r"README\.md"):
        small.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_model_is_no_factory(tmp_path):
    model, _, small = standard(nets.Packed)
    small.save(tmp_path)
    with pytest.raises(CheckpointError, match="no function that makes one"):
        graftlib.load(tmp_path, model)


def test_a_layer_may_be_called_as_adapters_call_theirs(tmp_path):
    """DLA of timm has a `base_layer`."""

    class Based(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer, self.head = torch.nn.Linear(5, 16), torch.nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.base_layer(x).relu())

    x = torch.randn(2, 5)
    small = graftlib.slim(graftlib.trace(Based(), x), budget={"params": 0.6}, multiple_of=1)
    small.save(tmp_path)
    assert torch.equal(graftlib.load(tmp_path, Based)(x), small.model(x))


def test_an_edit_of_a_backbone_applies_to_what_it_was_made_of():
    transformers = pytest.importorskip("transformers")

    def make():
        config = transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
        )
        return transformers.Dinov2Model(config).eval()

    torch.manual_seed(0)
    model, x = make(), torch.randn(1, 3, 8, 8)
    graph = graftlib.trace(model, (), {"pixel_values": x})
    shallow = surgery.drop_blocks(graph, ["encoder.layer.1"])
    edit = Edit.of(model, graph, {}, {}).without(model, order_of(model, {"encoder.layer.1": 0}))
    again = edit.with_config(model, shallow).apply(model)
    assert again.config.to_dict() == shallow.config.to_dict() != model.config.to_dict()


def test_the_edit_goes_into_an_onnx_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    _, _, small = slim(nets.Written, budget={"params": 0.7}, multiple_of=1)
    small.export_onnx(tmp_path / "slim.onnx", measure=False)
    props = {p.key: p.value for p in onnx.load(str(tmp_path / "slim.onnx")).metadata_props}
    assert Edit.from_json(props["graftlib.edit"]) == small.edit
    assert props["graftlib.source_sha256"] == small.edit.source
