"""Rows: one image's result as stored in Parquet, with its verdict."""

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
from clipspect.postprocess.calibration import Calibration, Summary, summarize
from clipspect.postprocess.maps import inspected_cells, layers_of_map
from clipspect.postprocess.regions import find_regions, outline_regions, region_mask
from clipspect.postprocess.verdict import threshold_of, verdict_of
from clipspect.results.schema import COLUMNS, LIGHT_COLUMNS
from clipspect.types import FLAGS, Region


def row_path(path: str) -> str:
    """Return a path as stored in rows: bytes that are not valid UTF-8 are escaped."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def detection_to_row(detection: Detection, preview: bytes | None, *, judged: bool = False) -> dict[str, Any]:
    """Return the row of a detection; without ``judged`` the verdict is set at the end of the run."""
    failed = detection.score_map is None or math.isnan(detection.raw_score)
    row: dict[str, Any] = {
        **dict.fromkeys(column.name for column in COLUMNS),
        "path": row_path(detection.path),
        "content_hash": detection.content_hash,
        "width": detection.width,
        "height": detection.height,
        "object": detection.object,
        "method": detection.method,
        "model": detection.model,
        "weights": detection.weights,
        # null, because some readers sort NaN above every score
        "raw_score": None if failed else detection.raw_score,
        "regions": [],
        "verdict": "error" if failed else None,
        "error": row_path(detection.error or "has no score") if failed else None,
        "seconds": detection.seconds,
        "missing": False,
        "preview": preview,
        "warnings": list(detection.warnings),
        "finished_at": datetime.now(UTC),
        "host": platform.node(),
    }
    if not failed:
        layers = detection.compact_layers
        row |= {
            "class_logit": detection.class_logit,
            "peaks": list(detection.summary.peaks),
            "medians": list(detection.summary.medians),
            "layers": layers.astype("<f2").tobytes(),
            "map_height": layers.shape[1],
            "map_width": layers.shape[2],
            "embedding": None if detection.embedding is None else detection.embedding.astype("<f2").tobytes(),
        }
        if judged:
            judge_row(row, detection.calibration_used)
    return row


def layers_of(row: Mapping[str, Any]) -> NDArray[np.float16] | None:
    """Return the (K, h, w) log-odds layers of a row; None if the image failed."""
    if row["layers"] is None:
        return None
    values = np.frombuffer(row["layers"], "<f2").astype(np.float16)
    return values.reshape(-1, row["map_height"], row["map_width"])


def summary_of(row: Mapping[str, Any]) -> Summary | None:
    """Return the part of a row that a calibration needs; None if the image failed."""
    if row["peaks"] is None:
        return None
    return Summary(tuple(row["peaks"]), tuple(row["medians"]), row["class_logit"])


def map_of(row: Mapping[str, Any], calibration: Calibration) -> NDArray[np.float32] | None:
    """Return the calibrated map (h, w) of a row; None if the image failed."""
    layers = layers_of(row)
    if layers is None:
        return None
    return calibration.score_map(layers, row["class_logit"])


def inside_of(row: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Return the cells (h, w) of a row's region of interest; None if all of the image is inspected, or it failed."""
    layers = layers_of(row)
    return None if layers is None else inspected_cells(layers)


def outlines_of(row: Mapping[str, Any], calibration: Calibration) -> list[list[list[float]]]:
    """Return the polygons of each region of a row, as [x, y, …] in image pixels."""
    layers = layers_of(row)
    if layers is None:
        return []
    values = calibration.map(layers, row["class_logit"])
    return outline_regions(values, calibration, row["height"], row["width"])


def mask_of(row: Mapping[str, Any], calibration: Calibration) -> NDArray[np.bool_] | None:
    """Return which pixels (H, W) of a row's image belong to its regions; None if the image failed."""
    layers = layers_of(row)
    if layers is None:
        return None
    return region_mask(calibration.map(layers, row["class_logit"]), calibration, row["height"], row["width"])


def regions_of(row: Mapping[str, Any]) -> list[Region]:
    """Return the regions of a row, highest peak first."""
    return [Region(**region) for region in row["regions"] or []]


def judge_row(row: dict[str, Any], calibration: Calibration) -> None:
    """Set score, verdict and regions of a row in place."""
    row["threshold"], row["threshold_source"] = threshold_of(calibration), calibration.rule
    row["profile"] = calibration.profile or None
    summary, layers = summary_of(row), layers_of(row)
    if summary is None or layers is None:
        row |= {"score": None, "flag": None, "verdict": "error", "regions": []}
        return
    score = calibration.score(summary)
    values = calibration.map(layers, row["class_logit"])
    found = find_regions(values, calibration, row["height"], row["width"])
    row["score"], row["verdict"] = score, verdict_of(calibration, score)
    row["flag"], row["regions"] = row["verdict"] in FLAGS, [asdict(region) for region in found]


def calibration_key(method: str, object: str) -> str:
    """Key of the calibration of one object's images, in runs with several objects: ``anoclip/metal nut``."""
    return f"{method}/{object}"


def calibration_of(calibrations: Mapping[str, Calibration], row: Mapping[str, Any]) -> Calibration:
    """Return the calibration that judges a row: that of its object where a run has several, else of its method."""
    own = calibrations.get(calibration_key(row["method"], row["object"]))
    return calibrations[row["method"]] if own is None else own


def judge_rows(rows: Sequence[dict[str, Any]], calibrations: Mapping[str, Calibration]) -> None:
    """Set score, verdict and regions of rows in place, each by the calibration of its method, where there is one."""
    for row in rows:
        own = calibrations.get(calibration_key(row["method"], row["object"]), calibrations.get(row["method"]))
        if own is not None:
            judge_row(row, own)


def light_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of tables and JSON."""
    return {name: row[name] for name in LIGHT_COLUMNS}


def upgrade_row(row: dict[str, Any], height: int | None, width: int | None, score_map: bytes | None) -> None:
    """Add the layers to a row of results version 2, which stored the method's map."""
    row["raw_score"], row["missing"] = row.get("score"), False
    if score_map is None or height is None or width is None:
        return
    values = np.frombuffer(score_map, "<f2").reshape(height, width).astype(np.float32)
    layers = layers_of_map(values)
    summary = summarize(layers, None)
    row |= {
        "layers": layers.astype("<f2").tobytes(),
        "map_height": layers.shape[1],
        "map_width": layers.shape[2],
        "peaks": list(summary.peaks),
        "medians": list(summary.medians),
        "class_logit": None,
    }
