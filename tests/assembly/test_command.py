"""``graftlib assemble`` and ``graftlib lmc``: one file in, one folder out; refusals before anything runs."""

from __future__ import annotations

import json

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from graftlib import surgery, trace
from graftlib.cli.app import Commands
from graftlib_adapters.assembly import AssemblyError
from graftlib_adapters.assembly.layout import FILES
from graftlib_adapters.assembly.recipe import read
from graftlib_adapters.assembly.zoo import fingerprint
from graftlib_adapters.commands import assemble as command
from graftlib_adapters.commands import lmc as lmc_command

# The same door for errors as `graftlib` has, whatever is installed.
app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
for module in (command, lmc_command):
    module.register(app)
run = CliRunner().invoke

NETS = """
from pathlib import Path
import torch
from torch import nn

Path(__file__).with_name("executed").touch()

def net(width=8):
    print("factory chatter")
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)), (torch.zeros(2, 3),)

def wide():
    return net(12)

def score(model):
    x = torch.linspace(-1, 1, 60).view(20, 3)
    wanted = torch.load(Path(__file__).with_name("wanted.pt"), weights_only=True)
    return -float((model(x) - wanted).square().mean())
"""


def net(width=8):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))


@pytest.fixture
def here(tmp_path):
    """A teacher with its units renamed, a base with half its head, noise; a metric; the recipe."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "hollow").mkdir()
    teacher = net()
    graph = trace(teacher, (torch.zeros(1, 3),))
    with torch.no_grad():
        torch.save(teacher(torch.linspace(-1, 1, 60).view(20, 3)), tmp_path / "wanted.pt")
    twin = surgery.permute(graph, seed=2)
    save_file(twin.state_dict(), tmp_path / "zoo" / "b twin.safetensors")
    noise = {k: torch.randn_like(v) for k, v in net().state_dict().items()}
    save_file(noise, tmp_path / "zoo" / "a noise.safetensors")
    teacher[2].weight.data.mul_(0.5)
    save_file(teacher.state_dict(), tmp_path / "base.safetensors")
    recipe = {
        "base": {"model": "nets.py:net", "weights": "base.safetensors"},
        "sources": [{"model": "nets.py:net", "folder": "zoo"}],
        "evaluate": "nets.py:score",
        "settings": {"parts": ["all"], "factors": [0.5, 1.0]},
    }
    return tmp_path, recipe


def written(here, **changes):
    folder, recipe = here
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, **changes}))
    return str(path)


def test_one_file_in_one_folder_out(here):
    out = here[0] / "out"
    result = run(app, ["assemble", written(here), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert {file.name for file in out.iterdir()} == set(FILES)
    report = json.loads((out / "report.json").read_text())
    assert report["metric_after"] > -1e-10 > report["metric_before"]
    assert [step["source"] for step in report["steps"]] == ["a noise", "b twin"]
    assert "'b twin': merged at 1" in result.stdout
    assert "factory chatter" not in result.stdout
    assert set(load_file(out / "model.safetensors")) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_json_is_json_and_nothing_else(here):
    result = run(app, ["assemble", written(here), "-o", str(here[0] / "out"), "--json"])
    assert json.loads(result.stdout)["sources_merged"] >= 1


def test_a_second_run_needs_resume_and_then_gives_the_same(here):
    recipe, out = written(here), here[0] / "out"
    assert run(app, ["assemble", recipe, "-o", str(out)]).exit_code == 0
    first = fingerprint(load_file(out / "model.safetensors"))
    refused = run(app, ["assemble", recipe, "-o", str(out)])
    assert refused.exit_code == 1
    assert "resume=True" in refused.output
    assert run(app, ["assemble", recipe, "-o", str(out), "--resume"]).exit_code == 0
    assert fingerprint(load_file(out / "model.safetensors")) == first


def test_a_dry_run_executes_and_writes_nothing(here):
    out = here[0] / "out"
    for options in ([], ["--json"]):
        result = run(app, ["assemble", written(here), "-o", str(out), "--dry-run", *options])
        assert result.exit_code == 0, result.output
        assert "nets.py" in result.stdout
        assert "twin.safetensors" in result.stdout
    assert not out.exists()
    assert not (here[0] / "executed").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sauces": []}, "'sauces'"),
        ({"sources": []}, "expected list of length >= 1"),
        ({"sources": [{"model": "nets.py:net", "weights": "gone.safetensors"}]}, "is not there"),
        ({"sources": [{"model": "torchvision:resnet18"}]}, "would be random"),
        ({"sources": [{"model": "nets.py:net", "folder": "hollow"}]}, "holds no"),
        ({"sources": [{"model": "nets.py:net", "input": "3xx"}]}, "not a shape"),
        ({"base": {"model": "nets.py:net", "folder": "zoo"}}, "is unknown"),
        ({"base": "nets.py:net"}, "expected mapping of names"),
        ({"settings": {"pad": 3}}, "expected 'zero' or 'keep'"),
        ({"settings": {"rounds": True}}, "expected whole number"),
        ({"links": [["a"]]}, "expected list of length 2"),
        ({"evaluate": 3}, "expected text"),
    ],
)
def test_a_malformed_recipe_is_refused_before_anything_runs(here, changes, said):
    result = run(app, ["assemble", written(here, **changes), "-o", str(here[0] / "out")])
    assert result.exit_code == 1
    assert said in result.output
    assert not (here[0] / "executed").exists()
    assert not (here[0] / "out").exists()


def test_all_that_is_wrong_is_said_at_once(here):
    path = written(here, sauces=1, settings={"pat": 1}, sources=3)
    with pytest.raises(AssemblyError) as error:
        read(here[0] / "recipe.yaml")
    assert path
    assert len(error.value.where) == 3
    assert "nearest 'sources'" in str(error.value)


@pytest.mark.parametrize("text", ["{", "- a\n b: [", "!!python/object/apply:os.system ['touch x']"])
def test_what_is_no_yaml_is_refused(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(AssemblyError):
        read(tmp_path / "recipe.yaml")


def test_a_metric_must_be_a_function(here):
    (here[0] / "nets.py").write_text(NETS + "\nnumber = 3\n")
    result = run(
        app, ["assemble", written(here, evaluate="nets.py:number"), "-o", str(here[0] / "out")]
    )
    assert result.exit_code == 1
    assert "cannot be called" in result.output


def test_without_a_metric_the_test_without_data_decides(here):
    out = here[0] / "out"
    recipe = written(here, evaluate=None, settings={})
    assert run(app, ["assemble", recipe, "-o", str(out)]).exit_code == 0
    assert "no data" in (out / "README.md").read_text()


def test_links_stand_in_the_recipe(here):
    out = here[0] / "out"
    recipe = written(here, links=[["2", "2"]], settings={"merge_factor": 0.5}, evaluate=None)
    assert run(app, ["assemble", recipe, "-o", str(out)]).exit_code == 0
    before, after = load_file(here[0] / "base.safetensors"), load_file(out / "model.safetensors")
    assert {k for k in before if not torch.equal(before[k], after[k])} == {"2.weight", "2.bias"}


# -------------------------------------------------------------------------------------------- lmc


def walk(here, *options):
    folder = here[0]
    return run(
        app,
        [
            "lmc",
            f"{folder / 'nets.py'}:net",
            f"{folder / 'nets.py'}:net",
            "--base-weights",
            str(folder / "base.safetensors"),
            "--source-weights",
            str(folder / "zoo" / "b twin.safetensors"),
            "--evaluate",
            f"{folder / 'nets.py'}:score",
            "--points",
            "5",
            *options,
        ],
    )


def test_lmc_prints_a_row_for_every_control_and_draws(here):
    picture = here[0] / "curves.png"
    result = walk(here, "--controls", "-o", str(picture))
    assert result.exit_code == 0, result.output
    names = [line.split()[0] for line in result.stdout.splitlines()[1:5]]
    assert names == ["matched,", "identity,", "random,", "shrink,"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    held = json.loads(picture.with_suffix(".json").read_text())
    assert held["curves"]["matched, zero"]["scores"][-1] > -1e-10
    assert held["curves"]["matched, zero"]["threshold"] == 1.0


def test_lmc_json_and_dry_run(here):
    assert len(json.loads(walk(here, "--json").stdout)["curves"]["matched"]["scores"]) == 5
    shrunk = json.loads(walk(here, "--json", "--method", "shrink", "--restarts", "1").stdout)
    assert shrunk["curves"]["matched"]["method"] == "shrink"
    (here[0] / "executed").unlink()
    result = walk(here, "--dry-run", "-o", "x.png")
    assert "would execute" in result.stdout
    assert not (here[0] / "executed").exists()


def test_lmc_names_what_is_missing(here):
    result = run(app, ["lmc", "nets.py:gone", "nets.py:net", "--evaluate", "nets.py:score"])
    assert result.exit_code == 1
    assert "cannot be read" in result.output
