"""Comparison of two results folders: which images changed their verdict, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipspect.errors import UsageError
from clipspect.results.store import iterate_rows, read_manifest

COLUMNS = (
    *("path", "content_hash", "object", "method", "verdict", "score", "raw_score", "flag", "profile"),
    *("error", "missing"),
)
IDENTITY = ("model", "fingerprint", "precision", "image_size", "aspect", "tile", "domain", "prompts", "roi")
"""Settings of a run that are named where they differ."""
CALIBRATION = ("rule", "images", "false_alarm_rate", "threshold", "base", "score_threshold")


@dataclass(frozen=True)
class Change:
    """An image whose verdict differs between two runs."""

    path: str
    method: str
    before: str
    """Verdict in the first folder."""
    after: str
    score_before: float | None
    score_after: float | None
    reason: str


@dataclass(frozen=True)
class FolderComparison:
    """Two results folders side by side."""

    images: int
    """Number of images (and methods) in both."""
    only_before: int
    only_after: int
    pairs: dict[tuple[str, str], int]
    """(verdict before, verdict after) → number of images."""
    settings: tuple[str, ...]
    """What differs between the runs, in words."""
    changes: tuple[Change, ...]


def compare_results(before: Path, after: Path) -> FolderComparison:
    """Compare two results folders image by image, by path and method.

    Raises:
        ResultsError: no results folder.
        UsageError: no image in common.
    """
    manifests = [read_manifest(folder) for folder in (before, after)]
    settings = tuple(_settings(*manifests))
    first, second = _rows(before), _rows(after)
    both = sorted(first.keys() & second.keys())
    if not both:
        raise UsageError(f"{before} and {after} have no image and method in common")
    pairs = Counter((first[key]["verdict"], second[key]["verdict"]) for key in both)
    changes = [_change(key, first[key], second[key], settings) for key in both
               if first[key]["verdict"] != second[key]["verdict"]]  # fmt: skip
    return FolderComparison(
        len(both), len(first) - len(both), len(second) - len(both), dict(pairs), settings, tuple(changes)
    )


def _rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["path"], row["method"]): row for row in iterate_rows(folder, COLUMNS) if not row["missing"]}


def _settings(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What differs between two runs: model, preparation, methods' settings, calibrations."""
    one, other = before["settings"], after["settings"]
    for name in IDENTITY:
        if one.get(name) != other.get(name):
            yield f"{name.replace('_', ' ')} {_short(one.get(name))} → {_short(other.get(name))}"
    for method in one["methods"].keys() & other["methods"].keys():
        for key in sorted(one["methods"][method].keys() | other["methods"][method].keys()):
            values = one["methods"][method].get(key), other["methods"][method].get(key)
            if values[0] != values[1]:
                yield f"{method}'s {key.replace('_', ' ')} {_short(values[0])} → {_short(values[1])}"
    calibrations = before.get("calibrations", {}), after.get("calibrations", {})
    for method in calibrations[0].keys() & calibrations[1].keys():
        pairs = {key: [one[method].get(key) for one in calibrations] for key in CALIBRATION}
        parts = [
            f"{key.replace('_', ' ')} {_short(first)} → {_short(second)}"
            for key, (first, second) in pairs.items()
            if first != second
        ]
        if parts:
            yield f"{method}'s calibration: {', '.join(parts)}"


def _change(
    key: tuple[str, str], before: dict[str, Any], after: dict[str, Any], settings: tuple[str, ...]
) -> Change:
    if before["content_hash"] != after["content_hash"]:
        reason = "the image has changed"
    elif before["error"] or after["error"]:
        reason = f"it failed: {before['error'] or after['error']}"
    elif before["raw_score"] == after["raw_score"]:
        reason = "the same map, judged by another calibration or threshold"
    elif settings:
        reason = "another map, by other settings"
    else:
        reason = "another map, by other references or another set"
    return Change(*key, before["verdict"], after["verdict"], before["score"], after["score"], reason)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "none" if value is None else str(value)
    return text if len(text) <= 20 else f"{text[:12]}…"
