"""The command line: thin Typer commands that parse, call the Detector, and say what came out."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from clipspect import __version__
from clipspect.cli.benchmark import benchmark
from clipspect.cli.catalog import methods, models
from clipspect.cli.detect import demo, detect
from clipspect.cli.export import export
from clipspect.cli.output import console
from clipspect.cli.references import references_app
from clipspect.cli.results import results_app
from clipspect.cli.serve import serve, ui
from clipspect.errors import ClipspectError

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
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


app.command()(detect)
app.command()(demo)
app.command()(models)
app.command()(methods)
app.command()(benchmark)
app.command()(ui)
app.command()(serve)
app.command()(export)
app.add_typer(references_app, name="references")
app.add_typer(results_app, name="results")


def main() -> None:
    """Run the command line; a ClipspectError becomes one red line and exit code 2."""
    try:
        app()
    except ClipspectError as error:
        console(stderr=True).print("error", str(error), style="bold red", markup=False, soft_wrap=True)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        console(stderr=True).print("stopped; run the same command again to go on")
        sys.exit(EXIT_INTERRUPTED)
