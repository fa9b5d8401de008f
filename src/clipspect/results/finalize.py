"""Finalization of a run from its rows: calibration, verdicts and regions, then overlays, CSV and report.

All steps are idempotent: after a kill, the next run repeats them with the same result.

"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.data.prefetch import prefetch
from clipspect.detection import check_threshold
from clipspect.errors import ImageError, ResultsError
from clipspect.postprocess.calibration import Calibration, calibrate_unlabeled
from clipspect.postprocess.heatmap import draw_overlay
from clipspect.postprocess.maps import resize_map, write_grey
from clipspect.results.export import write_csv
from clipspect.results.files import open_whole, results_errors, write_picture
from clipspect.results.outputs import MapFormat, OverlayChoice, method_suffix, output_path
from clipspect.results.rows import (
    calibration_key,
    calibration_of,
    inside_of,
    judge_rows,
    map_of,
    mask_of,
    regions_of,
    summary_of,
)
from clipspect.results.schema import LIGHT_COLUMNS, SUMMARY_COLUMNS
from clipspect.results.store import (
    CSV,
    MAPS,
    MASKS,
    OVERLAYS,
    REPORT,
    ResultStore,
    digest_of,
    iterate_rows,
    judged_by,
    read_rows,
)
from clipspect.stitching import AMONG_GOOD

DRAWN_COLUMNS = (*LIGHT_COLUMNS, "class_logit", "layers", "map_height", "map_width")
"""Columns that overlays and maps are made of."""
OVERLAY_SIDE = 1600
OVERLAY_THREADS = 4

Pixels = Callable[[str], NDArray[np.uint8]]
"""Function that returns the image (H, W, 3) of a row's path; raises ImageError if it is no longer readable."""


@dataclass(frozen=True)
class RunTotals:
    """Totals over the rows of a finished run."""

    images: int
    flagged: int
    """Number of images that any method flags."""
    verdicts: Mapping[str, int]
    """verdict → number of images, for the first method."""
    failed: int
    missing: int
    """Rows of missing files; excluded from the other totals."""
    errors: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    calibrations: Mapping[str, Calibration]
    report: Path | None
    csv: Path | None


