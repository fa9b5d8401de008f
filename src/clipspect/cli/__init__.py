"""The command line: thin Typer commands that parse, call the Detector, and say what came out."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from clipspect import __version__
from clipspect.cli.benchmark import benchmark, figure
from clipspect.cli.catalog import methods, models_app
from clipspect.cli.demo import demo
from clipspect.cli.detect import detect
from clipspect.cli.export import export
from clipspect.cli.output import console
from clipspect.cli.profile import profile_app
from clipspect.cli.references import references_app
from clipspect.cli.results import results_app
from clipspect.cli.review import review_app
from clipspect.cli.serve import serve, ui
from clipspect.cli.strict import EXIT_INTERRUPTED, PlainGroup, StrictCommand, interrupts
from clipspect.cli.watch import watch
from clipspect.errors import ClipspectError

EXIT_USAGE = 2

app = typer.Typer(
    cls=PlainGroup,
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


app.command(cls=StrictCommand)(detect)
app.command(cls=StrictCommand)(watch)
app.command(cls=StrictCommand)(demo)
app.command(cls=StrictCommand)(methods)
app.command(cls=StrictCommand)(benchmark)
app.command(cls=StrictCommand)(figure)
app.command(cls=StrictCommand)(ui)
app.command(cls=StrictCommand)(serve)
app.command(cls=StrictCommand)(export)
app.add_typer(models_app, name="models")
app.add_typer(profile_app, name="profile")
app.add_typer(references_app, name="references")
app.add_typer(results_app, name="results")
app.add_typer(review_app, name="review")


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
