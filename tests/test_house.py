"""Laws of the whole repository: who imports whom, what an import costs in packages, what the documents promise."""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import grimp
import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

# --------------------------------------------------------------------------------- who imports whom


def lint_imports(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--config", str(config), "--no-cache"],
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def house(folder: Path, *, cli: str) -> Path:
    """A small house under our own contracts, with a package for each that they name."""
    contracts = PYPROJECT["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    packages = [name.strip() for layer in layers for name in layer.split("|")]
    for name in ["graftlib", "graftlib_adapters", *packages]:
        path = folder / name.replace(".", "/")
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text("")
    (folder / "graftlib/cli/__init__.py").write_text(cli)
    written = configparser.ConfigParser()
    written["importlinter"] = {"root_packages": "\n" + "\n".join(contracts["root_packages"])}
    for i, contract in enumerate(contracts["contracts"]):
        written[f"importlinter:contract:{i}"] = {
            key: "\n" + "\n".join(value) if isinstance(value, list) else str(value)
            for key, value in contract.items()
        }
    config = folder / ".importlinter"
    with config.open("w") as file:
        written.write(file)
    return config


def test_the_packages_keep_their_order():
    result = lint_imports(ROOT, ROOT / "pyproject.toml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_house_in_order_passes(tmp_path: Path):
    result = lint_imports(tmp_path, house(tmp_path, cli="from ..graph import *"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_core_that_knows_a_method_is_seen(tmp_path: Path):
    """Also where the import hides in a function."""
    result = lint_imports(
        tmp_path, house(tmp_path, cli="def demo():\n    import graftlib_adapters")
    )
    assert result.returncode == 1
    assert "the core knows no method BROKEN" in result.stdout


def test_a_package_that_looks_back_is_seen(tmp_path: Path):
    config = house(tmp_path, cli="")
    (tmp_path / "graftlib/graph/__init__.py").write_text("from ..match import *")
    result = lint_imports(tmp_path, config)
    assert result.returncode == 1
    assert "one direction BROKEN" in result.stdout


# What is left of circles of files, with why. One that is opened is taken out of this list.
CIRCLES = {
    "graftlib.graph.axes.classes graftlib.graph.axes.tree": "leaves name their class, classes are read off trees",
}


def circles(*packages: str) -> set[str]:
    """Files that import each other, also inside of functions and for types alone."""
    imports = grimp.build_graph(*packages, cache_dir=None)
    edges = nx.DiGraph(
        (name, other)
        for name in imports.modules
        for other in imports.find_modules_directly_imported_by(name)
    )
    return {" ".join(sorted(c)) for c in nx.strongly_connected_components(edges) if len(c) > 1}


def test_no_files_import_each_other():
    assert circles("graftlib", "graftlib_adapters") == {*CIRCLES}


@pytest.mark.parametrize(
    "back",
    [
        "def f():\n    from . import one",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .one import x",
    ],
)
def test_a_circle_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: str):
    package = tmp_path / f"circle_{abs(hash(back))}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from .two import y\nx = y")
    (package / "two.py").write_text(f"y = 1\n{back}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert circles(package.name) == {f"{package.name}.one {package.name}.two"}


PUBLIC = {
    *("graftlib", "graftlib.arguments", "graftlib.disk", "graftlib.documents", "graftlib.errors"),
    *(
        "graftlib.progress",
        "graftlib.random_state",
        "graftlib.reports",
        "graftlib.graph",
        "graftlib.match",
        "graftlib.graft",
    ),
    *("graftlib.surgery", "graftlib.surgery.blocks", "graftlib.surgery.edits"),
    *("graftlib.surgery.proof", "graftlib.surgery.rescale"),
    *("graftlib.export", "graftlib.view", "graftlib.integrations"),
    *("graftlib.cli.console", "graftlib.cli.models", "graftlib.cli.names"),
    *("graftlib.cli.options", "graftlib.cli.steps"),
}
"""Modules whose `__all__` is for others; in `graftlib` itself, what ``dir`` lists."""


def private_imports(folder: Path) -> list[str]:
    """What files below `folder` use of `graftlib` that no public module lists, however they come by it."""
    private = []
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        modules: dict[str, str] = {}  # local name -> the module of graftlib that it stands for
        used: list[tuple[str, str]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for each in node.names:
                    used.append((each.name, ""))
                    modules[each.asname or "graftlib"] = each.name if each.asname else "graftlib"
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for each in node.names:
                    used.append((node.module, each.name))
                    modules[each.asname or each.name] = f"{node.module}.{each.name}"
            elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
                used += [(str(arg.value), "") for arg in node.args if isinstance(arg, ast.Constant)]
        modules = {name: module for name, module in modules.items() if _is_module(module)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                start, _, rest = ast.unparse(node.value).partition(".")
                module = ".".join(filter(None, (modules.get(start, ""), rest)))
                used += [(module, node.attr)] if start in modules and _is_module(module) else []
        for module, name in sorted({*used}):
            if module.partition(".")[0] != "graftlib" or f"{module}.{name}" in PUBLIC:
                continue
            listed = importlib.import_module(module) if module in PUBLIC else None
            public = getattr(listed, "__all__", None) or (listed and dir(listed)) or []
            if listed is None or (name and name not in public):
                private.append(f"{file.relative_to(folder)}: {module} {name}".rstrip())
    return private


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def _is_module(name: str) -> bool:
    if name.partition(".")[0] != "graftlib":
        return False
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def underscored_imports(folder: Path) -> list[str]:
    """Names with an underscore that a file below `folder` imports from another package than its own."""
    found = []
    for file in sorted(folder.rglob("*.py")):
        here = [folder.name, *file.relative_to(folder).parts[:-1]]
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            base = here[: len(here) + 1 - node.level] if node.level else []
            module = [*base, *(node.module or "").split(".")]
            other = module[0] in ("graftlib", "graftlib_adapters") and module[:2] != here[:2]
            names = [each.name for each in node.names if each.name.startswith("_")]
            found += [f"{file.relative_to(folder)}: {'.'.join(module)} {n}" for n in names if other]
    return found


def test_adapters_use_public_names_only():
    assert private_imports(ROOT / "adapters/graftlib_adapters") == []


def test_a_private_import_is_seen(tmp_path: Path):
    code = "def f():\n    from graftlib.graph.caches import find_caches\n    from graftlib.disk import os\n"
    (tmp_path / "adapter.py").write_text(code + "from graftlib.graph import trace\n")
    assert private_imports(tmp_path) == [
        "adapter.py: graftlib.disk os",
        "adapter.py: graftlib.graph.caches find_caches",
    ]


def test_a_private_name_is_seen_behind_its_module_and_behind_a_string(tmp_path: Path):
    (tmp_path / "adapter.py").write_text(
        "import graftlib.graph as g, graftlib\n"
        "from importlib import import_module\n"
        "from graftlib import graph, surgery\n"
        "g.caches.find_caches\ngraph.caches\ngraftlib.disk.os\nsurgery.prune\ngraph.trace\n"
        "import_module('graftlib.match.auto')\n__import__('graftlib.cli.doctor')\n"
    )
    assert private_imports(tmp_path) == [
        "adapter.py: graftlib.cli.doctor",
        "adapter.py: graftlib.disk os",
        "adapter.py: graftlib.graph caches",
        "adapter.py: graftlib.graph.caches find_caches",
        "adapter.py: graftlib.match.auto",
    ]


def test_packages_import_no_underscored_name_of_each_other(tmp_path: Path):
    for folder in (ROOT / "graftlib", ROOT / "adapters/graftlib_adapters"):
        assert underscored_imports(folder) == []
    package = tmp_path / "graftlib"
    (package / "one").mkdir(parents=True)
    (package / "one/file.py").write_text(
        "from ..two.a import _x\nfrom .b import _y\nfrom graftlib.two import _z, w\n"
    )
    assert underscored_imports(package) == [
        "one/file.py: graftlib.two.a _x",
        "one/file.py: graftlib.two _z",
    ]


def test_no_file_imports_our_own_by_a_string():
    """What stands in a string is in no graph of imports: circles and layers would not be seen."""
    calls = [
        f"{file.relative_to(ROOT)}: {ast.unparse(node)}"
        for folder in ("graftlib", "adapters")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__")
    ]
    assert calls == [
        "graftlib/cli/doctor.py: importlib.import_module(MODULES.get(distribution, distribution))",
        "graftlib/disk.py: import_module('fcntl')",
        "graftlib/errors.py: importlib.import_module(module)",
        "graftlib/export/extras.py: importlib.import_module(name)",
        "graftlib/export/extras.py: importlib.import_module(name)",
    ], "an optional library is imported through graftlib.errors.optional"


# ------------------------------------------------------------------------------- what an import loads

OPTIONAL = {
    "torchvision",
    "timm",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "matplotlib",
    "sklearn",
    "lightning",
    "accelerate",
    "jinja2",
    "typer",
    "rich",
    "scipy",
    "joblib",
    "playwright",
}


def loaded_by(statement: str) -> set[str]:
    """The optional packages in `sys.modules` after `statement`, beyond those that torch brings itself."""
    code = (
        f"import sys, json, torch\nbefore = set(sys.modules)\n{statement}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = json.loads(result.stdout.splitlines()[-1])
    return {name.partition(".")[0] for name in names} & OPTIONAL


@pytest.mark.parametrize(
    "statement",
    [
        "import graftlib",
        "import graftlib\nfor name in dir(graftlib): getattr(graftlib, name)",
        "import graftlib_adapters\nfor name in dir(graftlib_adapters): getattr(graftlib_adapters, name)",
    ],
)
def test_an_import_leaves_optional_packages_alone(statement: str):
    assert loaded_by(statement) == set()


def test_the_probe_sees_a_package_that_is_loaded():
    assert "rich" in loaded_by("import rich.console")
    assert "typer" in loaded_by("import graftlib.cli")


# -------------------------------------------------------------------------------- what the text says


def tracked() -> list[Path]:
    """Our own text files; vendored libraries speak for themselves."""
    suffixes = {".py", ".md", ".toml", ".yml", ".html", ".j2", ""}
    folders = ["graftlib", "adapters", "examples", "tests", "docs"]
    found = [path for name in folders for path in (ROOT / name).rglob("*") if path.is_file()]
    return [
        path
        for path in [*found, *(p for p in ROOT.iterdir() if p.is_file())]
        if path.suffix in suffixes and not {"vendor", "__pycache__"} & set(path.parts)
    ]


def test_no_file_names_a_place_on_one_machine():
    """Paths of one developer's machine would be dead ends for all others."""
    place = re.compile(r"(?<![\w.])/(work|root|home|Users)/\w")
    assert place.search("see /" + "work/x")
    found = [str(path) for path in tracked() if place.search(path.read_text("utf-8", "replace"))]
    assert [path for path in found if not path.endswith("test_house.py")] == []


def test_the_version_is_the_same_everywhere():
    import graftlib

    assert graftlib.__version__ == PYPROJECT["project"]["version"]


# ------------------------------------------------------------------------------------ what is shipped


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from a copy of the sources (a build leaves files beside them)."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ["graftlib", "adapters"]:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source / name)
    # The build backend is among the developers' packages, so that a test needs no network.
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *options, "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = folder.glob("graftlib-*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_the_wheel_is_complete(wheel: set[str]):
    """Types, vendored assets with their licences, and every source file travel with it; tests and READMEs do not."""
    assert {"graftlib/py.typed", "graftlib_adapters/py.typed"} <= wheel
    for home, package in [(ROOT, "graftlib"), (ROOT / "adapters", "graftlib_adapters")]:
        ours = {
            path.relative_to(home).as_posix()
            for path in (home / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md"
        }
        assert ours - wheel == set()
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert any(name.endswith("entry_points.txt") for name in wheel)
    assert not [name for name in wheel if name.startswith(("tests", "examples", "docs"))]
    assert not [name for name in wheel if name.endswith("README.md")]


def test_the_readme_names_the_commands_of_a_newcomer():
    goals = set(re.findall(r"`make (\w+)`", (ROOT / "README.md").read_text("utf-8")))
    assert goals >= {"demo", "test"}
    assert goals <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