def finish_run(
    store: ResultStore,
    pixels: Pixels | None,
    *,
    calibrations: Mapping[str, Calibration],
    threshold: float | None,
    present: Collection[str] | None,
    levels: Mapping[str, Calibration] = MappingProxyType({}),
    maps: MapFormat = "none",
    masks: bool = False,
    overlays: OverlayChoice,
    csv: bool,
    report: bool,
    progress: Callable[[int, str], None],
) -> RunTotals:
    """Apply thresholds to all rows of a method with one calibration, and write overlays, CSV and report.

    Args:
        store: store of the rows.
        pixels: returns the image of a row's path, for the overlays; without it there are none.
        calibrations: method → calibration from known-good images; the others compare the images of the run.
        threshold: a score chosen by the user instead of 0.5.
        present: names of the existing images; rows of others are excluded from everything but the rows. None = those
            that existed when the rows were last judged.
        levels: method → level of one image alone, for a run of a single image.
        maps: whether calibrated maps in image size are written, and in which format.
        masks: whether the regions are written as masks in image size: 255 in a region, 0 elsewhere.
        overlays: which images get an overlay.
        csv: whether to write detections.csv.
        report: whether to write report.html.
        progress: called with the number of images done and the latest image.

    Raises:
        ResultsError: the folder cannot be written.
    """
    from clipspect.results.report import write_report

    methods = list(store.manifest["settings"]["methods"])
    found = _all_calibrations(store.out, methods, calibrations, present, levels)
    judged = at_thresholds(found, threshold)
    store.update_manifest(calibrations={method: one.to_dict() for method, one in judged.items()})
    for name in (
        OVERLAYS,
        MAPS,
        MASKS,
        CSV,
        REPORT,
    ):  # remove outputs of an earlier calibration, which would contradict the rows
        with results_errors(store.out / name):
            shutil.rmtree(store.out / name, ignore_errors=True)
            if name not in (OVERLAYS, MAPS, MASKS):
                (store.out / name).unlink(missing_ok=True)

    good = {digest for one in judged.values() for digest in one.hashes}
    rows = 0
    missing: set[str] = set()
    contaminated: set[str] = set()
    flagged: set[str] = set()
    verdicts: Counter[str] = Counter()
    errors: dict[str, str] = {}
    warnings: dict[str, None] = {}  # a set in order of appearance
    draws = masks or maps != "none" or (overlays != "none" and pixels is not None)
    digest = digest_of(judged)  # of every image's peak in a run without known-good images: once, not per part
    for part in store.parts():
        part_rows = _judged_rows(store, part, judged, digest, present, with_layers=draws)
        missing |= {row["path"] for row in part_rows if row["missing"]}
        undrawn = 0
        for row, drawn in prefetch(
            [row for row in part_rows if not row["missing"]],
            lambda row: _draw(
                store.out, row, pixels, overlays, maps, masks, judged, several=len(methods) > 1
            ),
            workers=OVERLAY_THREADS,
            ahead=2 * OVERLAY_THREADS,
        ):
            rows += 1
            if row["flag"]:
                flagged.add(row["path"])
            if row["method"] == methods[0]:
                verdicts[row["verdict"]] += 1
            if row["content_hash"] in good:
                contaminated.add(row["path"])
            if isinstance(drawn, ResultsError):
                raise drawn
            undrawn += isinstance(drawn, ImageError)
            if row["error"] is not None:
                errors.setdefault(row["path"], row["error"])
            warnings.update(
                (text, None) for text in row["warnings"] or [] if text != AMONG_GOOD
            )  # counted below
            progress(rows // len(methods), row["path"])
        if undrawn:
            warnings["Some overlays are missing, because their images could not be read again."] = None
    if contaminated:
        warnings[f"{_count(contaminated)} both in the run and among the known-good images."] = None
    if missing:
        warnings[
            f"{_count(missing)} no longer in the folder; rows of an earlier run are kept and not counted."
        ] = None
    return RunTotals(
        images=rows // len(methods),
        flagged=len(flagged),
        verdicts=dict(verdicts),
        failed=len(errors),
        missing=len(missing),
        errors=tuple(errors.items()),
        warnings=tuple(warnings),
        calibrations=judged,
        report=write_report(store.out) if report else None,
        csv=_write_csv(store.out) if csv else None,
    )


def at_thresholds(
    calibrations: Mapping[str, Calibration], threshold: float | None
) -> Mapping[str, Calibration]:
    """Return the calibrations with a threshold chosen by the user, or as they are. Raises UsageError."""
    if threshold is None:
        return calibrations
    check_threshold(threshold)
    return {m: replace(one, score_threshold=threshold) for m, one in calibrations.items()}


def _judged_rows(
    store: ResultStore,
    part: Path,
    judged: Mapping[str, Calibration],
    digest: str,
    present: Collection[str] | None,
    *,
    with_layers: bool,
) -> list[dict[str, Any]]:
    """Return the rows of a part with their verdicts; the part is written again only where they change."""
    if judged_by(part) == digest:
        rows = read_rows(part, DRAWN_COLUMNS if with_layers else LIGHT_COLUMNS)
        if all(row["missing"] == _is_missing(row, present) for row in rows):
            return rows
    rows = read_rows(part)
    judge_rows(rows, judged)
    for row in rows:
        row["missing"] = _is_missing(row, present)
    store.write_part(part, rows, digest)
    return rows


def _is_missing(row: Mapping[str, Any], present: Collection[str] | None) -> bool:
    return bool(row["missing"]) if present is None else row["path"] not in present


def _count(names: Collection[str]) -> str:
    return "1 image is" if len(names) == 1 else f"{len(names)} images are"


def _all_calibrations(
    out: Path,
    methods: Sequence[str],
    given: Mapping[str, Calibration],
    present: Collection[str] | None,
    levels: Mapping[str, Calibration],
) -> dict[str, Calibration]:
    """Return the calibration of each method and, in a run with several objects, of each method and object."""
    objects = sorted({row["object"] for row in iterate_rows(out, ["object"])})
    if len(objects) < 2:
        return {m: given.get(m) or calibrate_rows(out, m, present, None, levels.get(m)) for m in methods}
    pairs = {calibration_key(m, o): (m, o) for m in methods for o in objects}
    own = {
        key: given.get(key) or given.get(m) or calibrate_rows(out, m, present, o, levels.get(m))
        for key, (m, o) in pairs.items()
    }
    # what reads calibrations by method alone finds that of the first object
    return own | {m: own[calibration_key(m, objects[0])] for m in methods}


def calibrate_rows(
    out: Path,
    method: str,
    present: Collection[str] | None,
    object: str | None = None,
    level: Calibration | None = None,
) -> Calibration:
    """Return the calibration of a run without known-good images, of all objects or one.

    Without rows it is one that flags nothing, and ``level`` for one image alone.
    """
    summaries = [
        summary
        for row in iterate_rows(out, SUMMARY_COLUMNS)
        if row["method"] == method
        and object in (None, row["object"])
        and not _is_missing(row, present)
        and (summary := summary_of(row)) is not None
    ]
    if not summaries:
        return Calibration("none", 1.0, 0.0, (0.0,), (1.0,))
    return level if level is not None and len(summaries) == 1 else calibrate_unlabeled(summaries)


def _draw(
    out: Path,
    row: Mapping[str, Any],
    pixels: Pixels | None,
    overlays: OverlayChoice,
    maps: MapFormat,
    masks: bool,
    calibrations: Mapping[str, Calibration],
    *,
    several: bool,
) -> None:
    from PIL import Image

    if masks and (inside := mask_of(row, calibration_of(calibrations, row))) is not None:
        suffix = method_suffix(row["method"], several=several) + ".png"
        picture = Image.fromarray(inside).convert("L")
        write_picture(out, output_path(out / MASKS, row["path"], suffix), picture)
    wanted = overlays == "all" or (overlays == "flagged" and row["flag"])
    drawn = wanted and pixels is not None
    scores = map_of(row, calibration_of(calibrations, row)) if drawn or maps != "none" else None
    if scores is None:
        return
    if maps != "none":
        _write_map(out, row, scores, maps, several=several)
    if not wanted or pixels is None:
        return
    picture = draw_overlay(
        pixels(row["path"]), scores, regions_of(row), max_side=OVERLAY_SIDE, inside=inside_of(row)
    )
    suffix = method_suffix(row["method"], several=several) + ".png"
    write_picture(out, output_path(out / OVERLAYS, row["path"], suffix), picture)


def _write_map(
    out: Path, row: Mapping[str, Any], scores: NDArray[np.float32], maps: MapFormat, *, several: bool
) -> None:
    """Write the map in image size: 16-bit grayscale (65535 is 1) or float32."""
    values = resize_map(scores, row["height"], row["width"], inside_of(row))
    suffix = method_suffix(row["method"], several=several) + (".npy" if maps == "npy" else ".png")
    with open_whole(out, output_path(out / MAPS, row["path"], suffix)) as file:
        if maps == "npy":
            np.save(file, values)
        else:
            write_grey(file, values)


def _write_csv(out: Path) -> Path:
    target = out / CSV
    with open_whole(out, target) as file:
        write_csv(file, (row for row in iterate_rows(out, LIGHT_COLUMNS) if not row["missing"]))
    return target
