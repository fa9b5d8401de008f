"""Levels of one image alone: from which peak on a map is suspicious, measured on clean images of other things.

A model ships with a ``calibration.json`` beside its weights; for others ``clipspect models calibrate`` measures the
level and keeps it in the cache, by fingerprint and input size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipspect.errors import UsageError, WeightsError
from clipspect.postprocess.calibration import Calibration, Summary, shipped_level
from clipspect.prompts.anchors import cache_folder

LEVEL_FILE = "calibration.json"
FALSE_ALARM_RATE = 0.01
"""Share of clean images of other things that may exceed a level: one image alone must rarely be called suspicious."""


def measure_level(method: str, summaries: Sequence[Summary], image_size: int, command: str) -> dict[str, Any]:
    """Take the level of a method from clean images of other things.

    Args:
        method: that scores one image alone, with one layer.
        summaries: of the clean images, 100 or more.
        image_size: input side.
        command: that made the images, for the record.

    Raises:
        UsageError: fewer than 100 images, or a method of several layers.
    """
    if len(summaries) < 100:
        raise UsageError(f"a level needs 100 or more clean images, not {len(summaries)}")
    peaks = np.array([s.peaks for s in summaries])
    if peaks.shape[1] != 1:
        raise UsageError(f"{method} compares images; a level is for methods that score one image alone")
    odds = float(np.quantile(peaks, 1 - FALSE_ALARM_RATE)), float(np.median([s.medians for s in summaries]))
    peak, median = (float(1 / (1 + np.exp(-value))) for value in odds)
    return {
        "image_size": image_size,
        "command": command,
        "levels": {
            method: {
                "peak": round(peak, 5),
                "median": round(median, 5),
                "images": len(summaries),
                "false_alarm_rate": FALSE_ALARM_RATE,
            }
        },
    }


def level_cache(fingerprint: str, image_size: int) -> Path:
    """Where the level measured for a model that ships without one is stored."""
    key = hashlib.sha256(f"{fingerprint} {image_size}".encode()).hexdigest()
    return cache_folder() / "levels" / f"{key}.json"


def write_levels(path: Path, levels: Mapping[str, Any]) -> None:
    """Write what :func:`measure_level` gave. Raises WeightsError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(levels, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_levels(path: Path, image_size: int) -> dict[str, Calibration]:
    """Method → level of a file; nothing where there is none, or one of another input size."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["image_size"] != image_size:
            return {}
        return {
            method: shipped_level(one["peak"], one["median"], one["images"], one["false_alarm_rate"])
            for method, one in stored["levels"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return {}
