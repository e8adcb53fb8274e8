"""Fails when the built reference lacks a public name: `python .ci/check_reference.py site`, after `mkdocs build`.

A name is public when an `__init__` of the packages below lists it in `__all__`. It counts as documented when the page
has an entry for it with a heading of its own.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

PACKAGES = (
    "graftlib.graph",
    "graftlib.match",
    "graftlib.graft",
    "graftlib.surgery",
    "graftlib.slim",
    "graftlib.export",
    "graftlib.view",
    "graftlib_adapters",
    "graftlib_adapters.assembly",
)


def undocumented(page: str) -> list[str]:
    """The public names without an entry on the page."""
    entries = {anchor.rpartition(".")[2] for anchor in re.findall(r'id="(graftlib[\w.]*)"', page)}
    public = [
        f"{package}.{name}"
        for package in PACKAGES
        for name in importlib.import_module(package).__all__
    ]
    return [name for name in public if name.rpartition(".")[2] not in entries]


if __name__ == "__main__":
    page = Path(sys.argv[1], "reference", "index.html").read_text("utf-8")
    if names := undocumented(page):
        sys.exit("the reference lacks " + ", ".join(names))
    print("every public name is in the reference")
