"""What a backend is asked and answers, and detections as the values that go over the wire."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clipspect.detection import Detection
from clipspect.postprocess.maps import write_grey
from clipspect.results.export import detection_json
from clipspect.server.engine import InspectRequest
from clipspect.server.errors import ServiceError

OVERLAY_SIDE = 1600


@dataclass(frozen=True)
class Question:
    """A request as it travels to a backend."""

    inquiry: InspectRequest
    include: frozenset[str]
    """Pictures wanted in the answer."""
    seconds: float
    """From now on until nobody waits for the answer any more."""


@dataclass(frozen=True)
class Answer:
    """What a backend found for one inquiry."""

    weights: str
    results: list[dict[str, Any]]
    batched: int
    """Inquiries scored together with this one, itself included."""
    seconds: float
    refusal: ServiceError | None = None
    """Set where the inquiry as a whole is refused."""


def describe(detections: Sequence[Detection], include: frozenset[str]) -> list[dict[str, Any]]:
    """Detections as the service's results; "overlay" and "map" are pictures that are made where asked for."""
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
