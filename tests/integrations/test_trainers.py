"""Each trainer gives the weights of the plain loop, to the bit, and its checkpoints carry the graft."""

import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import _global_optimizer_pre_hooks

from graftlib import GraftError, integrations
from graftlib.errors import CheckpointError
from graftlib.graft import files
from graftlib_adapters import MergeNet, ParameterSharing

pytest.importorskip("lightning", reason="lightning is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

# Trainers warn about workers, devices and their own future; a skipped transfer stays an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error::graftlib.graft.TransferWarning"),
]

TRAINERS = ("huggingface", "lightning", "accelerate")
ADAPTERS = {
    "replace": lambda: MergeNet(rank=4, trust=0.2),
    "probe by gradient": lambda: MergeNet(rank=4, trust=0.2, write="probe", signal="gradient"),
    "sharing": ParameterSharing,
}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def expected(loops):
    """The plain loop's worlds, grafted by each adapter and not at all."""
    ends = {name: loops.plain(loops.World(make())) for name, make in ADAPTERS.items()}
    ends["none"] = loops.plain(loops.World(grafted=False))
    return ends


def test_the_adapters_train_to_different_weights(expected):
    """The negative control: a graft that does nothing would pass all that follows."""
    ends = [world.end() for world in expected.values()]
    assert not any(same(a, b) for i, a in enumerate(ends) for b in ends[:i])


