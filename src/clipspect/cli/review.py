"""`clipspect review`: what people say of judged images, for lists, annotation tools and profile updates."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clipspect.cli.output import console
from clipspect.cli.strict import PlainGroup, StrictCommand
from clipspect.errors import UsageError
from clipspect.types import plural

review_app = typer.Typer(
    cls=PlainGroup,
    help="Decisions of people on judged images: add them, and export them.",
    no_args_is_help=True,
)
FolderArgument = Annotated[Path, typer.Argument(help="A results folder.", show_default=False)]


class ReviewFormat(str, Enum):
    """What reviews may be exported as."""

    csv = "csv"
    lists = "lists"
    coco = "coco"


@review_app.callback()
def _review() -> None:
    """Decisions of people on judged images: add them, and export them."""


@review_app.command("import", cls=StrictCommand)
def import_(
    folder: FolderArgument,
    file: Annotated[Path, typer.Argument(help="JSON that the report exported.", show_default=False)],
    reviewer: Annotated[str, typer.Option("--reviewer", help="Who decided.")] = "",
) -> None:
    """Store the decisions of a report beside the detections they are about."""
    from dataclasses import replace

    from clipspect.results.review import add_reviews, parse_reviews

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read ({error})") from None
    count = add_reviews(folder, [replace(one, reviewer=reviewer) for one in parse_reviews(text)])
    _say(f"{plural(count, 'decision')} stored in {folder}")


@review_app.command(cls=StrictCommand)
def export(
    folder: FolderArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write; a folder for lists.", show_default=False)
    ],
    format: Annotated[
        ReviewFormat,
        typer.Option(
            "--format",
            help="csv: a row per image. lists: accepted.txt and rejected.txt. coco: all images, with"
            " the regions of the rejected ones; FiftyOne reads it as COCODetectionDataset.",
        ),
    ] = ReviewFormat.csv,
    method: Annotated[str | None, typer.Option("--method", "-m", help="Whose regions and scores.")] = None,
) -> None:
    """Write the decisions for other programs."""
    from clipspect.results.files import open_beside
    from clipspect.results.review import reviewed_rows, write_review_coco, write_review_csv

    rows = list(reviewed_rows(folder, method))
    if not rows:
        raise UsageError(f"{folder}: no reviewed images there; see clipspect review import")
    if format is ReviewFormat.lists:
        out.mkdir(parents=True, exist_ok=True)
        for decision, name in (("accept", "accepted.txt"), ("reject", "rejected.txt")):
            lines = "".join(f"{row['path']}\n" for row in rows if row["decision"] == decision)
            with open_beside(out / name) as file:
                file.write(lines.encode())
    else:
        with open_beside(out) as file:
            if format is ReviewFormat.csv:
                write_review_csv(file, rows)
            else:
                write_review_coco(file, folder, rows)
    _say(f"{plural(len(rows), 'reviewed image')} in {out}")


@review_app.command(cls=StrictCommand)
def show(folder: FolderArgument) -> None:
    """Print each decision as a line of JSON, and how far the verdicts agree with them."""
    from clipspect.results.review import reviewed_rows

    agree = total = 0
    for row in reviewed_rows(folder):
        total += 1
        agree += bool(row["flag"]) == (row["decision"] == "reject")
        kept = {
            name: row[name] for name in ("path", "decision", "verdict", "score", "note", "tags", "reviewer")
        }
        print(json.dumps(kept, ensure_ascii=False))
    console(stderr=True).print(
        f"{agree} of {plural(total, 'verdict')} agree with the review", highlight=False
    )


def _say(text: str) -> None:
    console().print(text, highlight=False, markup=False, soft_wrap=True)
