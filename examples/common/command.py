"""The command line that experiments share: the module's docstring as its help, a file to write, a folder of data."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

__all__ = ["add_root", "parser"]


def parser(doc: str | None, out: str | None = None) -> argparse.ArgumentParser:
    """With ``--out``; without one nothing is written, unless `out` names what is written then."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("-o", "--out", type=Path, default=out, help="what to write")
    return made


def add_root(to: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--root``, the folder of the data; without it the one that GRAFTLIB_DATA names."""
    folder = os.environ.get("GRAFTLIB_DATA")
    to.add_argument(
        "--root",
        type=Path,
        default=folder,
        required=required and not folder,
        help="folder of the data, else GRAFTLIB_DATA",
    )
