"""What the command line says: one image, a run, rows for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from clipspect.detection import Detection
    from clipspect.results.run import RunSummary


def console(*, stderr: bool = False) -> Console:
    """A Rich console on stdout or stderr."""
    from rich.console import Console

    return Console(stderr=stderr)


def print_detection(detection: Detection, overlay: Path | None) -> None:
    """One image for people."""
    from rich.markup import escape

    out = console()
    used = detection.thresholds_used
    verdict = "[bold red]anomalous[/]" if detection.flag else "[bold green]normal[/]"
    guess = " [dim](threshold is a guess)[/]" if used.source == "guess" else ""
    out.print(
        f"{escape(detection.path)}  score [bold]{detection.score:.3f}[/]  {verdict}, threshold {used.image:.3f}{guess}",
        highlight=False,
    )
    if detection.regions and not detection.flag:
        out.print(
            f"  below the threshold; these places reach that of pixels, {used.pixel:.3f}:", highlight=False
        )
    for region in detection.regions[:10]:
        out.print(
            f"  region at ({region.left}, {region.top}), {region.width}×{region.height} px, peak {region.peak:.3f}",
            highlight=False,
        )
    for warning in detection.warnings:
        out.print(f"[bold yellow]warning[/] {escape(warning)}", highlight=False)
    if overlay is not None:
        out.print(f"overlay: {escape(str(overlay))}", highlight=False, soft_wrap=True)


def print_summary(summary: RunSummary) -> None:
    """What a run left behind."""
    from rich.markup import escape

    out = console()
    for warning in summary.warnings:
        out.print(f"[bold yellow]warning[/] {escape(warning)}", highlight=False)
    for path, reason in summary.errors:
        out.print(f"[bold red]failed[/] {escape(path)}: {escape(reason)}", highlight=False)
    kept = f", {summary.kept} of them from an earlier run" if summary.kept else ""
    out.print(
        f"{summary.images} images{kept}: [bold]{summary.flagged} flagged[/], {summary.failed} failed,"
        f" {summary.seconds:.1f} s",
        highlight=False,
    )
    for method, thresholds in summary.thresholds.items():
        name = f"{method} " if len(summary.thresholds) > 1 else ""
        out.print(f"{name}threshold {thresholds.image:.3f}: {escape(thresholds.note)}", highlight=False)
    if summary.report is not None:
        out.print(f"report: {escape(str(summary.report))}", highlight=False, soft_wrap=True)


def print_rows(folder: Path) -> None:
    """Every row of a results folder as one line of JSON."""
    from clipspect.results.export import json_rows

    for row in json_rows(folder):
        print(json.dumps(row))
