"""Several processes train one model: they stay equal to the bit, and a graft sends nothing that it need not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlib import GraftError, attach
from graftlib.graft.ranks import fingerprint
from graftlib_adapters import MergeNet

TRANSFERS, LINKS = 3, 2  # as in ranks_run.py


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What both ranks of one torchrun wrote: scenario -> (rank 0's facts, rank 1's)."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ranks_run.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(folder)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((folder / f"rank{i}.json").read_text()) for i in range(2))
    return {name: (first[name], second[name]) for name in first}


@pytest.mark.parametrize("name", ["grafted", "fsdp", "fsdp probe"])
def test_ranks_end_bit_equal_though_each_saw_its_own_data_and_random_numbers(ran, name):
    one, other = ran[name]
    assert one["prints"] == other["prints"]
    assert one["prints"] != ran["plain"][0]["prints"], "the graft did something"
    assert ran["grafted"][0]["sizes"][-1] > 0


def test_ranks_with_different_sources_do_not(ran):
    """The negative control of the law above, and the reason for comparing."""
    one, other = ran["spoilt"]
    assert one["prints"] != other["prints"]


def test_a_graft_adds_no_collective_call_but_the_rare_comparison(ran):
    plain = ran["plain"][0]["calls"]
    assert plain > 0, "the calls are counted"
    assert ran["grafted"][0]["calls"] == plain
    assert ran["by default"][0]["calls"] == plain, "the first comparison is at step 1000"
    assert ran["compared"][0]["calls"] == plain + 2, "at steps 3 and 6"
    assert ran["compared"][0]["prints"] == ran["grafted"][0]["prints"]


def test_a_mismatch_raises_on_every_rank_and_names_what_differs(ran):
    for facts in ran["spoilt and compared"]:
        assert "no longer hold the same values at step 3" in facts["error"]
        assert "source:0.weight" in facts["error"]
        assert "target:first.bias" not in facts["error"]


def test_broadcast_keeps_ranks_equal_whatever_each_computes(ran):
    one, other = ran["spoilt and broadcast"]
    assert one["prints"] == other["prints"] == ran["grafted"][0]["prints"]
    assert one["calls"] == ran["plain"][0]["calls"] + TRANSFERS * LINKS


def test_attention_is_deterministic_by_default_among_several_processes(ran, make_world):
    assert ran["grafted"][0]["deterministic"] is True
    assert attach(MergeNet(), make_world().mapping)._running().deterministic is False


def test_sharded_training_equals_the_unsharded_one_to_the_bit(ran):
    assert ran["fsdp"][0]["sharded"]
    assert ran["fsdp"][0]["parts"]["last.weight"] != ran["fsdp"][1]["parts"]["last.weight"]
    assert ran["fsdp"][0]["prints"] == ran["unsharded"][0]["prints"]
    assert ran["fsdp probe"][0]["prints"] == ran["unsharded probe"][0]["prints"]
    assert ran["fsdp"][0]["prints"] != ran["fsdp probe"][0]["prints"]


def test_sharded_evaluation_and_resuming_change_nothing(ran):
    """An evaluation leaves FSDP2's root gathered: what `settled` wrote there would be lost."""
    assert ran["fsdp evaluated"][0]["prints"] == ran["fsdp"][0]["prints"]
    assert ran["fsdp resumed"][0]["prints"] == ran["fsdp"][0]["prints"]


def test_only_the_linked_parameters_are_gathered(ran):
    """Each linked target parameter: once at attach, and per transfer once to read it and once for the update."""
    extra = ran["fsdp"][0]["calls"] - ran["fsdp plain"][0]["calls"]
    assert extra == LINKS + TRANSFERS * 2 * LINKS


# --------------------------------------------------------------------------------------------------- the fingerprint


@given(st.integers(1, 50), st.data())
def test_one_changed_bit_changes_the_fingerprint(size, data):
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    values = torch.randn(size).to(dtype)
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16}[values.element_size()]
    changed = values.clone()
    place = data.draw(st.integers(0, size - 1))
    bit = data.draw(st.integers(0, 8 * values.element_size() - 2))
    changed.view(whole)[place] ^= 1 << bit
    assert fingerprint(values) == fingerprint(values.clone())
    assert fingerprint(values) != fingerprint(changed)


def test_order_and_sign_of_zero_matter_to_it():
    two = torch.tensor([1.0, 0.0])
    assert fingerprint(two) != fingerprint(two.flip(0))
    assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))
    assert int(fingerprint(torch.zeros(0))) == 0


@pytest.mark.parametrize(
    "wrong", [{"sync": "broadcats"}, {"verify_every": -1}, {"verify_every": 2.5}, {"record": -1}]
)
def test_options_out_of_range_are_refused(world, nudge, wrong):
    with pytest.raises(GraftError, match=next(iter(wrong))):
        attach(nudge(), world.mapping, **wrong)
