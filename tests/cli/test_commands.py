"""The commands from end to end on small models: what is printed, what is written, what a dry run leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from graftlib import load
from graftlib.cli import steps
from graftlib.cli.app import app
from graftlib.cli.doctor import extras
from graftlib.errors import GraftError, TraceError
from graftlib.slim import Slim

run = CliRunner().invoke

NETS = """
import torch
from torch import nn

def small():
    print("factory chatter")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
    return net, (torch.rand(2, 3, 8, 8),)

def wide():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2))
    return net, (torch.rand(2, 3, 8, 8),)

class HostileNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("a\\x1b[31m</script><b>", nn.Linear(3, 3))

    def forward(self, x):
        return next(iter(self.children()))(x)

class Ends(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(self.a(x))

def ends():
    return Ends(), (torch.rand(2, 3),)

def hostile():
    return HostileNames(), (torch.rand(2, 3),)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


# -------------------------------------------------------------------------------------------- trace


def test_trace_prints_the_graph(folder: Path):
    result = run(app, ["trace", "nets.py:small"])
    assert result.exit_code == 0, result.stderr
    assert "Conv2d" in result.stdout
    assert "factory chatter" not in result.stdout
    assert "factory chatter" in result.stderr


def test_trace_json_is_json_and_nothing_else(folder: Path):
    result = run(app, ["trace", "nets.py:small", "--json"])
    assert result.exit_code == 0, result.stderr
    assert isinstance(json.loads(result.stdout), dict)


@pytest.mark.parametrize("suffix", ["json", "graphml"])
def test_trace_writes_a_file(folder: Path, suffix: str):
    result = run(app, ["trace", "nets.py:small", "-o", f"graph.{suffix}"])
    assert result.exit_code == 0, result.stderr
    assert files(folder) == {"nets.py", f"graph.{suffix}"}
    text = (folder / f"graph.{suffix}").read_text()
    assert text.startswith("{" if suffix == "json" else "<?xml")


def test_trace_takes_a_wrong_input_as_an_error_of_ours(folder: Path):
    result = run(app, ["trace", "nets.py:small", "--input", "2x5x8x8"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr


def test_a_hostile_layer_name_does_not_reach_the_terminal(folder: Path):
    result = run(app, ["trace", "nets.py:hostile"])
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "[31m" in result.stdout


def test_a_library_model_is_traced_without_its_values():
    result = run(app, ["trace", "torchvision:resnet18", "--json"])
    assert result.exit_code == 0, result.stderr
    text = json.dumps(json.loads(result.stdout))
    assert "layer4.1.conv2" in text


@pytest.mark.parametrize(("device", "tries"), [("auto", ["auto", "cpu"]), ("meta", ["meta"])])
def test_only_auto_tries_again_with_values(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, tries: list[str]
):
    """A model whose forward branches on a value cannot run on the meta device."""
    asked = []
    load = steps.load

    def spy(name: str, **options: object):
        asked.append(options["device"])
        return load(name, **options)

    def refuses_meta(model: nn.Module, args: object, kwargs: object) -> str:
        if next(model.parameters()).is_meta:
            raise TraceError("it reads a value.")
        return "seen"

    monkeypatch.setattr(steps, "load", spy)
    monkeypatch.setattr("graftlib.graph.trace", refuses_meta)
    found = {"shapes": [], "dtype": None, "weights": None, "seed": 0, "device": device}
    if device == "auto":
        assert steps.see("torchvision:squeezenet1_1", **found) == "seen"
    else:
        with pytest.raises(TraceError):
            steps.see("torchvision:squeezenet1_1", **found)
    assert asked == tries


# --------------------------------------------------------------------------------------------- view


def test_view_writes_one_page(folder: Path):
    result = run(app, ["view", "nets.py:small", "-o", "x.html"])
    assert result.exit_code == 0, result.stderr
    assert files(folder) == {"nets.py", "x.html"}
    assert "<html" in (folder / "x.html").read_text()


def test_view_shows_a_proposed_mapping(folder: Path):
    arguments = ["view", "nets.py:wide", "nets.py:small", "--auto", "-o", "x.html", "--json"]
    result = run(app, arguments)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["pairs"] > 0
    assert report["size_bytes"] == (folder / "x.html").stat().st_size


def test_a_page_opens_where_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert run(app, ["view", "nets.py:small", "-o", "x.html"]).exit_code == 0
    assert opened == []
    assert run(app, ["view", "nets.py:small", "-o", "x.html", "--open"]).exit_code == 0
    assert opened == [(folder / "x.html").as_uri()]
    assert run(app, ["diff", "nets.py:small", "nets.py:small", "--open"]).exit_code == 2


@pytest.mark.parametrize("command", ["view", "map", "diff"])
def test_two_models_take_two_inputs_and_two_weights(folder: Path, command: str):
    from graftlib.cli.models import load_model

    save_file(load_model("nets.py:small", device="cpu").model.state_dict(), "s.safetensors")
    names = ["torchvision:squeezenet1_1", "nets.py:small"]
    shapes = ["--input", "2x3x64x64", "--other-input", "2x3x8x8"]
    out = ["-o", "x.out", "--other-weights", "s.safetensors"]
    result = run(app, [command, *names, *shapes, *out])
    assert result.exit_code == 0, result.stderr
    result = run(app, [command, *names, *shapes[:2], *out])
    assert result.exit_code == 1  # 64 x 64 does not fit the second
    shapes = ["--input", "2x3x8x8", "--other-input", "2x3x64x64"]
    result = run(app, [command, *names[::-1], *shapes, *out])
    assert result.exit_code == 1  # nor do its weights the other
    assert "is not a checkpoint of this SqueezeNet" in result.stderr


def test_view_of_a_model_that_does_not_run_shows_how_far_it_came(folder: Path):
    result = run(app, ["view", "nets.py:ends", "-o", "x.html"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "how far a forward pass came" in result.stderr
    assert "1 of 2 layers were reached" in (folder / "x.html").read_text()


def test_view_takes_a_saved_mapping_and_refuses_a_foreign_one(folder: Path):
    from graftlib.graph import trace
    from graftlib.match import Mapping

    def graph(width: int):
        return trace(nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2)), (torch.rand(2, 3),))

    mapping = Mapping(graph(8), graph(4))
    mapping.link("0.weight", "0.weight")
    mapping.save(folder / "foreign.yaml")
    arguments = ["view", "torchvision:squeezenet1_1", "torchvision:alexnet", "-o", "x.html"]
    result = run(app, [*arguments, "--mapping", "foreign.yaml"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert not (folder / "x.html").exists()


# ------------------------------------------------------------------------------------------- export


def test_export_writes_a_proven_file(folder: Path):
    save_file(
        {
            "0.weight": torch.zeros(4, 3, 3, 3),
            "0.bias": torch.zeros(4),
            "3.weight": torch.zeros(2, 256),
            "3.bias": torch.tensor([7.0, 8.0]),
        },
        folder / "w.safetensors",
    )
    arguments = ["export", "nets.py:small", "--weights", "w.safetensors", "-o", "x.onnx", "--json"]
    result = run(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["model"] == "Sequential"
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "x.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    (answer,) = session.run(None, {name: torch.rand(1, 3, 8, 8).numpy()})
    assert answer.tolist() == [[7.0, 8.0]]


def test_a_truncated_checkpoint_exports_nothing(folder: Path):
    (folder / "w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    result = run(app, ["export", "nets.py:small", "--weights", "w.safetensors", "-o", "x.onnx"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "truncated" in result.stderr
    assert not (folder / "x.onnx").exists()


def test_an_unwritable_path_is_an_error_of_ours(folder: Path):
    result = run(app, ["export", "nets.py:small", "-o", "absent/x.onnx"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    assert files(folder) == {"nets.py"}


# ------------------------------------------------------------------------------------ check and map


def test_check_says_what_is_free_and_what_fixes_the_rest(folder: Path):
    result = run(app, ["check", "nets.py:small"])
    assert result.exit_code == 0, result.stderr
    assert "passed" in result.stdout
    assert "fixed by the output" in result.stdout


COUNTS = """
class Counts(nn.Module):
    calls = 0

    def forward(self, x):
        Counts.calls += 1
        return x + Counts.calls

def small"""


def test_a_check_that_does_not_pass_ends_with_one(folder: Path):
    """The model answers differently each time, which no permutation explains."""
    nets = NETS.replace("nn.ReLU()", "Counts()").replace("\ndef small", COUNTS, 1)
    (folder / "counts.py").write_text(nets)
    result = run(app, ["check", "counts.py:small", "--device", "cpu"])
    assert result.exit_code == 1, result.stdout


def test_map_writes_what_a_mapping_loads(folder: Path):
    command = ["map", "nets.py:small", "nets.py:wide", "--link", "0=0", "-o", "m.yaml"]
    result = run(app, [*command, "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["pairs"] == [["0.weight", "0.weight"]]
    page = run(
        app, ["view", "nets.py:small", "nets.py:wide", "--mapping", "m.yaml", "-o", "x.html"]
    )
    assert page.exit_code == 0, page.stderr


def test_map_proposes_pairs_where_no_link_is_given(folder: Path):
    result = run(app, ["map", "nets.py:small", "nets.py:wide", "--json"])
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["pairs"]) == 2
    assert (folder / "mapping.yaml").exists()


# --------------------------------------------------------------------------------------------- slim


def test_slim_writes_what_load_reads(folder: Path):
    arguments = ["slim", "nets.py:wide", "--budget", "macs=0.5", "--multiple-of", "1"]
    result = run(app, [*arguments, "-o", "out", "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["after"]["macs"] * 2 == report["before"]["macs"]
    assert report["widths"] == [{"layer": "0", "before": 8, "after": 4}]
    made = {"out/README.md", "out/edit.json", "out/model.safetensors"}
    assert files(folder) == {"nets.py", "out", *made}
    again = load(folder / "out", _wide)
    assert again[0].out_channels == 4
    result = run(app, [*arguments, "-o", "out", "--page", "plan.html"])
    assert result.exit_code == 0, result.stderr
    assert '"units":[[0,' in (folder / "plan.html").read_text()


def _wide() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2))


def test_one_command_slims_and_ships_in_int8(folder: Path):
    arguments = ["slim", "nets.py:wide", "--budget", "macs=0.5", "--multiple-of", "1", "-o", "out"]
    result = run(app, [*arguments, "--onnx", "x.onnx", "--int8"])
    assert result.exit_code == 0, result.stderr
    assert "against PyTorch: cosine" in result.stdout
    assert "source" in result.stdout
    assert "target, int8" in result.stdout
    assert {"x.onnx", "x.card.json", "out/edit.json"} <= files(folder)
    assert run(app, [*arguments, "--int8"]).exit_code == 2


@pytest.mark.filterwarnings("ignore:layers with fewer than 2 rows")
def test_slim_with_data_measures_and_goes_on_where_it_was_stopped(folder: Path, monkeypatch):
    torch.save(torch.rand(12, 3, 8, 8), folder / "x.pt")
    arguments = ["slim", "nets.py:wide", "--budget", "macs=0.5", "--multiple-of", "1", "-o", "out"]
    arguments += ["--data", "x.pt", "--samples", "8", "--importance", "activation"]

    def kill(*_: object) -> None:
        raise GraftError("stopped.")

    with monkeypatch.context() as patch:
        patch.setattr(Slim, "save", kill)
        result = run(app, arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert files(folder) == {"nets.py", "x.pt", "out.calibration"}
    result = run(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "(4 samples held out)" in result.stdout
    assert "those of an earlier run, from out.calibration" in result.stderr
    made = {"out", "out/README.md", "out/edit.json", "out/model.safetensors"}
    assert files(folder) == {"nets.py", "x.pt", *made}
    result = run(app, arguments)
    assert "earlier run" not in result.stderr


def test_slim_says_what_needs_data(folder: Path):
    arguments = ["slim", "nets.py:wide", "--budget", "macs=0.5", "-o", "out"]
    for more in (["--depth"], ["--onnx", "x.onnx", "--int8", "--static"]):
        result = run(app, [*arguments, *more])
        assert result.exit_code == 2
        assert "--data" in result.stderr
    assert files(folder) == {"nets.py"}


def test_a_budget_that_cannot_be_met_writes_nothing(folder: Path):
    result = run(app, ["slim", "nets.py:wide", "--budget", "macs=10", "-o", "out"])
    assert result.exit_code == 1
    assert "below the smallest model" in result.stderr
    assert files(folder) == {"nets.py"}


# --------------------------------------------------------------------------------------------- diff


def test_diff_names_the_edit_and_writes_a_page(folder: Path):
    same = ["diff", "nets.py:small", "nets.py:small", "--json"]
    result = run(app, same)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["edit"] == "identical"
    result = run(app, ["diff", "nets.py:wide", "nets.py:small", "-o", "x.html"])
    assert result.exit_code == 0, result.stderr
    assert "narrower" in result.stdout
    assert '"notes":["Sequential by Sequential: ' in (folder / "x.html").read_text()


# ------------------------------------------------------------------------------------------ dry run


@pytest.mark.parametrize("command", ["trace", "view", "slim", "export"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_dry_run_writes_and_executes_nothing(folder: Path, command: str, form: list[str]):
    (folder / "nets.py").write_text("open('ran', 'w')\ndef small(): pass")
    suffix = {"trace": "json", "view": "html", "slim": "out", "export": "onnx"}[command]
    more = ["--budget", "macs=0.5"] if command == "slim" else []
    arguments = [command, "nets.py:small", "-o", f"x.{suffix}", "--dry-run", *more, *form]
    result = run(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert files(folder) == {"nets.py"}
    assert "nets.py" in result.stdout
    assert f"x.{suffix}" in result.stdout
    if form:
        assert json.loads(result.stdout)["executes"] == ["nets.py"]


def test_a_dry_run_knows_the_names(folder: Path):
    assert run(app, ["trace", "nets.py:smalll", "--dry-run"]).exit_code == 1
    assert run(app, ["view", "nets.py:small", "timm:resnet19", "--dry-run"]).exit_code == 1


# ------------------------------------------------------------------------------------------- doctor


def test_doctor_is_healthy_here():
    result = run(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["versions"]["torch"] == torch.__version__
    assert found["smoke"]["trace"]["passed"]
    assert found["smoke"]["export"]["passed"]
    assert "works" in run(app, ["doctor"]).stdout


def test_doctor_names_a_missing_library_and_the_line_that_mends_it(monkeypatch: pytest.MonkeyPatch):
    from importlib.metadata import PackageNotFoundError, version

    def without_timm(name: str) -> str:
        if name == "timm":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("graftlib.cli.doctor.version", without_timm)
    found = extras()
    assert found["timm"]["libraries"]["timm"]["state"] == "missing"
    assert found["timm"]["install"] == 'pip install "graftlib[timm]"'
    assert not found["timm"]["ready"]
    assert found["vision"]["ready"]
    assert {"onnx", "vision", "hf", "timm", "demo"} <= set(found)
    assert "dev" not in found


def test_a_sick_core_is_exit_code_one(monkeypatch: pytest.MonkeyPatch):
    def sick() -> str:
        raise RuntimeError("no tracing today")

    monkeypatch.setattr("graftlib.cli.doctor._trace", sick)
    monkeypatch.setattr("graftlib.cli.doctor.extras", dict)
    result = run(app, ["doctor"])
    assert result.exit_code == 1
    assert "FAILS" in result.stdout
    assert "no tracing today" in result.stdout
