"""Every Python block of README and of the pages of docs runs: the README's alone, a page's from top to bottom."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
