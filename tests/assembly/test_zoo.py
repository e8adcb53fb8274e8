"""Sources: live ones, checkpoints read lazily, folders, generators; and the fingerprint that tells them apart."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from graftlib import GraftError
from graftlib.errors import CheckpointError
from graftlib_adapters.assembly import AssemblyError, ZooEntry, folder
from graftlib_adapters.assembly import zoo as room
from graftlib_adapters.assembly.zoo import LoadedModel, fingerprint, sources_of, state_of

EXAMPLE = (torch.zeros(2, 3),)


def net(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


class Tied(nn.Module):
    """One tensor under two names: a file holds it once."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x).relu())


def with_inputs():
    return net(), EXAMPLE


@pytest.fixture
def saved(tmp_path):
    model = net()
    save_file(model.state_dict(), tmp_path / "first.safetensors")
    return model, tmp_path / "first.safetensors"


def test_an_entry_gives_the_bits_that_were_saved(saved):
    model, path = saved
    entry = ZooEntry(net, path, EXAMPLE)
    assert entry.name == "first"
    read = entry.state()
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[k], v) for k, v in model.state_dict().items())
    loaded, x = entry.model(), torch.randn(5, 3)
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=0, atol=0)


def test_its_graph_is_traced_without_memory(saved):
    graph = ZooEntry(net, saved[1], EXAMPLE).graph()
    assert all(p.is_meta for p in graph.model.parameters())
    assert not any(
        p.is_meta for p in ZooEntry(net, saved[1], EXAMPLE).graph_with_values().model.parameters()
    )


def test_only_the_tensors_asked_for_are_read(saved, monkeypatch):
    read = []
    whole = room._Reader.read
    monkeypatch.setattr(room._Reader, "read", lambda self, n: (read.append(n), whole(self, n))[1])
    ZooEntry(net, saved[1], EXAMPLE).state(["3.weight"])
    assert read == ["3.weight"]


def test_a_tied_tensor_is_found_under_both_names(tmp_path):
    model = Tied()
    save_file({"a.weight": model.a.weight.detach()}, tmp_path / "t.safetensors")
    state = ZooEntry(Tied, tmp_path / "t.safetensors", EXAMPLE).state()
    assert torch.equal(state["b.weight"], model.a.weight)


def test_a_sharded_checkpoint_is_one(tmp_path):
    model = net()
    state = model.state_dict()
    names = list(state)
    index = {}
    for i, part in enumerate((names[:3], names[3:])):
        save_file({n: state[n] for n in part}, tmp_path / f"part-{i}.safetensors")
        index |= dict.fromkeys(part, f"../elsewhere/part-{i}.safetensors")
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    entry = ZooEntry(net, tmp_path / "m.safetensors.index.json", EXAMPLE)
    # A path in the index that leads out of the folder leads nowhere: only its last name counts.
    assert fingerprint(entry.state()) == fingerprint(state)


def test_a_tensor_in_two_files_is_the_one_that_the_index_names(tmp_path):
    model = net()
    state = model.state_dict()
    zero = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    one, *rest = state
    save_file(state | {one: zero[one]}, tmp_path / "a.safetensors")
    save_file(zero | {one: state[one]}, tmp_path / "b.safetensors")
    index = {one: "b.safetensors"} | dict.fromkeys(rest, "a.safetensors")
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    assert fingerprint(ZooEntry(net, path, EXAMPLE).state()) == fingerprint(state)
    del index[rest[0]]
    path.write_text(json.dumps({"weight_map": index}))
    with pytest.raises(CheckpointError, match="in two files"):
        ZooEntry(net, path, EXAMPLE).state()


def test_a_foreign_checkpoint_is_refused_with_all_that_differs(saved):
    with pytest.raises(CheckpointError) as error:
        ZooEntry(lambda: net(6), saved[1], EXAMPLE).graph()
    assert "(6, 3) in the model, (4, 3) in the file" in str(error.value)
    assert "7 entries differ" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 64])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        ZooEntry(net, tmp_path / "x.safetensors", EXAMPLE).graph()


def test_a_factory_that_gives_no_model_is_refused(saved):
    with pytest.raises(AssemblyError, match="gives a int, not a model"):
        ZooEntry(lambda: 3, saved[1], EXAMPLE).graph()


def test_a_folder_is_its_checkpoints_by_name(tmp_path):
    for name in ("b", "a"):
        save_file(net().state_dict(), tmp_path / f"{name}.safetensors")
    asked = []
    entries = folder(tmp_path, lambda path: (asked.append(path.name), net())[1], args=EXAMPLE)
    assert [entry.name for entry in entries] == ["a", "b"]
    assert asked == []  # nothing is built before it is needed
    entries[1].graph()
    assert asked == ["b.safetensors"]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(AssemblyError, match="holds no"):
        folder(tmp_path, lambda path: net())


def test_a_source_takes_the_bases_inputs_unless_it_has_its_own(saved):
    own = (torch.zeros(7, 3),)
    found = list(
        sources_of(
            [net(), (net(), own), ZooEntry(net, saved[1]), ZooEntry(net, saved[1], own)],
            EXAMPLE,
            None,
        )
    )
    assert [len(source.args[0]) for source in found] == [2, 7, 2, 7]


def test_a_factory_may_bring_the_inputs(saved):
    (shape,) = ZooEntry(with_inputs, saved[1]).graph().inputs.values()
    assert shape == (2, 3)


@pytest.mark.parametrize(
    ("sources", "count"),
    [(net(), 1), ((net(), EXAMPLE), 1), ([net(), net()], 2), ((net(), net(5)), 2)],
    ids=["a model", "a model with inputs", "a list", "a tuple of models"],
)
def test_one_source_or_several(sources, count):
    assert len(list(sources_of(sources, EXAMPLE, None))) == count


def test_what_is_no_source_is_refused():
    with pytest.raises(AssemblyError, match="source 1 is a str"):
        list(sources_of([net(), "model.pt"], EXAMPLE, None))


def test_a_generator_is_asked_only_for_what_is_needed():
    asked = []

    def endless():
        while True:
            asked.append(len(asked))
            yield net()

    found = sources_of(endless(), EXAMPLE, None)
    next(found)
    next(found)
    assert asked == [0, 1]


def test_a_live_source_shares_memory_and_an_entry_travels_to_another_process(saved):
    model = net()
    state = LoadedModel(model, EXAMPLE).state(["0.weight"])
    assert state["0.weight"].data_ptr() == model[0].weight.data_ptr()
    entry = pickle.loads(pickle.dumps(ZooEntry(net, saved[1], EXAMPLE)))
    assert torch.equal(entry.state()["0.weight"], saved[0][0].weight)


@given(
    st.integers(0, 4),
    st.integers(0, 2),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_a_fingerprint_follows_every_bit_and_name(row, column, dtype):
    state = {"a": torch.arange(15.0).view(5, 3).to(dtype), "b": torch.ones(2, dtype=torch.int64)}
    changed = {name: tensor.clone() for name, tensor in state.items()}
    assert fingerprint(dict(reversed(state.items()))) == fingerprint(changed)
    changed["a"][row, column] += 1
    assert fingerprint(changed) != fingerprint(state)
    assert fingerprint({"a": state["a"], "c": state["b"]}) != fingerprint(state)
    assert fingerprint({**state, "a": state["a"].view(3, 5)}) != fingerprint(state)


def test_state_of_holds_what_is_saved(device):
    model = net().to(device)
    assert state_of(model).keys() == model.state_dict().keys()
    assert all(not tensor.requires_grad for tensor in state_of(model).values())
    assert isinstance(AssemblyError("x"), GraftError)
