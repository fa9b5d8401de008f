"""Conversion of detections to the viewer's data (docs/results.md). No scoring."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import clipspect
from clipspect.detection import Detection
from clipspect.postprocess.calibration import MIN_GOOD, Calibration, calibrate_unlabeled
from clipspect.results.overview import Overview, finding
from clipspect.results.pictures import encode_map
from clipspect.results.rows import detection_to_row
from clipspect.results.run import preview_of
from clipspect.results.similar import group_rows
from clipspect.server.limits import sniff
from clipspect.types import plural

SHOWN_SIDE = 1600
SHOWN_BY_BROWSERS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")


def judge_together(detections: Sequence[Detection]) -> list[Detection]:
    """Return one method's detections; without known-good images, several are compared with each other."""
    summaries = [d.summary for d in detections if d.error is None and d.calibration is None]
    if len(summaries) < 2:
        return list(detections)
    calibration = calibrate_unlabeled(summaries)
    return [d if d.error is not None else replace(d, calibration=calibration) for d in detections]


def view_data(
    detections: Sequence[Detection],
    methods: Sequence[str],
    images: Sequence[bytes],
    seconds: float,
    good: int = 0,
) -> dict[str, Any]:
    """Return report, rows and pictures of an inspection. Images are named by their number, from 0.

    Args:
        detections: one per image and method, in order.
        methods: names in the order of each image's detections.
        images: the files, to find out which of them a browser cannot show.
        seconds: of the whole inspection.
        good: number of known-good images that were given.
    """
    each = len(methods)
    judged = {method: judge_together(detections[place::each]) for place, method in enumerate(methods)}
    overview = Overview(methods, max_cards=len(images), max_errors=len(images))
    calibrations: dict[str, Calibration] = {}
    rows, pictures = [], []
    named = [
        [replace(judged[method][number], path=str(number)) for method in methods]
        for number in range(len(images))
    ]
    all_rows = [[detection_to_row(one, None, judged=True) for one in own] for own in named]
    similar = group_rows(row for own_rows in all_rows for row in own_rows)
    for data, own, own_rows in zip(images, named, all_rows, strict=True):
        for row in own_rows:
            overview.add(row)
        if own[0].error is not None:
            continue
        for one in own:
            if one.error is None:
                calibrations.setdefault(one.method, one.calibration_used)
        first = own[0]
        rows.append(
            {
                "name": first.path,
                "object": first.object,
                "width": first.width,
                "height": first.height,
                "seconds": first.seconds,
                "truth": None,
                "findings": [
                    finding(row, None, similar.get((row["path"], row["method"]))) for row in own_rows
                ],
            }
        )
        preview = preview_of(first)
        pictures.append(
            {
                "photo": preview and base64.b64encode(preview).decode(),
                "large": _shown(first, data),
                "references": [],
                "maps": [
                    None if one.error is not None else encode_map(row, one.calibration_used, 2)
                    for one, row in zip(own, own_rows, strict=True)
                ],
            }
        )
    none = Calibration("none", 1.0, 0.0, (0.0,), (1.0,))
    overview.seconds = seconds
    report = overview.header(
        {method: calibrations.get(method, none) for method in methods},
        folder="",
        results="",
        created="",
        version=clipspect.__version__,
        settings=[],
        truth_source=None,
    )
    for summary in report["methods"]:
        if summary["threshold"] is None and summary["note"]:
            summary["note"] = _without_threshold(good)
    return {"report": report, "rows": rows, "pictures": pictures}


def _without_threshold(good: int) -> str:
    """Return why there is no threshold, without names of the command line's options."""
    given = "No known-good images" if not good else plural(good, "known-good image")
    return f"{given}: no threshold can be estimated from fewer than {MIN_GOOD}. Scores rank the images."


def _shown(detection: Detection, data: bytes) -> str | None:
    """Return a JPEG as base64 if browsers cannot show the file as it was scored; None if they can."""
    kind = sniff(data)
    is_deep = kind == "PNG" and data[24:25] == b"\x10"  # browsers ignore the range of 16-bit values
    if (kind in SHOWN_BY_BROWSERS and not is_deep) or detection.pixels is None:
        return None
    from PIL import Image

    image = Image.fromarray(detection.pixels())
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode()
