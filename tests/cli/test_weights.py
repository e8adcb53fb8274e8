"""A state_dict from a file: everything is compared before anything is written, and nothing is unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from graftlib.cli.weights import load_weights
from graftlib.errors import CheckpointError


class TiedLinear(nn.Module):
    """One tensor under two names: safetensors keeps only one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def filled(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def saved(model: nn.Module, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_saved_model_comes_back(tmp_path: Path, suffix: str):
    path = saved(filled(nn.Linear(2, 3), 7.0), tmp_path / f"w{suffix}")
    model = nn.Linear(2, 3)
    load_weights(model, path)
    assert all((p == 7.0).all() for p in model.parameters())


def test_a_nested_state_dict_is_found(tmp_path: Path):
    torch.save(
        {"state_dict": filled(nn.Linear(2, 3), 7.0).state_dict(), "epoch": 3}, tmp_path / "w.pt"
    )
    model = nn.Linear(2, 3)
    load_weights(model, tmp_path / "w.pt")
    assert (model.weight == 7.0).all()


def test_a_tied_tensor_needs_one_name(tmp_path: Path):
    save_file({"embed.weight": torch.full((5, 3), 7.0)}, tmp_path / "w.safetensors")
    model = TiedLinear()
    load_weights(model, tmp_path / "w.safetensors")
    assert (model.head.weight == 7.0).all()
    untied = TiedLinear()
    untied.head.weight = nn.Parameter(torch.zeros(5, 3))
    with pytest.raises(CheckpointError, match=r"'head.weight'\s+is missing"):
        load_weights(untied, tmp_path / "w.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named_as_such(tmp_path: Path, suffix: str, share: float):
    path = saved(nn.Linear(40, 30), tmp_path / f"w{suffix}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    model = filled(nn.Linear(40, 30), 1.0)
    with pytest.raises(CheckpointError, match="truncated"):
        load_weights(model, path)
    assert (model.weight == 1.0).all()


def test_a_missing_file_is_a_checkpoint_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match="missing"):
        load_weights(nn.Linear(2, 3), tmp_path / "absent.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, suffix: str):
    os.mkfifo(tmp_path / f"x{suffix}")
    with pytest.raises(CheckpointError, match="no regular file"):
        load_weights(nn.Linear(2, 3), tmp_path / f"x{suffix}")


def test_all_offenders_are_named_and_nothing_is_written(tmp_path: Path):
    save_file(
        {"weight": torch.zeros(2, 3), "bais": torch.zeros(3)},  # transposed, and a slip of the keys
        tmp_path / "w.safetensors",
    )
    model = filled(nn.Linear(2, 3), 1.0)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    text = str(caught.value)
    assert "(3, 2) here, (2, 3) in the file" in text
    assert "'bais'" in text
    assert "nearest 'bias'" in text
    assert "3 entries differ" in text
    assert all((p == 1.0).all() for p in model.parameters())


def test_a_pickle_is_not_run(tmp_path: Path):
    witness = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (witness,)

    trap = tmp_path / "w.pt"
    trap.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError):
        load_weights(nn.Linear(2, 3), trap)
    torch.save({"weight": Trap()}, trap)
    with pytest.raises(CheckpointError):
        load_weights(nn.Linear(2, 3), trap)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Trap()))  # the trap does spring where it is let
    assert witness.exists()


def test_things_that_are_no_state_dict(tmp_path: Path):
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="holds no state_dict"):
        load_weights(nn.Linear(2, 3), tmp_path / "w.pt")


def test_the_meta_device_takes_no_values(tmp_path: Path):
    path = saved(nn.Linear(2, 3), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="--device cpu"):
        load_weights(nn.Linear(2, 3, device="meta"), path)
