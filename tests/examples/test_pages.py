"""Every Python block of README and of the pages of docs runs: the README's alone, a page's from top to bottom."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graftlib.cli.app import app

ROOT = Path(__file__).resolve().parents[2]

BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(text: str) -> tuple[list[str], int]:
    """The python blocks to run, in order, and how many are marked ``no-run``."""
    found = BLOCK.findall(text)
    kept = [code for mark, code in found if mark.strip() != "no-run"]
    return kept, len(found) - len(kept)


def run_blocks(blocks: list[str], folder: Path, *, alone: bool = False) -> None:
    """Run all blocks in one fresh interpreter; later ones may use names of earlier ones, unless each stands `alone`."""
    script = folder / "blocks.py"
    if alone:
        blocks = [f"exec({code!r}, {{'__name__': '__main__'}})" for code in blocks]
    script.write_text("\n\n".join(blocks))
    result = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr


PAGES = [
    name
    for name in [
        "README.md",
        *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
    ]
    if BLOCK.search((ROOT / name).read_text("utf-8"))
]


def test_pages_show_python():
    assert {"README.md", "docs/axes.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page: str, tmp_path: Path):
    blocks, skipped = python_blocks((ROOT / page).read_text("utf-8"))
    assert skipped <= len(blocks), f"{skipped} blocks are not run, {len(blocks)} are"
    run_blocks(blocks, tmp_path, alone=page == "README.md")


def test_a_new_user_sees_a_mapping_and_ships_a_slim_model_in_few_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The README's first block, line by line, but for the installation: 5 lines to a page, 6 to a file."""
    (block,) = re.findall(
        r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    install, *lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert install[:2] == ["pip", "install"]
    monkeypatch.chdir(tmp_path)
    for number, line in enumerate(lines, start=2):
        assert line[0] == "graftlib"
        result = CliRunner().invoke(app, line[1:])
        assert result.exit_code == 0, result.stderr
        page, file = Path("pair.html").exists(), Path("slim.onnx").exists()
        assert page or number < 5
        assert file or number < 6
    assert page
    assert file
    text = Path("pair.html").read_text("utf-8")
    (scene,) = re.findall(r'<script[^>]*"application/json"[^>]*>(.*?)</script>', text, re.S)
    assert len(json.loads(scene)["links"]["source"]) > 10


def test_the_readme_is_read_in_one_go():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def test_a_block_that_needs_another_is_seen(tmp_path: Path):
    run_blocks(["x = 1", "assert x == 1"], tmp_path)
    with pytest.raises(AssertionError, match="NameError"):
        run_blocks(["x = 1", "assert x == 1"], tmp_path, alone=True)


def test_a_block_that_does_not_run_is_seen(tmp_path: Path):
    text = "```python\nx = 1\n```\nand\n```python\nassert x == 2\n```\n```python no-run\n1/0\n```\n"
    blocks, skipped = python_blocks(text)
    assert (len(blocks), skipped) == (2, 1)
    with pytest.raises(AssertionError, match="assert x == 2"):
        run_blocks(blocks, tmp_path)
    run_blocks(blocks[:1], tmp_path)
