"""Fails when the built reference lacks a public name: `python .ci/check_reference.py site`, after `mkdocs build`.

A name is public when one of the modules below lists it in `__all__`. It counts as documented when the page has an entry
for it with a heading of its own; a function needs its signature behind the heading, with every parameter.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

PACKAGES = (
    "graftlib",
    "graftlib.errors",
    "graftlib.progress",
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
    """The public names without an entry on the page, and the functions without their signature."""
    parts = re.split(r'<h\d id="(graftlib[\w.]*)"', page)
    entries: dict[str, list[str]] = {}
    for anchor, text in zip(parts[1::2], parts[2::2], strict=True):
        entries.setdefault(anchor.rpartition(".")[2], []).append(re.sub("<[^>]*>", "", text))
    return [
        f"{package}.{name}"
        for package in PACKAGES
        for name, value in _public(package)
        if not any(_shows(text, name, value) for text in entries.get(name, ()))
    ]


def _public(package: str) -> list[tuple[str, object]]:
    module = importlib.import_module(package)
    return [(name, getattr(module, name)) for name in module.__all__]


def _shows(text: str, name: str, value: object) -> bool:
    """Whether an entry has the signature of a function; of other values the heading is enough."""
    if not inspect.isfunction(value):
        return True
    signature = re.search(rf"\b{name}\((.*?)\)\s*(?:-&gt;|$)", text, re.DOTALL | re.MULTILINE)
    if signature is None:
        return False
    return all(
        re.search(rf"\b{each}\b", signature[1]) for each in inspect.signature(value).parameters
    )


if __name__ == "__main__":
    page = Path(sys.argv[1], "reference", "index.html").read_text("utf-8")
    if names := undocumented(page):
        sys.exit("the reference lacks, or shows without a signature, " + ", ".join(names))
    print("every public name is in the reference, every function with its signature")
