"""The door of the command line: exit codes, where text goes, plug-ins that do not behave."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from graftlib.cli import plugins
from graftlib.cli.app import app
from graftlib.errors import GraftError

run = CliRunner().invoke


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["trace", "--help"], ["--version"]])
def test_help_and_version_are_fine(arguments: list[str]):
    result = run(app, arguments)
    assert result.exit_code == 0
    assert "graftlib" in result.stdout


@pytest.mark.parametrize("command", ["trace", "check", "map", "view", "diff", "slim", "export"])
def test_help_says_that_a_file_is_executed(command: str):
    assert "executes FILE.py" in " ".join(run(app, [command, "--help"]).stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["trace"],
        ["trace", "torchvision:resnet18", "--device", "tpu"],
        ["trace", "torchvision:resnet18", "--input", "2xx3"],
        ["trace", "torchvision:resnet18", "--input", "2x3", "--input-dtype", "float99"],
        ["trace", "torchvision:resnet18", "--input-dtype", "float32"],
        ["trace", "torchvision:resnet18", "-o", "graph.exe"],
        ["trace", "torchvision:resnet18", "--seed", "-1"],
        ["trace", "torchvision:resnet18", "--device", "meta", "--weights", "x.safetensors"],
        ["view", "torchvision:resnet18", "--auto"],
        ["view", "torchvision:resnet18", "torchvision:resnet18", "--auto", "--mapping", "m.yaml"],
        ["export", "torchvision:resnet18", "--device", "meta"],
        ["map", "torchvision:resnet18"],
        ["map", "torchvision:resnet18", "torchvision:resnet18", "--link", "fc"],
        ["slim", "torchvision:resnet18", "--budget", "macs=0.5", "-o", "x", "--device", "meta"],
        ["slim", "torchvision:resnet18", "--budget", "macs", "-o", "x"],
        ["slim", "torchvision:resnet18", "-o", "x"],
        ["\x1b[2J"],
    ],
)
def test_wrong_usage_is_two_and_stderr(arguments: list[str]):
    result = run(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "\x1b[2J" not in result.stderr


@pytest.mark.parametrize(("typo", "meant"), [("trce", "trace"), ("graph", "graphs")])
def test_a_mistyped_command_is_answered_with_the_nearest(plug_in, typo: str, meant: str):
    plug_in(lambda app: app.command("graphs")(lambda: None), name="graphs")
    result = run(app, [typo])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"'{meant}'" in result.stderr


def test_an_error_of_ours_is_one_without_a_traceback():
    result = run(app, ["trace", "torchvision:resnet19", "--json"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("'torchvision' has no model 'resnet19'.")
    assert "fix" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments", [["--debug", "trace", "x"], ["trace", "x", "--debug"], ["trace", "--debug", "x"]]
)
def test_debug_shows_the_traceback(arguments: list[str]):
    result = run(app, arguments)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "ModelNameError" in result.stderr


# ---------------------------------------------------------------------------------------- plug-ins


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch):
    """Offer a function as the entry point `extra`; a plain object stands for one that cannot be used."""

    def offer(register: object, name: str = "extra") -> None:
        module = ModuleType("plugged_module")
        module.register = register  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "plugged_module", module)
        value = "plugged_module:register" if register is not None else "no_such_module:register"
        points = {name: EntryPoint(name, value, plugins.GROUP)}
        monkeypatch.setattr(plugins, "_points", lambda: points)

    return offer


def register_command(app: typer.Typer) -> None:
    @app.command("extra")
    def extra(loud: bool = False) -> None:
        """Say hello."""
        typer.echo("HELLO" if loud else "hello")


def register_sub_app(app: typer.Typer) -> None:
    inner = typer.Typer()
    inner.command("one")(lambda: typer.echo("one"))
    inner.command("two")(lambda: typer.echo("two"))
    app.add_typer(inner, name="extra")


def register_trap(app: typer.Typer) -> None:
    @app.command("extra")
    def extra() -> None:
        raise GraftError("the plug-in says no.", fix="ask again")


def test_a_plug_in_is_a_command(plug_in):
    plug_in(register_command)
    assert "extra" in run(app, ["--help"]).stdout
    assert run(app, ["extra", "--loud"]).stdout == "HELLO\n"
    assert "Say hello." in run(app, ["extra", "--help"]).stdout


def test_a_plug_in_may_be_a_sub_app(plug_in):
    plug_in(register_sub_app)
    assert run(app, ["extra", "two"]).stdout == "two\n"


def test_an_error_of_a_plug_in_goes_through_the_same_door(plug_in):
    plug_in(register_trap)
    result = run(app, ["extra"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "the plug-in says no.\n  fix  ask again\n"


def register_raises(app: typer.Typer) -> None:
    raise RuntimeError("no luck")


@pytest.mark.parametrize(
    ("register", "why"),
    [
        (None, "no_such_module"),
        (register_raises, "RuntimeError: no luck"),
        ("not callable", "TypeError"),
        (lambda app: None, "registers []"),
    ],
)
def test_a_broken_plug_in_breaks_nothing_else(plug_in, register: object, why: str):
    plug_in(register)
    assert run(app, ["--help"]).exit_code == 0
    assert run(app, ["trace", "torchvision:resnet18", "--dry-run"]).exit_code == 0
    result = run(app, ["extra"])
    assert result.exit_code == 1
    assert why in result.stderr
    assert "Traceback" not in result.stderr


def test_a_plug_in_cannot_take_the_place_of_a_command(plug_in):
    plug_in(register_command, name="trace")
    assert "a graph of layers" in run(app, ["trace", "--help"]).stdout


def test_a_list_of_plug_ins_that_cannot_be_read_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(group: str) -> None:
        raise ValueError("bad metadata")

    monkeypatch.setattr(plugins, "entry_points", broken)
    plugins._points.cache_clear()
    try:
        assert plugins.names() == []
        assert "warning" in capsys.readouterr().err
    finally:
        plugins._points.cache_clear()


def test_the_line_of_help_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "read_not_run"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit")
    (package / "inner" / "command.py").write_text('"""One line.\n\nMore."""\nraise SystemExit')
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("x", "read_not_run.inner.command:register", plugins.GROUP)
    assert plugins._first_line(point) == "One line."
    (package / "inner" / "command.py").write_text('"""Not closed')
    assert "cannot be found" in plugins._first_line(point)


