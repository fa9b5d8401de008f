"""What the command line says: one image, a run, rows for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from clipspect.types import plural

if TYPE_CHECKING:
    from rich.console import Console

    from clipspect.detection import Detection
    from clipspect.results.run import RunSummary


def console(*, stderr: bool = False) -> Console:
    """A Rich console on stdout or stderr."""
    from rich.console import Console

    return Console(stderr=stderr)


STYLES = {"flagged": "bold red", "stands_out": "bold red", "suspicious": "bold yellow", "clean": "bold green"}


def print_detection(detection: Detection, overlay: Path | None) -> None:
    """Print one image's result."""
    from rich.markup import escape

    from clipspect.postprocess.verdict import WORDS, describe

    out = console()
    style = STYLES.get(detection.verdict, "bold")
    if detection.threshold is None:  # the calibrated scale means nothing for one image alone
        score = f"raw score [bold]{detection.raw_score:.3f}[/]"
    else:
        score = f"score [bold]{detection.score:.3f}[/], threshold {detection.threshold:g}"
    out.print(
        f"{escape(detection.path)}  {score}  [{style}]{WORDS[detection.verdict]}[/]",
        highlight=False,
    )
    for region in detection.regions[:10]:
        out.print(
            f"  region at ({region.left}, {region.top}), {region.width}×{region.height} px, peak {region.peak:.3f}",
            highlight=False,
        )
    out.print(f"  [dim]{escape(describe(detection.calibration_used))}[/]", highlight=False, soft_wrap=True)
    for warning in detection.warnings:
        out.print(f"[bold yellow]warning[/] {escape(warning)}", highlight=False, soft_wrap=True)
    if overlay is not None:
        out.print(f"overlay: {escape(str(overlay))}", highlight=False, soft_wrap=True)


def print_summary(summary: RunSummary) -> None:
    """Print what a run found and where it is."""
    from rich.markup import escape

    from clipspect.postprocess.verdict import count_verdict, describe

    out = console()
    for warning in summary.warnings:
        out.print(f"[bold yellow]warning[/] {escape(warning)}", highlight=False, soft_wrap=True)
    for path, reason in summary.errors:
        out.print(f"[bold red]failed[/] {escape(path)}: {escape(reason)}", highlight=False, soft_wrap=True)
    kept = f" ({summary.kept} from an earlier run)" if summary.kept else ""
    counts = ", ".join(
        f"[{STYLES.get(verdict, 'default')}]{count_verdict(number, verdict)}[/]"
        for verdict, number in sorted(summary.verdicts.items())
    )
    out.print(
        f"{plural(summary.images, 'image')}{kept}: {counts or 'none'}; {summary.seconds:.1f} s",
        highlight=False,
    )
    for method, calibration in summary.calibrations.items():
        name = f"{method}: " if len(summary.calibrations) > 1 else ""
        out.print(f"{name}{escape(describe(calibration))}", highlight=False, soft_wrap=True)
    if summary.report is not None:
        out.print(f"report: {escape(str(summary.report))}", highlight=False, soft_wrap=True)


def print_rows(folder: Path) -> None:
    """Every row of a results folder as one line of JSON."""
    from clipspect.results.export import json_rows

    for row in json_rows(folder):
        print(json.dumps(row))
