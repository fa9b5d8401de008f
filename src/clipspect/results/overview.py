"""Summary of rows for the viewer: counts, scores and verdicts by method (the type Report of docs/results.md)."""

from __future__ import annotations

import base64
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipspect.postprocess.calibration import Calibration
from clipspect.postprocess.verdict import WORDS, describe

MAX_ERRORS = 200


@dataclass
class MethodOverview:
    """Summary of one method's rows."""

    first: dict[str, Any] = field(default_factory=dict)
    flagged: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)


class Overview:
    """Summary of the light columns of all rows. Images are counted by the first method."""

    def __init__(self, methods: Sequence[str], max_cards: int, max_errors: int = MAX_ERRORS) -> None:
        """Count nothing yet. ``max_cards`` is the number of images with the highest scores to remember."""
        self.methods = {method: MethodOverview() for method in methods}
        self.max_cards, self.max_errors = max_cards, max_errors
        self.total = self.failed = 0
        self.seconds = 0.0
        self.errors: list[tuple[str, str]] = []
        self.warnings: dict[str, None] = {}
        self._best: list[tuple[float, str]] = []
        self._counted = methods[0]

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row."""
        own, is_counted = self.methods[row["method"]], row["method"] == self._counted
        own.first = own.first or dict(row)
        self.warnings.update(dict.fromkeys(row["warnings"] or []))
        if is_counted:
            self.total += 1
            self.seconds += row["seconds"] or 0.0
        if row["error"] is not None:
            self.failed += is_counted
            if is_counted and len(self.errors) < self.max_errors:
                self.errors.append((row["path"], row["error"]))
            return
        own.flagged += bool(row["flag"])
        if row["score"] is None:  # scored, but the run did not finish
            return
        own.verdicts[row["verdict"]] = own.verdicts.get(row["verdict"], 0) + 1
        own.scores.append(row["score"])
        if is_counted:
            push = heapq.heappush if len(self._best) < self.max_cards else heapq.heappushpop
            push(self._best, (row["score"], row["path"]))

    @property
    def first(self) -> MethodOverview:
        """Return the summary of the method that images are counted by."""
        return self.methods[self._counted]

    def ranked(self) -> list[str]:
        """Return the paths of the highest scores, highest first."""
        return [path for _, path in sorted(self._best, reverse=True)]

    def header(
        self,
        calibrations: Mapping[str, Calibration],
        *,
        folder: str,
        results: str,
        created: str,
        version: str,
        settings: Sequence[tuple[str, str]],
        truth_source: str | None,
    ) -> dict[str, Any]:
        """Return the summary as the viewer's type Report."""
        row = self.first.first
        objects = sorted({key.partition("/")[2] for key in calibrations if "/" in key})
        return {
            "object": ", ".join(objects) if objects else row.get("object", ""),
            "folder": folder,
            "results": results,
            "created": created,
            "version": version,
            "model": row.get("model", ""),
            "weights": row.get("weights", ""),
            "total": self.total,
            "failed": self.failed,
            "seconds": self.seconds,
            "cardLimit": self.max_cards,
            "errors": self.errors,
            "warnings": list(self.warnings),
            "settings": [*settings, ("Computing time", f"{self.seconds:.1f} s")],
            "words": WORDS,
            "methods": [_summary(name, own, calibrations) for name, own in self.methods.items()],
            "truthSource": truth_source,
        }


def _notes(name: str, calibrations: Mapping[str, Calibration]) -> str:
    """How the threshold of a method came about, per object where the run has several."""
    objects = {key.partition("/")[2]: one for key, one in calibrations.items() if key.startswith(f"{name}/")}
    if not objects:
        return describe(calibrations[name])
    return " ".join(f"{object}: {describe(one)}" for object, one in objects.items())


def _summary(name: str, own: MethodOverview, calibrations: Mapping[str, Calibration]) -> dict[str, Any]:
    calibration = calibrations[name]
    scores = (np.array(own.scores) * 65535 + 0.5).astype("<u2").tobytes()
    return {
        "name": name,
        "threshold": own.first.get("threshold"),
        "thresholdSource": own.first.get("threshold_source"),
        "note": _notes(name, calibrations) if own.first else "",
        "good": calibration.is_good,
        "verdicts": own.verdicts,
        "flagged": own.flagged,
        "scores": base64.b64encode(scores).decode("ascii"),
    }


def finding(row: Mapping[str, Any], overlay: str | None, similar: int | None) -> dict[str, Any]:
    """Return a row as the viewer's type Finding.

    Args:
        row: with score, verdict and regions.
        overlay: address of its overlay file.
        similar: its group of :func:`clipspect.results.similar.group_similar`.
    """
    return {
        "score": row["score"],
        "verdict": row["verdict"],
        "regions": [
            [r["left"], r["top"], r["width"], r["height"], r["area"], round(r["peak"], 4)]
            for r in row["regions"] or []
        ],
        "overlay": overlay,
        "similar": similar,
    }
