"""What a graft tells of its transfers, and the folder it is saved to."""

import math
import sys

import pytest
import torch

from graftlib import attach
from graftlib.errors import AttachError, CheckpointError, MissingExtraError
from graftlib.graft import files

from .conftest import Nudge, World


def training(world, steps, **options):
    optimizer = torch.optim.SGD(world.target.parameters(), lr=0.1)
    graft = attach(Nudge(gate=0.1), world.mapping, cycle=2, **options).follow(optimizer)
    world.train(optimizer, steps)
    return graft


def test_a_callback_is_told_of_each_transfer_once_it_is_over(world):
    told = []
    graft = training(world, 6, on_transfer=told.append)
    assert graft.pending  # of the one that is pending nothing is told yet
    assert told == graft.history[:-1]
    assert all(one.signal for one in told)
    assert set(told[0].scalars()) >= {f"size/{name}" for name in told[0].changes}


def test_a_callback_is_told_of_a_skipped_transfer(world):
    told = []
    graft = training(world, 1, on_transfer=told.append)
    with torch.no_grad():
        for parameter in world.source.parameters():
            parameter.fill_(math.nan)
    with pytest.warns(match="skipped"):
        world.train(next(iter(graft._followed)), 2)
    assert told[-1].skipped is not None


def test_a_callback_that_cannot_be_called_is_refused(world):
    with pytest.raises(AttachError, match="on_transfer"):
        attach(Nudge(), world.mapping, on_transfer=3)


def test_the_table_has_one_row_a_written_matrix(world):
    pytest.importorskip("pandas", reason="pandas is not installed")
    graft = training(world, 6)
    table = graft.to_dataframe()
    assert len(table) == sum(len(one.changes) for one in graft.history)
    row = table.iloc[0]
    assert row["size"] == graft.history[0].changes[row["matrix"]].size
    assert table["signal"].isna().any()  # that of the pending transfer
    graft.detach()
    assert len(graft.to_dataframe()) == len(table)


def test_without_pandas_the_extra_is_named(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"graftlib\[dataframe\]"):
        training(world, 1).to_dataframe()


def test_a_graft_goes_on_from_its_folder_to_the_bit(tmp_path):
    whole, first, second = World(), World(), World()
    kept = training(whole, 8)
    with training(first, 4).settled() as graft:
        graft.save(tmp_path / "graft")
        second.source.load_state_dict(first.source.state_dict())
        second.target.load_state_dict(first.target.state_dict())
    assert {p.name for p in (tmp_path / "graft").iterdir()} == {files.NAME, files.CARD}
    again = attach(Nudge(gate=0.7), second.mapping, cycle=2)
    again.load(tmp_path / "graft")
    optimizer = torch.optim.SGD(second.target.parameters(), lr=0.1)
    again.follow(optimizer)
    second.train(optimizer, 4, start=4)
    assert again.history[:-1] == kept.history[:-1]
    for one, other in zip(whole.target.parameters(), second.target.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_folder_beside_other_weights_is_refused(world, tmp_path):
    graft = training(world, 4)
    graft.save(tmp_path)
    graft.detach()
    with torch.no_grad():
        for parameter in world.source.parameters():
            parameter.add_(1)
    again = attach(Nudge(), world.mapping, cycle=2)
    with pytest.raises(CheckpointError, match="other weights"):
        again.load(tmp_path)


@pytest.mark.parametrize("folder", ["missing", 3, "\0"])
def test_what_is_no_folder_of_a_graft_is_refused(world, tmp_path, folder):
    graft = attach(Nudge(), world.mapping, cycle=2)
    with pytest.raises(CheckpointError):
        graft.load(tmp_path / folder if folder == "missing" else folder)


def test_names_stay_text_in_the_card():
    state = {"counts": dict.fromkeys(("step", "skipped", "updates"), 0), "history": []}
    card = files._card(state | {"links": ["a\n# Owned -> b"]})
    assert "\n# Owned" not in card
