"""The end of a run, from its rows alone: thresholds, flags and regions, then overlays, CSV and report.

Everything here can be repeated: a run killed in between does it again and comes to the same result.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.data.prefetch import prefetch
from clipspect.detection import Thresholds
from clipspect.errors import ImageError, ResultsError
from clipspect.postprocess.heatmap import colour_scale, draw_overlay
from clipspect.postprocess.thresholds import guess_thresholds, settle_pixel
from clipspect.results.export import write_csv
from clipspect.results.files import open_whole, results_errors, write_whole
from clipspect.results.rows import LIGHT_COLUMNS, apply_thresholds, map_of, regions_of
from clipspect.results.run import OverlayChoice, method_suffix, output_path
from clipspect.results.store import CSV, OVERLAYS, REPORT, ResultStore, iterate_rows, read_rows

SAMPLES_PER_IMAGE = 256
SAMPLES = 1_000_000
"""Map values looked at to guess the pixel threshold and to choose the colours."""
OVERLAY_SIDE = 1600
OVERLAY_THREADS = 4

Pixels = Callable[[str], NDArray[np.uint8]]
"""Gives the image (H, W, 3) of a row's path; ImageError where it cannot be read any more."""


@dataclass(frozen=True)
class RunTotals:
    """What the rows of a finished run add up to."""

    images: int
    flagged: int
    failed: int
    errors: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    thresholds: Mapping[str, Thresholds]
    report: Path | None
    csv: Path | None


def finish_run(
    store: ResultStore,
    pixels: Pixels | None,
    *,
    thresholds: Mapping[str, Thresholds],
    overlays: OverlayChoice,
    csv: bool,
    report: bool,
    progress: Callable[[int, str], None],
) -> RunTotals:
    """Judge all rows of a method with one threshold and one colour scale, and write what people look at.

    ``pixels`` gives the image of a row's path, for the overlays; without it there are none. ``thresholds`` of a
    method that has none are guessed from its scores. Raises ResultsError.
    """
    from clipspect.results.report import write_report

    judged: dict[str, Thresholds] = {}
    scales: dict[str, tuple[float, float]] = {}
    methods = list(store.manifest["settings"]["methods"])
    for method in methods:
        scores, peaks, samples = sample_rows(store.out, method)
        guess = guess_thresholds(scores, peaks, samples)
        judged[method] = settle_pixel(thresholds[method], guess) if thresholds.get(method) else guess
        scales[method] = colour_scale(samples, judged[method].pixel)
    store.update_manifest(
        thresholds={method: asdict(found) for method, found in judged.items()}, colour_scales=scales
    )
    for name in (OVERLAYS, CSV, REPORT):  # those of earlier thresholds would contradict the rows
        with results_errors(store.out / name):
            shutil.rmtree(store.out / name, ignore_errors=True)
            if name != OVERLAYS:
                (store.out / name).unlink(missing_ok=True)

    rows = 0
    flagged: set[str] = set()
    errors: dict[str, str] = {}
    warnings: dict[str, None] = {}  # a set in order of appearance
    for part in store.parts():
        part_rows = read_rows(part)
        apply_thresholds(part_rows, judged)
        store.write_part(part, part_rows)
        undrawn = 0
        for row, drawn in prefetch(
            part_rows,
            lambda row: _draw(store.out, row, pixels, overlays, scales, several=len(methods) > 1),
            workers=OVERLAY_THREADS,
            ahead=2 * OVERLAY_THREADS,
        ):
            rows += 1
            if row["flag"]:
                flagged.add(row["path"])
            if isinstance(drawn, ResultsError):
                raise drawn
            undrawn += isinstance(drawn, ImageError)
            if row["error"] is not None:
                errors.setdefault(row["path"], row["error"])
            warnings.update(dict.fromkeys(row["warnings"] or []))
            progress(rows // len(methods), row["path"])
        if undrawn:
            warnings["Some overlays are missing, because their images could not be read again."] = None
    return RunTotals(
        images=rows // len(methods),
        flagged=len(flagged),
        failed=len(errors),
        errors=tuple(errors.items()),
        warnings=tuple(warnings),
        thresholds=judged,
        report=write_report(store.out) if report else None,
        csv=_write_csv(store.out) if csv else None,
    )


def sample_rows(out: Path, method: str) -> tuple[list[float], list[float], NDArray[np.float32]]:
    """Scores, map peaks, and evenly spread samples of the maps, at most a million, of one method's rows."""
    columns = ["method", "score", "map", "map_height", "map_width"]
    total = sum(row["method"] == method for row in iterate_rows(out, ["method"]))
    each = max(1, min(SAMPLES_PER_IMAGE, SAMPLES // max(1, total)))
    scores, peaks, samples = [], [], []
    for row in iterate_rows(out, columns):
        score_map = map_of(row) if row["method"] == method else None
        if score_map is None or row["score"] is None:
            continue
        scores.append(row["score"])
        peaks.append(float(score_map.max()))
        # a step without a factor in common with most widths, so that samples do not line up in columns
        step = max(1, score_map.size // each)
        samples.append(score_map.ravel()[:: step | 1].astype(np.float32))
    return scores, peaks, np.concatenate(samples) if samples else np.empty(0, np.float32)


def _draw(
    out: Path,
    row: Mapping[str, Any],
    pixels: Pixels | None,
    overlays: OverlayChoice,
    scales: Mapping[str, tuple[float, float]],
    *,
    several: bool,
) -> None:
    score_map = map_of(row)
    wanted = overlays == "all" or (overlays == "flagged" and row["flag"])
    if score_map is None or not wanted or pixels is None:
        return
    picture = draw_overlay(
        pixels(row["path"]),
        score_map.astype(np.float32),
        regions_of(row),
        scale=scales[row["method"]],
        max_side=OVERLAY_SIDE,
    )
    suffix = method_suffix(row["method"], several=several) + ".png"
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    write_whole(out, output_path(out / OVERLAYS, row["path"], suffix), buffer.getvalue())


def _write_csv(out: Path) -> Path:
    target = out / CSV
    with open_whole(out, target) as file:
        write_csv(file, iterate_rows(out, LIGHT_COLUMNS))
    return target
