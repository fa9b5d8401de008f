"""`clipspect results`: what to do with results folders once they are there."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipspect.cli.output import console
from clipspect.cli.strict import PlainGroup, StrictCommand
from clipspect.errors import UsageError
from clipspect.types import plural

if TYPE_CHECKING:
    from clipspect.results.finalize import RunTotals

results_app = typer.Typer(
    cls=PlainGroup,
    help="Merge, filter and export results folders, and rewrite their reports.",
    no_args_is_help=True,
)

FolderArgument = Annotated[Path, typer.Argument(help="A results folder.", show_default=False)]
NewFolder = Annotated[Path, typer.Option("--out", "-o", help="A new results folder.", show_default=False)]
MethodsOption = Annotated[
    list[str] | None, typer.Option("--method", "-m", help="Only this method's rows. Repeatable.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the results in --out.")]
ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", help="Threshold for all rows: flag scores of at least this value."),
]


JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of words.")]


class Format(str, Enum):
    """What rows may be exported as."""

    csv = "csv"
    coco = "coco"


@results_app.callback()
def _results() -> None:
    """Merge, filter and export results folders, and rewrite their reports."""


@results_app.command(cls=StrictCommand)
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Results folders.", show_default=False)],
    out: NewFolder,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="Put each folder's name before its images' names.")
    ] = False,
    threshold: ThresholdOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """One results folder of several that were made with the same settings.

    An image that is in several is taken once, the latest scored one. Folders
    that were judged with different known-good images are refused.
    """
    from clipspect.results.merge import merge_results

    outcome = merge_results(folders, out, prefix=prefix, threshold=threshold, overwrite=overwrite)
    _say(out, outcome)


@results_app.command(cls=StrictCommand)
def filter(
    folder: FolderArgument,
    out: NewFolder,
    flagged: Annotated[
        bool | None, typer.Option("--flagged/--not-flagged", help="Only flagged images, or only others.")
    ] = None,
    failed: Annotated[
        bool | None, typer.Option("--failed/--not-failed", help="Only those with an error, or only others.")
    ] = None,
    min_score: Annotated[float, typer.Option("--min-score", help="Lowest score.")] = 0.0,
    max_score: Annotated[float, typer.Option("--max-score", help="Highest score.")] = 1.0,
    name: Annotated[str, typer.Option("--name", help="Pattern of names: 'line 2/*.png'.")] = "*",
    method: MethodsOption = None,
    threshold: ThresholdOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """A results folder of some of the images of another; --threshold is applied after the choice."""
    from clipspect.results.merge import RowFilter, merge_results

    outcome = merge_results(
        [folder],
        out,
        choice=RowFilter(flagged, failed, min_score, max_score, name),
        methods=method or (),
        threshold=threshold,
        overwrite=overwrite,
    )
    _say(out, outcome)


@results_app.command(cls=StrictCommand)
def export(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.", show_default=False)],
    format: Annotated[
        Format,
        typer.Option("--format", help="csv: a row per image. coco: images, and regions as boxes."),
    ] = Format.csv,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="For coco, where the folder holds several.")
    ] = None,
) -> None:
    """Rows for other programs: a table, or COCO JSON for annotation tools (supervision reads it as it is)."""
    from clipspect.results.coco import write_coco
    from clipspect.results.export import write_csv
    from clipspect.results.files import open_beside
    from clipspect.results.schema import LIGHT_COLUMNS
    from clipspect.results.store import iterate_rows, read_manifest

    methods = list(read_manifest(folder)["settings"]["methods"])
    if method is not None and method not in methods:
        raise UsageError(f"no rows of {method}; there are: {', '.join(methods)}")
    if format is Format.coco and method is None and len(methods) > 1:
        raise UsageError(f"a COCO file is of one method; add --method with one of {', '.join(methods)}")
    with open_beside(out) as file:
        if format is Format.coco:
            write_coco(file, folder, method or methods[0])
        else:
            rows = iterate_rows(folder, LIGHT_COLUMNS)
            write_csv(file, (row for row in rows if method in (None, row["method"]) and not row["missing"]))
    console().print(f"written: {out}", highlight=False, markup=False, soft_wrap=True)


@results_app.command(cls=StrictCommand)
def report(folder: FolderArgument) -> None:
    """Write report.html again, from the rows alone; a lost manifest is rebuilt from them too."""
    from clipspect.results.merge import recover_manifest
    from clipspect.results.report import write_report

    recover_manifest(folder)
    path = write_report(folder)
    console().print(f"report: {path}", highlight=False, markup=False, soft_wrap=True)


@results_app.command(cls=StrictCommand)
def compare(before: FolderArgument, after: FolderArgument, as_json: JsonOption = False) -> None:
    """Say which images changed their verdict between two runs, and why."""
    import json
    from dataclasses import asdict

    from clipspect.postprocess.verdict import WORDS
    from clipspect.results.compare import compare_results

    found = compare_results(before, after)
    if as_json:
        print(json.dumps({**asdict(found), "pairs": [[*pair, count] for pair, count in found.pairs.items()]}))
        return
    for one in found.changes:
        scores = f"{_score(one.score_before)} → {_score(one.score_after)}"
        _print(f"{one.path}: {WORDS[one.before]} → {WORDS[one.after]} ({one.method} {scores}; {one.reason})")
    _print(f"{len(found.changes)} of {plural(found.images, 'verdict')} changed")
    if found.only_before or found.only_after:
        _print(f"not compared: {found.only_before} only in {before}, {found.only_after} only in {after}")
    for line in found.settings:
        _print(f"differs: {line}")


@results_app.command(cls=StrictCommand)
def drift(
    folder: FolderArgument,
    reference: Annotated[
        Path | None,
        typer.Argument(
            help="Results folder to compare with \\[default: the calibration's images].", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether scores, brightness or sharpness have changed since a threshold was taken, or since another run.

    Exit codes: 0 unchanged, or too few images; 1 changed; 2 wrong usage.
    """
    import json

    from clipspect.results.drift import describe_drift, find_drift

    found = find_drift(folder, reference)
    for line in [json.dumps(one.to_dict()) for one in found] if as_json else describe_drift(found):
        _print(line)
    if any(one.has_changed for one in found):
        raise typer.Exit(1)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _print(text: str) -> None:
    console().print(text, highlight=False, markup=False, soft_wrap=True)


def _say(out: Path, outcome: RunTotals) -> None:
    gone = f", {outcome.missing} no longer in their folder" if outcome.missing else ""
    text = f"{plural(outcome.images, 'image')}: {outcome.flagged} flagged, {outcome.failed} failed{gone}, in {out}"
    console().print(text, highlight=False, markup=False, soft_wrap=True)
