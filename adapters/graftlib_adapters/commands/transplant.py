"""``graftlib transplant``: start a model from the weights of another of its family, at any size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graftlib.cli import options
from graftlib.cli.console import say, say_json, working
from graftlib.cli.steps import begin, load_options, see_both

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("transplant")(transplant)


@options.expanded
def transplant(
    source: options.ModelArgument,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The model to start.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The safetensors file to write.")
    ] = Path("transplanted.safetensors"),
    mapping: Annotated[
        Path | None,
        typer.Option(
            "--mapping",
            exists=True,
            help="A saved mapping (YAML) between the two; without it layers are paired by kind, order and depth.",
            show_default=False,
        ),
    ] = None,
    importance: Annotated[
        str,
        typer.Option(
            "--importance",
            callback=options.one_of(("magnitude", "uniform")),
            help="Which units a narrower target takes: magnitude, or uniform (evenly spaced).",
        ),
    ] = "magnitude",
    blocks: Annotated[
        list[str] | None,
        typer.Option(
            "--block",
            metavar="TARGET=SOURCE",
            help="A module of the target and the one that it takes, such as layers.0=layers.5; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    *,
    shared: options.PairOptions,
) -> None:
    """Start a model from the weights of another of its family, at any size, and write its state_dict.

    Without --weights a library's model has random values, by --seed. --other-weights are what the target has where it
    takes nothing.

    Example: graftlib transplant nets.py:large nets.py:small --weights large.safetensors -o small.safetensors
    """
    if shared.device is options.Device.meta:
        raise typer.BadParameter(
            "weights are carried, the meta device holds none", param_hint="--device"
        )
    pairs = [block.partition("=")[::2] for block in blocks or ()]
    if not all(all(pair) for pair in pairs):
        raise typer.BadParameter("write TARGET=SOURCE", param_hint="--block")
    if pairs and mapping is not None:
        raise typer.BadParameter("give --mapping or --block, not both", param_hint="--block")
    device = "cpu" if shared.device is options.Device.auto else shared.device.value
    asked = begin(shared, "transplant", [source, target], output) | {"device": device}
    others = load_options(shared.other()) | {"device": device}
    left, right = see_both(source, target, asked, others)
    with working(f"writing {source} into {target}"):
        from graftlib.disk import write_whole
        from graftlib.match import Mapping

        from ..assembly.card import weights
        from ..assembly.transplanting import transplant as carry

        links = Mapping.load(mapping, left, right) if mapping else Mapping(left, right)
        done = carry(links, importance=importance, blocks=dict(pairs) or None)
        write_whole(output, weights(done.model))
    if shared.as_json:
        say_json(
            {
                "source": left.name,
                "target": right.name,
                "share": done.share,
                "written": {each.target: list(each.sources) for each in done.written},
                "left": dict(done.left),
                "path": str(output),
            }
        )
        return
    say(done)
    say(f"wrote {output}")