@pytest.mark.parametrize("adapter", [*ADAPTERS, "none"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_gives_the_plain_loops_weights_to_the_bit(loops, expected, trainer, adapter):
    """Two epochs, gradients accumulated, an evaluation after every step."""
    grafted = adapter != "none"
    world = loops.World(ADAPTERS[adapter]() if grafted else None, grafted=grafted)
    loops.TRAINERS[trainer](None, world=world)
    assert same(world.end(), expected[adapter].end())
    assert len(world.seen) == loops.STEPS
    assert all(map(same, world.seen, expected[adapter].seen)), "evaluations see settled weights"
    if grafted:
        assert [entry.step for entry in world.graft.history] == [0, 3, 6, 9]
        assert world.graft.history == expected[adapter].graft.history
        assert not world.graft.attached
        hooks = (
            world.optimizer._optimizer_step_pre_hooks,
            world.optimizer._optimizer_step_post_hooks,
        )
        assert not any(hooks)
        assert len(_global_optimizer_pre_hooks) <= 1, "the pair that stays, and holds no graft"


def test_lightnings_manual_optimisation_is_the_plain_loop_too(loops, expected):
    world = loops.World(ADAPTERS["replace"]())
    loops.lightning(None, world=world, manual=True)
    assert same(world.end(), expected["replace"].end())


# ----------------------------------------------------------------------------------------------------------- resuming


def killed(loops, trainer, folder, die):
    """Run a training in a child process that kills itself before optimizer step `die`."""
    child = os.fork()
    if child == 0:
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            loops.TRAINERS[trainer](folder, die=die)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def check(loops, expected, folder, trainer, die):
    killed(loops, trainer, folder, die)
    resumed = loops.TRAINERS[trainer](folder, resume=True)
    assert same(resumed.end(), expected.end()), f"{trainer} killed before step {die}"
    assert resumed.graft.history == expected.graft.history


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("die", [3, 7])
def test_a_killed_run_resumes_from_the_trainers_checkpoint_to_the_same_bits(
    loops, expected, tmp_path, trainer, die
):
    """Before and after a transfer, within and across the epochs."""
    check(loops, expected["replace"], tmp_path / "saved", trainer, die)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_wherever_it_is_killed(loops, expected, tmp_path, trainer):
    for i in range(20):
        check(
            loops, expected["replace"], tmp_path / str(i), trainer, random.randrange(1, loops.STEPS)
        )


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_resumed_run_that_forgets_the_graft_ends_elsewhere(
    loops, expected, tmp_path, trainer, monkeypatch
):
    """The negative control: the checkpoint's graft is what makes the bits equal."""
    killed(loops, trainer, tmp_path / "saved", 5)
    monkeypatch.setattr(files, "take_up", lambda *args, **kwargs: None)
    resumed = loops.TRAINERS[trainer](tmp_path / "saved", resume=True)
    assert not same(resumed.end(), expected["replace"].end())


@pytest.mark.parametrize("trainer", ["huggingface", "accelerate"])
def test_a_checkpoint_without_the_graft_or_of_other_weights_is_refused(loops, tmp_path, trainer):
    folder = tmp_path / "saved"
    killed(loops, trainer, folder, 5)
    early, late = sorted(folder.glob(f"*-[45]/{files.NAME}"), key=str) or (None, None)
    shutil.copy(early.parent.parent / early.parent.name.replace("4", "3") / files.NAME, late)
    with pytest.raises(CheckpointError, match="other weights") as refused:
        loops.TRAINERS[trainer](folder, resume=True)
    assert "target:first.weight" in str(refused.value)
    late.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        loops.TRAINERS[trainer](folder, resume=True)


def test_lightnings_checkpoint_is_plain_data_and_is_refused_without_the_graft(loops, tmp_path):
    folder = tmp_path / "saved"
    loops.lightning(folder, every=5)
    (path,) = folder.glob("step=5.ckpt")
    saved = torch.load(path, weights_only=True)
    (name,) = [name for name in saved["callbacks"] if "GraftCallback" in name]
    saved["callbacks"][name]["weights"]["source:0.weight"] += 1
    torch.save(saved, folder / "step=99.ckpt")
    with pytest.raises(CheckpointError, match=r"source:0\.weight"):
        loops.lightning(folder, resume=True)
    del saved["callbacks"][name]
    torch.save(saved, folder / "step=99.ckpt")
    with pytest.raises(CheckpointError, match="weights  is missing"):
        loops.lightning(folder, resume=True)


# ---------------------------------------------------------------------------------------------------- around the edges


@pytest.mark.parametrize("trainer", ["huggingface", "lightning"])
def test_an_optimizer_that_does_not_step_the_target_is_refused(loops, trainer):
    world = loops.World()
    world.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(GraftError, match="steps none"):
        loops.TRAINERS[trainer](None, world=world)


@pytest.mark.parametrize("trainer", ["huggingface", "lightning"])
def test_an_interrupted_training_leaves_settled_weights(loops, trainer):
    world = loops.World()

    def interrupt():
        raise RuntimeError("stop here")

    world.look = interrupt
    with pytest.raises(RuntimeError, match="stop here"):
        loops.TRAINERS[trainer](None, world=world)
    now = world.end()
    with world.graft.settled():
        assert same(now, world.end())
    world.graft.detach()
    assert len(_global_optimizer_pre_hooks) <= 1, "the pair that stays, and holds no graft"


def test_a_state_saved_in_the_middle_of_a_transfer_is_the_settled_one(loops, tmp_path):
    """Accelerate's loop follows, so a write is pending while it saves."""
    from accelerate import Accelerator
    from safetensors.torch import load_file

    world = loops.World(MergeNet(rank=4, trust=0.2, init="paper"))
    settled = world.end()
    accelerator = Accelerator(cpu=True)
    _, optimizer = accelerator.prepare(world.target, world.optimizer)
    from graftlib.integrations.accelerate import follow

    follow(world.graft, accelerator, optimizer)
    pending = world.end()
    assert not same(settled, pending)
    assert files.pending(world.graft)
    accelerator.save_state(str(tmp_path / "now"))
    assert same(load_file(tmp_path / "now" / "model.safetensors"), settled)
    assert same(world.end(), pending), "saving does not disturb the training"
    world.graft.detach()
    assert same(world.end(), settled)
    accelerator.free_memory()


# ----------------------------------------------------------------------------------------------------------- the file


def test_a_state_survives_its_file_to_the_bit(tmp_path):
    state = {
        "a": [1, 2.5, None, True, "x", float("inf")],
        "tensors": {0: torch.tensor([1.0, -0.0]), 1: torch.zeros(0, 3), 2: torch.tensor(3)},
        "tuple": (0.9, (1,)),
        "<b>&\u2028": torch.arange(4).to(torch.bfloat16),
    }
    files.save(state, tmp_path / "x.safetensors")
    found = files.load(tmp_path / "x.safetensors")
    assert found["a"] == state["a"]
    assert found["tuple"] == state["tuple"]
    assert found.keys() == state.keys()
    assert same(found["tensors"], state["tensors"])
    assert torch.equal(found["<b>&\u2028"], state["<b>&\u2028"])
    assert found["tensors"][0].signbit().tolist() == [False, True]


@pytest.mark.parametrize("spoil", [b"", b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_file_is_refused(tmp_path, spoil):
    path = tmp_path / files.NAME
    path.write_bytes(spoil)
    with pytest.raises(CheckpointError, match="damaged"):
        files.load(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / files.NAME
    files.save({"a": torch.ones(9)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="damaged"):
        files.load(path)


# -------------------------------------------------------------------------------------------------------- the imports


def test_a_missing_trainer_names_the_extra():
    code = """
import sys, graftlib, graftlib.integrations
for name in ("transformers", "lightning", "accelerate"):
    assert name not in sys.modules
    sys.modules[name] = None
    try:
        __import__(f"graftlib.integrations.{name}")
    except graftlib.GraftError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count('pip install "graftlib[') == 3


def test_every_trainer_is_told_of_in_the_readme():
    folder = Path(integrations.__file__).parent
    readme = (folder / "README.md").read_text("utf-8")
    modules = {p.name for p in folder.glob("*.py")} - {"__init__.py"}
    assert all(f"`{name}`" in readme for name in modules)