# ------------------------------------------------------------------------------------ real process


def graftlib(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from graftlib.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_process_ends_with_the_code_and_the_streams(tmp_path: Path):
    (tmp_path / "nets.py").write_text("def small(): ...")
    fine = graftlib("trace", f"{tmp_path}/nets.py:small", "--dry-run", "--json")
    assert (fine.returncode, fine.stderr) == (0, "")
    assert json.loads(fine.stdout)["models"] == [f"{tmp_path}/nets.py:small"]
    wrong = graftlib("trace", f"{tmp_path}/nets.py:smal")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "has no model 'smal'" in wrong.stderr
    usage = graftlib("trace")
    assert (usage.returncode, usage.stdout) == (2, "")


def asked(*calls: list[str], first: str = "") -> list[tuple[int, str, str, set[str]]]:
    """Each call of the command line in one new process: exit code, stdout, stderr, which packages are loaded."""
    code = (
        f"import json, sys\n{first}\n"
        "from typer.testing import CliRunner\n"
        "from graftlib.cli.app import app\n"
        "for call in json.loads(sys.argv[1]):\n"
        "    result = CliRunner().invoke(app, call)\n"
        "    loaded = {'torch', 'networkx', 'msgspec', 'typer'} & set(sys.modules)\n"
        "    print(json.dumps([result.exit_code, result.stdout, result.stderr, sorted(loaded)]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)], capture_output=True, text=True, check=True
    ).stdout
    return [(*said, {*loaded}) for *said, loaded in map(json.loads, out.splitlines())]


def test_the_probe_sees_torch():
    (fine,) = asked(["--help"], first="import torch")
    assert fine[3] >= {"torch", "typer"}


@pytest.fixture
def words(tmp_path: Path):
    """What a command may require, by the name of its parameter; with `small`, or with a typo in its place."""
    (tmp_path / "nets.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
        "def small(): ...\ndef score(model): ...\n"
    )

    def given(command: Any, model: str) -> list[str]:
        recipe = tmp_path / f"{model}.yaml"
        side = f"{{model: nets.py:{model}}}"
        recipe.write_text(f"base: {side}\nsources: [{side}]\nevaluate: nets.py:score\n")
        known = {
            "budget": "macs=0.5",
            "evaluate": f"{tmp_path}/nets.py:score",
            "output": str(tmp_path / "out"),
            "recipe": str(recipe),
        }
        name = f"{tmp_path}/nets.py:{model}"
        values: list[str] = []
        for each in command.params:
            if each.param_type_name == "argument":
                values.append(known.get(each.name, name))
            elif each.required:
                values += [each.opts[0], known[each.name]]
        return values

    yield given
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(typer.main.get_command(app).commands))
def test_help_typos_and_dry_runs_of_every_command_import_no_torch(name: str, words: Any):
    command = (
        plugins.load(name)
        if name in plugins.names()
        else typer.main.get_command(app).commands[name]
    )
    flags = {flag for each in command.params for flag in each.opts}
    calls = [[name, "--help"], [name, "--debgu", *words(command, "small")]]
    if words(command, "small"):
        calls.append([name, *words(command, "smal")])
    if "--dry-run" in flags:
        calls += [[name, "--dry-run", *words(command, model)] for model in ("small", "smal")]
    helped, mistyped, *rest = asked(*calls)
    assert (helped[0], mistyped[0]) == (0, 2)
    assert f"Example: graftlib {name} " in helped[1]
    assert "--debug" in mistyped[2]
    for call, (code, out, err, _) in zip(calls[2:], rest, strict=True):
        if "--dry-run" in call and call[2:] == words(command, "small"):
            assert (code, err) == (0, ""), call
            assert "would " in out
        else:
            assert (code, out) == (1, ""), call
            assert "has no model 'smal'" in err
            assert "'small'" in err
    assert all(
        "torch" not in loaded and "typer" in loaded for *_, loaded in (helped, mistyped, *rest)
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--version", 0),
        ("tracee", 2),
        ("trace torchvision:resnet19", 1),
        ("export timm:resnet18 --source timm:resnet19", 1),
        ("lmc timm:resnet18 timm:resnet18 --evaluate x.py:y", 1),
        ("lmc timm:resnet18 timm:resnet18 --evaluate timm:resnet18", 1),
        ("trace timm:resnet18 --weights gone.safetensors", 2),
        ("diff timm:resnet18 timm:resnet18 --other-weights gone.safetensors", 2),
        ("view timm:resnet18 timm:resnet18 --mapping gone.yaml", 2),
        ("lmc timm:resnet18 timm:resnet18 --base-weights gone.safetensors", 2),
        ("assemble gone.yaml -o out", 2),
        ("slim timm:resnet18 --budget mcs=0.5 -o out", 2),
        ("slim timm:resnet18 --budget macs=0.5 -o out --data gone", 2),
    ],
)
def test_other_typos_import_no_torch(arguments: str, code: int):
    ((got, _, _, loaded),) = asked(arguments.split())
    assert (got, loaded & {"torch", "networkx"}) == (code, set())


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("--budget mcs=0.5", "'macs'"),
        ("--budget macs=0.5 --ranking isomorphc", "'isomorphic'"),
        ("--budget macs=0.5 --importance magnitud", "'magnitude'"),
        ("--budget macs=0.5 --input 2x3 --input-dtype flot32", "'float32'"),
        ("--budget macs=nan", "no number above 0"),
        ("--budget macs=-1.0", "no number above 0"),
        ("--budget macs=0.5 --importance wanda", "add --data"),
    ],
)
def test_slim_refuses_a_mistyped_name_before_a_dry_run_with_the_nearest(arguments: str, meant: str):
    result = run(app, ["slim", "timm:resnet18", "-o", "out", "--dry-run", *arguments.split()])
    assert (result.exit_code, result.stdout) == (2, "")
    assert meant in result.stderr
