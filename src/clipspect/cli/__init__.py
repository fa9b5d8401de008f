"""The command line: thin Typer commands that parse, call the Detector, and say what came out."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from clipspect import __version__
from clipspect.cli.output import console
from clipspect.cli.strict import EXIT_INTERRUPTED, CommandTable, PlainGroup, interrupts
from clipspect.errors import ClipspectError

COMMANDS = {
    "detect": "detect:detect",
    "watch": "watch:watch",
    "demo": "demo:demo",
    "methods": "catalog:methods",
    "benchmark": "benchmark:benchmark",
    "figure": "benchmark:figure",
    "ui": "serve:ui",
    "serve": "serve:serve",
    "export": "export:export",
    "models": "catalog:models_app",
    "profile": "profile:profile_app",
    "references": "references:references_app",
    "results": "results:results_app",
    "review": "review:review_app",
}
"""Command → module below ``clipspect.cli`` and the function or group in it, imported when the command is used."""

EXIT_USAGE = 2


class Commands(PlainGroup):
    """The commands, of which only the used one is imported."""

    def __init__(self, **settings: Any) -> None:
        """Take the settings of the root group, and commands that were added to the app."""
        super().__init__(**settings)
        self.commands = CommandTable(COMMANDS, self.commands)


app = typer.Typer(
    cls=Commands,
    name="clipspect",
    help="Zero-shot visual inspection with CLIP: name the object, get scores, heatmaps and a report.\n\n"
    "Start here: [bold]clipspect demo[/bold], then [bold]clipspect detect photos/ --object 'metal nut'[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"clipspect {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; a ClipspectError, or a path that cannot be used, becomes one red line and exit code 2."""
    try:
        with interrupts():
            app()
    except ClipspectError as error:
        console(stderr=True).print("error", str(error), style="bold red", markup=False, soft_wrap=True)
        sys.exit(EXIT_USAGE)
    except OSError as error:
        if error.filename is None:
            raise
        message = f"error {error.filename}: {error.strerror or error}"
        console(stderr=True).print(message, style="bold red", markup=False, soft_wrap=True)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
