"""Export of rows as COCO JSON for annotation tools: regions are boxes with their peaks as scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from clipspect.postprocess.calibration import Calibration
from clipspect.results.rows import calibration_of, outlines_of
from clipspect.results.store import iterate_rows, read_manifest

COLUMNS = (
    *(
        "path",
        "method",
        "object",
        "width",
        "height",
        "score",
        "flag",
        "verdict",
        "regions",
        "error",
        "content_hash",
        "missing",
    ),
    *("layers", "map_height", "map_width", "class_logit"),
)
CATEGORY = {"id": 1, "name": "anomaly", "supercategory": "anomaly"}


def write_coco(file: IO[bytes], out: Path, method: str) -> int:
    """Write the images and regions of one method's rows, row by row; return the number of images.

    Failed images are excluded, because they have no size. Boxes are [left, top, width, height] in image pixels, as in
    https://cocodataset.org/#format-data. ``segmentation`` are the outlines of a region's cells as polygons; holes are
    filled.

    Raises ResultsError.
    """
    info = {"description": f"clipspect {method}", "version": read_manifest(out)["clipspect"]}
    head = {"info": info, "licenses": [], "categories": [CATEGORY]}
    file.write(json.dumps(head)[:-1].encode())
    stored = read_manifest(out)["calibrations"]
    calibrations = {key: Calibration.from_dict(one) for key, one in stored.items()}
    count = _write_array(file, "images", (_image(number, row) for number, row in _scored(out, method)))
    _write_array(file, "annotations", _annotations(out, method, calibrations))
    file.write(b"}\n")
    return count


def _scored(out: Path, method: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows with their image ids, which are stable across calls."""
    rows = (
        row
        for row in iterate_rows(out, COLUMNS)
        if row["method"] == method and row["error"] is None and not row["missing"]
    )
    return enumerate(rows, start=1)


def _image(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("width", "height", "score", "flag", "verdict", "content_hash")
    return {"id": number, "file_name": row["path"], **{name: row[name] for name in names}}


def _annotations(out: Path, method: str, calibrations: Mapping[str, Calibration]) -> Iterator[dict[str, Any]]:
    number = 0
    for image, row in _scored(out, method):
        outlines = outlines_of(row, calibration_of(calibrations, row))
        for region, outline in zip(row["regions"] or [], outlines, strict=True):
            number += 1
            yield region_annotation(region, outline, number, image)


def region_annotation(
    region: Mapping[str, Any], outline: list[list[float]], number: int, image: int
) -> dict[str, Any]:
    """Return the annotation of a region with its outline."""
    return {
        "id": number,
        "image_id": image,
        "category_id": CATEGORY["id"],
        "bbox": [region[name] for name in ("left", "top", "width", "height")],
        "area": region["area"],
        "iscrowd": 0,
        "segmentation": outline,
        "score": region["peak"],
    }


def _write_array(file: IO[bytes], name: str, items: Iterable[Mapping[str, Any]]) -> int:
    file.write(f', "{name}": ['.encode())
    count = 0
    for count, item in enumerate(items, start=1):
        file.write((",\n" if count > 1 else "\n").encode() + json.dumps(item).encode())
    file.write(b"]")
    return count
