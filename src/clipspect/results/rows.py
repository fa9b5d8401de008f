"""Rows: one image's result as it is stored in Parquet."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.detection import Detection
from clipspect.postprocess.regions import find_regions
from clipspect.types import Region, Thresholds

LIGHT_COLUMNS = (
    "path", "content_hash", "width", "height", "object", "method", "model", "weights", "score", "flag",
    "regions", "error", "seconds", "image_threshold", "pixel_threshold", "threshold_source", "warnings",
    "finished_at", "host",
)  # fmt: skip
"""Every column but the two with pictures in them."""


def detections_schema() -> Any:
    """The Arrow schema of a part. ``map`` is (map_height, map_width) little-endian float16, row by row."""
    import pyarrow as pa

    region = pa.struct(
        [
            ("left", pa.int32()),
            ("top", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("area", pa.int64()),
            ("peak", pa.float64()),
            ("peak_x", pa.int32()),
            ("peak_y", pa.int32()),
        ]
    )
    return pa.schema(
        [
            ("path", pa.string()),
            ("content_hash", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("object", pa.string()),
            ("method", pa.string()),
            ("model", pa.string()),
            ("weights", pa.string()),
            ("score", pa.float64()),
            ("flag", pa.bool_()),
            ("regions", pa.list_(region)),
            ("error", pa.string()),
            ("seconds", pa.float64()),
            ("image_threshold", pa.float64()),
            ("pixel_threshold", pa.float64()),
            ("threshold_source", pa.string()),
            ("map", pa.binary()),
            ("map_height", pa.int32()),
            ("map_width", pa.int32()),
            ("preview", pa.binary()),
            ("warnings", pa.list_(pa.string())),
            ("finished_at", pa.timestamp("ms", tz="UTC")),
            ("host", pa.string()),
        ]
    )


def row_path(path: str) -> str:
    """A path as rows name it: names that are not valid UTF-8 have their odd bytes written out."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def detection_to_row(detection: Detection, preview: bytes | None) -> dict[str, Any]:
    """The row of a detection before the run's thresholds are known: no flag, no regions."""
    failed = detection.score_map is None or math.isnan(detection.score)
    return {
        "path": row_path(detection.path),
        "content_hash": detection.content_hash,
        "width": detection.width,
        "height": detection.height,
        "object": detection.object,
        "method": detection.method,
        "model": detection.model,
        "weights": detection.weights,
        # null, not NaN, which some readers sort above every score
        "score": None if failed else detection.score,
        "regions": [],
        "error": row_path(detection.error or "has no score") if failed else None,
        "seconds": detection.seconds,
        "map": None if failed else detection.compact_map.astype("<f2").tobytes(),
        "map_height": None if failed else detection.compact_map.shape[0],
        "map_width": None if failed else detection.compact_map.shape[1],
        "preview": preview,
        "warnings": list(detection.warnings),
        "finished_at": datetime.now(UTC),
        "host": platform.node(),
    }


def map_of(row: Mapping[str, Any]) -> NDArray[np.float16] | None:
    """The compact map (h, w) of a row; None where the image failed."""
    if row["map"] is None:
        return None
    return np.frombuffer(row["map"], "<f2").reshape(row["map_height"], row["map_width"]).astype(np.float16)


def regions_of(row: Mapping[str, Any]) -> list[Region]:
    """The regions of a row, highest peak first."""
    return [Region(**region) for region in row["regions"] or []]


def apply_thresholds(rows: Sequence[dict[str, Any]], thresholds_by_method: Mapping[str, Thresholds]) -> None:
    """Set flag, regions and thresholds of rows in place, from their scores and compact maps."""
    for row in rows:
        score_map = map_of(row)
        thresholds = thresholds_by_method[row["method"]]
        row["image_threshold"] = thresholds.image
        row["pixel_threshold"] = thresholds.pixel
        row["threshold_source"] = thresholds.source
        if score_map is None or row["score"] is None:
            row["flag"], row["regions"] = None, []
            continue
        found = find_regions(score_map, thresholds.pixel, row["height"], row["width"])
        row["flag"], row["regions"] = row["score"] >= thresholds.image, [asdict(region) for region in found]
