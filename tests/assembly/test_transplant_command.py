"""``graftlib transplant``: a state_dict that the target loads; refusals before anything runs."""

import json

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from graftlib import Mapping, trace
from graftlib.cli.app import Commands
from graftlib_adapters import transplant
from graftlib_adapters.commands import transplant as command

app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
app.callback()(lambda: None)
command.register(app)
run = CliRunner().invoke

NETS = """
from torch import nn
from pathlib import Path
import torch

Path(__file__).with_name("executed").touch()

class Net(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.stem, self.head = nn.Linear(3, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)

def large():
    return Net(12, 3), (torch.zeros(2, 3),)

def small():
    return Net(6, 2), (torch.zeros(2, 3),)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A large model with weights in a file, and a small one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    nets = {"__file__": str(tmp_path / "nets.py"), "__name__": "nets"}
    exec(NETS, nets)
    torch.manual_seed(3)
    large, example = nets["large"]()
    save_file(large.state_dict(), "large.safetensors")
    (tmp_path / "executed").unlink()
    return large.eval(), nets["small"]()[0].eval(), example


BOTH = ["transplant", "nets.py:large", "nets.py:small", "--weights", "large.safetensors"]


def test_it_writes_what_the_library_does(here, tmp_path):
    large, small, x = here
    result = run(app, [*BOTH, "-o", "small.safetensors"])
    assert result.exit_code == 0, result.output
    assert "wrote small.safetensors" in result.stdout
    done = transplant(Mapping(trace(large, x), trace(small, x)))
    assert done.share == 1
    assert str(done) in result.stdout
    state = load_file("small.safetensors")
    assert state.keys() == small.state_dict().keys()
    assert all(torch.equal(state[name], each) for name, each in done.model.state_dict().items())


def test_which_blocks_can_be_said(here):
    large, _, _ = here
    blocks = ["--block", "blocks.0=blocks.2", "--block", "blocks.1=blocks.0"]
    result = run(app, [*BOTH, *blocks, "--importance", "uniform", "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["written"]["blocks.0.weight"] == ["blocks.2.weight"]
    assert record["written"]["blocks.1.weight"] == ["blocks.0.weight"]
    weight = load_file(record["path"])["blocks.0.weight"]
    assert torch.isin(weight, large.blocks[2].weight).all()
    assert not torch.isin(weight, large.blocks[1].weight).any()


def test_links_of_a_mapping_are_what_is_carried(here):
    large, small, x = here
    Mapping(trace(large, x), trace(small, x)).link("stem", "stem").save("mapping.yaml")
    result = run(app, [*BOTH, "--mapping", "mapping.yaml", "--json"])
    assert result.exit_code == 0, result.output
    assert {name.partition(".")[0] for name in json.loads(result.stdout)["written"]} == {"stem"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--block", "blocks.0"], "TARGET=SOURCE"),
        (["--device", "meta"], "meta device"),
        (["--importance", "magnitud"], "nearest: 'magnitude'"),
        (["--block", "a=b", "--mapping", "nets.py"], "not both"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(here, tmp_path, more, says):
    result = run(app, [*BOTH, *more])
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "executed").exists()


def test_a_dry_run_executes_and_writes_nothing(here, tmp_path):
    before = {*tmp_path.iterdir()}
    result = run(app, [*BOTH, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "would execute" in result.stdout
    assert "would write transplanted.safetensors" in result.stdout
    assert {*tmp_path.iterdir()} == before
