"""Questions and answers of a backend, and conversion of detections to JSON values."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clipspect.detection import Detection
from clipspect.postprocess.maps import write_grey
from clipspect.results.export import detection_json
from clipspect.server.errors import ServiceError
from clipspect.server.requests import InspectRequest

OVERLAY_SIDE = 1600


@dataclass(frozen=True)
class Question:
    """Request as sent to a backend."""

    request: InspectRequest
    include: frozenset[str]
    """Visualizations to include in the response."""
    seconds: float
    """Seconds until the time limit."""


@dataclass(frozen=True)
class Answer:
    """Backend's result for one request."""

    weights: str
    results: list[dict[str, Any]]
    batched: int
    """Number of requests scored together, including this one."""
    seconds: float
    refusal: ServiceError | None = None
    """Error, set if the whole request is refused."""


def describe(detections: Sequence[Detection], include: frozenset[str]) -> list[dict[str, Any]]:
    """Return detections as the service's results; "overlay" and "map" images are drawn only on request."""
    return [
        {
            **detection_json(detection),
            "index": index,
            "overlay": _overlay(detection) if "overlay" in include and not detection.error else None,
            "map": _map(detection) if "map" in include and not detection.error else None,
        }
        for index, detection in enumerate(detections)
    ]


def _overlay(detection: Detection) -> str:
    buffer = io.BytesIO()
    detection.overlay(max_side=OVERLAY_SIDE).save(buffer, "PNG", compress_level=3)
    return base64.b64encode(buffer.getvalue()).decode()


def _map(detection: Detection) -> str:
    buffer = io.BytesIO()
    write_grey(buffer, detection.anomaly_map)
    return base64.b64encode(buffer.getvalue()).decode()
