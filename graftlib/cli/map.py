"""``graftlib map``: a mapping between two models as a YAML file, by links or by proposal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import say, say_json, working
from .steps import begin, load_options, see_both

__all__ = ["map_models"]


@options.expanded
def map_models(
    source: options.ModelArgument,
    target: options.ModelArgument,
    links: Annotated[
        list[str] | None,
        typer.Option(
            "--link",
            metavar="SOURCE=TARGET",
            help="Two patterns of parameters, such as layer4.*.conv3=features.16.conv.2; repeat it for several "
            "rules. Without any the matcher proposes pairs.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The YAML file to write.")] = Path(
        "mapping.yaml"
    ),
    *,
    shared: options.PairOptions,
) -> None:
    """Pair parameters of two models and write the mapping as YAML.

    Example: graftlib map torchvision:resnet50 torchvision:mobilenet_v2 --link fc=classifier.1
    """
    rules = [tuple(link.partition("=")[::2]) for link in links or ()]
    if not all(all(rule) for rule in rules):
        raise typer.BadParameter("write SOURCE=TARGET", param_hint="--link")
    asked = begin(shared, "map", [source, target], output)
    others = load_options(shared.other())
    left, right = see_both(source, target, asked, others)
    with working("pairing"):
        from ..match import Mapping

        mapping = Mapping(left, right)
        for ours, theirs in rules:
            mapping.link(ours, theirs)
        if not rules:
            mapping.auto()
        mapping.save(output)
    if shared.as_json:
        pairs = [[pair.source.address, pair.target.address] for pair in mapping.pairs]
        say_json({"source": left.name, "target": right.name, "pairs": pairs, "path": str(output)})
    else:
        say(mapping)
        say(f"wrote {output}")
