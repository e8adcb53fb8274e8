"""``graftlib assemble``: merge layers of trained models into one by a recipe in YAML: one file in, one folder out.

Everything in the file is checked, and every file that it names looked for, before anything is executed; only what it
names as FILE.py runs; a killed command goes on with ``--resume``.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from graftlib.cli.console import say, say_json, say_preview
from graftlib.cli.options import Debug, DryRun, Json

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("assemble")(assemble)


def assemble(
    recipe: Annotated[
        Path,
        typer.Argument(
            exists=True,
            help="A YAML file: base, sources, evaluate. It may name FILE.py, which is then executed: use only recipes "
            "that you trust.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The folder to write.", show_default=False)
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what a killed run left in the folder.")
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Processes that align sources at the same time.")
    ] = 1,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Merge layers of trained models into one by a recipe in YAML.

    Example: graftlib assemble recipe.yaml -o out/

    The file, paths relative to it: {base: {model: nets.py:small, weights: base.safetensors}, sources: [{model:
    nets.py:large, weights: a.safetensors}, {model: nets.py:other, folder: zoo}], evaluate: metric.py:accuracy,
    settings: {pad: keep, restarts: 2}}.
    """
    from ..assembly.recipe import read

    steps = read(recipe)
    if dry_run:
        facts = steps.facts(output)
        headline = f"would merge {len(facts['sources'])} sources into {facts['base']}"
        say_preview(headline, facts, as_json=as_json)
        return
    with redirect_stdout(sys.stderr):  # what factories print is no result
        assembly = steps.run(output, resume=resume, jobs=jobs)
    if as_json:
        from ..assembly.card import report

        say_json({"path": str(output), **report(assembly.record)})
        return
    say(assembly)
    say(f"wrote {output}")
