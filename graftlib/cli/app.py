"""The app: which commands there are, and the one door that turns errors into exit codes.

In: `sys.argv`. Out: a `typer.Typer`. Law: `graftlib --help` imports neither torch nor a plug-in, and a plug-in that
cannot be loaded takes nothing else down with it (`plugins`).
"""

from __future__ import annotations

import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import GraftError
from . import plugins
from .check import check
from .console import complain
from .diff import diff
from .doctor import doctor
from .export import export
from .map import map_models
from .options import DEBUG, Debug
from .slim import slim
from .trace import trace
from .view import view

__all__ = ["app", "main"]

HELP = "\n\n".join(  # one line a paragraph: typer keeps line breaks as they are
    (
        "Surgery on the parameters of neural networks that do not look alike.",
        "Models are named torchvision:resnet18, timm:convnext_tiny, hf:FOLDER or FILE.py:FACTORY. "
        "The last form executes FILE.py.",
        "Example: graftlib trace torchvision:resnet18",
    )
)


class Commands(TyperGroup):
    """The built-in commands, then the plug-ins: listed unloaded, loaded when they are called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.plug_ins = {name for name in plugins.names() if name not in self.commands}
        for name in sorted(self.plug_ins):
            self.commands[name] = plugins.stand_in(name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called now; here a plug-in is loaded."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in self.plug_ins:
            command = plugins.load(name)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run; a `GraftError` becomes its own text on stderr and exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader has left (graftlib trace … | head); typer ends quietly
        except (GraftError, OSError) as error:
            if ctx.meta.get(DEBUG):
                complain(traceback.format_exc())
            elif isinstance(error, GraftError):
                complain(str(error))
            else:
                complain(f"{type(error).__name__}: {error}")
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Commands,
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"graftlib {version('graftlib')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Hold the options that stand before the command."""


for command in (trace, check, map_models, view, diff, slim, export, doctor):
    app.command(command.__name__.partition("_")[0])(command)


def main() -> None:
    """Run the command line on `sys.argv` and leave the process with its exit code."""
    app(prog_name="graftlib")
